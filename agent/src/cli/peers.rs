//! `weft peers`.

use weft_proto::weft::v1 as proto;

use super::client::Client;
use super::output::{self, Align, Style, Table, Tone, cell, toned};
use super::{Exit, Failure};

pub(super) async fn run(client: &Client, json: bool) -> Result<Exit, Failure> {
    let list: proto::PeerList = client.get("/status/peers").await?;
    if json {
        output::print_json(&list)?;
    } else {
        output::print(&render(&list, Style::of_stdout()))?;
    }
    Ok(if list.errors.is_empty() { Exit::Ok } else { Exit::Degraded })
}

fn render(list: &proto::PeerList, style: Style) -> String {
    if list.peers.is_empty() {
        return "no peers are configured; add a [[peer]] to weft.toml and run `weft reload`\n".to_owned();
    }
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("RECEIVED", Align::Right),
        ("SENT", Align::Right),
        ("ENDPOINT", Align::Left),
        ("ALLOWED IPS", Align::Left),
        ("WHY", Align::Left),
    ]);
    for peer in &list.peers {
        let received = sum(peer.traffic.as_ref(), |traffic| traffic.rx, peer.wireguard_rx_bytes);
        let sent = sum(peer.traffic.as_ref(), |traffic| traffic.tx, peer.wireguard_tx_bytes);
        table.row(vec![
            cell(&peer.name),
            toned(tone(&peer.state), &peer.state),
            cell(received),
            cell(sent),
            cell(peer.endpoint.as_deref().unwrap_or("-")),
            cell(prefixes(&peer.allowed_ips)),
            toned(Tone::Faint, &peer.reason),
        ]);
    }
    let mut text = table.render(style);
    for error in &list.errors {
        text.push_str(&format!("{} {error}\n", style.paint(Tone::Bad, "missing:")));
    }
    text
}

fn tone(state: &str) -> Tone {
    match state {
        "connected" => Tone::Good,
        "idle" | "relayed" => Tone::Warning,
        _ => Tone::Faint,
    }
}

/// Bytes inside the tunnel where they are counted, else the device's own figure, marked.
fn sum(
    traffic: Option<&proto::Traffic>,
    direction: impl Fn(&proto::Traffic) -> Option<proto::Counters>,
    device: Option<u64>,
) -> String {
    match (traffic.and_then(direction), device) {
        (Some(counters), _) => output::bytes(counters.bytes),
        (None, Some(device)) => format!("{} (outer)", output::bytes(device)),
        (None, None) => "-".to_owned(),
    }
}

/// The first prefixes; a gateway may have hundreds.
fn prefixes(all: &[String]) -> String {
    const SHOWN: usize = 2;
    match all {
        [] => "-".to_owned(),
        few if few.len() <= SHOWN => few.join(", "),
        many => format!("{}, +{} more", many[..SHOWN].join(", "), many.len() - SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, traffic: Option<u64>) -> proto::Peer {
        let traffic = traffic.map(|bytes| proto::Traffic {
            rx: Some(proto::Counters { bytes, ..Default::default() }),
            tx: Some(proto::Counters { bytes: bytes * 2, ..Default::default() }),
        });
        proto::Peer {
            name: name.to_owned(),
            endpoint: Some("192.0.2.7:51820".to_owned()),
            allowed_ips: ["10.80.0.2/32", "10.1.0.0/16", "10.2.0.0/16"].map(str::to_owned).to_vec(),
            state: "connected".to_owned(),
            reason: "handshake 3 s ago".to_owned(),
            wireguard_rx_bytes: Some(148),
            wireguard_tx_bytes: Some(92),
            traffic,
            ..Default::default()
        }
    }

    #[test]
    fn counted_bytes_come_first_and_the_device_fills_in() {
        let list = proto::PeerList { peers: vec![peer("beta", Some(1024)), peer("gamma", None)], ..Default::default() };
        let expected = "\
PEER   STATE         RECEIVED          SENT  ENDPOINT         ALLOWED IPS                         WHY
beta   connected     1.00 KiB      2.00 KiB  192.0.2.7:51820  10.80.0.2/32, 10.1.0.0/16, +1 more  handshake 3 s ago
gamma  connected  148 B (outer)  92 B (outer)  192.0.2.7:51820  10.80.0.2/32, 10.1.0.0/16, +1 more  handshake 3 s ago
";
        let rendered = render(&list, Style::Plain);
        assert_eq!(words(&rendered), words(expected), "{rendered}");
    }

    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn no_peers_says_how_to_get_some() {
        assert!(render(&proto::PeerList::default(), Style::Plain).contains("[[peer]]"));
    }
}
