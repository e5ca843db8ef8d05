//! `weft.v1.Metrics`: the figures of a node and its host, by the contract's `NodeMetrics`.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use weft_proto::v1;
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::metrics_client::MetricsClient;
use weft_proto::weft::v1::metrics_server::Metrics;

use super::{mesh, node, text};
use crate::api::Sources;
use crate::foundation::rfc3339;
use crate::model::peer::Peer;
use crate::model::{Backend, Model};
use crate::pm3::system::host::{self, Disk, Host, Memory, Os, Times};
use crate::sys::interfaces;
use crate::wireguard::status::PeerFigures;

/// The only version of WireGuard's protocol.
const PROTOCOL_VERSION: i64 = 1;

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Metrics for Service {
    async fn get_node_metrics(
        &self,
        request: Request<proto::GetNodeMetricsRequest>,
    ) -> Result<Response<v1::NodeMetrics>, Status> {
        let wanted = request.into_inner().id;
        let known = self.0.mesh.borrow().clone();
        if wanted.is_empty() || wanted == known.own.as_str() {
            return local(&self.0).await.map(Response::new);
        }
        let id = mesh::node_id(&wanted)?;
        if known.member(&id).is_none() {
            return Err(mesh::unknown(&id));
        }
        let channel = node::reach(&self.0, &id).await?;
        MetricsClient::new(channel).get_node_metrics(proto::GetNodeMetricsRequest::default()).await
    }
}

/// The figures of this node.
async fn local(sources: &Sources) -> Result<v1::NodeMetrics, Status> {
    let host = tokio::task::spawn_blocking(host::host);
    let figures = sources.figures.read().await;
    let host = host.await.map_err(|_ending| Status::unavailable("the agent is stopping"))?;
    let model = sources.model.borrow().clone();
    let device = sources.wireguard.borrow().clone();
    if figures.wireguard.is_empty() && device.peers > 0 {
        return Err(Status::unavailable(format!("the tunnel device tells nothing: {}", figures.errors.join("; "))));
    }
    let sum = |bytes: fn(&PeerFigures) -> u64| figures.wireguard.iter().map(bytes).sum();
    let address = |is_wanted: fn(&ipnet::IpNet) -> bool| {
        model.node.addresses.iter().find(|address| is_wanted(address)).map(ToString::to_string).unwrap_or_default()
    };
    let backend = device.link.as_ref().map(|link| match link.backend {
        Backend::Kernel => "Linux kernel",
        Backend::Userspace => "userspace",
    });
    Ok(v1::NodeMetrics {
        device_name: device.link.as_ref().map(|link| link.name.to_string()).unwrap_or_default(),
        public_key: model.node.public_key.to_string(),
        address_v4: address(|address| address.addr().is_ipv4()),
        address_v6: address(|address| address.addr().is_ipv6()),
        r#type: backend.unwrap_or_default().to_owned(),
        listen_port: device.listen_port.unwrap_or_default().into(),
        total_receive_bytes: sum(|peer| peer.rx_bytes),
        total_transmit_bytes: sum(|peer| peer.tx_bytes),
        peers: peers(&model, &figures.wireguard),
        system: Some(system(&host)),
    })
}

fn peers(model: &Model, figures: &[PeerFigures]) -> Vec<v1::PeerMetrics> {
    figures.iter().filter_map(|figures| Some(peer(model.peer(&figures.public_key)?, figures))).collect()
}

fn peer(wanted: &Peer, figures: &PeerFigures) -> v1::PeerMetrics {
    let keepalive = Duration::from_secs(wanted.persistent_keepalive.unwrap_or_default().into());
    v1::PeerMetrics {
        public_key: figures.public_key.to_string(),
        endpoint: figures.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
        persistent_keep_alive: text::go_duration(keepalive),
        last_handshake_time: figures.last_handshake.map(rfc3339::format).unwrap_or_default(),
        allowed_ips: wanted.allowed_ips.iter().map(ToString::to_string).collect(),
        protocol_version: PROTOCOL_VERSION,
        receive_bytes: figures.rx_bytes,
        transmit_bytes: figures.tx_bytes,
    }
}

fn system(host: &Host) -> v1::HostMetrics {
    v1::HostMetrics {
        host: Some(info(host)),
        cpu: Some(cpu(host.load, &host.times)),
        memory: Some(memory(&host.memory)),
        disks: host.disks.iter().map(disk).collect(),
    }
}

fn info(host: &Host) -> v1::HostInfo {
    v1::HostInfo {
        architecture: std::env::consts::ARCH.to_owned(),
        boot_time: host.booted_at.map(rfc3339::format).unwrap_or_default(),
        containerized: host.is_container,
        hostname: host.name.clone(),
        ips: interfaces::reachable("").iter().map(ToString::to_string).collect(),
        kernel_version: host.kernel.clone(),
        macs: host.macs.clone(),
        os: Some(os(&host.os)),
        timezone: host.zone.clone(),
        uptime: text::go_duration(host.uptime),
    }
}

fn os(os: &Os) -> v1::OsInfo {
    let [major, minor, patch] = os.numbers;
    v1::OsInfo {
        r#type: "linux".to_owned(),
        family: os.family.clone(),
        platform: os.id.clone(),
        name: os.name.clone(),
        version: os.version.clone(),
        major,
        minor,
        patch,
        build: os.build.clone(),
        codename: os.codename.clone(),
    }
}

fn cpu([one, five, fifteen]: [f32; 3], times: &Times) -> v1::CpuTimes {
    v1::CpuTimes {
        load_average: Some(v1::LoadAverage { one, five, fifteen }),
        user: text::go_duration(times.user),
        system: text::go_duration(times.system),
        idle: text::go_duration(times.idle),
        io_wait: text::go_duration(times.io_wait),
        irq: text::go_duration(times.irq),
        nice: text::go_duration(times.nice),
        soft_irq: text::go_duration(times.soft_irq),
        steal: text::go_duration(times.steal),
    }
}

/// "Virtual" is the contract's word for swap.
fn memory(memory: &Memory) -> v1::MemoryInfo {
    v1::MemoryInfo {
        total: memory.total,
        used: memory.total.saturating_sub(memory.free),
        available: memory.available,
        free: memory.free,
        virtual_total: memory.swap_total,
        virtual_used: memory.swap_total.saturating_sub(memory.swap_free),
        virtual_free: memory.swap_free,
    }
}

fn disk(disk: &Disk) -> v1::DiskInfo {
    let used = disk.total_bytes.saturating_sub(disk.free_bytes);
    let inodes_used = disk.inodes.saturating_sub(disk.inodes_free);
    v1::DiskInfo {
        filesystem_path: disk.path.clone(),
        device: disk.device.clone(),
        total: disk.total_bytes,
        free: disk.free_bytes,
        used,
        used_percent: percent(used, disk.total_bytes),
        inodes_total: disk.inodes,
        inodes_free: disk.inodes_free,
        inodes_used,
        inodes_used_percent: percent(inodes_used, disk.inodes),
    }
}

/// What `part` is of `whole`; 0 of nothing.
fn percent(part: u64, whole: u64) -> f32 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 100.0) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_per_cent_and_nothing_has_none() {
        let full = Disk {
            path: "/".to_owned(),
            device: "/dev/vda".to_owned(),
            total_bytes: 400,
            free_bytes: 100,
            inodes: 0,
            inodes_free: 0,
        };
        let shown = disk(&full);
        assert_eq!((shown.used, shown.used_percent, shown.inodes_used_percent), (300, 75.0, 0.0));
    }

    #[tokio::test]
    async fn a_node_tells_its_device_its_peers_and_its_host() {
        let fixture = crate::api::tests::Fixture::new();
        let metrics = local(&fixture.sources).await.expect("figures");
        assert_eq!((metrics.device_name.as_str(), metrics.r#type.as_str()), ("weft0", "Linux kernel"));
        assert_eq!((metrics.address_v4.as_str(), metrics.listen_port), ("10.80.0.1/24", 51820));
        let sums =
            metrics.peers.iter().fold((0, 0), |(rx, tx), peer| (rx + peer.receive_bytes, tx + peer.transmit_bytes));
        assert_eq!((metrics.total_receive_bytes, metrics.total_transmit_bytes), sums);
        assert!(sums.0 > 0 && metrics.peers[0].allowed_ips == ["10.80.0.2/32"], "{metrics:?}");
        let system = metrics.system.expect("a host");
        assert!(system.memory.expect("a memory").total > 0 && system.cpu.expect("processors").idle.ends_with('s'));
    }
}
