//! What a command of the file is usually there for, and what Weft has instead.

use std::path::PathBuf;

use super::Hook;

const NOTHING_TO_UNDO: &str = "leave it out: `weft down` takes away exactly what Weft made";
const OWN_UNIT: &str = "leave it out, or run it from a systemd unit of your own with After=weft.service";

/// A command with the advice for it.
pub(super) fn hook(line: usize, key: &'static str, command: &str) -> Hook {
    let undoes = matches!(key, "PreDown" | "PostDown");
    let instead = if undoes { NOTHING_TO_UNDO.to_owned() } else { advice(command) };
    Hook { line, key, command: command.to_owned(), instead }
}

/// The file of `wg set %i private-key FILE`, the form that wg-quick(8) shows.
pub(super) fn private_key_file(command: &str) -> Option<PathBuf> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let ["wg", "set", _link, "private-key", file] = words.as_slice() else { return None };
    file.starts_with('/').then(|| PathBuf::from(file))
}

fn advice(command: &str) -> String {
    let mut pieces: Vec<String> = Vec::new();
    for part in command.split([';', '&', '|']).map(str::trim).filter(|part| !part.is_empty()) {
        let piece = advice_for_one(part);
        if !pieces.contains(&piece) {
            pieces.push(piece);
        }
    }
    pieces.join("; ")
}

fn advice_for_one(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let has = |word: &str| words.iter().any(|candidate| candidate.eq_ignore_ascii_case(word));
    if has("MASQUERADE") {
        return masquerade(&words);
    }
    if has("FORWARD") && has("ACCEPT") {
        return "set forward = true in [firewall]".to_owned();
    }
    if (has("INPUT") && has("ACCEPT")) || has("ufw") || words.iter().any(|word| word.starts_with("--add-port")) {
        return "set open_port = true in [firewall]".to_owned();
    }
    if command.contains("ip_forward") || command.contains(".forwarding") {
        return "set it in /etc/sysctl.d, where it also holds before the tunnel is up".to_owned();
    }
    if has("TCPMSS") {
        return "leave it out, or set mtu in [network] if the way to the peers does not say its own".to_owned();
    }
    if command.starts_with("ip ") && has("route") {
        return "give the network to its peer in allowed_ips, and the table in [network]".to_owned();
    }
    if has("resolvectl") || has("resolvconf") || command.contains("systemd-resolve") {
        return "set hook = \"auto\" in [dns]".to_owned();
    }
    if command.starts_with("wg ") || command.starts_with("ip ") {
        return "leave it out where [wireguard], [network] and [[peer]] say the same".to_owned();
    }
    OWN_UNIT.to_owned()
}

fn masquerade(words: &[&str]) -> String {
    let source = words.windows(2).find(|pair| matches!(pair[0], "-s" | "--source" | "saddr")).map(|pair| pair[1]);
    match source {
        Some(network) => format!("set masquerade = [\"{network}\"] in [firewall]"),
        None => "set masquerade in [firewall] to the networks behind the tunnel, such as [\"10.0.0.0/24\"]".to_owned(),
    }
}
