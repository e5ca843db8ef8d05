//! The table of scenarios, in the order they run: what the later ones build on comes first.

mod smoke;

use anyhow::{Context as _, Result};

use super::report::Report;

/// Something a machine with kernel WireGuard must do.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One line for `--list`.
    pub(crate) about: &'static str,
    /// Makes its own namespaces and agents, and takes them away.
    pub(crate) run: fn(&mut Report) -> Result<()>,
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[Scenario {
    name: "kernel-wireguard",
    about: "two namespaces reach each other through kernel WireGuard set up by hand",
    run: smoke::kernel_wireguard,
}];

/// The scenarios with these names; all if there are none.
pub(crate) fn select(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let find = |name: &String| {
        let found = ALL.iter().find(|scenario| scenario.name == name);
        found.with_context(|| format!("there is no scenario {name:?}; --list names them"))
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_pass_a_kernel_command_line() {
        for (at, scenario) in ALL.iter().enumerate() {
            assert!(scenario.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
            assert!(ALL[..at].iter().all(|other| other.name != scenario.name));
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(select(&["no-such".to_owned()]).unwrap_err().to_string().contains("no-such"));
        assert_eq!(select(&[]).unwrap().len(), ALL.len());
    }
}
