//! Raft ACLs: which nodes may vote. Pure.
//!
//! Patterns are globs over the whole id: `*` stands for any run of characters, everything else for itself. No ACLs at all:
//! everybody may vote. Else a node votes if an ACL that matches allows it and none that matches denies it.

/// What an ACL does to the nodes it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Deny,
    Allow,
}

/// One ACL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    pub name: String,
    pub patterns: Vec<String>,
    pub action: Action,
}

/// Why an ACL cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    #[error("an ACL needs a name of 1 to 128 characters without control characters")]
    Name,
    #[error("ACL {0} has no pattern; `*` matches every node")]
    NoPattern(String),
    #[error(
        "pattern {pattern:?} of ACL {name} holds {character:?}; ids are a-z, 0-9 and -, and * stands for any of them"
    )]
    Pattern { name: String, pattern: String, character: char },
    #[error("ACL {0} has an empty pattern, or more than {MOST} patterns")]
    Patterns(String),
    #[error("action {0} is neither DENY (0) nor ALLOW (1)")]
    Action(i32),
}

/// The most patterns of one ACL.
const MOST: usize = 1024;

impl Acl {
    /// An ACL from parts as they came in.
    ///
    /// # Errors
    /// The first part that cannot be.
    pub fn parse(name: String, patterns: Vec<String>, action: i32) -> Result<Self, AclError> {
        if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
            return Err(AclError::Name);
        }
        let action = match action {
            0 => Action::Deny,
            1 => Action::Allow,
            other => return Err(AclError::Action(other)),
        };
        if patterns.is_empty() {
            return Err(AclError::NoPattern(name));
        }
        if patterns.len() > MOST || patterns.iter().any(String::is_empty) {
            return Err(AclError::Patterns(name));
        }
        for pattern in &patterns {
            if let Some(character) = pattern.chars().find(|character| !is_allowed(*character)) {
                return Err(AclError::Pattern { name, pattern: pattern.clone(), character });
            }
        }
        Ok(Self { name, patterns, action })
    }

    fn matches(&self, id: &str) -> bool {
        self.patterns.iter().any(|pattern| glob(pattern.as_bytes(), id.as_bytes()))
    }
}

fn is_allowed(character: char) -> bool {
    matches!(character, 'a'..='z' | '0'..='9' | '-' | '*')
}

/// Whether the node may vote, and which ACL says so; the reason is for people.
pub fn may_vote(acls: &[Acl], id: &str) -> (bool, String) {
    if acls.is_empty() {
        return (true, "there are no ACLs".to_owned());
    }
    let matching = |action| acls.iter().find(|acl| acl.action == action && acl.matches(id));
    match (matching(Action::Deny), matching(Action::Allow)) {
        (Some(denies), _) => (false, format!("ACL {} denies it", denies.name)),
        (None, Some(allows)) => (true, format!("ACL {} allows it", allows.name)),
        (None, None) => (false, "no ACL allows it".to_owned()),
    }
}

/// Whether `text` is what `pattern` means, in time linear in both but for what stars repeat.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where the last star stands, and how much of the text it has swallowed.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        if at < pattern.len() && pattern[at] == b'*' {
            star = Some((at, seen));
            at += 1;
        } else if at < pattern.len() && pattern[at] == text[seen] {
            at += 1;
            seen += 1;
        } else if let Some((stands, swallowed)) = star {
            star = Some((stands, swallowed + 1));
            at = stands + 1;
            seen = swallowed + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(name: &str, patterns: &[&str], action: i32) -> Acl {
        Acl::parse(name.to_owned(), patterns.iter().map(|text| (*text).to_owned()).collect(), action).expect("right")
    }

    #[test]
    fn patterns_match_the_whole_id() {
        for (pattern, id, expected) in [
            ("a", "banana", false),
            ("*a", "banana", true),
            ("b*n*", "banana", true),
            ("*", "x", true),
            ("db-*", "db-1", true),
            ("db-*", "xdb-1", false),
            ("a*b", "ab", true),
            ("a*b", "abc", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), id.as_bytes()), expected, "{pattern} {id}");
        }
    }

    #[test]
    fn without_acls_everybody_votes_and_a_denial_wins() {
        assert!(may_vote(&[], "alpha").0);
        let acls = [acl("all", &["*"], 1), acl("no-edge", &["edge-*"], 0)];
        assert_eq!(may_vote(&acls, "alpha"), (true, "ACL all allows it".to_owned()));
        assert_eq!(may_vote(&acls, "edge-1"), (false, "ACL no-edge denies it".to_owned()));
        assert_eq!(may_vote(&acls[1..], "alpha"), (false, "no ACL allows it".to_owned()));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refuse = |patterns: &[&str], action| {
            let patterns = patterns.iter().map(|text| (*text).to_owned()).collect();
            Acl::parse("x".to_owned(), patterns, action).expect_err("refused").to_string()
        };
        assert!(refuse(&["a.b"], 1).contains("'.'"));
        assert!(refuse(&[], 1).contains("no pattern"));
        assert!(refuse(&["*"], 7).contains("action 7"));
        assert!(Acl::parse(String::new(), vec!["*".to_owned()], 1).is_err());
    }

    #[test]
    fn many_stars_end_soon() {
        let pattern = "*a".repeat(200);
        assert!(!glob(pattern.as_bytes(), "a".repeat(190).as_bytes()));
    }
}
