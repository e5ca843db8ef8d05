//! The agent dies, its processes and their logs do not.

use super::*;

/// Counts as fast as it can and says so, then waits.
const COUNTER: &str = "#!/usr/bin/env python3\nimport sys, time\nfor number in range(300000):\n    print(number, flush=True)\n\
                       print('done', file=sys.stderr, flush=True)\ntime.sleep(1000)\n";

/// The numbers in all files of the log, the oldest first.
fn numbers(agent: &TestAgent<'_>) -> Vec<u64> {
    let directory = agent.directory().join("state/logs/process");
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("counter-out.log.")));
    files.sort();
    files.push(agent.directory().join("state/logs/process/counter-out.log"));
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect();
    text.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect()
}

#[test]
fn kill_9_of_the_agent_loses_no_line_and_no_process() {
    if !gate::root_and(&["wg", "ip", "nsenter", "python3"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let tables = "[supervisor]\nlog_max_size = \"1M\"\nlog_keep = 100\nlog_compress = false\n";
    let mut agent = start_with(&host, tables);
    let program = script(&agent, "counter.py", COUNTER);
    agent.cli_text(&["start", &program, "--name", "counter"]).expect("started");
    agent.cli_text(&["start", "sleep 1000", "--name", "quiet"]).expect("started");
    let before = [pid(&agent, "counter"), pid(&agent, "quiet")];
    eventually(DEADLINE, "some lines", || numbers(&agent).len() > 1000).expect("it writes");
    agent.kill9().expect("killed");
    let at_kill = numbers(&agent).len();
    eventually(DEADLINE, "more lines without an agent", || numbers(&agent).len() > at_kill + 10_000)
        .expect("it writes on");
    agent.restart().expect("another agent");
    assert_eq!([pid(&agent, "counter"), pid(&agent, "quiet")], before, "the same processes");
    assert_eq!(item(&agent, "counter")["restarts"], 0);
    let done = || agent.cli_text(&["logs", "counter", "--err", "--raw"]).is_ok_and(|text| text.contains("done"));
    eventually(Duration::from_secs(60), "all lines", done).expect("it comes to its end");
    let all = numbers(&agent);
    assert_eq!(all.len(), 300_000);
    assert!(all.iter().enumerate().all(|(index, number)| index as u64 == *number), "each once, in order");
    agent.kill9().expect("killed");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before[1] as i32), nix::sys::signal::Signal::SIGKILL)
        .expect("alive");
    agent.restart().expect("another agent");
    eventually(DEADLINE, "a new process", || pid_if_any(&agent, "quiet").is_some_and(|pid| pid != before[1]))
        .expect("restarted");
    assert_eq!(pid(&agent, "counter"), before[0]);
}

#[test]
fn the_log_keeper_may_die_too() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let program = script(&agent, "ticker.sh", "#!/bin/sh\nn=0\nwhile :; do n=$((n+1)); echo $n; sleep 0.01; done\n");
    agent.cli_text(&["start", &program]).expect("started");
    let main = pid(&agent, "ticker");
    let text = || agent.cli_text(&["logs", "ticker", "--raw", "--lines", "10000"]).expect("readable");
    let count = || text().lines().count();
    eventually(DEADLINE, "lines", || count() > 5).expect("it writes");
    let keeper = fs::read_to_string(cgroup(&agent).join("log-keeper/cgroup.procs")).expect("it runs");
    let keeper: i32 = keeper.trim().parse().expect("one process");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGKILL).expect("alive");
    let before = count();
    eventually(DEADLINE, "more lines", || count() > before + 20).expect("another keeper");
    let numbers: Vec<usize> = text().lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert_eq!(pid(&agent, "ticker"), main);
}

#[test]
fn down_leaves_no_process_and_no_cgroup() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = start(&host);
    agent.cli_text(&["start", "sleep 1000", "--name", "web"]).expect("started");
    let main = pid(&agent, "web");
    agent.cli_text(&["down"]).expect("taken away");
    assert!(!is_alive(main));
    eventually(DEADLINE, "no cgroup", || !cgroup(&agent).exists()).expect("removed");
    agent.process().expect("it ran").wait_for_exit(DEADLINE).expect("it ended");
    agent.launch().expect("started");
    agent.wait_until_ready().expect("ready");
    eventually(DEADLINE, "it runs again", || pid_if_any(&agent, "web").is_some()).expect("as after a reboot");
    agent.stop().expect("stopped");
    let main = members(&agent, "web");
    assert!(main.len() == 1 && is_alive(main[0]), "a stop leaves it running");
    let gone = agent.cli_text(&["down"]).expect("without an agent");
    assert!(gone.contains("supervised processes") && !is_alive(main[0]), "{gone}");
}
