//! Programs that behave badly.

use super::*;

#[test]
fn what_ignores_sigterm_and_hides_in_sessions_leaves_nothing() {
    if !gate::root_and(&["wg", "ip", "nsenter", "setsid"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let text = "#!/bin/sh\ntrap '' TERM INT HUP\nsetsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &\nwhile :; do sleep 1; done\n";
    let program = script(&agent, "stubborn.sh", text);
    agent.cli_text(&["start", &program, "--kill-timeout", "300ms"]).expect("started");
    eventually(DEADLINE, "both", || members(&agent, "stubborn").len() >= 4).expect("they run");
    let all = members(&agent, "stubborn");
    agent.cli_text(&["stop", "stubborn"]).expect("stopped");
    assert!(members(&agent, "stubborn").is_empty() && all.iter().all(|pid| !is_alive(*pid)), "{all:?}");
}

#[test]
fn a_fork_bomb_stays_within_its_limit_and_ends_whole() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let tables = "[process.bomb]\nscript = \"bash -c 'f() { f | f & }; f; sleep 1000'\"\nautostart = false\nlimits = { tasks = 60 }\n";
    let agent = start_with(&host, tables);
    agent.cli_text(&["start", "bomb"]).expect("started");
    eventually(DEADLINE, "many", || members(&agent, "bomb").len() > 20).expect("it forks");
    assert!(members(&agent, "bomb").len() <= 60);
    agent.cli_text(&["stop", "bomb"]).expect("stopped");
    assert!(members(&agent, "bomb").is_empty());
    assert!(agent.cli_text(&["status"]).is_ok(), "the agent is well");
}

#[test]
fn what_ends_at_once_for_ever_is_given_up_and_says_why() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let output = agent.cli(&["start", "sh -c 'exit 3'", "--name", "quick", "--max-restarts", "2"]).expect("it runs");
    drop(output);
    eventually(DEADLINE, "errored", || item(&agent, "quick")["status"] == "errored").expect("given up");
    assert_eq!(item(&agent, "quick")["last_exit"], "code 3");
    assert_eq!(item(&agent, "quick")["restarts"], 2);
}

#[test]
fn wrong_definitions_are_refused_with_the_reason_and_leave_nothing() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let plain = agent.directory().join("plain.txt");
    fs::write(&plain, "no program\n").expect("written");
    let broken = script(&agent, "broken", "#!/no/such/interpreter\n");
    let refused = |words: &[&str], expected: &str| {
        let output = agent.cli(&[&["start"][..], words].concat()).expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(expected), "{words:?}: {text}");
    };
    refused(&["/no/such/file", "--name", "a"], "there is no file /no/such/file");
    refused(&[&plain.display().to_string(), "--name", "a"], "not executable");
    refused(&["sleep 1", "--name", "a/b"], "name:");
    refused(&["sleep 1", "--name", "a", "--port", "0"], "a port from 1 to 65535");
    refused(&["sleep 1", "--name", "a", "--user", "nobody-here"], "nobody-here");
    refused(&["sleep 1", "--name", "a", "--env-file", "/no/such/env"], "env_file /no/such/env");
    refused(&["sleep 1", "--name", "a", "--cwd", "/no/such/directory"], "no directory /no/such/directory");
    refused(&["sleep 1", "--name", "a", "-i", "3", "--port", "3000-3001"], "3 instances need as many ports");
    assert_eq!(agent.cli_json(&["ps"]).expect("a list")["processes"], serde_json::json!([]));
    refused(&[&broken, "--name", "broken"], "interpreter");
    assert_eq!(item(&agent, "broken")["status"], "errored");
    assert!(
        fs::read_dir(cgroup(&agent))
            .expect("there")
            .flatten()
            .all(|entry| !entry.file_name().to_string_lossy().contains('@'))
    );
}

#[test]
fn a_process_of_another_user_has_that_users_rights_and_directory() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    agent.cli_text(&["start", "sleep 1000", "--name", "low", "--user", "nobody", "--cwd", "/"]).expect("started");
    let main = pid(&agent, "low");
    let status = fs::read_to_string(format!("/proc/{main}/status")).expect("alive");
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("Uid:").split_whitespace().skip(1).all(|uid| uid == "65534"), "{status}");
    assert_eq!(line("CapEff:").split_whitespace().nth(1), Some("0000000000000000"), "{status}");
    agent.cli_text(&["stop", "low"]).expect("stopped");
    assert!(!is_alive(main));
}

#[test]
fn what_writes_without_end_fills_its_log_files_and_no_disk() {
    if !gate::root_and(&["wg", "ip", "nsenter", "yes"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let tables = "[supervisor]\nlog_max_size = \"1M\"\nlog_keep = 2\nlog_compress = false\n";
    let agent = start_with(&host, tables);
    let line = "x".repeat(100);
    let program = format!("sh -c 'yes {line} | head -c 20000000; echo over >&2; exec sleep 1000'");
    agent.cli_text(&["start", &program, "--name", "flood"]).expect("started");
    let over = || agent.cli_text(&["logs", "flood", "--err", "--raw"]).is_ok_and(|text| text.contains("over"));
    eventually(Duration::from_secs(60), "all was written", over).expect("nobody is kept waiting for ever");
    let directory = agent.directory().join("state/logs/process");
    let files: Vec<(String, u64)> = fs::read_dir(directory)
        .expect("there")
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_or(0, |file| file.len())))
        .filter(|(name, _)| name.starts_with("flood-out.log"))
        .collect();
    // A line is not cut in two.
    assert!(files.len() <= 3 && files.iter().all(|(_, bytes)| *bytes <= (1 << 20) + 200), "{files:?}");
    assert_eq!(item(&agent, "flood")["status"], "online");
}
