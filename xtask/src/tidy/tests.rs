//! Each rule shown to fail, and shown not to fail on what is right.

use super::*;

/// What tidy says about a file with this text below the header.
fn findings(file: &str, body: &str) -> Vec<String> {
    let text = format!("//! Header.\n{body}");
    let found = check(file, &text).expect("only manifests can fail to parse");
    found.into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
}

fn assert_refused(file: &str, body: &str, expected: &str) {
    let found = findings(file, body);
    assert!(found.len() == 1 && found[0].contains(expected), "{file} {body:?}: {found:?}");
}

fn assert_fine(file: &str, body: &str) {
    assert_eq!(findings(file, body), Vec::<String>::new(), "{file} {body:?}");
}

#[test]
fn a_domain_may_use_what_stands_below_it() {
    assert_fine("agent/src/dns/server.rs", "use crate::{foundation::task, model::{Peer, key::PublicKey}, sys};\n");
}

#[test]
fn domains_do_not_use_each_other() {
    assert_refused("agent/src/dns/server.rs", "use crate::wireguard::Status;\n", "dns must not use wireguard");
    assert_refused("agent/src/net.rs", "fn f() -> crate::ebpf::Figures {}\n", "net must not use ebpf");
    assert_refused("agent/src/ebpf/pins.rs", "use super::super::net::Status;\n", "ebpf must not use net");
}

#[test]
fn an_edge_inside_a_use_tree_is_found_with_its_line() {
    let body = "use crate::{\n    foundation::{error, id::NodeId as Id},\n    api::Server,\n};\n";
    assert_eq!(findings("agent/src/net/plan.rs", body), ["4: net must not use api: see the layers in DESIGN.md"]);
}

#[test]
fn the_foundation_knows_no_domain() {
    assert_refused("agent/src/foundation/task.rs", "use crate::model::Peer;\n", "foundation must not use model");
}

#[test]
fn a_new_room_must_enter_the_table() {
    assert_refused("agent/src/cellar.rs", "", "cellar is not in the layer table");
}

#[test]
fn paths_in_comments_and_strings_are_no_edges() {
    let body = "/// See [`crate::api`].\nconst A: &str = \"crate::api\"; /* crate::api */ const B: &str = r#\"\"crate::api\"#;\n";
    assert_fine("agent/src/net/plan.rs", body);
}

#[test]
fn pure_files_name_no_runtime_socket_file_or_clock() {
    for body in [
        "use tokio::sync::watch;\n",
        "use std::{fs, io};\n",
        "use std::net::{IpAddr, UdpSocket};\n",
        "fn f() { let now = std::time::Instant::now(); }\n",
        "use std::time::Instant;\nfn f() { let now = Instant::now(); }\n",
    ] {
        for file in ["agent/src/net/plan.rs", "agent/src/model/peer.rs", "agent/src/dns/zone/reverse.rs"] {
            assert_refused(file, body, "a pure file must not use");
        }
        assert_fine("agent/src/net/platform.rs", body);
    }
}

#[test]
fn pure_files_may_pass_times_and_addresses_around() {
    assert_fine("agent/src/net/plan.rs", "use std::net::{IpAddr, SocketAddr};\nuse std::time::{Duration, Instant};\n");
}

#[test]
fn a_module_without_a_header_is_refused() {
    let found = check("agent/src/net/link.rs", "use std::io;\n").expect("not a manifest");
    assert!(found.iter().any(|finding| finding.what.starts_with("a module begins with")), "{found:?}");
    assert_eq!(check("agent/src/net/plan/tests.rs", "use super::*;\n").expect("not a manifest"), []);
}

#[test]
fn a_file_past_the_limit_is_refused() {
    assert_fine("agent/src/net/link.rs", &"\n".repeat(599));
    assert_refused("agent/src/net/link.rs", &"\n".repeat(600), "601 lines");
}

#[test]
fn names_that_say_nothing_are_refused() {
    assert_refused("agent/src/net/mod.rs", "", "not `mod.rs`");
    assert_refused("agent/src/net/utils.rs", "", "a module called utils");
    assert_refused("tests/src/helpers/link.rs", "", "a module called helpers");
    assert_fine("agent-ebpf/common/src/lib.rs", "");
}

#[test]
fn ignored_tests_are_refused() {
    assert_refused("agent/src/net/link.rs", "#[ ignore = \"slow\"]\nfn f() {}\n", "ignored test");
}

#[test]
fn unsafe_stays_in_its_places() {
    assert_refused("agent/src/net/link.rs", "fn f() { unsafe { g() } }\n", "unsafe code belongs");
    assert_fine("agent/src/net/link.rs", "#![deny(unsafe_code)]\n// unsafe\n");
    assert_fine("agent/src/sys/netns.rs", "fn f() { unsafe { g() } }\n");
}

#[test]
fn unfinished_work_names_its_end() {
    assert_refused("agent/src/net/link.rs", "// TODO: later\n", "names the condition");
    assert_fine("agent/src/net/link.rs", "// TODO: drop this until-then branch, until the kernel is 6.6\n");
}

#[test]
fn tests_do_not_sleep() {
    assert_refused("tests/src/dns.rs", "fn f() { std::thread::sleep(D); }\n", "wait on a condition");
    assert_fine("tests/src/lib/wait.rs", "fn f() { std::thread::sleep(D); }\n");
}

#[test]
fn paths_of_one_machine_are_refused() {
    for directory in ["home/ada", "Users/ada", "root"] {
        assert_refused("agent/src/net/link.rs", &format!("const A: &str = \"/{directory}/x\";\n"), "one machine only");
    }
    assert_fine("agent/src/net/link.rs", "const A: &str = \"/etc/work/home/x\";\n");
}

#[test]
fn manifests_take_versions_and_lints_from_the_workspace() {
    let good = "[package]\nname = \"a\"\n[dependencies]\nlibc.workspace = true\n[lints]\nworkspace = true\n";
    assert_eq!(check("a/Cargo.toml", good).expect("it parses"), []);
    let bad = "[package]\nname = \"a\"\n[target.'cfg(unix)'.dev-dependencies]\nlibc = \"0.2\"\n";
    let found = check("a/Cargo.toml", bad).expect("it parses");
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn packages_come_from_crates_io() {
    let lock =
        "source = \"registry+https://github.com/rust-lang/crates.io-index\"\nsource = \"git+https://example.org/a\"\n";
    let found = check("Cargo.lock", lock).expect("it is no manifest");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].line, 2);
}

#[test]
fn lifetimes_and_quotes_do_not_confuse_the_lexer() {
    let code = lexer::split("fn f<'a>(x: &'a str) { let c = '\"'; let d = '\\''; unsafe {} } // \"\n").code;
    assert!(code.contains("unsafe {}") && !code.contains('"'), "{code}");
    let raw = lexer::split("let r#type = br##\"a\"# unsafe\"##; let x = r\"\\\"; real();").code;
    assert!(raw.contains("r#type") && raw.contains("real()") && !raw.contains("unsafe"), "{raw}");
}
