//! `weft status`.

mod node;

use std::fmt::Write as _;

use weft_proto::weft::v1 as proto;

use super::client::{Client, ClientError};
use super::output::{self, Style, Tone};
use super::{Check, Exit, Failure, StatusArgs};
use crate::api::view;

pub(super) async fn run(client: &Client, args: &StatusArgs) -> Result<Exit, Failure> {
    if let Some(node) = &args.node {
        return node::run(client, node, args.json).await;
    }
    if args.watch {
        return watch(client, args.json).await;
    }
    let status: proto::Status = client.get("/status").await?;
    match args.check {
        Some(check) => report_check(&status, check, args.json),
        None => {
            print(&status, args.json)?;
            Ok(overall(&status))
        }
    }
}

async fn watch(client: &Client, json: bool) -> Result<Exit, Failure> {
    let failed = |status| ClientError::Stream(Box::new(status));
    let mut stream =
        client.grpc().await?.watch_status(proto::WatchStatusRequest {}).await.map_err(failed)?.into_inner();
    let mut exit = Exit::Ok;
    while let Some(status) = stream.message().await.map_err(failed)? {
        exit = overall(&status);
        if json {
            output::print_json_line(&status)?;
        } else {
            output::print(&format!("{}\n", render(&status, Style::of_stdout())))?;
        }
    }
    output::complain("the agent stopped\n");
    Ok(exit)
}

fn print(status: &proto::Status, json: bool) -> std::io::Result<()> {
    if json { output::print_json(status) } else { output::print(&render(status, Style::of_stdout())) }
}

fn overall(status: &proto::Status) -> Exit {
    if status.state == "ready" { Exit::Ok } else { Exit::Degraded }
}

fn report_check(status: &proto::Status, check: Check, json: bool) -> Result<Exit, Failure> {
    let reasons = match check {
        // It answered.
        Check::Live => Vec::new(),
        Check::Startup => status.waiting_for.iter().map(|part| format!("{part} has not come up yet")).collect(),
        Check::Ready => view::not_ready(status),
    };
    let ok = reasons.is_empty();
    if json {
        let answer = serde_json::json!({ "schema": view::SCHEMA, "check": check.name(), "ok": ok, "reasons": reasons });
        output::print_json(&answer)?;
    } else if ok {
        output::print("ok\n")?;
    } else {
        output::print(&reasons.iter().fold(String::new(), |text, reason| text + reason + "\n"))?;
    }
    Ok(if ok { Exit::Ok } else { Exit::Degraded })
}

/// The status as text.
fn render(status: &proto::Status, style: Style) -> String {
    let mut text = headline(status, style);
    text.push_str(&output::fields(style, &fields(status)));
    let relayed: Vec<String> = status.mesh.iter().flat_map(|mesh| &mesh.relayed).map(relayed_line).collect();
    for (title, tone, lines) in [
        ("waiting for", Tone::Warning, &status.waiting_for),
        ("not direct", Tone::Warning, &relayed),
        ("problems", Tone::Bad, &status.problems),
        ("fallbacks", Tone::Warning, &status.fallbacks),
        ("notices", Tone::Neutral, &status.notices),
    ] {
        if !lines.is_empty() {
            writeln!(text, "\n{}", style.paint(tone, title)).expect(INTO_STRING);
        }
        for line in lines {
            writeln!(text, "  {line}").expect(INTO_STRING);
        }
    }
    text
}

const INTO_STRING: &str = "writing to a String cannot fail";

fn headline(status: &proto::Status, style: Style) -> String {
    let tone = match status.state.as_str() {
        "ready" => Tone::Good,
        "starting" => Tone::Warning,
        _ => Tone::Bad,
    };
    format!(
        "{} is {}, up {} (weft {}, instance {}, pid {})\n\n",
        style.paint(Tone::Heading, &status.node),
        style.paint(tone, &status.state),
        output::seconds(status.uptime_seconds),
        status.version,
        status.instance,
        status.pid,
    )
}

fn fields(status: &proto::Status) -> Vec<(&'static str, String)> {
    let wireguard = status.wireguard.clone().unwrap_or_default();
    let network = status.network.clone().unwrap_or_default();
    let firewall = status.firewall.clone().unwrap_or_default();
    let accounting = status.accounting.clone().unwrap_or_default();
    let dns = status.dns.clone().unwrap_or_default();
    vec![
        ("link", link(&wireguard, &network)),
        ("public key", wireguard.public_key),
        ("addresses", wireguard.addresses.join(", ")),
        ("listens on", wireguard.listen_port.map_or_else(|| "no port".to_owned(), |port| format!("UDP port {port}"))),
        ("peers", wireguard.peers.to_string()),
        ("routes", network.routes.to_string()),
        ("firewall", firewall.table.map(|table| format!("table {table}")).unwrap_or_default()),
        ("accounting", counted(&accounting)),
        ("DNS", dns_line(&dns)),
        ("pm3 API", gateway_line(&status.gateway.clone().unwrap_or_default())),
        ("bus", status.bus.as_ref().map(bus_line).unwrap_or_default()),
        ("mesh", status.mesh.as_ref().map(mesh_line).unwrap_or_default()),
        ("store", status.store.as_ref().map(store_line).unwrap_or_default()),
    ]
}

pub(super) fn bus_line(bus: &proto::BusStatus) -> String {
    let Some(place) = &bus.connected else { return "not connected".to_owned() };
    let server = bus.server_pid.map(|pid| format!(", nats-server as process {pid}")).unwrap_or_default();
    let routes = if bus.routes.is_empty() { String::new() } else { format!(", routes to {}", bus.routes.join(", ")) };
    format!("{place}{server}{routes}")
}

fn mesh_line(mesh: &proto::MeshStatus) -> String {
    let id = mesh.id.get(..8).unwrap_or(&mesh.id);
    let leader = mesh.leader.as_ref().map_or_else(|| "nobody leads".to_owned(), |leader| format!("{leader} leads"));
    let part = if mesh.part == "keeps" { "keeps its state" } else { "follows" };
    match mesh.members {
        0 | 1 => format!("{id}, this node alone"),
        members => format!("{id}, {members} members, {leader}, this node {part}"),
    }
}

fn relayed_line(pair: &proto::RelayedPair) -> String {
    let how = pair.via.as_ref().map_or_else(|| "cut off".to_owned(), |via| format!("through {via}"));
    format!("{} - {} {how}: {}", pair.first, pair.second, pair.reason)
}

fn store_line(store: &proto::StoreStatus) -> String {
    let leader = store.leader.as_ref().map_or_else(|| "no leader".to_owned(), |leader| format!("{leader} leads"));
    match store.members {
        0 => "not open".to_owned(),
        1 => format!("{}, alone", store.role),
        members => format!("{}, {leader}, {} of {members} members vote", store.role, store.voters),
    }
}

fn link(wireguard: &proto::WireguardStatus, network: &proto::NetworkStatus) -> String {
    let (Some(link), Some(backend)) = (&wireguard.link, &wireguard.backend) else {
        return "none yet".to_owned();
    };
    let backend = if backend == "kernel" { "the kernel's WireGuard" } else { "embedded userspace WireGuard" };
    let mtu = network.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    format!("{link}, {backend}{mtu}")
}

fn counted(accounting: &proto::AccountingStatus) -> String {
    match &accounting.hook {
        None => "nothing is counted".to_owned(),
        Some(hook) => format!("eBPF on {hook}, {} peers, {} prefixes", accounting.peers, accounting.prefixes),
    }
}

/// Nothing where the gateway is off.
fn gateway_line(gateway: &proto::GatewayStatus) -> String {
    let steered = gateway.steered.iter().map(|address| format!("{address} (steered)"));
    let addresses: Vec<String> = gateway.listening.iter().cloned().chain(steered).collect();
    match (addresses.is_empty(), &gateway.callers) {
        (_, None) => String::new(),
        (true, Some(_)) => "on no address".to_owned(),
        (false, Some(callers)) => {
            let short = callers.split(':').next().unwrap_or_default();
            format!("{}; callers by {short}", addresses.join(", "))
        }
    }
}

fn dns_line(dns: &proto::DnsStatus) -> String {
    if dns.listening.is_empty() {
        return "does not answer".to_owned();
    }
    let hook = dns.hook.as_ref().map(|hook| format!("; the host asks it by {hook}")).unwrap_or_default();
    let upstreams = if dns.upstreams.is_empty() { "none".to_owned() } else { dns.upstreams.join(", ") };
    format!("{} on {}; {} names; upstream {upstreams}{hook}", dns.domain, dns.listening.join(", "), dns.names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> proto::Status {
        proto::Status {
            schema: 1,
            node: "alpha".to_owned(),
            instance: "default".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 42,
            uptime_seconds: 3720,
            state: "degraded".to_owned(),
            problems: vec!["dns: dns.listen 127.0.3.3:53 is in use".to_owned()],
            wireguard: Some(proto::WireguardStatus {
                link: Some("weft0".to_owned()),
                backend: Some("userspace".to_owned()),
                listen_port: Some(51820),
                public_key: "KEY=".to_owned(),
                addresses: vec!["10.80.0.1/24".to_owned()],
                peers: 2,
                ..Default::default()
            }),
            network: Some(proto::NetworkStatus { mtu: Some(1420), routes: 2, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn the_text_names_the_state_the_link_and_every_problem() {
        let expected = "\
alpha is degraded, up 1 h 2 min (weft 0.1.0, instance default, pid 42)

link        weft0, embedded userspace WireGuard, MTU 1420
public key  KEY=
addresses   10.80.0.1/24
listens on  UDP port 51820
peers       2
routes      2
accounting  nothing is counted
DNS         does not answer

problems
  dns: dns.listen 127.0.3.3:53 is in use
";
        assert_eq!(render(&status(), Style::Plain), expected);
    }

    #[test]
    fn pairs_that_are_not_direct_are_named_with_the_relay_and_the_reason() {
        let pair = |via: Option<&str>| proto::RelayedPair {
            first: "alpha".to_owned(),
            second: "gamma".to_owned(),
            via: via.map(str::to_owned),
            reason: "no handshake over UDP with 192.0.2.3:51820".to_owned(),
        };
        let mesh = proto::MeshStatus { relayed: vec![pair(Some("beta")), pair(None)], ..Default::default() };
        let text = render(&proto::Status { mesh: Some(mesh), ..status() }, Style::Plain);
        let expected = "\
not direct
  alpha - gamma through beta: no handshake over UDP with 192.0.2.3:51820
  alpha - gamma cut off: no handshake over UDP with 192.0.2.3:51820
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_degraded_agent_has_its_own_exit_code() {
        assert_eq!(overall(&status()), Exit::Degraded);
        assert_eq!(overall(&proto::Status { state: "ready".to_owned(), ..status() }), Exit::Ok);
    }
}
