//! The table of scenarios, in the order they run: what the later ones build on comes first.

mod adopt;
mod change;
mod down;
mod hooks;
mod kill;
mod smoke;
mod system;
mod traffic;

use anyhow::{Context as _, Result};

use super::report::Report;

/// Something the agent must do on a machine with kernel WireGuard.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One line for `--list`.
    pub(crate) about: &'static str,
    pub(crate) machine: Machine,
    /// On a bare machine: makes its own namespaces and agents, and takes them away.
    pub(crate) run: fn(&mut Report) -> Result<()>,
}

/// What a scenario runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// A kernel and this program as process 1.
    Bare,
    /// A distribution booted by systemd, with the agent installed as its service.
    System,
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "kernel-wireguard",
        about: "two namespaces reach each other through kernel WireGuard set up by hand",
        machine: Machine::Bare,
        run: smoke::kernel_wireguard,
    },
    Scenario {
        name: "facilities",
        about: "the agent finds kernel WireGuard and the best hook of this kernel, in status and doctor",
        machine: Machine::Bare,
        run: hooks::facilities,
    },
    Scenario {
        name: "traffic",
        about: "two agents carry IPv4 and IPv6; bytes agree between iperf3, wg and weft peers",
        machine: Machine::Bare,
        run: traffic::traffic,
    },
    Scenario {
        name: "hooks",
        about: "tcx or clsact holds each program once, the same ones after restarts and a kill",
        machine: Machine::Bare,
        run: hooks::survive_restarts,
    },
    Scenario {
        name: "kill",
        about: "kill -9 under traffic loses no packet and no byte; the restarted agent writes nothing to the kernel",
        machine: Machine::Bare,
        run: kill::kill,
    },
    Scenario {
        name: "adopt",
        about: "a link made by hand with our key is taken over under traffic",
        machine: Machine::Bare,
        run: adopt::ours,
    },
    Scenario {
        name: "foreign",
        about: "a link of somebody else is named and left alone",
        machine: Machine::Bare,
        run: adopt::foreign,
    },
    Scenario {
        name: "move",
        about: "an allowed IP moves between peers without losing a packet",
        machine: Machine::Bare,
        run: change::allowed_ip,
    },
    Scenario {
        name: "keys",
        about: "a new preshared key loses no packet; a new private key keeps the link, its peers and their counters",
        machine: Machine::Bare,
        run: change::keys,
    },
    Scenario {
        name: "down",
        about: "weft down takes away what the agent made and nothing else",
        machine: Machine::Bare,
        run: down::down,
    },
    Scenario {
        name: "unit",
        about: "the unit comes up at boot with few capabilities, and reloads",
        machine: Machine::System,
        run: system::unit,
    },
    Scenario {
        name: "resolved",
        about: "systemd-resolved asks the agent for the mesh's names and for no others",
        machine: Machine::System,
        run: system::resolved,
    },
    Scenario {
        name: "sandbox",
        about: "where nothing is supervised, the agent works in the whole sandbox of systemd",
        machine: Machine::System,
        run: system::sandbox,
    },
    Scenario {
        name: "watchdog",
        about: "an agent that hangs is replaced by systemd, and the link stays",
        machine: Machine::System,
        run: system::watchdog,
    },
    Scenario {
        name: "unit-stop",
        about: "stopping the unit leaves the link, weft down takes it away",
        machine: Machine::System,
        run: system::stop,
    },
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
