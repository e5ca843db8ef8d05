//! bench area `tunnel`: the embedded device against other userspace implementations, each as its own program.
//!
//! Two namespaces joined by a veth pair, one daemon in each; all programs run at once and are measured in
//! turn, so that they share the machine's good and bad moments. CPU time per GB (both daemons together) carries over to other
//! machines; Mbit/s hardly does.

mod sample;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::gate::find_tool;
use integration_tests::key::KeyPair;
use integration_tests::netns::{NetNs, veth};
use integration_tests::process::Process;
use integration_tests::wait::eventually;

use self::sample::{Figures, Sample};
use super::{Context, Row, Target};
use crate::repo;

const OURS: &str = "weft";
const WIREGUARD_GO: &str = "wireguard-go";
const CONTROL_DIRECTORY: &str = "/var/run/wireguard";
const MTU: &str = "1420";
const SOON: Duration = Duration::from_secs(20);

/// Streams side by side; the names of rows say how many.
const STREAMS: [usize; 2] = [1, 4];

/// What is installed for this bench alone, below `target/`: package, version, binary.
const INSTALLED: [(&str, &str, &str); 2] =
    [("gotatun-cli", "0.10.2", "gotatun"), ("boringtun-cli", "0.7.1", "boringtun-cli")];

/// A program that makes a device from the last of its arguments.
struct Program {
    name: &'static str,
    path: PathBuf,
    arguments: &'static [&'static str],
}

/// A program at work: two daemons that know each other.
struct Tunnel {
    name: &'static str,
    daemons: [Process; 2],
    links: [String; 2],
    /// The address of the far end.
    far: String,
}

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let programs = programs()?;
    let (near, far) = (NetNs::new()?, NetNs::new()?);
    veth((&near, "under", &["10.77.0.1/24"]), (&far, "under", &["10.77.0.2/24"]))?;
    let mut server = Process::spawn("iperf3 server", {
        let mut command = far.command("iperf3");
        command.arg("-s");
        command
    })?;
    server.wait_for("iperf3 listens", SOON, || {
        far.run(&["ss", "-Hltn", "sport = :5201"]).is_ok_and(|text| !text.is_empty())
    })?;
    let tunnels: Vec<Tunnel> = (1u16..)
        .zip(&programs)
        .map(|(number, program)| {
            Tunnel::start(number, program, &near, &far).with_context(|| format!("starting {}", program.name))
        })
        .collect::<Result<_>>()?;
    let mut samples = Vec::new();
    for round in 1..=context.rounds {
        for tunnel in &tunnels {
            eprintln!("  round {round}: {}", tunnel.name);
            match tunnel.measure(&near, context.seconds) {
                Ok(sample) => samples.push((tunnel.name, sample)),
                // Some programs stall on a busy machine; their other rounds still count. Ours may not.
                Err(error) if tunnel.name != OURS => eprintln!("  left out: {error:#}"),
                Err(error) => return Err(error),
            }
        }
    }
    let figures: Vec<(&str, Figures)> =
        programs.iter().map(|program| (program.name, Figures::of(program.name, &samples))).collect();
    explain(&figures);
    rows(&figures)
}

/// Ours, built as a release, and the alternatives, installed where missing.
fn programs() -> Result<Vec<Program>> {
    repo::execute(&mut repo::cargo(&["build", "--release", "--package", "weft-tunnel", "--example", "tunnel"]))?;
    let tools = repo::root().join("target/bench-tools");
    for (package, version, binary) in INSTALLED {
        if !tools.join("bin").join(binary).is_file() {
            eprintln!("installing {package} {version} below {} (a few minutes, once)", tools.display());
            let mut install = repo::cargo(&["install", package, "--version", version, "--root"]);
            repo::execute(install.arg(&tools))?;
        }
    }
    let installed = |binary: &str| tools.join("bin").join(binary);
    let debian = find_tool(WIREGUARD_GO).context("wireguard-go is not installed: `apt-get install wireguard-go`")?;
    let stay = &["-f", "--disable-drop-privileges"];
    Ok(vec![
        Program { name: OURS, path: repo::built("release", "examples/tunnel"), arguments: &[] },
        Program { name: "gotatun", path: installed("gotatun"), arguments: stay },
        Program { name: "boringtun", path: installed("boringtun-cli"), arguments: stay },
        Program {
            name: "boringtun, 1 thread",
            path: installed("boringtun-cli"),
            arguments: &["-f", "-t", "1", "--disable-drop-privileges"],
        },
        Program { name: WIREGUARD_GO, path: debian, arguments: &["-f"] },
    ])
}

impl Tunnel {
    fn start(number: u16, program: &Program, near: &NetNs, far: &NetNs) -> Result<Self> {
        let port = 5000 + number;
        let keys = [KeyPair::generate()?, KeyPair::generate()?];
        let links = ["a", "b"].map(|end| format!("w{}{number}{end}", std::process::id()));
        let start = |end: usize, host: &NetNs| start_daemon(program, host, &links[end]);
        let daemons = [start(0, near)?, start(1, far)?];
        for (end, host) in [near, far].into_iter().enumerate() {
            let (own, other) = (end + 1, 2 - end);
            let secret = tempfile::NamedTempFile::new()?;
            std::fs::write(secret.path(), &keys[end].private)?;
            let secret = secret.path().to_str().context("a temporary file has an ASCII name")?;
            let link = &links[end];
            let (port_text, peer) = (port.to_string(), &keys[1 - end].public);
            let (allowed, endpoint) = (format!("10.78.{number}.{other}/32"), format!("10.77.0.{other}:{port}"));
            host.run(&[
                "wg",
                "set",
                link,
                "private-key",
                secret,
                "listen-port",
                &port_text,
                "peer",
                peer,
                "allowed-ips",
                &allowed,
                "endpoint",
                &endpoint,
            ])?;
            host.run(&["ip", "address", "add", &format!("10.78.{number}.{own}/24"), "dev", link])?;
            host.run(&["ip", "link", "set", link, "mtu", MTU, "up"])?;
        }
        let far_address = format!("10.78.{number}.2");
        eventually(SOON, &format!("{} carries a ping", program.name), || {
            near.run(&["ping", "-c", "1", "-W", "1", &far_address]).is_ok()
        })?;
        Ok(Self { name: program.name, daemons, links, far: far_address })
    }

    fn measure(&self, near: &NetNs, seconds: u64) -> Result<Sample> {
        let pids = self.daemons.each_ref().map(Process::pid);
        sample::measure(near, &self.far, &pids, seconds).with_context(|| format!("measuring {}", self.name))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        for (daemon, link) in self.daemons.iter_mut().zip(&self.links) {
            // One that does not end when asked is killed by its guard.
            daemon.stop().ok();
            // Not every program takes its files away.
            for file in ["sock", "name"] {
                std::fs::remove_file(Path::new(CONTROL_DIRECTORY).join(format!("{link}.{file}"))).ok();
            }
        }
    }
}

fn start_daemon(program: &Program, host: &NetNs, link: &str) -> Result<Process> {
    let mut command = host.command(&program.path);
    command.args(program.arguments).arg(link);
    let mut process = Process::spawn(program.name, command)?;
    // boringtun opens its control socket before the device exists.
    process.wait_for("its device answers", SOON, || {
        Path::new(CONTROL_DIRECTORY).join(format!("{link}.sock")).exists()
            && host.run(&["ip", "link", "show", link]).is_ok()
            && host.run(&["wg", "show", link]).is_ok()
    })?;
    Ok(process)
}

/// The best of the alternatives in one figure.
fn best<'a>(
    figures: &[(&'a str, Figures)],
    figure: impl Fn(&Figures) -> f64,
    is_better: impl Fn(f64, f64) -> bool,
) -> Result<(&'a str, f64)> {
    figures
        .iter()
        .filter(|(name, _)| ![OURS, WIREGUARD_GO].contains(name))
        .map(|(name, figures)| (*name, figure(figures)))
        .reduce(|best, next| if is_better(next.1, best.1) { next } else { best })
        .context("there are alternatives")
}

fn rows(figures: &[(&str, Figures)]) -> Result<Vec<Row>> {
    let of = |wanted: &str| figures.iter().find(|(name, _)| *name == wanted).map(|(_, figures)| figures);
    let (ours, go) = (of(OURS).context("ours is measured")?, of(WIREGUARD_GO).context("wireguard-go is measured")?);
    ensure!(figures.len() > 2, "nothing to compare with");
    let mut rows = Vec::new();
    for (index, streams) in STREAMS.into_iter().enumerate() {
        let rate = |figures: &Figures| figures.tcp[index].mbit_per_second;
        let cost = |figures: &Figures| figures.tcp[index].cpu_seconds_per_gb;
        let row = |what: &str, unit, ours, (name, alternative): (&str, f64), target| Row {
            what: format!("{what}, TCP {streams} stream{}", if streams == 1 { "" } else { "s" }),
            unit,
            ours,
            alternative_name: name.to_owned(),
            alternative,
            target,
        };
        let fastest = best(figures, rate, |next, best| next > best)?;
        let cheapest = best(figures, cost, |next, best| next < best)?;
        rows.push(row("throughput", "Mbit/s", rate(ours), fastest, Target::AtLeast(1.0)));
        rows.push(row("throughput", "Mbit/s", rate(ours), (WIREGUARD_GO, rate(go)), Target::AtLeast(1.5)));
        rows.push(row("CPU, both ends", "s/GB", cost(ours), cheapest, Target::AtMost(1.0)));
    }
    Ok(rows)
}

/// What the ratios do not show: where the CPU time goes, and what a single packet takes.
fn explain(figures: &[(&str, Figures)]) {
    eprintln!("  (the cipher alone, once at each end, is about 1.5 s/GB on a core that does 1.4 GB/s)");
    eprintln!(
        "  {:20} {:>8} {:>8} {:>6} {:>6} {:>10} {:>7} {:>7}",
        "medians, 4 streams", "Mbit/s", "CPU s/GB", "user", "system", "switch/GB", "RTT us", "RSS MB"
    );
    for (name, figures) in figures {
        let tcp = &figures.tcp[1];
        eprintln!(
            "  {name:20} {:8.0} {:8.2} {:6.2} {:6.2} {:10.0} {:7.0} {:7.1}",
            tcp.mbit_per_second,
            tcp.cpu_seconds_per_gb,
            tcp.user_seconds_per_gb,
            tcp.cpu_seconds_per_gb - tcp.user_seconds_per_gb,
            tcp.switches_per_gb,
            figures.rtt_microseconds,
            figures.resident_mb,
        );
    }
}
