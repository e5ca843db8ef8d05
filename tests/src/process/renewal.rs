//! Restarts that nobody asks for by hand: by the calendar, and because files changed.

use super::*;

#[test]
fn a_process_is_restarted_by_the_calendar_while_it_is_not_stopped() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let wrong = agent.cli(&["start", "sleep 1000", "--name", "web", "--cron-restart", "0 0 30 2 *"]).expect("it runs");
    let complaint = String::from_utf8_lossy(&wrong.stderr).into_owned();
    let expected = "cron_restart: \"0 0 30 2 *\" is a time that never comes";
    assert!(!wrong.status.success() && complaint.contains(expected), "{complaint}");
    agent.cli_text(&["start", "sleep 1000", "--name", "web", "--cron-restart", "* * * * * *"]).expect("started");
    let first = pid(&agent, "web");
    eventually(DEADLINE, "two restarts", || item(&agent, "web")["restarts"].as_u64() >= Some(2)).expect("restarted");
    assert!(!is_alive(first));
    assert_eq!(item(&agent, "web")["restart_reason"], "cron");
    let shown = agent.cli_text(&["describe", "web"]).expect("it is there");
    assert!(shown.contains("last restart") && shown.contains("next restart"), "{shown}");
    agent.cli_text(&["stop", "web"]).expect("stopped");
    assert!(item(&agent, "web")["next_restart_ms"].is_null(), "nothing is due any more");
    assert!(members(&agent, "web").is_empty());
}

#[test]
fn a_process_is_restarted_when_its_files_change_and_not_for_ignored_ones() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let app = agent.directory().join("app");
    fs::create_dir_all(app.join("node_modules")).expect("made");
    fs::create_dir_all(app.join("lib")).expect("made");
    let cwd = app.display().to_string();
    let missing = app.join("none/lib").display().to_string();
    let refused = agent.cli(&["start", "sleep 1000", "--name", "web", &format!("--watch={missing}")]).expect("it runs");
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && complaint.contains("watch: there is no directory"), "{complaint}");
    let words = ["start", "sleep 1000", "--watch", "--ignore-watch", "*.log", "--ignore-watch", "node_modules"];
    agent.cli_text(&[&words[..], &["--name", "web", "--cwd", &cwd]].concat()).expect("started");
    let first = pid(&agent, "web");
    // The watch is opened beside the start: a change before that is not seen, and another one is made.
    let mut looks = 0;
    let changed = || {
        looks += 1;
        if looks % 50 == 1 {
            fs::write(app.join("lib/a.js"), looks.to_string()).expect("written");
        }
        pid_if_any(&agent, "web").is_some_and(|pid| pid != first)
    };
    eventually(DEADLINE, "another process", changed).expect("restarted");
    let second = pid(&agent, "web");
    assert_eq!(item(&agent, "web")["restart_reason"], "watch");
    fs::write(app.join("web.log"), "a line").expect("written");
    fs::write(app.join("node_modules/index.js"), "").expect("written");
    fs::create_dir(app.join("new")).expect("made");
    let changed = || pid_if_any(&agent, "web").is_some_and(|pid| pid != second);
    eventually(DEADLINE, "a restart for the new directory", changed).expect("restarted");
    let shown = agent.cli_text(&["describe", "web"]).expect("it is there");
    let says = |words: &[&str]| shown.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == words);
    assert!(says(&["last", "restart", "watch"]) && says(&["watch", "true"]), "{shown}");
}
