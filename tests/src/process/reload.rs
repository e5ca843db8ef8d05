//! Reloads: no request is lost where two processes can listen at once, and where they cannot, that is said.

use super::*;

/// Answers with its process id until it is asked to end, which it does between two answers.
const SERVER: &str = "#!/usr/bin/env python3
import os, signal, socket
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(1))
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if os.environ.get('SHARE'):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(('127.0.0.1', 3000))
listener.listen(64)
listener.settimeout(0.02)
while not ends:
    try:
        client, _ = listener.accept()
    except TimeoutError:
        continue
    client.settimeout(5)
    client.sendall(str(os.getpid()).encode())
    client.close()
";

/// Asks again and again until the second file is there, which begins with the first; prints how often, how often in vain, and who answered.
const CLIENT: &str = "
import json, os, socket, sys
asked, failed, seen = 0, [], set()
while not os.path.exists(sys.argv[2]):
    asked += 1
    if asked == 50:
        open(sys.argv[1], 'w').close()
    try:
        with socket.create_connection(('127.0.0.1', 3000), 5) as connection:
            seen.add(int(connection.recv(64)))
    except Exception as error:
        failed.append(repr(error))
print(json.dumps({'asked': asked, 'failed': failed, 'seen': sorted(seen)}))
";

#[test]
fn no_request_is_lost_while_a_single_process_that_shares_its_port_is_reloaded() {
    if !gate::root_and(&["wg", "ip", "nsenter", "python3", "sysctl"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    // What waits at a listener that is closed goes to the other one (Linux 5.14).
    host.run(&["sysctl", "-qw", "net.ipv4.tcp_migrate_req=1"]).expect("set");
    let agent = start(&host);
    let server = script(&agent, "server.py", SERVER);
    let words = ["start", &server, "--name", "web", "--port", "3000", "--env", "SHARE=1"];
    let words = [&words[..], &["--user", "nobody", "--cwd", "/"]].concat();
    agent.cli_text(&words).expect("started");
    let answers =
        || host.run(&["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 3000), 5)"]).is_ok();
    eventually(DEADLINE, "an answer", answers).expect("it listens");
    let (first, begun, end) = (pid(&agent, "web"), agent.directory().join("begun"), agent.directory().join("end"));
    let told = std::thread::scope(|scope| {
        let client = scope
            .spawn(|| host.run(&["python3", "-c", CLIENT, &begun.display().to_string(), &end.display().to_string()]));
        eventually(DEADLINE, "requests", || begun.exists()).expect("it asks");
        for _ in 0..3 {
            let reloaded = agent.cli(&["reload", "web"]).expect("it runs");
            let notices = String::from_utf8_lossy(&reloaded.stderr).into_owned();
            assert!(reloaded.status.success() && notices.is_empty(), "{notices}");
        }
        fs::write(&end, "").expect("ours");
        client.join().expect("no panic").expect("it ends")
    });
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["failed"], serde_json::json!([]), "{told}");
    let seen: Vec<u64> = told["seen"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    assert!(seen.contains(&first) && seen.contains(&pid(&agent, "web")) && seen.len() >= 2, "{told}");
    assert!(!is_alive(first) && members(&agent, "web") == [pid(&agent, "web")]);
    assert_eq!(item(&agent, "web")["restarts"], 3);
}

#[test]
fn a_process_that_listens_alone_is_stopped_first_with_a_notice_and_a_broken_one_replaces_nothing() {
    if !gate::root_and(&["wg", "ip", "nsenter", "python3"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = start(&host);
    let server = script(&agent, "server.py", SERVER);
    agent.cli_text(&["start", &server, "--name", "web"]).expect("started");
    let listens =
        || host.run(&["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 3000), 5)"]).is_ok();
    eventually(DEADLINE, "an answer", listens).expect("it listens");
    let first = pid(&agent, "web");
    let reloaded = agent.cli(&["reload", "web"]).expect("it runs");
    let notice = String::from_utf8_lossy(&reloaded.stderr).into_owned();
    assert!(reloaded.status.success(), "{notice}");
    assert!(notice.contains("127.0.0.1:3000 alone") && notice.contains("SO_REUSEPORT"), "{notice}");
    let second = pid(&agent, "web");
    assert!(!is_alive(first) && is_alive(second));
    let job = script(&agent, "job.sh", "#!/bin/sh\nexec sleep 1000\n");
    agent.cli_text(&["start", &job, "--name", "job"]).expect("started");
    let main = pid(&agent, "job");
    script(&agent, "job.sh", "#!/bin/sh\nexit 3\n");
    let failed = agent.cli(&["reload", "job"]).expect("it runs");
    let why = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && why.contains("code 3") && why.contains("goes on"), "{why}");
    assert!(is_alive(main) && members(&agent, "job") == [main] && item(&agent, "job")["status"] == "online");
    // The one that stood by may have been the last that was written down: the one that serves is taken over.
    agent.cli_text(&["save"]).expect("both are on the list on disk");
    agent.kill9().expect("killed");
    agent.restart().expect("another agent");
    assert_eq!([pid(&agent, "job"), pid(&agent, "web")], [main, second]);
}
