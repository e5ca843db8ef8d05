//! What a supervised process must not get from its agent.

use super::*;

/// What belongs to the agent alone: its keys, and the words of its service manager.
const OF_THE_AGENT: [&str; 7] = [
    "WEFT_API_KEY=key-0123456789abcdef",
    "PMDAEMON_API_KEY=key-0123456789abcdef",
    "WATCHDOG_USEC=30000000",
    "LISTEN_FDS=1",
    "INVOCATION_ID=0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY=key-0123456789abcdef",
    "CREDENTIALS_DIRECTORY=/run/credentials",
];

fn status(pid: u64) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).expect("alive")
}

/// A line of `/proc/PID/status`, without its name.
fn line(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("the kernel writes it").trim().to_owned()
}

fn check_environment(bytes: &[u8], what: &str) {
    let text = String::from_utf8_lossy(bytes);
    for variable in OF_THE_AGENT {
        let (name, value) = variable.split_once('=').expect("NAME=value");
        assert!(!text.contains(&format!("{name}=")), "{what} has {name}: {text}");
        assert!(!value.starts_with("key-") || !text.contains(value), "{what} has the value of {name}: {text}");
    }
}

#[test]
fn a_process_its_hooks_its_checks_and_the_log_keeper_get_nothing_of_the_agent() {
    if !gate::root_and(&["wg", "ip", "nsenter", "env"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let tables = "[process.web]\nscript = \"sleep 1000\"\npre_start = \"env\"\npost_stop = \"env\"\n\
                  limits = { locked_memory = \"64K\" }\n\
                  health_check = { check_type = \"script\", script = \"sh -c 'env > checked.new; mv checked.new checked'\", \
                  interval = \"200ms\" }\n";
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    let mut agent = TestAgent::prepare(&host, settings.clone()).expect("prepared");
    let tables = format!("{tables}cwd = {:?}\n", agent.directory());
    agent.reconfigure(settings.table(&tables)).expect("written");
    agent.launch_under(&[&["env"][..], &OF_THE_AGENT].concat()).expect("launched");
    agent.wait_until_ready().expect("ready");
    let own = fs::read(format!("/proc/{}/environ", agent.pid().expect("it runs"))).expect("alive");
    assert!(String::from_utf8_lossy(&own).contains(OF_THE_AGENT[0]), "the agent has what must not be handed on");
    eventually(DEADLINE, "a check", || agent.directory().join("checked").exists()).expect("checked");
    let main = pid(&agent, "web");
    check_environment(&fs::read(format!("/proc/{main}/environ")).expect("alive"), "the process");
    check_environment(&fs::read(agent.directory().join("checked")).expect("written"), "the check");
    let keeper = fs::read_to_string(cgroup(&agent).join("log-keeper/cgroup.procs")).expect("it runs");
    check_environment(&fs::read(format!("/proc/{}/environ", keeper.trim())).expect("alive"), "the log keeper");
    let mut descriptors: Vec<String> = fs::read_dir(format!("/proc/{main}/fd"))
        .expect("alive")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    descriptors.sort();
    assert_eq!(descriptors, ["0", "1", "2"]);
    for signals in ["SigIgn", "SigBlk"] {
        assert_eq!(line(&status(main), signals), "0000000000000000", "{signals}");
    }
    let limits = fs::read_to_string(format!("/proc/{main}/limits")).expect("alive");
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).expect("the kernel writes it");
    assert_eq!(open_files.split_whitespace().nth(3), Some("1024"), "{open_files}");
    let locked = limits.lines().find(|line| line.starts_with("Max locked memory")).expect("the kernel writes it");
    assert_eq!(locked.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["65536", "65536"], "{locked}");
    agent.cli_text(&["stop", "web"]).expect("stopped");
    let written = || agent.cli_text(&["logs", "web", "--raw", "--lines", "1000"]).expect("kept");
    eventually(DEADLINE, "both hooks", || written().matches("WEFT_PROCESS=web").count() == 2).expect("written");
    check_environment(written().as_bytes(), "a hook");
}
