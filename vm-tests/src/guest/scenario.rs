//! The table of scenarios, in the order they run: what the later ones build on comes first.

mod adopt;
mod change;
mod down;
mod hooks;
mod kill;
mod smoke;
mod traffic;

use anyhow::{Context as _, Result};

use super::report::Report;

/// Something the agent must do on a machine with kernel WireGuard.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One line for `--list`.
    pub(crate) about: &'static str,
    /// Makes its own namespaces and agents, and takes them away.
    pub(crate) run: fn(&mut Report) -> Result<()>,
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "kernel-wireguard",
        about: "two namespaces reach each other through kernel WireGuard set up by hand",
        run: smoke::kernel_wireguard,
    },
    Scenario {
        name: "facilities",
        about: "the agent finds kernel WireGuard and the best hook of this kernel, in status and doctor",
        run: hooks::facilities,
    },
    Scenario {
        name: "traffic",
        about: "two agents carry IPv4 and IPv6; bytes agree between iperf3, wg and weft peers",
        run: traffic::traffic,
    },
    Scenario {
        name: "hooks",
        about: "tcx or clsact holds each program once, the same ones after restarts and a kill",
        run: hooks::survive_restarts,
    },
    Scenario {
        name: "kill",
        about: "kill -9 under traffic loses no packet and no byte; the restarted agent writes nothing to the kernel",
        run: kill::kill,
    },
    Scenario { name: "adopt", about: "a link made by hand with our key is taken over under traffic", run: adopt::ours },
    Scenario { name: "foreign", about: "a link of somebody else is named and left alone", run: adopt::foreign },
    Scenario {
        name: "move",
        about: "an allowed IP moves between peers without losing a packet",
        run: change::allowed_ip,
    },
    Scenario {
        name: "keys",
        about: "a new preshared key loses no packet; a new private key keeps the link, its peers and their counters",
        run: change::keys,
    },
    Scenario { name: "down", about: "weft down takes away what the agent made and nothing else", run: down::down },
];

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
