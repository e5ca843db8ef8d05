//! How a running process is followed by another one of its instance: beside it, so that somebody serves all the time, or after
//! it, where both cannot be there at once. Pure.

use std::ops::RangeInclusive;

use crate::sys::listeners::Listener;

/// What is known before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The port that the running process was given.
    pub port: Option<u16>,
    /// The port of the next one.
    pub next: Option<u16>,
    /// Nothing listens on the port of the next one.
    pub is_free: bool,
    /// Ports of the kernel's choice: another process gets others.
    pub ephemeral: RangeInclusive<u16>,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Succession {
    /// The next one is started, and must listen on these ports before the one that runs is asked to end.
    Beside { must_listen: Vec<u16> },
    /// The one that runs is stopped first.
    After { why: String },
}

/// Decides by where the running process listens; `None`: the kernel does not tell.
pub fn plan(wish: &Wish, listeners: Option<&[Listener]>) -> Succession {
    let keeps = wish.next.filter(|next| wish.port == Some(*next) && !wish.is_free);
    let Some(listeners) = listeners else {
        return match keeps {
            Some(port) => after(format!("this kernel does not tell who listens on port {port} (Linux 5.9 does)")),
            None => Succession::Beside { must_listen: Vec::new() },
        };
    };
    let mut must_listen = Vec::new();
    for listener in listeners {
        let port = listener.address.port();
        let is_given = wish.port == Some(port);
        if is_given && wish.next != wish.port {
            must_listen.extend(wish.next);
        } else if is_given || !wish.ephemeral.contains(&port) {
            if !listener.can_be_shared {
                return after(format!("it listens on {} alone (without SO_REUSEPORT)", listener.address));
            }
            must_listen.push(port);
        }
    }
    let is_its_own = |port: u16| listeners.iter().any(|listener| listener.address.port() == port);
    if let Some(port) = keeps.filter(|port| !is_its_own(*port)) {
        return after(format!("port {port} is held by a socket that it did not make itself"));
    }
    must_listen.sort_unstable();
    must_listen.dedup();
    Succession::Beside { must_listen }
}

fn after(why: String) -> Succession {
    Succession::After { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str, can_be_shared: bool) -> Listener {
        Listener { address: address.parse().expect("an address"), can_be_shared }
    }

    fn wish(port: Option<u16>, next: Option<u16>, is_free: bool) -> Wish {
        Wish { port, next, is_free, ephemeral: 32768..=60999 }
    }

    fn beside(ports: &[u16]) -> Succession {
        Succession::Beside { must_listen: ports.to_vec() }
    }

    #[test]
    fn what_listens_alone_is_stopped_first_and_what_shares_or_moves_is_not() {
        let alone = [listener("0.0.0.0:3000", false)];
        let shared = [listener("0.0.0.0:3000", true), listener("[::]:3000", true), listener("127.0.0.1:9000", true)];
        let given = wish(Some(3000), Some(3000), false);
        let Succession::After { why } = plan(&given, Some(&alone)) else { panic!("both cannot listen") };
        assert!(why.contains("0.0.0.0:3000") && why.contains("SO_REUSEPORT"), "{why}");
        assert!(matches!(plan(&wish(None, None, true), Some(&alone)), Succession::After { .. }), "not given by us");
        assert_eq!(plan(&given, Some(&shared)), beside(&[3000, 9000]));
        assert_eq!(plan(&wish(Some(3000), Some(3001), true), Some(&alone)), beside(&[3001]), "another of auto:");
    }

    #[test]
    fn ports_of_the_kernels_choice_are_nobodys_and_a_worker_has_none() {
        assert_eq!(plan(&wish(None, None, true), Some(&[listener("0.0.0.0:45123", false)])), beside(&[]));
        assert_eq!(plan(&wish(None, None, true), Some(&[])), beside(&[]));
        let given = wish(Some(45123), Some(45123), false);
        assert!(matches!(plan(&given, Some(&[listener("[::]:45123", false)])), Succession::After { .. }));
    }

    #[test]
    fn a_port_whose_holder_is_not_known_is_not_shared() {
        let given = wish(Some(3000), Some(3000), false);
        for seen in [None, Some(&[][..])] {
            assert!(matches!(plan(&given, seen), Succession::After { .. }), "{seen:?}");
        }
        assert_eq!(plan(&wish(Some(3000), Some(3000), true), None), beside(&[]), "it does not listen there");
    }
}
