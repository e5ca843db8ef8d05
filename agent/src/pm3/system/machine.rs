//! What `/proc` says, read from its text, and how `/system` shows it. Pure.

use std::time::SystemTime;

use serde::Serialize;

use super::HostFigures;

/// Counters that only make sense as differences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Ticks of all processors.
    pub(super) cpu_total: u64,
    pub(super) cpu_busy: u64,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// Differences by time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) load_percent: f64,
    pub(super) rx: f64,
    pub(super) tx: f64,
}

/// Everything else, as it was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    pub(super) cpuinfo: String,
    pub(super) meminfo: String,
    pub(super) uptime: String,
    pub(super) loadavg: String,
    pub(super) hostname: String,
    pub(super) boot_id: String,
    pub(super) kernel: String,
    pub(super) arch: String,
    pub(super) processes: usize,
    pub(super) disk_free: u64,
    pub(super) disk_total: u64,
}

impl Counters {
    /// From `/proc/stat` and `/proc/net/dev`; loopback is no traffic of the host.
    pub(super) fn parse(stat: &str, net: &str) -> Self {
        let ticks: Vec<u64> = stat
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("cpu "))
            .map(|rest| rest.split_whitespace().filter_map(|word| word.parse().ok()).collect())
            .unwrap_or_default();
        // user nice system idle iowait irq softirq steal; guest time is in user already (proc(5)).
        let total = ticks.iter().take(8).sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let mut counters = Self { cpu_total: total, cpu_busy: total.saturating_sub(idle), ..Self::default() };
        for line in net.lines() {
            let Some((name, figures)) = line.split_once(':') else { continue };
            if name.trim() == "lo" {
                continue;
            }
            let figures: Vec<u64> = figures.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            counters.rx_bytes += figures.first().copied().unwrap_or_default();
            counters.tx_bytes += figures.get(8).copied().unwrap_or_default();
        }
        counters
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine_id: String,
    cpu: Cpu,
    load: f64,
    rx: u64,
    tx: u64,
    freedisk: u64,
    totaldisk: u64,
    freemem: u64,
    totalmem: u64,
    uptime: u64,
    hostname: String,
    uid: String,
    process_count: usize,
    os: &'static str,
    kernel_version: String,
    kernel_arch: String,
}

/// The processors as one; the pm3 API has always shown them so.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    cpu: u32,
    vendor_id: String,
    family: String,
    model: String,
    stepping: u32,
    cores: usize,
    model_name: String,
    mhz: f64,
    cache_size: u64,
    flags: Vec<String>,
    microcode: String,
}

pub(super) fn figures(reading: &Reading, rates: Rates, sampled_at: SystemTime) -> HostFigures {
    let mut load = [0.0; 3];
    for (mean, word) in load.iter_mut().zip(reading.loadavg.split_whitespace()) {
        *mean = word.parse().unwrap_or_default();
    }
    HostFigures {
        cpu_percent: tenths(rates.load_percent),
        cores: cores(&reading.cpuinfo),
        memory_total_bytes: memory(&reading.meminfo, "MemTotal:"),
        memory_available_bytes: memory(&reading.meminfo, "MemAvailable:"),
        load,
        uptime_seconds: uptime(&reading.uptime),
        sampled_at,
    }
}

pub(super) fn report(machine_id: &str, reading: &Reading, rates: Rates) -> Report {
    Report {
        machine_id: machine_id.to_owned(),
        cpu: cpu(&reading.cpuinfo),
        load: tenths(rates.load_percent),
        // Bytes a second; a fraction of a byte says nothing.
        rx: rates.rx as u64,
        tx: rates.tx as u64,
        freedisk: reading.disk_free,
        totaldisk: reading.disk_total,
        freemem: memory(&reading.meminfo, "MemAvailable:"),
        totalmem: memory(&reading.meminfo, "MemTotal:"),
        uptime: uptime(&reading.uptime),
        hostname: reading.hostname.trim().to_owned(),
        uid: reading.boot_id.trim().to_owned(),
        process_count: reading.processes,
        os: "linux",
        kernel_version: reading.kernel.trim().to_owned(),
        kernel_arch: reading.arch.clone(),
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Whole seconds of `/proc/uptime`.
fn uptime(text: &str) -> u64 {
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

fn cores(cpuinfo: &str) -> usize {
    cpuinfo.lines().filter(|line| line.starts_with("processor")).count()
}

pub(super) fn memory(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
}

fn cpu(cpuinfo: &str) -> Cpu {
    let value = |name: &str| {
        let pair =
            |line: &str| line.split_once(':').map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
        cpuinfo.lines().filter_map(pair).find(|(key, _)| key == name).map(|(_, value)| value).unwrap_or_default()
    };
    Cpu {
        cpu: 0,
        vendor_id: value("vendor_id"),
        family: value("cpu family"),
        model: value("model"),
        stepping: value("stepping").parse().unwrap_or_default(),
        cores: cores(cpuinfo),
        model_name: value("model name"),
        mhz: value("cpu MHz").parse().unwrap_or_default(),
        cache_size: value("cache size").split(' ').next().and_then(|size| size.parse().ok()).unwrap_or_default(),
        flags: value("flags").split_whitespace().map(str::to_owned).collect(),
        microcode: value("microcode"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_leave_idle_time_and_loopback_out() {
        let stat = "cpu  10 0 5 80 5 0 0 0 9 9\ncpu0 1 2 3\n";
        let net =
            "Inter-|   Receive\n face |bytes packets\n    lo: 9 9 9 9 9 9 9 9 9 9\n  eth0: 100 1 0 0 0 0 0 0 7 1\n";
        let expected = Counters { cpu_total: 100, cpu_busy: 15, rx_bytes: 100, tx_bytes: 7 };
        assert_eq!(Counters::parse(stat, net), expected);
        assert_eq!(Counters::parse("", "x"), Counters::default());
    }

    #[test]
    fn figures_are_read_from_what_proc_says() {
        let reading = Reading {
            cpuinfo: "processor : 0\nprocessor : 1\n".into(),
            meminfo: "MemTotal: 10 kB\nMemAvailable: 4 kB\n".into(),
            uptime: "12.5 3".into(),
            loadavg: "0.85 1.20 0.90 1/100 7\n".into(),
            ..Reading::default()
        };
        let at = SystemTime::UNIX_EPOCH;
        let figures = figures(&reading, Rates { load_percent: 15.23, ..Rates::default() }, at);
        let expected = HostFigures {
            cpu_percent: 15.2,
            cores: 2,
            memory_total_bytes: 10_240,
            memory_available_bytes: 4096,
            load: [0.85, 1.2, 0.9],
            uptime_seconds: 12,
            sampled_at: at,
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn the_report_has_the_members_of_the_document() {
        let reading = Reading {
            cpuinfo: "processor : 0\nvendor_id : V\nmodel name : M\ncpu MHz : 2000.5\nflags : a b\nprocessor : 1\n"
                .into(),
            meminfo: "MemTotal: 10 kB\nMemAvailable: 4 kB\n".into(),
            uptime: "12.5 3".into(),
            hostname: "alpha\n".into(),
            ..Reading::default()
        };
        let report = serde_json::to_value(report("0000002a", &reading, Rates::default())).expect("JSON");
        assert_eq!((&report["cpu"]["cores"], &report["cpu"]["modelName"]), (&2.into(), &"M".into()));
        assert_eq!((&report["totalmem"], &report["freemem"]), (&10_240.into(), &4096.into()));
        assert_eq!((&report["uptime"], &report["hostname"]), (&12.into(), &"alpha".into()));
    }
}
