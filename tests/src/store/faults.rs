//! Three members of one store, each a process in a namespace of its own, while clients write and read on all of them, and processes, network, disks and clocks fail.
//!
//! The seed of a run is printed; `WEFT_FAULT_SEED` runs its order of faults again. Every write that was acknowledged must be
//! there in the end, on every member; every history of a register must be linearizable; every refusal must say why.

mod clients;
mod disk;
#[path = "../../../agent/src/store/tests/linearizable.rs"]
mod linearizable;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use integration_tests::agent::weft_binary;
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::{eventually, eventually_some, for_a_while};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use weft_proto::weft::store::v1::Status;

use clients::Clients;
use disk::SmallDisk;

const TOOLS: [&str; 6] = ["wg", "ip", "nsenter", "nft", "strace", "unshare"];
const DEADLINE: Duration = Duration::from_secs(60);
const MEMBERS: usize = 3;
/// The member whose disk is small.
const ON_SMALL_DISK: usize = 2;
const SMALL_DISK_MIB: usize = 128;
/// Bytes of a log segment's batch header.
const HEADER_BYTES: usize = 24;

/// Numbers that look random and are the same for the same seed (xorshift).
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn place(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).expect("small")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    LeaderKilled,
    FollowerKilled,
    CutBothWays,
    /// Its own calls get nowhere; the others' reach it.
    CutOutgoing,
    SlowDisk,
    FullDisk,
    /// The process stands still, and finds that the clock has jumped.
    ClockJump,
    TornRecord,
}

const FAULTS: [Fault; 12] = [
    Fault::LeaderKilled,
    Fault::FollowerKilled,
    Fault::CutBothWays,
    Fault::CutOutgoing,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::ClockJump,
    Fault::TornRecord,
    Fault::LeaderKilled,
    Fault::LeaderKilled,
    Fault::CutBothWays,
    Fault::TornRecord,
];

#[test]
fn whole_processes_fail_and_no_acknowledged_write_is_lost() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let seed = std::env::var("WEFT_FAULT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9 + 1);
    println!("WEFT_FAULT_SEED={seed}");
    let mut random = Random(seed);
    let scenario = Scenario::new(MEMBERS).expect("namespaces");
    let disk = SmallDisk::new(SMALL_DISK_MIB).expect("a small disk");
    let mut cluster = Cluster::form(&scenario, &disk);
    let clients = Clients::start(cluster.sockets(), seed);
    let mut order = FAULTS.to_vec();
    let mut counts = BTreeMap::<Fault, u32>::new();
    while !order.is_empty() {
        let fault = order.swap_remove(random.place(order.len()));
        for_a_while(Duration::from_millis(300 + random.below(700)));
        cluster.disturb(fault, &mut random);
        *counts.entry(fault).or_default() += 1;
    }
    let interrupted = cluster.interrupt_a_snapshot();
    cluster.settle();
    let told = clients.finish();
    println!("faults {counts:?}, snapshot installations interrupted {interrupted}; {told}");
}

/// Three members, each with a vote.
struct Cluster<'a> {
    members: Vec<Member<'a>>,
    disk: &'a SmallDisk,
    runtime: Runtime,
    _directory: TempDir,
}

/// One member, in a namespace of its own.
struct Member<'a> {
    host: &'a NetNs,
    place: usize,
    directory: PathBuf,
    process: Option<Process>,
}

impl Member<'_> {
    fn socket(&self) -> PathBuf {
        self.directory.join("grpc.sock")
    }

    /// Starts it with a clock that began `offset` seconds earlier than that of the machine.
    fn start(&mut self, offset: u64) {
        let offset = offset.to_string();
        let mut command = self.host.command("unshare");
        command.args(["--time", "--monotonic", &offset, "--boottime", &offset, "--"]);
        command
            .arg(member_program())
            .arg("node")
            .arg("--authority")
            .arg(self.directory.with_file_name("authority.pem"));
        command.arg("--directory").arg(self.directory.join("state")).arg("--grpc").arg(self.socket());
        command.args(["--node", &format!("node-{}", self.place), "--raft", &raft_address(self.place)]);
        command.args(["--snapshot-entries", "200"]);
        if self.place > 0 {
            command.arg("--join");
        }
        self.process = Some(Process::spawn(&format!("member {}", self.place), command).expect("it starts"));
    }

    fn running(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }
}

fn raft_address(place: usize) -> String {
    format!("{}:9443", Scenario::address(place))
}

/// The example `store_bench` of the same build.
fn member_program() -> PathBuf {
    let program = weft_binary().expect("built").with_file_name("examples").join("store_bench");
    let hint = "run `cargo build --package weft-agent --example store_bench`";
    assert!(program.is_file(), "{} does not exist: {hint}", program.display());
    program
}

impl<'a> Cluster<'a> {
    fn form(scenario: &'a Scenario, disk: &'a SmallDisk) -> Self {
        let directory = TempDir::with_prefix("weft-faults-").expect("a directory");
        let authority = directory.path().join("authority.pem");
        let run = |command: &mut Command| {
            let output = command.output().expect("it runs");
            assert!(output.status.success(), "{output:?}");
        };
        run(Command::new(member_program()).arg("authority").arg(authority));
        let mut members = Vec::new();
        let mut form = Command::new(member_program());
        form.arg("form");
        for place in 0..MEMBERS {
            let home = directory.path().join(place.to_string());
            std::fs::create_dir(&home).expect("made");
            let state = home.join("state");
            match place {
                ON_SMALL_DISK => std::os::unix::fs::symlink(disk.path(), state).expect("linked"),
                _ => std::fs::create_dir(state).expect("made"),
            }
            let mut member = Member { host: scenario.host(place), place, directory: home, process: None };
            member.start(0);
            let socket = member.socket().display().to_string();
            form.arg(if place == 0 { socket } else { format!("{socket}=node-{place}={}", raft_address(place)) });
            members.push(member);
        }
        run(&mut form);
        let runtime = Runtime::new().expect("a runtime");
        let cluster = Self { members, disk, runtime, _directory: directory };
        cluster.settle();
        for sql in [clients::REGISTERS_TABLE, clients::LEDGER_TABLE, clients::REGISTERS_ROWS] {
            cluster.exec(0, sql);
        }
        cluster
    }

    fn sockets(&self) -> Vec<PathBuf> {
        self.members.iter().map(Member::socket).collect()
    }

    fn status(&self, place: usize) -> Option<Status> {
        self.runtime.block_on(clients::status(&self.members[place].socket()))
    }

    /// Has `sql` carried out, however often that must be tried.
    fn exec(&self, place: usize, sql: &str) {
        let socket = self.members[place].socket();
        eventually(DEADLINE, sql, || self.runtime.block_on(clients::exec(&socket, sql))).expect("carried out");
    }

    /// Waits until every member runs, has a vote and knows a leader.
    fn settle(&self) {
        for place in 0..MEMBERS {
            let is_whole = || {
                self.status(place).is_some_and(|status| {
                    let voters = status.members.iter().filter(|member| member.voter).count();
                    voters == MEMBERS
                        && status.leader.is_some()
                        && status.role != "candidate"
                        && status.errors.is_empty()
                })
            };
            let what = format!("member {place} is whole again");
            let whole = eventually(DEADLINE, &what, is_whole);
            assert!(whole.is_ok(), "{whole:?}: {:?}", self.status(place));
        }
    }

    fn leader(&self) -> usize {
        let leads = |place: &usize| self.status(*place).is_some_and(|status| status.role == "leader");
        eventually_some(DEADLINE, "one leads", || (0..MEMBERS).find(leads)).expect("a leader")
    }

    fn disturb(&mut self, fault: Fault, random: &mut Random) {
        let leader = self.leader();
        let follower = (leader + 1 + random.place(MEMBERS - 1)) % MEMBERS;
        let either = random.place(MEMBERS);
        let lasting = Duration::from_millis(700 + random.below(1500));
        match fault {
            Fault::LeaderKilled => self.crash(leader, random, |_| {}),
            Fault::FollowerKilled => self.crash(follower, random, |_| {}),
            Fault::TornRecord => self.crash(either, random, tear_the_log),
            Fault::CutBothWays => self.cut(either, "meta l4proto tcp drop;", lasting),
            Fault::CutOutgoing => self.cut(either, "tcp dport 9443 drop;", lasting),
            Fault::SlowDisk => self.slow(either, lasting),
            Fault::FullDisk => {
                self.disk.fill().expect("filled");
                for_a_while(lasting);
                self.disk.empty().expect("emptied");
            }
            Fault::ClockJump => {
                self.members[either].running().signal(Signal::SIGSTOP).expect("stopped");
                for_a_while(lasting);
                self.members[either].running().signal(Signal::SIGCONT).expect("goes on");
            }
        }
        self.settle();
    }

    /// Ends a member at any instruction; it comes back with another clock.
    fn crash(&mut self, place: usize, random: &mut Random, meanwhile: impl FnOnce(&Path)) {
        let member = &mut self.members[place];
        member.running().kill9().expect("killed");
        for_a_while(Duration::from_millis(random.below(800)));
        meanwhile(&member.directory.join("state/store/log"));
        member.start(random.below(1_000_000));
    }

    /// Drops what `rules` say of what leaves a member.
    fn cut(&self, place: usize, rules: &str, lasting: Duration) {
        let host = self.members[place].host;
        let table = format!("table inet cut {{ chain leaving {{ type filter hook output priority -300; {rules} }}; }}");
        host.run(&["nft", &table]).expect("cut");
        for_a_while(lasting);
        host.run(&["nft", "delete table inet cut"]).expect("healed");
    }

    /// Every sync of one member takes a tenth of a second longer.
    fn slow(&mut self, place: usize, lasting: Duration) {
        let pid = self.members[place].running().pid().to_string();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]);
        strace.args(["-e", "inject=fdatasync,fsync:delay_enter=100000", "-p", &pid]);
        let mut strace = Process::spawn("strace", strace).expect("it starts");
        for_a_while(lasting);
        // It lets go of the member when it is asked to end.
        strace.stop().expect("it ends");
    }

    /// A member that is far behind is killed again and again while a snapshot is on its way to it. How often it was.
    fn interrupt_a_snapshot(&mut self) -> u32 {
        let follower = (self.leader() + 1) % MEMBERS;
        let other = (follower + 1) % MEMBERS;
        self.members[follower].running().kill9().expect("killed");
        self.exec(other, "CREATE TABLE IF NOT EXISTS filler (a INTEGER PRIMARY KEY, b BLOB)");
        for _ in 0..16 {
            self.exec(other, "INSERT INTO filler (b) VALUES (zeroblob(1000000))");
        }
        let before = self.status(other).expect("it answers").last_log;
        let is_purged = || self.status(other).is_some_and(|status| status.purged > before);
        eventually(DEADLINE, "the log of the others begins after what it has", is_purged).expect("purged");
        // The one that has no such entries any more sends what it has as a snapshot.
        let socket = self.members[other].socket();
        let leads = || self.runtime.block_on(clients::lead(&socket, &format!("node-{other}")));
        eventually(DEADLINE, "another member leads", || leads() && self.leader() == other).expect("handed over");
        let part = self.members[follower].directory.join("state/store/snapshots/received.part");
        let arrives = || std::fs::metadata(&part).is_ok_and(|found| found.len() > 0);
        let mut interrupted = 0;
        for _ in 0..3 {
            self.members[follower].start(0);
            let end = Instant::now() + Duration::from_secs(10);
            while !arrives() && Instant::now() < end {
                for_a_while(Duration::from_micros(500));
            }
            self.members[follower].running().kill9().expect("killed");
            interrupted += u32::from(arrives());
        }
        self.members[follower].start(0);
        self.settle();
        assert!(interrupted > 0, "a snapshot was under way at one of the kills");
        let has_it = || self.status(follower).is_some_and(|status| status.snapshot > before);
        eventually(DEADLINE, "it has what came as a snapshot", has_it).expect("installed");
        interrupted
    }
}

/// Puts behind the last whole batch of the log the beginning of one that was never finished.
fn tear_the_log(directory: &Path) {
    use std::os::unix::fs::FileExt as _;
    let files = std::fs::read_dir(directory).expect("a log").map(|file| file.expect("a file").path());
    let last = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max();
    let last = last.expect("a segment");
    let bytes = std::fs::read(&last).expect("read");
    let mut at = 0;
    let mut number = 0;
    while bytes.get(at..at + 4) == Some(b"WFTL") {
        let of = |from: usize| u64::from_le_bytes(bytes[at + from..at + from + 8].try_into().expect("eight bytes"));
        number = of(16);
        at += HEADER_BYTES + usize::try_from(of(8)).expect("small");
    }
    let mut torn = [b"WFTL".as_slice(), &[7; 4], &4096_u64.to_le_bytes(), &(number + 1).to_le_bytes()].concat();
    torn.extend([0xa5; 500]);
    let file = std::fs::OpenOptions::new().write(true).open(&last).expect("opened");
    file.write_all_at(&torn, at as u64).expect("written");
}
