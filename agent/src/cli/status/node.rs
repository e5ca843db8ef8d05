//! `weft status NODE`: the figures of a node of the mesh and its host.

use weft_proto::v1;
use weft_proto::weft::v1::GetNodeMetricsRequest;
use weft_proto::weft::v1::metrics_client::MetricsClient;

use super::{Client, ClientError, Exit, Failure, output, view};
use crate::cli::output::{Align, Style, Table, Tone};

pub(super) async fn run(client: &Client, node: &str, json: bool) -> Result<Exit, Failure> {
    let request = GetNodeMetricsRequest { id: node.to_owned() };
    let mut metrics = MetricsClient::new(client.channel().await?)
        .max_decoding_message_size(super::super::client::LARGEST_ANSWER_BYTES);
    let metrics = metrics.get_node_metrics(request).await.map_err(ClientError::from)?.into_inner();
    if json {
        output::print_json(&serde_json::json!({ "schema": view::SCHEMA, "node": node, "metrics": metrics }))?;
    } else {
        output::print(&render(node, &metrics, Style::of_stdout()))?;
    }
    Ok(Exit::Ok)
}

fn render(node: &str, metrics: &v1::NodeMetrics, style: Style) -> String {
    let system = metrics.system.clone().unwrap_or_default();
    let host = system.host.unwrap_or_default();
    let mut text = format!("{}, up {}\n\n", style.paint(Tone::Heading, node), host.uptime);
    let os = host.os.clone().unwrap_or_default();
    let cpu = system.cpu.unwrap_or_default();
    let fields = [
        (
            "host",
            format!(
                "{}, {} {}, Linux {}, {}",
                host.hostname, os.name, os.version, host.kernel_version, host.architecture
            ),
        ),
        ("booted at", host.boot_time),
        ("addresses", host.ips.join(", ")),
        ("load", cpu.load_average.map(load).unwrap_or_default()),
        (
            "processors",
            format!("user {}, system {}, idle {}, waiting for disks {}", cpu.user, cpu.system, cpu.idle, cpu.io_wait),
        ),
        ("memory", system.memory.map(memory).unwrap_or_default()),
        ("link", link(metrics)),
        ("public key", metrics.public_key.clone()),
        ("received", output::bytes(metrics.total_receive_bytes)),
        ("sent", output::bytes(metrics.total_transmit_bytes)),
    ];
    text.push_str(&output::fields(style, &fields));
    if !system.disks.is_empty() {
        text.push('\n');
        text.push_str(&disks(&system.disks).render(style));
    }
    if !metrics.peers.is_empty() {
        text.push('\n');
        text.push_str(&peers(&metrics.peers).render(style));
    }
    text
}

fn load(v1::LoadAverage { one, five, fifteen }: v1::LoadAverage) -> String {
    format!("{one:.2} {five:.2} {fifteen:.2} over 1, 5 and 15 minutes")
}

fn memory(memory: v1::MemoryInfo) -> String {
    let swap = match memory.virtual_total {
        0 => "no swap".to_owned(),
        total => format!("{} of {} swap used", output::bytes(memory.virtual_used), output::bytes(total)),
    };
    format!("{} of {} available, {swap}", output::bytes(memory.available), output::bytes(memory.total))
}

fn link(metrics: &v1::NodeMetrics) -> String {
    let addresses = [&metrics.address_v4, &metrics.address_v6].map(String::as_str);
    let addresses: Vec<&str> = addresses.into_iter().filter(|address| !address.is_empty()).collect();
    format!("{}, {}, UDP port {}, {}", metrics.device_name, metrics.r#type, metrics.listen_port, addresses.join(", "))
}

fn disks(disks: &[v1::DiskInfo]) -> Table {
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("MOUNTED ON", Align::Left),
        ("SIZE", Align::Right),
        ("FREE", Align::Right),
        ("USED", Align::Right),
    ]);
    for disk in disks {
        let used = format!("{:.0} %", disk.used_percent);
        let cells = [
            disk.device.clone(),
            disk.filesystem_path.clone(),
            output::bytes(disk.total),
            output::bytes(disk.free),
            used,
        ];
        table.row(cells.map(output::cell).into());
    }
    table
}

fn peers(peers: &[v1::PeerMetrics]) -> Table {
    let columns = [
        ("PEER", Align::Left),
        ("ENDPOINT", Align::Left),
        ("RECEIVED", Align::Right),
        ("SENT", Align::Right),
        ("HANDSHAKE", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for peer in peers {
        let (received, sent) = (output::bytes(peer.receive_bytes), output::bytes(peer.transmit_bytes));
        let cells = [peer.public_key.clone(), peer.endpoint.clone(), received, sent, peer.last_handshake_time.clone()];
        table.row(cells.map(output::cell).into());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_the_host_has_and_what_its_tunnel_carried() {
        let metrics = v1::NodeMetrics {
            device_name: "weft0".to_owned(),
            r#type: "Linux kernel".to_owned(),
            listen_port: 51820,
            address_v4: "10.80.0.2/16".to_owned(),
            total_receive_bytes: 2048,
            system: Some(v1::HostMetrics {
                host: Some(v1::HostInfo {
                    hostname: "box".to_owned(),
                    uptime: "1h0m0s".to_owned(),
                    ..Default::default()
                }),
                memory: Some(v1::MemoryInfo { total: 4096, available: 1024, ..Default::default() }),
                disks: vec![v1::DiskInfo { device: "/dev/vda".to_owned(), used_percent: 12.4, ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let text = render("beta", &metrics, Style::Plain);
        for words in
            ["beta, up 1h0m0s", "weft0, Linux kernel, UDP port 51820, 10.80.0.2/16", "no swap", "/dev/vda", "12 %"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
