//! What a running agent takes from a changed file, and what needs a restart.

use super::Config;

/// The keys that differ between `running` and `wanted` and that a running agent cannot change.
///
/// Everything else (peers, addresses, key, ports and marks of the tunnel, `[network]`, `[firewall]`, `[process.NAME]`, `[log]`) is taken at
/// once. A reload with any of these keys changed is refused whole, so that nothing is half applied.
pub fn restart_keys(running: &Config, wanted: &Config) -> Vec<&'static str> {
    let checks = [
        ("instance", running.instance == wanted.instance),
        ("state_dir", running.state_dir == wanted.state_dir),
        ("run_dir", running.run_dir == wanted.run_dir),
        ("node.id", running.node.id == wanted.node.id),
        ("wireguard.link", running.wireguard.link == wanted.wireguard.link),
        ("wireguard.backend", running.wireguard.backend == wanted.wireguard.backend),
        ("[accounting]", running.accounting == wanted.accounting),
        ("[dns]", running.dns == wanted.dns),
        ("[gateway]", running.gateway == wanted.gateway),
        ("[raft]", running.raft == wanted.raft),
        ("[store]", running.store == wanted.store),
        ("[bus]", running.bus == wanted.bus),
        ("[web]", running.web == wanted.web),
        ("[grpc]", running.grpc == wanted.grpc),
        ("[supervisor]", running.supervisor == wanted.supervisor),
        ("[mesh]", running.mesh == wanted.mesh),
        ("log.format", running.log.format == wanted.log.format),
    ];
    checks.into_iter().filter_map(|(key, same)| (!same).then_some(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_and_ports_need_no_restart() {
        let running = Config::default();
        let mut wanted = running.clone();
        wanted.wireguard.listen_port = 1;
        wanted.log.level = "debug".to_owned();
        wanted.firewall.open_port = true;
        assert_eq!(restart_keys(&running, &wanted), Vec::<&str>::new());
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let running = Config::default();
        let mut wanted = running.clone();
        wanted.dns.enabled = false;
        wanted.wireguard.link = "weft1".parse().expect("a link name");
        assert_eq!(restart_keys(&running, &wanted), ["wireguard.link", "[dns]"]);
    }
}
