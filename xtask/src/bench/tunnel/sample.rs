//! One measurement of one tunnel, and the medians of many.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use integration_tests::netns::NetNs;
use serde_json::Value;

use super::STREAMS;
use crate::bench::median;

/// Figures of a transfer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    pub(super) mbit_per_second: f64,
    pub(super) cpu_seconds_per_gb: f64,
    pub(super) user_seconds_per_gb: f64,
    /// Context switches of all threads of both daemons.
    pub(super) switches_per_gb: f64,
}

/// What one round found.
#[derive(Debug)]
pub(super) struct Sample {
    tcp: [Transfer; STREAMS.len()],
    rtt_microseconds: f64,
    resident_mb: f64,
}

/// The medians of the rounds.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) tcp: [Transfer; STREAMS.len()],
    pub(super) rtt_microseconds: f64,
    /// Of the larger daemon.
    pub(super) resident_mb: f64,
}

/// Transfers and pings from `near` to the address `far`, while the daemons `pids` do the work.
pub(super) fn measure(near: &NetNs, far: &str, pids: &[u32], seconds: u64) -> Result<Sample> {
    let [one, four] = STREAMS.map(|streams| transfer(near, far, pids, seconds, streams));
    let resident: Vec<f64> = pids.iter().map(|pid| resident_mb(*pid)).collect::<Result<_>>()?;
    Ok(Sample {
        tcp: [one?, four?],
        rtt_microseconds: round_trip(near, far)?,
        resident_mb: resident.into_iter().fold(0.0, f64::max),
    })
}

impl Figures {
    pub(super) fn of(name: &str, samples: &[(&str, Sample)]) -> Self {
        let of_name = || samples.iter().filter(|(of, _)| *of == name).map(|(_, sample)| sample);
        let middle = |figure: &dyn Fn(&Sample) -> f64| median(of_name().map(figure).collect());
        let tcp = std::array::from_fn(|index| Transfer {
            mbit_per_second: middle(&|sample| sample.tcp[index].mbit_per_second),
            cpu_seconds_per_gb: middle(&|sample| sample.tcp[index].cpu_seconds_per_gb),
            user_seconds_per_gb: middle(&|sample| sample.tcp[index].user_seconds_per_gb),
            switches_per_gb: middle(&|sample| sample.tcp[index].switches_per_gb),
        });
        Self {
            tcp,
            rtt_microseconds: middle(&|sample| sample.rtt_microseconds),
            resident_mb: middle(&|sample| sample.resident_mb),
        }
    }
}

fn transfer(near: &NetNs, far: &str, pids: &[u32], seconds: u64, streams: usize) -> Result<Transfer> {
    let before = Spent::by(pids)?;
    let report = near.run(&["iperf3", "-J", "-c", far, "-t", &seconds.to_string(), "-P", &streams.to_string()])?;
    let after = Spent::by(pids)?;
    let report: Value = serde_json::from_str(&report).context("iperf3 -J prints JSON")?;
    let received = |what: &str| {
        report["end"]["sum_received"][what].as_f64().with_context(|| format!("no {what} in iperf3's report"))
    };
    let gigabytes = received("bytes")? / 1e9;
    Ok(Transfer {
        mbit_per_second: received("bits_per_second")? / 1e6,
        cpu_seconds_per_gb: (after.user + after.system - before.user - before.system) / gigabytes,
        user_seconds_per_gb: (after.user - before.user) / gigabytes,
        switches_per_gb: (after.switches - before.switches) / gigabytes,
    })
}

/// What processes have spent so far.
struct Spent {
    user: f64,
    system: f64,
    switches: f64,
}

impl Spent {
    fn by(pids: &[u32]) -> Result<Self> {
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
        let per_second = f64::from(u32::try_from(per_second)?);
        let mut spent = Self { user: 0.0, system: 0.0, switches: 0.0 };
        for pid in pids {
            // proc(5): fields 14 and 15 of `stat`, for all threads. The name in parentheses may hold spaces.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("a daemon is gone")?;
            let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
            let ticks: Vec<f64> =
                fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
            spent.user += ticks[0] / per_second;
            spent.system += ticks[1] / per_second;
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                spent.switches += context_switches(task?.path())?;
            }
        }
        Ok(spent)
    }
}

fn context_switches(task: PathBuf) -> Result<f64> {
    // A thread may end between the listing and the reading.
    let Ok(status) = fs::read_to_string(task.join("status")) else { return Ok(0.0) };
    let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    counts.map(|(_, count)| Ok(count.trim().parse::<f64>()?)).sum()
}

/// The average of 50 pings.
fn round_trip(near: &NetNs, far: &str) -> Result<f64> {
    let text = near.run(&["ping", "-q", "-c", "50", "-i", "0.01", far])?;
    let summary = text.lines().find_map(|line| line.strip_prefix("rtt ")).context("ping printed no times")?;
    let (_, figures) = summary.split_once(" = ").context("ping's summary has figures")?;
    let average = figures.split('/').nth(1).context("ping's summary has an average")?;
    Ok(average.parse::<f64>()? * 1000.0)
}

fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("a daemon is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}
