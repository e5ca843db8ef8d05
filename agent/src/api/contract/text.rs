//! How the contract writes values: durations as Go does, endpoints without brackets missing, keys in base64.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::Ipv4Net;
use prost_types::Timestamp;
use weft_proto::v1;

use crate::model::mesh::{Member, Mesh, Standing};

/// A duration in Go's text, like `1h2m3.5s`, `1.5ms` or `0s` (package time, `Duration.String`).
pub(super) fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    match nanos {
        0 => return "0s".to_owned(),
        1..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => return format!("{}µs", decimal(nanos, 1_000)),
        1_000_000..1_000_000_000 => return format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {}
    }
    let minutes = duration.as_secs() / 60;
    let seconds = decimal(nanos - u128::from(minutes) * 60_000_000_000, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// `nanos` in units of `unit` nanoseconds, without zeros at the end.
fn decimal(nanos: u128, unit: u128) -> String {
    let (whole, rest) = (nanos / unit, nanos % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = unit.ilog10() as usize;
    let fraction = format!("{rest:0digits$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

/// A member as the contract shows it.
pub(super) fn mesh_node(mesh: &Mesh, member: &Member) -> v1::MeshNode {
    v1::MeshNode {
        id: member.id.to_string(),
        primary_endpoint: member.primary_endpoint.map(|address| address.to_string()).unwrap_or_default(),
        endpoints: member.endpoints.iter().map(IpAddr::to_string).collect(),
        raft_port: member.ports.raft.into(),
        grpc_port: member.ports.grpc.into(),
        wireguard_port: member.ports.wireguard.into(),
        public_key: member.public_key.to_string(),
        private_ipv4: ipv4(mesh, member),
        private_ipv6: member.ipv6.map(|network| network.to_string()).unwrap_or_default(),
        updated_at: Some(timestamp(member.updated_at)),
        created_at: Some(timestamp(member.created_at)),
        cluster_status: status(mesh.standing(member)).into(),
    }
}

/// The address with the length of the whole mesh, or nothing.
pub(super) fn ipv4(mesh: &Mesh, member: &Member) -> String {
    let length = mesh.ipv4.map_or(32, |range| range.prefix_len());
    let with_length = member.ipv4.and_then(|address| Ipv4Net::new(address, length).ok());
    with_length.map(|network| network.to_string()).unwrap_or_default()
}

pub(super) fn status(standing: Standing) -> v1::ClusterStatus {
    match standing {
        Standing::Leader => v1::ClusterStatus::ClusterLeader,
        Standing::Voter => v1::ClusterStatus::ClusterVoter,
        Standing::NonVoter => v1::ClusterStatus::ClusterNonVoter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        let cases = [
            (0, "0s"),
            (7, "7ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (3_600_000_000_000, "1h0m0s"),
        ];
        for (nanos, expected) in cases {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), expected);
        }
    }
}
