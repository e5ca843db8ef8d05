//! The agent's DNS server as clients see it: `dig` and `kdig` ask the real agent in a network namespace, knot stands
//! for the upstream.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::gate;
use integration_tests::key::KeyPair;
use integration_tests::netns::{NetNs, veth};
use integration_tests::process::Process;
use integration_tests::wait::eventually;

const SERVER: &str = "@127.0.3.3";
const SOON: Duration = Duration::from_secs(10);

fn may_run() -> bool {
    gate::root_and(&["nsenter", "wg", "dig", "kdig", "knotd"])
}

/// `alpha` with the peer `beta`, which has an address of each family and a routed network.
fn alpha() -> Settings {
    let beta = PeerTable {
        name: "beta".to_owned(),
        public_key: KeyPair::generate().expect("wg makes keys").public,
        allowed_ips: ["10.80.0.2/32", "fd80::2/128", "192.168.7.0/24"].map(str::to_owned).to_vec(),
        ..PeerTable::default()
    };
    let settings = Settings::new("alpha").expect("wg makes keys");
    settings.wireguard("backend = \"userspace\"").addresses(&["10.80.0.1/24", "fd80::1/64"]).peer(beta)
}

fn with_upstream(upstream: &str) -> Settings {
    alpha().table(&format!("[dns]\nupstream = [{upstream:?}]"))
}

fn dig(host: &NetNs, words: &[&str]) -> String {
    let fixed = ["dig", "+tries=1", "+time=6", "+nocookie"];
    host.run(&[&fixed[..], words].concat()).expect("dig got a reply")
}

fn short(host: &NetNs, words: &[&str]) -> Vec<String> {
    dig(host, &[&["+short", SERVER][..], words].concat()).lines().map(str::to_owned).collect()
}

/// knot on `127.0.0.1@5353`. `zone_file`: what it is the authority of; else it forwards everything to us.
fn knot(host: &NetNs, directory: &std::path::Path, zone: Option<&str>) -> Process {
    let run = directory.join("knot");
    fs::create_dir_all(&run).expect("created");
    let rest = match zone {
        Some(records) => {
            fs::write(directory.join("corp.example.zone"), records).expect("written");
            format!(
                "zone:\n  - domain: corp.example\n    storage: {directory:?}\n    file: corp.example.zone\n    \
                 zonefile-load: whole\n    journal-content: none\n"
            )
        }
        None => "remote:\n  - id: weft\n    address: 127.0.3.3@53\nmod-dnsproxy:\n  - id: back\n    remote: weft\n    \
                 fallback: on\ntemplate:\n  - id: default\n    global-module: mod-dnsproxy/back\n"
            .to_owned(),
    };
    let text = format!(
        "server:\n  rundir: {run:?}\n  listen: 127.0.0.1@5353\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\nlog:\n  - target: stderr\n    any: info\ndatabase:\n  storage: {run:?}\n{rest}"
    );
    let config = directory.join("knot.conf");
    fs::write(&config, text).expect("written");
    let mut command = host.command("knotd");
    command.arg("-c").arg(config);
    let mut process = Process::spawn("knotd", command).expect("started");
    let answers =
        || host.run(&["dig", "+tries=1", "+time=1", "-p", "5353", "@127.0.0.1", "corp.example", "SOA"]).is_ok();
    // The forwarding knot answers only with us behind it.
    if zone.is_some() {
        process.wait_for("knot answers", SOON, answers).expect("knot runs");
    } else {
        process.wait_for_log("server started", SOON).expect("knot runs");
    }
    process
}

const CORP: &str = "$ORIGIN corp.example.\n$TTL 300\n@ SOA ns h 1 60 60 60 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.80\n\
                    alias CNAME www\n";

/// The value of a counter on the metrics page, 0 if it is not there.
fn counted(host: &NetNs, series: &str) -> u64 {
    let text = host.run(&["curl", "-s", "http://127.0.0.1:9615/metrics"]).expect("curl");
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[test]
fn names_and_addresses_of_the_mesh_are_answered() {
    if !may_run() {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = TestAgent::start(&host, alpha()).expect("ready");
    assert_eq!(short(&host, &["beta.weft.internal", "A"]), ["10.80.0.2"]);
    assert_eq!(short(&host, &["beta.weft.internal", "AAAA"]), ["fd80::2"]);
    assert_eq!(short(&host, &["alpha.weft.internal", "A"]), ["10.80.0.1"]);
    assert_eq!(short(&host, &["-x", "10.80.0.2"]), ["beta.weft.internal."]);
    assert_eq!(short(&host, &["-x", "fd80::2"]), ["beta.weft.internal."]);
    assert_eq!(short(&host, &["pm3", "A"]), ["127.0.3.3"]);
    assert_eq!(short(&host, &["beta.pm3", "A"]), ["10.80.0.2"]);
    let key = format!("\"id=alpha\" \"key={}\"", agent.settings().keys().public);
    assert_eq!(short(&host, &["alpha.weft.internal", "TXT"]), [key]);
    // On the mesh addresses too.
    for mesh in ["@10.80.0.1", "@fd80::1"] {
        assert_eq!(dig(&host, &["+short", mesh, "beta.weft.internal", "A"]).trim(), "10.80.0.2");
    }
}

#[test]
fn the_forms_of_an_answer_are_right() {
    if !may_run() {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = TestAgent::start(&host, alpha()).expect("ready");
    let nodata = dig(&host, &[SERVER, "beta.weft.internal", "MX"]);
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0, AUTHORITY: 1"), "{nodata}");
    assert!(nodata.contains("SOA\talpha.weft.internal. hostmaster.weft.internal."), "{nodata}");
    let nxdomain = dig(&host, &[SERVER, "nobody.weft.internal"]);
    assert!(nxdomain.contains("status: NXDOMAIN") && nxdomain.contains(" aa "), "{nxdomain}");
    let unknown = dig(&host, &[SERVER, "-x", "10.80.0.99"]);
    assert!(unknown.contains("status: NXDOMAIN") && unknown.contains("0.80.10.in-addr.arpa."), "{unknown}");
    let mixed = dig(&host, &[SERVER, "BeTa.Weft.INTERNAL", "A"]);
    assert!(mixed.contains("\nBeTa.Weft.INTERNAL."), "{mixed}");
    let any = dig(&host, &[SERVER, "+notcp", "beta.weft.internal", "ANY"]);
    assert!(any.contains("HINFO\t\"RFC8482\" \"\""), "{any}");
    assert!(dig(&host, &[SERVER, "version.bind", "CH", "TXT"]).contains("status: REFUSED"));
    assert!(dig(&host, &[SERVER, "+opcode=notify", "weft.internal", "SOA"]).contains("status: NOTIMP"));
    let version = dig(&host, &[SERVER, "+edns=1", "+noednsnegotiation", "beta.weft.internal"]);
    assert!(version.contains("status: BADVERS"), "{version}");
    let edns = dig(&host, &[SERVER, "+bufsize=4096", "beta.weft.internal"]);
    assert!(edns.contains("EDNS: version: 0, flags:; udp: 1232"), "{edns}");
    assert!(!dig(&host, &[SERVER, "+noedns", "beta.weft.internal"]).contains("OPT PSEUDOSECTION"));
}

#[test]
fn what_does_not_fit_is_truncated_and_whole_over_tcp() {
    if !may_run() {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let addresses: Vec<String> = (1..=50).map(|number| format!("10.80.0.{number}/24")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let settings = Settings::new("alpha").expect("wg makes keys").wireguard("backend = \"userspace\"");
    let settings = settings.addresses(&addresses).table("[dns]\nlisten_on_mesh = false\nupstream = []");
    let _agent = TestAgent::start(&host, settings).expect("ready");
    let answers = |words: &[&str]| {
        let text = host.run(&[&["kdig", SERVER, "alpha.weft.internal", "A"][..], words].concat()).expect("kdig");
        (text.contains(" tc "), text.matches("IN\tA\t").count())
    };
    assert_eq!(answers(&["+noedns", "+ignore"]), (true, 0));
    assert_eq!(answers(&["+bufsize=600", "+ignore"]), (true, 0));
    assert_eq!(answers(&["+bufsize=1232", "+ignore"]), (false, 50));
    assert_eq!(answers(&["+noedns"]), (false, 50), "kdig asks again over TCP");
    assert_eq!(answers(&["+tcp", "+keepopen"]), (false, 50));
}

#[test]
fn other_names_are_forwarded_and_kept_and_a_dead_upstream_fails_soon() {
    if !may_run() || !gate::root_and(&["curl"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let directory = tempfile::tempdir().expect("a directory");
    let mut upstream = knot(&host, directory.path(), Some(CORP));
    let _agent = TestAgent::start(&host, with_upstream("127.0.0.1:5353")).expect("ready");
    assert_eq!(short(&host, &["www.corp.example", "A"]), ["192.0.2.80"]);
    assert_eq!(short(&host, &["alias.corp.example", "A"]), ["www.corp.example.", "192.0.2.80"]);
    let nxdomain = dig(&host, &[SERVER, "nobody.corp.example"]);
    assert!(nxdomain.contains("status: NXDOMAIN") && nxdomain.contains("SOA\tns.corp.example."), "{nxdomain}");
    assert!(dig(&host, &[SERVER, "+tcp", "www.corp.example"]).contains("192.0.2.80"));
    let cached = "weft_dns_queries_total{proto=\"udp\",answered_by=\"cache\",rcode=\"NOERROR\"}";
    let before = counted(&host, cached);
    upstream.kill9().expect("killed");
    assert!(
        dig(&host, &[SERVER, "WWW.corp.example"]).contains("WWW.corp.example.\t"),
        "kept, in the case that was asked"
    );
    assert_eq!(counted(&host, cached), before + 1);
    let start = Instant::now();
    assert!(dig(&host, &[SERVER, "other.corp.example"]).contains("status: SERVFAIL"));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(counted(&host, "weft_dns_upstream_seconds_count"), 4);
    // Special names never leave the host, so a dead upstream does not matter.
    assert!(dig(&host, &[SERVER, "printer.local"]).contains("status: NXDOMAIN"));
}

#[test]
fn an_upstream_that_asks_us_back_is_a_loop_that_ends() {
    if !may_run() {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let directory = tempfile::tempdir().expect("a directory");
    let mut agent = TestAgent::start(&host, with_upstream("127.0.0.1:5353")).expect("ready");
    let _upstream = knot(&host, directory.path(), None);
    let start = Instant::now();
    let answer = dig(&host, &[SERVER, "www.loops-forever.example"]);
    assert!(answer.contains("status: SERVFAIL"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let process = agent.process().expect("it runs");
    process.wait_for_log("an upstream forwards to us", SOON).expect("the loop is named");
}

#[test]
fn strangers_get_mesh_names_only() {
    if !may_run() {
        return;
    }
    let (host, stranger) = (NetNs::new().expect("a namespace"), NetNs::new().expect("a namespace"));
    veth((&host, "eth0", &["192.0.2.1/24"]), (&stranger, "eth0", &["192.0.2.2/24"])).expect("linked");
    let directory = tempfile::tempdir().expect("a directory");
    let _upstream = knot(&host, directory.path(), Some(CORP));
    let table = "[dns]\nlisten = [\"127.0.3.3:53\", \"192.0.2.1:53\"]\nupstream = [\"127.0.0.1:5353\"]";
    let _agent = TestAgent::start(&host, alpha().table(table)).expect("ready");
    assert!(dig(&stranger, &["@192.0.2.1", "beta.weft.internal"]).contains("10.80.0.2"));
    for transport in ["+notcp", "+tcp"] {
        let refused = dig(&stranger, &["@192.0.2.1", transport, "www.corp.example"]);
        assert!(refused.contains("status: REFUSED"), "{refused}");
    }
    assert_eq!(short(&host, &["www.corp.example"]), ["192.0.2.80"]);
}

#[test]
fn an_address_in_use_is_named_and_the_others_answer() {
    if !may_run() {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _taken = host.enter(|| UdpSocket::bind("127.0.3.3:53").expect("free in a new namespace")).expect("entered");
    let mut agent = TestAgent::start(&host, alpha()).expect("ready");
    let process = agent.process().expect("it runs");
    let answers = || host.run(&["dig", "+tries=1", "+time=1", "+short", "@10.80.0.1", "beta.weft.internal"]).is_ok();
    process.wait_for("the mesh address answers", SOON, answers).expect("it does");
    let status = agent.cli_json(&["status"]).expect("a status").to_string();
    assert!(status.contains("dns.listen 127.0.3.3:53 (udp): another server holds this address"), "{status}");
}

#[test]
fn malformed_and_slow_clients_disturb_nobody() {
    if !may_run() {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = TestAgent::start(&host, alpha()).expect("ready");
    let slow = host.enter(abuse).expect("entered");
    assert_eq!(short(&host, &["beta.weft.internal", "A"]), ["10.80.0.2"]);
    assert!(dig(&host, &[SERVER, "+tcp", "beta.weft.internal"]).contains("10.80.0.2"));
    // A connection that announces more than a query can be is closed, and a silent one in time. What it sent and we did
    // not read makes that a reset.
    let closed = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).expect("set");
        match stream.read(&mut [0; 16]) {
            Ok(length) => length == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    };
    eventually(SOON, "the oversized query closes its connection", || closed(&slow[0])).expect("closed");
    let patience = Duration::from_secs(20);
    eventually(patience, "silent connections are closed", || slow[1..].iter().all(closed)).expect("closed");
}

/// Garbage over UDP; one oversized and many half-written queries over TCP, which stay open.
fn abuse() -> Vec<TcpStream> {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mut garbage = vec![0_u8; 4000];
    for round in 0..2000_usize {
        for (index, byte) in garbage.iter_mut().enumerate() {
            *byte = (index.wrapping_mul(31) ^ round.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()[0];
        }
        client.send_to(&garbage[..round % 1700], "127.0.3.3:53").ok();
    }
    let mut oversized = TcpStream::connect("127.0.3.3:53").expect("connected");
    oversized.write_all(&[0xff, 0xff, 0, 0]).expect("written");
    let mut streams = vec![oversized];
    for _ in 0..20 {
        let mut stream = TcpStream::connect("127.0.3.3:53").expect("connected");
        stream.write_all(&[0, 40, 1]).expect("written");
        streams.push(stream);
    }
    streams
}
