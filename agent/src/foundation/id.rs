//! Identifiers that are parsed once, at the edge, and cannot be wrong afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused. `what` is the kind of name (`node id`, `instance`, …).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {why}")]
pub struct InvalidName {
    pub what: &'static str,
    pub value: String,
    pub why: &'static str,
}

/// Checks a single DNS label: 1 to 63 of `a-z 0-9 -`, no hyphen at either end (RFC 1035 section 2.3.1).
fn check_label(what: &'static str, value: &str) -> Result<(), InvalidName> {
    let refuse = |why| Err(InvalidName { what, value: value.to_owned(), why });
    if value.is_empty() {
        return refuse("it is empty");
    }
    if value.len() > 63 {
        return refuse("it is longer than 63 characters");
    }
    if value.starts_with('-') || value.ends_with('-') {
        return refuse("it begins or ends with a hyphen");
    }
    if !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return refuse("only a-z, 0-9 and - are accepted");
    }
    Ok(())
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                check_label($what, value)?;
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                check_label($what, &value)?;
                Ok(Self(value))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label_type!(
    /// The name of a node in the mesh; also its label below the mesh domain.
    NodeId,
    "node id"
);
label_type!(
    /// The name of one agent on a host; names its pins, nft table and cgroups.
    InstanceName,
    "instance"
);

impl NodeId {
    /// The node id that a host name gives: its first label in lower case, other characters as hyphens.
    pub fn from_host_name(host: &str) -> Result<Self, InvalidName> {
        let label = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let label: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
        label.trim_matches('-').parse()
    }
}

/// The name of a network link: 1 to 15 bytes, no `/`, no white space, not `.` or `..` (`dev_valid_name` in the kernel).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkName {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        let why = if value.is_empty() {
            "it is empty"
        } else if value.len() > 15 {
            "a link name has at most 15 bytes"
        } else if value == "." || value == ".." {
            "it is reserved"
        } else if value.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b.is_ascii_control()) {
            "it holds '/', ':', white space or a control character"
        } else {
            return Ok(Self(value));
        };
        Err(InvalidName { what: "link name", value, why })
    }
}

impl FromStr for LinkName {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        Self::try_from(value.to_owned())
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> String {
        name.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_id_accepts_a_dns_label() {
        assert_eq!("alpha-1".parse::<NodeId>().map(|id| id.to_string()), Ok("alpha-1".to_owned()));
    }

    #[test]
    fn node_id_refuses_what_dns_cannot_carry() {
        for bad in ["", "-a", "a-", "A", "a.b", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_name_becomes_a_node_id() {
        assert_eq!(NodeId::from_host_name("Web_01.example.org").map(String::from), Ok("web-01".to_owned()));
    }

    #[test]
    fn link_name_follows_the_kernel_rule() {
        assert!("weft0".parse::<LinkName>().is_ok());
        for bad in ["", "a/b", "..", "sixteen-bytes-xx", "a b"] {
            assert!(bad.parse::<LinkName>().is_err(), "{bad:?}");
        }
    }
}
