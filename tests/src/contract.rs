//! The webmesh contract of a whole agent, called by a client whose stubs grpcio-tools made from `.proto` files that were
//! written from the document and share nothing with ours.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::scenario::Scenario;

const TOOLS: [&str; 4] = ["wg", "ip", "nsenter", "/usr/bin/python3"];
const FILES: [(&str, &str); 5] = [
    ("contract.proto", include_str!("contract/contract.proto")),
    ("admin_messages.proto", include_str!("contract/admin_messages.proto")),
    ("node_metrics.proto", include_str!("contract/node_metrics.proto")),
    ("metrics.proto", include_str!("contract/metrics.proto")),
    ("client.py", include_str!("contract/client.py")),
];

/// The stubs and the client in a directory of their own.
fn client(host: &NetNs) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in FILES {
        std::fs::write(directory.path().join(name), text).expect("written");
    }
    let path = text(directory.path());
    let (include, python, grpc) =
        (format!("-I{path}"), format!("--python_out={path}"), format!("--grpc_python_out={path}"));
    let compile = [
        "/usr/bin/python3",
        "-m",
        "grpc_tools.protoc",
        &include,
        &python,
        &grpc,
        "contract.proto",
        "admin_messages.proto",
        "node_metrics.proto",
        "metrics.proto",
    ];
    host.run(&compile).expect("grpcio-tools makes the stubs");
    directory
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn start(host: &NetNs) -> TestAgent<'_> {
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24", "fd80::1/64"]);
    TestAgent::start(host, settings).expect("it starts")
}

#[test]
fn a_client_of_other_hands_calls_the_contract_on_the_leader_and_on_a_follower() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let names = ["alpha", "beta"];
    let agents = names.map(|name| Settings::new(name).expect("keys"));
    let mut agents = agents
        .into_iter()
        .enumerate()
        .map(|(number, settings)| TestAgent::start(scenario.host(number), settings).expect("it starts"));
    let (alpha, beta) = (agents.next().expect("alpha"), agents.next().expect("beta"));
    let token = alpha.cli_json(&["token", "create"]).expect("a token")["token"].as_str().expect("its text").to_owned();
    beta.cli_text(&["join", &Scenario::address(0), "--token", &token]).expect("joined");
    let directory = client(scenario.host(0));
    let path = text(directory.path());
    alpha.cli_text(&["cert", "issue", "ops", "--output", path]).expect("issued");
    std::fs::copy(beta.directory().join("state/identity/identity.pem"), directory.path().join("identity.pem"))
        .expect("copied");
    for (number, name) in names.into_iter().enumerate() {
        let at = format!("{}:8443", Scenario::address(number));
        let script = format!("{path}/client.py");
        let words = ["/usr/bin/python3", &script, path, &at, name, "alpha", "beta", path];
        let said = scenario.host(0).run(&words).expect("every call is answered as the document says");
        assert_eq!(said, "the contract holds\n");
    }
    let shown = alpha.cli_json(&["status", "beta"]).expect("figures");
    assert_eq!(shown["metrics"]["device_name"], beta.link(), "{shown}");
    assert!(shown["metrics"]["system"]["memory"]["total"].as_u64() > Some(0), "{shown}");
    let nowhere = alpha.cli(&["status", "nobody-here"]).expect("it ran");
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn a_certificate_is_issued_with_its_key_closed_to_others_and_never_over_a_file() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let directory = tempfile::tempdir().expect("a directory");
    let path = text(directory.path());
    agent.cli_text(&["cert", "issue", "ops", "--output", path]).expect("issued");
    let mode = |name: &str| directory.path().join(name).metadata().expect("written").permissions().mode() & 0o777;
    assert_eq!((mode("ops.key"), mode("ops.crt"), mode("ca.crt")), (0o600, 0o644, 0o644));
    let again = agent.cli(&["cert", "issue", "ops", "--output", path]).expect("it ran");
    assert_eq!(again.status.code(), Some(1));
    let wrong = agent.cli(&["cert", "issue", "ci", "--days", "0", "--output", path]).expect("it ran");
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{said}");
    assert!(said.contains("days 0") && !directory.path().join("ci.key").exists(), "{said}");
}
