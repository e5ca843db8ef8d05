//! Where the accounting sits, told by the distribution's tools and not by the agent.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use serde_json::Value;

use crate::guest::figures;
use crate::guest::lab::{self, Lab, NAMES, at};
use crate::guest::machine;
use crate::guest::report::Report;
use crate::tool;

/// tcx came with this kernel.
const TCX_SINCE: (u32, u32) = (6, 6);
const RESTARTS: usize = 3;

/// The hook this kernel offers.
fn best_hook() -> Result<&'static str> {
    Ok(if machine::kernel_version()? >= TCX_SINCE { "tcx" } else { "clsact" })
}

pub(super) fn facilities(report: &mut Report) -> Result<()> {
    let lab = Lab::new(1)?;
    let settings = lab.settings()?.into_iter().next().context("the lab has hosts")?;
    let agent = lab::start(lab.host(0), settings)?;
    let status = agent.cli_json(&["status"])?;
    let hook = best_hook()?;
    for (pointer, wanted) in [("/wireguard/backend", "kernel"), ("/accounting/hook", hook), ("/state", "ready")] {
        ensure!(at(&status, pointer)? == wanted, "{pointer} is not {wanted}: {status}");
    }
    report.note(format_args!("kernel WireGuard, accounting on {hook}"));
    check_doctor(report, &agent, hook)
}

/// The doctor looks at the host by itself: it must come to the same.
fn check_doctor(report: &mut Report, agent: &TestAgent<'_>, hook: &str) -> Result<()> {
    // Exit code 4 says that something fell back, as tcx does on the older kernel.
    let output = agent.cli(&["doctor", "--json"])?;
    ensure!(matches!(output.status.code(), Some(0 | 4)), "weft doctor ended with {}", output.status);
    let diagnosis: Value = serde_json::from_slice(&output.stdout).context("weft doctor --json prints no JSON")?;
    let findings = at(&diagnosis, "/findings")?.as_array().context("/findings is no list")?;
    let level = |facility: &str| {
        let found = findings.iter().find(|finding| finding.get("facility").and_then(Value::as_str) == Some(facility));
        found.and_then(|finding| finding.get("level")?.as_str()).unwrap_or("absent")
    };
    let tcx = if hook == "tcx" { "ok" } else { "fallback" };
    for (facility, wanted) in [("kernel WireGuard", "ok"), ("tcx", tcx), ("clsact", "ok"), ("bpf(2)", "ok")] {
        ensure!(
            level(facility) == wanted,
            "the doctor finds {facility} {}, wanted {wanted}: {diagnosis}",
            level(facility)
        );
    }
    let missing: Vec<_> =
        findings.iter().filter(|finding| finding.get("level").is_some_and(|level| level == "missing")).collect();
    ensure!(missing.is_empty(), "the doctor misses {missing:?}");
    report.note(format_args!("doctor: {} facilities, tcx {tcx}, none missing", findings.len()));
    Ok(())
}

pub(super) fn survive_restarts(report: &mut Report) -> Result<()> {
    let lab = Lab::new(1)?;
    let mut agents = lab.agents()?;
    let agent = agents.first_mut().context("the lab has agents")?;
    let first = Attached::observe(agent)?;
    first.check()?;
    let counted = figures::peer(agent, NAMES[1])?;
    for _ in 0..RESTARTS {
        agent.restart()?;
        lab::settle(agent)?;
    }
    agent.kill9()?;
    agent.restart()?;
    lab::settle(agent)?;
    let last = Attached::observe(agent)?;
    ensure!(first == last, "the attached programs changed over restarts: {first:?}, then {last:?}");
    let counted_later = figures::peer(agent, NAMES[1])?;
    ensure!(counted_later.tx.packets >= counted.tx.packets, "counters went back: {counted:?}, then {counted_later:?}");
    report.note(format_args!("{RESTARTS} restarts and a kill -9 later the same: {last:?}"));
    Ok(())
}

/// What sits on the two sides of the agent's link.
#[derive(Debug, PartialEq, Eq)]
struct Attached {
    hook: &'static str,
    /// Programs of clsact filters, `ingress` then `egress`.
    filters: [Vec<u64>; 2],
    /// Programs of tcx links in the whole machine.
    links: BTreeSet<u64>,
    /// Programs that record callers and steer, in the whole machine: links to cgroups and network namespaces.
    callers: BTreeSet<u64>,
}

impl Attached {
    fn observe(agent: &TestAgent<'_>) -> Result<Self> {
        let side = |side: &str| filters(agent, side);
        let (callers, links) = links()?.into_iter().partition::<Vec<_>, _>(Linked::is_of_callers);
        let programs = |links: Vec<Linked>| links.into_iter().map(|link| link.program).collect();
        Ok(Self {
            hook: best_hook()?,
            filters: [side("ingress")?, side("egress")?],
            links: programs(links),
            callers: programs(callers),
        })
    }

    /// Each side has one program on the hook of this kernel, and none on the other hook; callers are recorded.
    fn check(&self) -> Result<()> {
        // connect4, connect6, sock_ops and sk_lookup of each of the two agents.
        ensure!(self.callers.len() == 8, "wanted 8 links to cgroups and network namespaces: {self:?}");
        let filters = self.filters.each_ref().map(Vec::len);
        match self.hook {
            // Both agents of the lab have two each.
            "tcx" => ensure!(filters == [0, 0] && self.links.len() == 4, "wanted 4 tcx links and no filter: {self:?}"),
            _ => ensure!(filters == [1, 1] && self.links.is_empty(), "wanted a filter a side and no link: {self:?}"),
        }
        Ok(())
    }
}

/// The programs in `tc filter show`.
fn filters(agent: &TestAgent<'_>, side: &str) -> Result<Vec<u64>> {
    let text = agent.host().run(&["tc", "-json", "filter", "show", "dev", agent.link(), side])?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let filters: Vec<Value> = serde_json::from_str(&text)?;
    Ok(filters.iter().filter_map(|filter| filter.pointer("/options/prog/id")?.as_u64()).collect())
}

/// A BPF link of the machine.
struct Linked {
    program: u64,
    /// As `bpftool` calls it; a number where `bpftool` is older than the kind, as Debian 12's is older than tcx.
    kind: String,
}

impl Linked {
    fn is_of_callers(&self) -> bool {
        matches!(self.kind.as_str(), "cgroup" | "netns")
    }
}

/// All BPF links.
fn links() -> Result<Vec<Linked>> {
    let text = tool::output(std::process::Command::new("bpftool").args(["--json", "link", "show"]))?;
    let links: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("bpftool printed {text:?}"))?;
    let link = |link: &Value| {
        let kind = link.get("type").map(|kind| kind.as_str().map_or_else(|| kind.to_string(), str::to_owned));
        Some(Linked { program: link.get("prog_id")?.as_u64()?, kind: kind.unwrap_or_default() })
    };
    Ok(links.iter().filter_map(link).collect())
}
