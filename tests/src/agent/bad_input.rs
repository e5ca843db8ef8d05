//! Wrong input and a hostile host: one clear message that names the key or the object, nothing half applied, nothing
//! foreign changed.

use std::net::UdpSocket;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::key::KeyPair;
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually;

use super::{DEADLINE, Mesh, TOOLS, peer_table};

/// Starts an agent with `settings`, its file changed by `edit`. It must refuse, naming each of `expected` on one line, and
/// leave the host without a link.
fn check_refused(settings: impl FnOnce() -> Settings, edit: impl FnOnce(String) -> String, expected: &[&str]) {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = TestAgent::prepare(&host, settings()).expect("prepared");
    let text = edit(agent.config_text().expect("it was written"));
    agent.overwrite_config(&text).expect("written");
    let log = agent.launch_refused().expect("it refuses to start");
    assert_names(&log, expected);
    assert!(host.run(&["ip", "link", "show", agent.link()]).is_err(), "a link was made although the input is wrong");
    assert!(!agent.socket().exists(), "a socket was left behind");
}

/// Whether one line of the log names everything.
fn assert_names(log: &str, expected: &[&str]) {
    let named = log.lines().filter(|line| expected.iter().all(|part| line.contains(part))).count();
    assert_eq!(named, 1, "exactly one line with {expected:?} in:\n{log}");
}

fn settings() -> Settings {
    Settings::new("alpha").expect("wg makes keys").addresses(&["10.80.0.1/24"])
}

fn new_key() -> String {
    KeyPair::generate().expect("wg makes keys").public
}

#[test]
fn a_key_of_the_wrong_length_is_named_with_its_line() {
    check_refused(|| settings().peer(peer_table("beta", "c2hvcnQ=", 1)), |text| text, &["weft.toml:", "44 characters"]);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
    let edit = |text: String| text.replace("[wireguard]\n", "[wireguard]\nlisen_port = 1\n");
    check_refused(settings, edit, &["weft.toml:", "lisen_port", "did you mean \"listen_port\""]);
}

#[test]
fn a_file_that_is_not_toml_is_named_with_its_line() {
    check_refused(settings, |text| text + "[wireguard\n", &["weft.toml:"]);
}

#[test]
fn the_same_allowed_ip_on_two_peers_names_both() {
    let two = || settings().peer(peer_table("beta", &new_key(), 1)).peer(peer_table("gamma", &new_key(), 1));
    check_refused(two, |text| text, &["beta", "gamma", "10.80.0.2/32"]);
}

#[test]
fn the_same_key_on_two_peers_names_both() {
    let two = || {
        let key = new_key();
        settings().peer(peer_table("beta", &key, 1)).peer(peer_table("gamma", &key, 2))
    };
    check_refused(two, |text| text, &["beta", "gamma", "public_key"]);
}

#[test]
fn a_truncated_private_key_file_is_named() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = TestAgent::prepare(&host, settings()).expect("prepared");
    let key = agent.directory().join("private.key");
    std::fs::write(&key, "c2hvcnQ").expect("written");
    let log = agent.launch_refused().expect("it refuses to start");
    assert_names(&log, &["private.key"]);
    assert_eq!(std::fs::read_to_string(&key).expect("still there"), "c2hvcnQ", "a key file is never overwritten");
}

#[test]
fn a_private_key_that_others_can_read_is_refused_with_the_fix() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = TestAgent::prepare(&host, settings()).expect("prepared");
    let key = agent.directory().join("private.key");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&key, open).expect("it is ours");
    let log = agent.launch_refused().expect("it refuses to start");
    assert_names(&log, &["private.key", "chmod 600"]);
}

#[test]
fn a_second_agent_on_the_same_directories_is_refused_and_the_first_goes_on() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let first = TestAgent::start(&host, settings()).expect("it starts");
    let mut second = host.command(integration_tests::agent::weft_binary().expect("it is built"));
    let output = second.args(["agent", "--config"]).arg(first.config_file()).output().expect("it runs");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{log}");
    assert_names(&log, &["another agent", "instance"]);
    assert_eq!(first.cli_json(&["status"]).expect("the first answers")["state"], "ready");
}

#[test]
fn a_foreign_link_of_our_name_is_left_alone_and_named() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = TestAgent::prepare(&host, settings()).expect("prepared");
    let link = agent.link().to_owned();
    host.run(&["ip", "link", "add", &link, "type", "bridge"]).expect("a foreign link");
    let before = host.run(&["ip", "-d", "-o", "link", "show", &link]).expect("it exists");
    agent.launch().expect("it starts");
    let says = |agent: &TestAgent<'_>| {
        let status = agent.cli(&["status"]).map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        agent.log() + &status.unwrap_or_default()
    };
    eventually(DEADLINE, "the agent names the foreign link", || {
        says(&agent).lines().any(|line| line.contains(&link) && line.contains("wireguard.link"))
    })
    .expect("it says so");
    let after = host.run(&["ip", "-d", "-o", "link", "show", &link]).expect("it still exists");
    assert_eq!(before, after);
}

#[test]
fn a_port_in_use_is_named_and_taken_once_it_is_free() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let holder = host.enter(|| UdpSocket::bind(("0.0.0.0", 51820))).expect("entered").expect("the port is free");
    let mut agent = TestAgent::prepare(&host, settings()).expect("prepared");
    agent.launch().expect("it starts");
    eventually(DEADLINE, "the agent names the port", || {
        agent.cli_json(&["status"]).is_ok_and(|status| status["problems"].to_string().contains("51820"))
    })
    .expect("it says so");
    let said = agent.log().lines().filter(|line| line.contains("51820 is in use")).count();
    assert!(said <= 10, "said {said} times in seconds:\n{}", agent.log());
    drop(holder);
    eventually(DEADLINE, "the agent has taken the port", || {
        agent.cli_json(&["status"]).is_ok_and(|status| status["state"] == "ready")
    })
    .expect("it tries again by itself");
}

#[test]
fn without_root_the_agent_says_what_it_lacks() {
    if !gate::root_and(&["setpriv", "wg", "ip", "nsenter", "ping", "nft"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = TestAgent::prepare(&host, settings()).expect("prepared");
    let mut command = host.command("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
    command.arg(integration_tests::agent::weft_binary().expect("it is built"));
    let output = command.args(["agent", "--config"]).arg(agent.config_file()).output().expect("it runs");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{log}");
    assert_names(&log, &["CAP_NET_ADMIN", "root"]);
}

#[test]
fn without_a_tun_device_the_embedded_backend_says_so() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = TestAgent::prepare(&host, settings().wireguard("backend = \"userspace\"")).expect("prepared");
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"]);
    command.arg(integration_tests::agent::weft_binary().expect("it is built"));
    command.args(["agent", "--config"]).arg(agent.config_file());
    let mut process = integration_tests::process::Process::spawn("weft", command).expect("it runs");
    process.wait_for_log("/dev/net/tun", DEADLINE).expect("it names the device");
    drop(process);
    assert!(host.run(&["ip", "link", "show", agent.link()]).is_err(), "a link was made");
}

#[test]
fn on_a_kernel_without_bpf_the_tunnel_works_and_the_status_names_the_reason() {
    if !gate::root_and(&["strace", "wg", "ip", "nsenter", "ping", "nft"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = TestAgent::prepare(&host, settings()).expect("prepared");
    // -D: the agent keeps the process id, strace watches from the side.
    let no_bpf = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=bpf", "-e", "inject=bpf:error=ENOSYS", "--"];
    agent.launch_under(&no_bpf).expect("it starts");
    agent.wait_until_ready().expect("it is ready all the same");
    let status = agent.cli_json(&["status"]).expect("a degraded agent answers");
    let problems = status["problems"].to_string();
    assert!(problems.contains("this kernel has no BPF") && problems.contains("accounting.enabled"), "{status}");
    assert!(host.run(&["ip", "link", "show", agent.link()]).is_ok(), "the tunnel link is there");
}

#[test]
fn requests_that_are_no_http_do_not_disturb_the_agent() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = integration_tests::scenario::Scenario::new(1).expect("a host");
    let mesh = Mesh::start(&scenario).expect("an agent");
    let agent = &mesh.agents[0];
    let oversized = vec![b'A'; 1 << 20];
    for bytes in
        [&b""[..], b"\0\xff\xfe", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", &oversized]
    {
        let mut stream = std::os::unix::net::UnixStream::connect(agent.socket()).expect("it listens");
        // The agent may close before everything is written.
        std::io::Write::write_all(&mut stream, bytes).ok();
    }
    // A caller that says nothing more must not keep others out.
    let _slow: Vec<_> = (0..20).map(|_| std::os::unix::net::UnixStream::connect(agent.socket())).collect();
    assert_eq!(agent.cli_json(&["status"]).expect("it still answers")["state"], "ready");
}
