//! Restarts that nobody asks for by hand: by the calendar.

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
