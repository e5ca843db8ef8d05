//! The figures of this host as `GET /api/system` and the WebSocket show them (spec, "System Information"). Pure.

use std::time::SystemTime;

use serde::Serialize;

use crate::foundation::rfc3339;
use crate::pm3::system::HostFigures;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    cpu: Cpu,
    memory: Memory,
    load: Load,
    uptime: u64,
    timestamp: String,
}

#[derive(Debug, Serialize)]
struct Cpu {
    usage: f64,
    cores: usize,
}

#[derive(Debug, Serialize)]
struct Memory {
    total: u64,
    used: u64,
    available: u64,
    usage_percent: f64,
}

#[derive(Debug, Serialize)]
struct Load {
    one: f64,
    five: f64,
    fifteen: f64,
}

/// One sample in the shape of the document.
pub(super) fn report(figures: &HostFigures) -> Report {
    let [one, five, fifteen] = figures.load;
    Report {
        cpu: Cpu { usage: figures.cpu_percent, cores: figures.cores },
        memory: Memory {
            total: figures.memory_total_bytes,
            used: used(figures),
            available: figures.memory_available_bytes,
            usage_percent: usage_percent(figures),
        },
        load: Load { one, five, fifteen },
        uptime: figures.uptime_seconds,
        timestamp: rfc3339::format(figures.sampled_at),
    }
}

/// The same as WebSocket subscribers get it (spec, "System Metrics Updates").
#[derive(Debug, Serialize)]
pub(super) struct Update {
    cpu: f64,
    memory: UpdatedMemory,
    load: UpdatedLoad,
    timestamp: String,
}

#[derive(Debug, Serialize)]
struct UpdatedMemory {
    usage_percent: f64,
    used: u64,
}

#[derive(Debug, Serialize)]
struct UpdatedLoad {
    one: f64,
}

/// One sample as a message.
pub(super) fn update(figures: &HostFigures, now: SystemTime) -> Update {
    Update {
        cpu: figures.cpu_percent,
        memory: UpdatedMemory { usage_percent: usage_percent(figures), used: used(figures) },
        load: UpdatedLoad { one: figures.load[0] },
        timestamp: rfc3339::format(now),
    }
}

fn used(figures: &HostFigures) -> u64 {
    figures.memory_total_bytes.saturating_sub(figures.memory_available_bytes)
}

fn usage_percent(figures: &HostFigures) -> f64 {
    let share = used(figures) as f64 / figures.memory_total_bytes.max(1) as f64;
    (share * 1000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_report_is_the_one_of_the_document() {
        let figures = HostFigures {
            cpu_percent: 15.2,
            cores: 8,
            memory_total_bytes: 8_589_934_592,
            memory_available_bytes: 6_442_450_944,
            load: [0.85, 1.2, 0.9],
            uptime_seconds: 432_000,
            sampled_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_705_329_025),
        };
        let expected = serde_json::json!({
            "cpu": { "usage": 15.2, "cores": 8 },
            "memory": {
                "total": 8_589_934_592_u64, "used": 2_147_483_648_u64, "available": 6_442_450_944_u64,
                "usage_percent": 25.0
            },
            "load": { "one": 0.85, "five": 1.2, "fifteen": 0.9 },
            "uptime": 432_000,
            "timestamp": "2024-01-15T14:30:25Z"
        });
        assert_eq!(serde_json::to_value(report(&figures)).expect("JSON"), expected);
    }
}
