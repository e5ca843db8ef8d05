//! Who is internal: a pure decision over what the kernel said about a caller.
//!
//! Order: what is denied is external, whatever else holds; then supervised processes, granted units and granted users
//! are internal; everybody else is external. A caller nobody could tell anything about never comes here.

use std::sync::Arc;

/// The rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub users: Users,
    pub units: Vec<Pattern>,
    /// The cgroup path that supervised processes are below of, if they are internal.
    pub supervised: Option<String>,
    pub deny_units: Vec<Pattern>,
    pub deny_programs: Vec<Pattern>,
}

/// Whose processes are internal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    /// Every local user's.
    All,
    /// Those of these numbers.
    These(Vec<u32>),
}

/// A name in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern that is written so.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether `name` is one of those meant.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let parts: Vec<&str> = parts.collect();
        let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
        for part in middle {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    /// The same for a process, whose name the kernel cuts after fifteen bytes.
    fn matches_process(&self, name: &str) -> bool {
        self.matches(name) || (name.len() == CUT_NAME && !self.0.contains('*') && self.0.starts_with(name))
    }
}

/// Bytes of a process name that was cut.
const CUT_NAME: usize = 15;

/// What the kernel said.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub uid: u32,
    /// Path of the caller's cgroup below the mount; `None`: it could not be told.
    pub cgroup: Option<&'a str>,
    /// Names of the program: of its file, its process, its thread, as far as known.
    pub programs: &'a [&'a str],
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub is_internal: bool,
    /// Which rule decided, for logs.
    pub reason: Arc<str>,
    /// The systemd unit or supervised process.
    pub unit: Option<Arc<str>>,
    /// The file of the program, for the audit trail; filled in by whoever looked.
    pub executable: Option<Arc<str>>,
}

impl Policy {
    /// Decides.
    pub fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let unit = facts.cgroup.and_then(unit);
        let (is_internal, reason) = self.decide(facts, unit);
        let name = facts.cgroup.and_then(|path| self.process(path)).or(unit);
        Verdict { is_internal, reason: reason.into(), unit: name.map(Arc::from), executable: None }
    }

    fn decide(&self, facts: &Facts<'_>, unit: Option<&str>) -> (bool, String) {
        let denied = |program: &&&str| self.deny_programs.iter().any(|pattern| pattern.matches_process(program));
        if let Some(program) = facts.programs.iter().find(denied) {
            return (false, format!("{program} is denied by gateway.caller.deny_programs"));
        }
        let path = facts.cgroup.unwrap_or_default();
        let is_meant = |pattern: &Pattern| match pattern.0.starts_with('/') {
            true => pattern.matches(path),
            false => unit.is_some_and(|unit| pattern.matches(unit)),
        };
        if self.deny_units.iter().any(is_meant) {
            return (false, format!("{} is denied by gateway.caller.deny_units", unit.unwrap_or(path)));
        }
        if let Some(process) = self.process(path) {
            return (true, format!("supervised process {process}"));
        }
        if let Some(unit) = unit.filter(|unit| self.units.iter().any(|pattern| pattern.matches(unit))) {
            return (true, format!("{unit} is granted by gateway.caller.units"));
        }
        match &self.users {
            Users::All => (true, "gateway.caller.users has *".to_owned()),
            Users::These(uids) if uids.contains(&facts.uid) => (true, format!("uid {}", facts.uid)),
            Users::These(_) => (false, format!("uid {} is not in gateway.caller.users", facts.uid)),
        }
    }

    /// The supervised process in a cgroup: `NAME@INDEX.GENERATION`, or one below it.
    fn process<'a>(&self, path: &'a str) -> Option<&'a str> {
        let below = path.strip_prefix(self.supervised.as_deref()?)?;
        let name = below.split('/').next()?.rsplit_once('@').map(|(name, _)| name)?;
        (!name.is_empty()).then_some(name)
    }
}

/// The systemd unit of a cgroup: the outermost, because what is inside a unit is named by its own user.
fn unit(path: &str) -> Option<&str> {
    path.split('/').find(|part| part.ends_with(".service") || part.ends_with(".scope"))
}

#[cfg(test)]
mod tests {
    use super::super::config::Config;
    use super::*;

    fn policy() -> Policy {
        let units = vec!["backup-*.service".to_owned()];
        Config { units, ..Config::default() }.policy("default").expect("right")
    }

    fn check(uid: u32, cgroup: &str, program: &str, is_internal: bool, reason: &str) {
        let verdict = policy().judge(&Facts { uid, cgroup: Some(cgroup), programs: &[program] });
        assert_eq!(verdict.is_internal, is_internal, "{verdict:?}");
        assert!(verdict.reason.contains(reason), "{verdict:?}");
    }

    #[test]
    fn root_is_internal() {
        check(0, "/user.slice/user-0.slice/session-1.scope", "curl", true, "uid 0");
    }

    #[test]
    fn another_user_is_external() {
        check(1000, "/user.slice/user-1000.slice/session-2.scope", "curl", false, "uid 1000 is not in");
    }

    #[test]
    fn a_proxy_is_external_even_as_root() {
        check(0, "/system.slice/nginx.service", "anything", false, "nginx.service is denied");
        check(0, "/user.slice/user-0.slice/session-1.scope", "nginx", false, "nginx is denied");
        check(0, "/", "sshd-session", false, "sshd-session is denied");
        check(0, "/", "pasta.avx2", false, "pasta.avx2 is denied");
    }

    #[test]
    fn a_container_is_external_even_as_root_in_the_hosts_network() {
        check(0, "/system.slice/docker-0123.scope", "curl", false, "docker-0123.scope is denied");
        check(0, "/docker/0123", "curl", false, "/docker/0123 is denied");
        check(0, "/kubepods.slice/kubepods-pod1.slice/cri-containerd-01.scope", "curl", false, "denied");
    }

    #[test]
    fn a_granted_unit_is_internal_whoever_its_user_is() {
        check(33, "/system.slice/backup-daily.service", "rsync", true, "backup-daily.service is granted");
    }

    #[test]
    fn a_users_own_unit_of_a_granted_name_is_not_the_granted_one() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/backup-daily.service";
        check(1000, path, "rsync", false, "uid 1000");
    }

    #[test]
    fn a_supervised_process_is_internal_and_has_its_name() {
        let path = "/weft/default/web@0.3/worker";
        check(33, path, "node", true, "supervised process web");
        let verdict = policy().judge(&Facts { uid: 33, cgroup: Some(path), programs: &[] });
        assert_eq!(verdict.unit.as_deref(), Some("web"));
    }

    #[test]
    fn a_cgroup_that_only_looks_supervised_is_not() {
        check(33, "/user.slice/user-33.slice/weft/default/web@0.3", "node", false, "uid 33");
        check(33, "/weft/other/web@0.3", "node", false, "uid 33");
        check(33, "/weft/default/web", "node", false, "uid 33");
        check(33, "/weft/default/@0.3", "node", false, "uid 33");
    }

    #[test]
    fn a_supervised_proxy_is_external() {
        check(0, "/weft/default/front@0.1", "nginx", false, "nginx is denied");
    }

    #[test]
    fn a_caller_without_a_cgroup_is_judged_by_its_user() {
        let facts = Facts { uid: 0, cgroup: None, programs: &["curl"] };
        assert!(policy().judge(&facts).is_internal);
        assert!(!policy().judge(&Facts { uid: 7, ..facts }).is_internal);
    }

    #[test]
    fn a_name_that_the_kernel_cut_is_still_denied() {
        let config = Config { deny_programs: vec!["a-proxy-of-long-name".to_owned()], ..Config::default() };
        let policy = config.policy("default").expect("right");
        let facts = Facts { uid: 0, cgroup: None, programs: &["a-proxy-of-long"] };
        assert!(!policy.judge(&facts).is_internal);
    }

    #[test]
    fn patterns_are_whole_names() {
        let matches = |pattern: &str, name: &str| Pattern::new(pattern).matches(name);
        assert!(matches("nginx", "nginx") && !matches("nginx", "nginx2") && !matches("nginx", "xnginx"));
        assert!(matches("ssh@*.service", "ssh@1.service") && !matches("ssh@*.service", "ssh@1.scope"));
        assert!(matches("*", "") && matches("a*b*c", "a1b2c") && !matches("a*b*c", "a1c2b"));
        assert!(!matches("ab*ba", "aba"), "one text is not used twice");
    }
}
