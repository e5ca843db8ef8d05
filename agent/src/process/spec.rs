//! A process as it is run: a definition that was checked in itself. Pure; files it names are looked at when it starts.

use std::sync::Arc;

use super::definition::Definition;
use super::health::Check;
use super::quantity::{self, Count, Ports};
use super::schedule::Schedule;
use super::watched::Rules;

/// The longest name; it is part of file and cgroup names.
const NAME_BYTES: usize = 64;
/// More arguments and variables than this are a mistake.
const MOST_TEXT_BYTES: usize = 1024 * 1024;

/// A checked definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub definition: Arc<Definition>,
    /// How many instances there are to be.
    pub instances: u32,
    pub check: Option<Check>,
    /// When it is restarted by the calendar.
    pub schedule: Option<Schedule>,
}

/// The processes of which each waits for the next, if any of `specs` waits for itself in the end.
pub fn cycle<'a>(waits: impl Fn(&str) -> Vec<&'a str>, from: &'a str) -> Option<Vec<&'a str>> {
    let mut path = vec![from];
    let mut seen = std::collections::BTreeSet::new();
    fn walk<'a>(
        waits: &impl Fn(&str) -> Vec<&'a str>,
        from: &'a str,
        path: &mut Vec<&'a str>,
        seen: &mut std::collections::BTreeSet<&'a str>,
    ) -> bool {
        for next in waits(path.last().copied().unwrap_or(from)) {
            path.push(next);
            if next == from || (seen.insert(next) && walk(waits, from, path, seen)) {
                return true;
            }
            path.pop();
        }
        false
    }
    walk(&waits, from, &mut path, &mut seen).then_some(path)
}

/// Why a definition cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct SpecError {
    /// The key, like `name` or `limits.cpus`.
    pub key: &'static str,
    /// The value and what is accepted.
    pub why: String,
}

fn refuse<T>(key: &'static str, why: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError { key, why: why.into() })
}

impl Definition {
    /// Checks the definition in itself. `processors` is what `instances = "max"` stands for.
    ///
    /// # Errors
    /// The first key that is wrong, with what is accepted.
    pub fn validate(self, processors: u32) -> Result<Spec, SpecError> {
        check_name("name", &self.name)?;
        check_name("namespace", &self.namespace)?;
        if self.script.trim().is_empty() {
            return refuse("script", "it is empty; name a program or a script");
        }
        let texts = [&self.script].into_iter().chain(&self.args.0).chain(&self.interpreter_args.0);
        let texts = texts.chain(self.env.keys()).chain(self.env.values().map(|value| &value.0));
        if texts.clone().any(|text| text.contains('\0')) {
            return refuse("script", "script, arguments and environment hold no NUL byte");
        }
        if texts.map(String::len).sum::<usize>() > MOST_TEXT_BYTES {
            return refuse("args", format!("arguments and environment are larger than {MOST_TEXT_BYTES} bytes"));
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return refuse("env", format!("{name:?} is no name of a variable"));
        }
        for (key, path) in [
            ("cwd", &self.cwd),
            ("env_file", &self.env_file),
            ("out_file", &self.out_file),
            ("error_file", &self.error_file),
        ] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return refuse(key, format!("{:?} is not an absolute path", path.display()));
            }
        }
        if self.limits.tasks == Some(0) {
            return refuse("limits.tasks", "0 lets no process live; take 1 or more");
        }
        let instances = match self.instances {
            Count::Exactly(count) => count,
            Count::Processors => processors.max(1),
        };
        self.check_ports(instances)?;
        if instances > 1 && (self.out_file.is_some() || self.error_file.is_some()) {
            return refuse(
                "out_file",
                "several instances cannot share one log file; leave out_file and error_file away",
            );
        }
        let check = match &self.health_check {
            Some(written) => Check::of(written).or_else(|why| refuse("health_check", why))?,
            None => None,
        };
        let schedule = match &self.cron_restart {
            Some(written) => Some(Schedule::parse(written).or_else(|why| refuse("cron_restart", why))?),
            None => None,
        };
        Rules::of(&self)?;
        self.check_names_and_commands()?;
        Ok(Spec { definition: Arc::new(self), instances, check, schedule })
    }

    fn check_names_and_commands(&self) -> Result<(), SpecError> {
        for other in &self.depends_on {
            check_name("depends_on", other)?;
            if *other == self.name {
                return refuse("depends_on", "a process cannot wait for itself");
            }
        }
        for (key, command) in [("pre_start", &self.pre_start), ("post_stop", &self.post_stop)] {
            let words = command.as_deref().map(quantity::split).transpose();
            if words.or_else(|why| refuse(key, why))?.is_some_and(|words| words.is_empty()) {
                return refuse(key, "it is empty; leave it away");
            }
        }
        let capabilities = self.isolation.capabilities.iter().flatten();
        let is_root = self.user.as_deref().is_none_or(|user| matches!(user, "root" | "0"));
        if !is_root && self.isolation.capabilities.is_some() {
            let why = "a process of another user than root holds none; leave capabilities or user away";
            return refuse("isolation.capabilities", why);
        }
        match capabilities.into_iter().find(|name| name.parse::<caps::Capability>().is_err()) {
            Some(name) => {
                refuse("isolation.capabilities", format!("{name:?} is no capability like CAP_NET_BIND_SERVICE"))
            }
            None => Ok(()),
        }
    }

    fn check_ports(&self, instances: u32) -> Result<(), SpecError> {
        let (first, last) = match self.port {
            Some(Ports::Range { first, last } | Ports::Free { first, last }) => (first, last),
            Some(Ports::One(_)) | None => return Ok(()),
        };
        let count = u32::from(last - first) + 1;
        if count < instances {
            return refuse("port", format!("{instances} instances need as many ports; {first}-{last} are {count}"));
        }
        Ok(())
    }
}

fn check_name(key: &'static str, name: &str) -> Result<(), SpecError> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES || !name.chars().all(is_fine) || name.starts_with(['.', '-']) {
        let shown: String = name.chars().take(NAME_BYTES).collect();
        return refuse(
            key,
            format!(
                "{shown:?} is not 1 to {NAME_BYTES} letters, digits, '.', '_' or '-', beginning with a letter or digit"
            ),
        );
    }
    if name == "all" || name.bytes().all(|byte| byte.is_ascii_digit()) {
        return refuse(key, format!("{name:?} means something else: \"all\" is every process, a number is an id"));
    }
    Ok(())
}

impl Spec {
    /// The name of one instance: the process's own if there is one, else with its number.
    pub fn instance_name(&self, index: u32) -> String {
        let name = &self.definition.name;
        if self.instances == 1 && index == 0 { name.clone() } else { format!("{name}-{index}") }
    }

    /// The name of the log files of one instance; it stays when the number of instances changes.
    pub fn log_name(&self, index: u32) -> String {
        let name = &self.definition.name;
        if index == 0 { name.clone() } else { format!("{name}-{index}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::quantity::Span;

    fn check(change: impl FnOnce(&mut Definition)) -> Result<Spec, String> {
        let mut definition = Definition::new("web", "/bin/true");
        change(&mut definition);
        definition.validate(4).map_err(|error| error.to_string())
    }

    #[test]
    fn names_that_would_leave_their_directory_or_mean_something_else_are_refused() {
        for wrong in ["", "..", "a/b", "-x", ".x", "all", "12", "a b", "a@b", &"x".repeat(65)] {
            assert!(
                check(|definition| definition.name = wrong.to_owned()).is_err_and(|error| error.starts_with("name:")),
                "{wrong:?}"
            );
        }
        assert!(check(|definition| definition.name = "web-api_2.x".to_owned()).is_ok());
    }

    #[test]
    fn a_cluster_needs_a_port_for_each_instance() {
        let cluster = |port: &str| {
            check(|definition| {
                definition.instances = Count::Exactly(3);
                definition.port = Ports::parse(port);
            })
        };
        assert!(cluster("3000-3001").is_err_and(|error| error.contains("3 instances")));
        assert!(cluster("3000-3002").is_ok());
    }

    #[test]
    fn max_is_one_a_processor_and_names_carry_the_number_only_in_a_cluster() {
        let spec = check(|definition| definition.instances = Count::Processors).expect("valid");
        assert_eq!((spec.instances, spec.instance_name(3)), (4, "web-3".to_owned()));
        assert_eq!(
            check(|definition| definition.kill_timeout = Span::millis(0)).expect("valid").instance_name(0),
            "web"
        );
    }

    #[test]
    fn a_circle_of_waiting_is_found() {
        let waits = |name: &str| match name {
            "a" => vec!["b", "c"],
            "c" => vec!["d"],
            "d" => vec!["b", "a"],
            _ => Vec::new(),
        };
        assert_eq!(cycle(waits, "a"), Some(vec!["a", "c", "d", "a"]));
        assert_eq!(cycle(waits, "b"), None);
    }

    #[test]
    fn wrong_dependencies_hooks_and_capabilities_are_refused() {
        let refused = |change: fn(&mut Definition), expected: &str| {
            assert!(check(change).is_err_and(|error| error.contains(expected)), "{expected}");
        };
        refused(|definition| definition.depends_on = vec!["web".to_owned()], "itself");
        refused(|definition| definition.depends_on = vec!["a/b".to_owned()], "depends_on");
        refused(|definition| definition.pre_start = Some(String::new()), "pre_start");
        refused(|definition| definition.post_stop = Some("a 'b".to_owned()), "quote");
        refused(|definition| definition.isolation.capabilities = Some(vec!["CAP_X".to_owned()]), "CAP_X");
    }

    #[test]
    fn a_relative_directory_is_refused() {
        assert!(check(|definition| definition.cwd = Some("app".into())).is_err_and(|error| error.starts_with("cwd:")));
    }
}
