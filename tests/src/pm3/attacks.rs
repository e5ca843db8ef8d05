//! The attack matrix of the pm3 API: one run against a whole agent, a row for each way to look internal without being it.
//!
//! Every attempt must be refused or external. The counts of each row are printed, and a row that is missing, empty or let
//! anything through fails the test.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;
use weft_agent::foundation::secret::Secret;
use weft_agent::identity::authority::Authority;
use weft_agent::identity::certificate::{Lifetime, Role, Subject};
use weft_agent::identity::request::Request;

const SCRIPT: &str = include_str!("attacks.py");
const PM3: &str = "127.0.3.3";
const PATIENCE: Duration = Duration::from_secs(30);
/// The rows, as the project's list of attacks names them.
const ROWS: [&str; 18] = [
    "forged X-Forwarded-For",
    "Host tricks",
    "browser with Origin or Sec-Fetch-Site",
    "DNS-rebound Host",
    "request proxied through a local nginx",
    "another network namespace with the same 4-tuple",
    "rootless helper",
    "route_localnet packet",
    "ssh-style forwarder",
    "TLS with a foreign client certificate",
    "TLS with an expired client certificate",
    "TLS with a revoked client certificate",
    "SNI pm3 without certificate",
    "HTTP request smuggling",
    "oversized headers and bodies",
    "slowloris",
    "WebSocket frame abuse",
    "JSON depth bombs",
];
/// Rows of what is signed or opened.
const MORE_ROWS: [&str; 2] = ["replayed or edited signed URL", "lambda takeover"];

/// What a row saw: attempts, and those that got through.
#[derive(Debug, Default)]
struct Row {
    attempts: u64,
    through: Vec<String>,
}

#[derive(Debug, Default)]
struct Matrix(BTreeMap<String, Row>);

impl Matrix {
    /// Counts an attempt by its answer: the name of the node is what nobody external may learn.
    fn attempt(&mut self, row: &str, outcome: &anyhow::Result<String>) {
        let row = self.0.entry(row.to_owned()).or_default();
        row.attempts += 1;
        if let Ok(answer) = outcome
            && !answer.contains("\"code\":")
        {
            row.through.push(answer.clone());
        }
    }

    /// Takes the rows that the script has counted.
    fn add(&mut self, lines: &str) {
        for line in lines.lines() {
            let parsed = serde_json::from_str::<serde_json::Value>(line);
            assert!(parsed.is_ok(), "{parsed:?}: {line}");
            let counted = parsed.unwrap_or_default();
            let row = self.0.entry(counted["row"].as_str().expect("named").to_owned()).or_default();
            row.attempts += counted["attempts"].as_u64().expect("counted");
            let through = counted["through"].as_array().expect("a list");
            row.through.extend(through.iter().map(ToString::to_string));
        }
    }

    /// Prints the table; every row must be there, and nothing have got through.
    fn judge(&self) {
        let mut table = String::new();
        for name in ROWS.iter().chain(&MORE_ROWS) {
            assert!(self.0.contains_key(*name), "{name} was not tried");
            let row = &self.0[*name];
            let (attempts, through) = (row.attempts, row.through.len());
            table.push_str(&format!("attack matrix: {name}: {attempts} attempts, {through} got through\n"));
            assert!(attempts > 0, "{name}: nothing was tried");
        }
        let sum: u64 = self.0.values().map(|row| row.attempts).sum();
        table.push_str(&format!("attack matrix: {} rows, {sum} attempts\n", self.0.len()));
        // Not `eprint`, which the test program keeps to itself while tests pass.
        std::io::stderr().write_all(table.as_bytes()).ok();
        let through: Vec<_> = self.0.iter().filter(|(_, row)| !row.through.is_empty()).collect();
        assert!(through.is_empty(), "{through:#?}");
        assert_eq!(self.0.len(), ROWS.len() + MORE_ROWS.len(), "{:?}", self.0.keys());
    }
}

fn ping(from: &NetNs, address: &str, port: u16) -> anyhow::Result<String> {
    let url = format!("http://{address}:{port}/ping");
    from.run(&["curl", "-sS", "--max-time", "20", "-H", "Host: pm3", &url])
}

/// Asks by TLS for `pm3` at the address of the host, with a certificate or without.
fn ping_by_tls(from: &NetNs, authority: &Path, certificate: Option<&Path>) -> anyhow::Result<String> {
    let resolve = format!("pm3:443:{}", Scenario::address(0));
    let authority = authority.to_str().expect("text");
    let words = ["curl", "-sS", "--max-time", "20", "--resolve", &resolve, "--cacert", authority];
    let certificate = certificate.map(|path| path.to_str().expect("text"));
    let shown: Vec<&str> = certificate.iter().flat_map(|path| ["--cert", path, "--key", path]).collect();
    from.run(&[&words[..], &shown, &["https://pm3/ping"]].concat())
}

const NAME: &str = "\"alpha\"\n";

#[test]
fn every_attack_of_the_matrix_is_external_or_refused() {
    let tools =
        ["wg", "ip", "nsenter", "curl", "python3", "nginx", "sysctl", "sshd", "ssh", "ssh-keygen", "slirp4netns"];
    if !gate::root_and(&tools) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let (host, neighbour) = (scenario.host(0), scenario.host(2));
    let own = Scenario::address(0);
    // Also where a helper or a neighbour can knock at all.
    let table = format!(
        "[gateway]\nlisten = [\"{PM3}:80\", \"127.0.0.1:80\", \"{own}:80\"]\ntls_listen = [\"{own}:443\"]\nlisten_on_mesh = false\n"
    );
    let alpha = TestAgent::start(host, Settings::new("alpha").expect("keys").table(&table)).expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let mut matrix = Matrix::default();
    matrix.add(&host.run(&["python3", "-c", SCRIPT, PM3]).expect("the script ends"));
    through_nginx(&mut matrix, host, directory.path());
    from_another_namespace(&mut matrix, host);
    through_a_rootless_helper(&mut matrix, host);
    by_route_localnet(&mut matrix, host, neighbour);
    through_ssh(&mut matrix, host, directory.path());
    by_tls(&mut matrix, &scenario, &alpha, directory.path());
    assert_eq!(ping(host, PM3, 80).expect("answered"), NAME, "the host itself is still answered");
    matrix.judge();
}

fn through_nginx(matrix: &mut Matrix, host: &NetNs, directory: &Path) {
    let at = directory.display();
    // With the headers of a proxy and as if it were none.
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen 127.0.0.1:8080; proxy_set_header Host pm3;\n\
         location /a/ {{ proxy_pass http://{PM3}/; }}\n\
         location /b/ {{ proxy_pass http://{PM3}/; proxy_set_header Host pm3; proxy_set_header X-Forwarded-For $remote_addr; }}\n\
         location /c/ {{ proxy_pass http://127.0.0.1:80/; proxy_http_version 1.1; }} }} }}\n"
    );
    std::fs::write(directory.join("nginx.conf"), text).expect("ours");
    let mut command = host.command("nginx");
    command.arg("-c").arg(directory.join("nginx.conf")).arg("-e").arg(directory.join("start.log"));
    let mut nginx = Process::spawn("nginx", command).expect("installed");
    nginx.wait_for("it accepts", PATIENCE, || ping(host, "127.0.0.1", 8080).is_ok()).expect("it starts");
    for way in ["a", "b", "c"] {
        for number in 0..5 {
            let url = format!("http://127.0.0.1:8080/{way}/ping?{number}");
            matrix.attempt(
                "request proxied through a local nginx",
                &host.run(&["curl", "-sS", "--max-time", "20", &url]),
            );
        }
    }
}

fn from_another_namespace(matrix: &mut Matrix, host: &NetNs) {
    let other = NetNs::new().expect("a namespace");
    // Root there, whom the kernel would vouch for; nobody here, from the same ports to the same address.
    let mut command = other.command("python3");
    command.args(["-c", SCRIPT, PM3, "hold_ports"]);
    let mut holder = Process::spawn("holder", command).expect("it starts");
    holder.wait_for_log("holding 50", PATIENCE).expect("it holds");
    matrix.add(&host.run(&["python3", "-c", SCRIPT, PM3, "same_ports"]).expect("the script ends"));
    assert!(holder.is_running(), "the ports were held all the time");
}

fn through_a_rootless_helper(matrix: &mut Matrix, host: &NetNs) {
    let container = NetNs::new().expect("a namespace");
    let mut command = host.command("slirp4netns");
    command.args(["--configure", "--netns-type=path"]).arg(container.path()).arg("tap0");
    let mut helper = Process::spawn("slirp4netns", command).expect("installed");
    // 10.0.2.2 there is the loopback address of the host here.
    let mut answered = Err(anyhow::anyhow!("not asked yet"));
    let reached = helper.wait_for("the container reaches the host", PATIENCE, || {
        answered = ping(&container, "10.0.2.2", 80);
        answered.is_ok()
    });
    reached.expect("an answer of any kind");
    for _ in 0..10 {
        matrix.attempt("rootless helper", &ping(&container, "10.0.2.2", 80));
    }
    let said = answered.expect("it was answered");
    assert!(said.contains("slirp4netns"), "it is known for what it is: {said}");
}

fn by_route_localnet(matrix: &mut Matrix, host: &NetNs, neighbour: &NetNs) {
    host.run(&["sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1"]).expect("set");
    neighbour.run(&["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"]).expect("set");
    // There, the loopback network is no longer its own, but the neighbour's.
    neighbour.run(&["ip", "address", "del", "127.0.0.1/8", "dev", "lo"]).expect("removed");
    let (own, via) = (Scenario::address(2), Scenario::address(0));
    for address in [PM3, "127.0.0.1"] {
        neighbour.run(&["ip", "route", "add", &format!("{address}/32"), "via", &via, "src", &own]).expect("added");
        for _ in 0..5 {
            let outcome = ping(neighbour, address, 80);
            // It must have got there: a packet that was lost on the way shows nothing.
            let said = outcome.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
            assert!(said.contains("Empty reply") || said.contains("reset") || said.contains("\"code\""), "{said}");
            matrix.attempt("route_localnet packet", &outcome);
        }
    }
}

fn through_ssh(matrix: &mut Matrix, host: &NetNs, directory: &Path) {
    let path = |name: &str| directory.join(name).to_str().expect("text").to_owned();
    for name in ["host_key", "user_key"] {
        host.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &path(name)]).expect("made");
    }
    std::fs::copy(path("user_key.pub"), path("authorized")).expect("copied");
    let config = format!(
        "ListenAddress 127.0.0.1\nPort 2222\nHostKey {}\nPidFile none\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nAllowTcpForwarding yes\n",
        path("host_key"),
        path("authorized")
    );
    std::fs::write(path("sshd_config"), config).expect("ours");
    // Debian's start script makes the directory; here nothing starts it.
    std::fs::create_dir_all("/run/sshd").expect("root may");
    let mut server = host.command(gate::find_tool("sshd").expect("it was found"));
    server.args(["-D", "-e", "-f", &path("sshd_config")]);
    let mut server = Process::spawn("sshd", server).expect("installed");
    server.wait_for_log("listening on", PATIENCE).expect("it listens");
    let mut client = host.command("ssh");
    client.args([
        "-N",
        "-F",
        "none",
        "-p",
        "2222",
        "-i",
        &path("user_key"),
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
    ]);
    client.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes"]);
    client.args([
        "-L",
        &format!("127.0.0.1:8081:{PM3}:80"),
        "-L",
        "127.0.0.1:8082:127.0.0.1:80",
        "-D",
        "127.0.0.1:1080",
        "root@127.0.0.1",
    ]);
    let mut client = Process::spawn("ssh", client).expect("installed");
    let mut said = String::new();
    let forwarded = client.wait_for("the forwarder forwards", PATIENCE, || {
        said = ping(host, "127.0.0.1", 8081).unwrap_or_default();
        !said.is_empty()
    });
    assert!(forwarded.is_ok(), "{forwarded:?}\n{}\n{}", client.log(), server.log());
    assert!(said.contains("sshd"), "it is known for what it is: {said}");
    for _ in 0..5 {
        for port in [8081, 8082] {
            matrix.attempt("ssh-style forwarder", &ping(host, "127.0.0.1", port));
        }
        let words = ["curl", "-sS", "--max-time", "20", "-H", "Host: pm3", "-x", "socks5://127.0.0.1:1080"];
        let url = format!("http://{PM3}/ping");
        matrix.attempt("ssh-style forwarder", &host.run(&[&words[..], &[&url]].concat()));
    }
}

/// The blocks of a file in PEM.
fn blocks(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("it is there");
    text.split_inclusive("-----\n").collect::<Vec<_>>().chunks(2).map(<[&str]>::concat).collect()
}

/// A certificate of this authority for an operator, its key behind it in one file, as good from `now` for a day.
fn issue(authority: &Authority, now: SystemTime, path: &Path) -> PathBuf {
    let (request, key) = Request::new().expect("a key");
    let subject =
        Subject { name: "ops".parse().expect("a name"), role: Role::Operator, domain: "weft.internal".to_owned() };
    let issued = authority.issue(&request, &subject, Lifetime::from_days(1), now).expect("issued");
    std::fs::write(path, format!("{issued}{}", key.expose())).expect("ours");
    path.to_owned()
}

fn by_tls(matrix: &mut Matrix, scenario: &Scenario, alpha: &TestAgent<'_>, directory: &Path) {
    let outside = scenario.host(1);
    let own = alpha.directory().join("state/identity/identity.pem");
    let parts = blocks(&own);
    let authority = Authority::from_pem(&parts[1], &Secret::new(parts[3].clone())).expect("the first node's");
    let now = SystemTime::now();
    let good = issue(&authority, now, &directory.join("good.pem"));
    let expired = issue(&authority, now - Duration::from_secs(3 * 86_400), &directory.join("expired.pem"));
    let future = issue(&authority, now + Duration::from_secs(3 * 86_400), &directory.join("future.pem"));
    let foreign = issue(&Authority::create(now).expect("a key"), now, &directory.join("foreign.pem"));
    let asked = ping_by_tls(outside, &own, Some(&good)).expect("a member is answered wherever it is");
    assert_eq!(asked, NAME);
    let revoked = revoked(outside, alpha, &own, directory);
    for _ in 0..5 {
        matrix.attempt("TLS with a foreign client certificate", &ping_by_tls(outside, &own, Some(&foreign)));
        matrix.attempt("TLS with an expired client certificate", &ping_by_tls(outside, &own, Some(&expired)));
        matrix.attempt("TLS with an expired client certificate", &ping_by_tls(outside, &own, Some(&future)));
        matrix.attempt("TLS with a revoked client certificate", &ping_by_tls(outside, &own, Some(&revoked)));
        matrix.attempt("SNI pm3 without certificate", &ping_by_tls(outside, &own, None));
    }
    assert_eq!(ping_by_tls(outside, &own, Some(&good)).expect("still"), NAME);
}

/// The certificate of a node that joined, was answered by it, and was removed.
fn revoked(outside: &NetNs, alpha: &TestAgent<'_>, own: &Path, directory: &Path) -> PathBuf {
    let beta = TestAgent::start(outside, Settings::new("beta").expect("keys")).expect("it starts");
    let token = alpha.cli_json(&["token", "create"]).expect("a token");
    beta.cli_text(&["join", &Scenario::address(0), "--token", token["token"].as_str().expect("text")])
        .expect("it joins");
    let stolen = directory.join("stolen.pem");
    std::fs::copy(beta.directory().join("state/identity/identity.pem"), &stolen).expect("copied");
    eventually(PATIENCE, "the member is answered", || {
        ping_by_tls(outside, own, Some(&stolen)).is_ok_and(|answer| answer == NAME)
    })
    .expect("it is a member");
    alpha.cli_text(&["leave", "beta"]).expect("removed");
    eventually(PATIENCE, "the removed member is refused", || {
        !ping_by_tls(outside, own, Some(&stolen)).is_ok_and(|answer| answer == NAME)
    })
    .expect("it is refused");
    stolen
}
