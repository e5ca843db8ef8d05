//! What a process reads: nothing, a file, or what is sent to it.

use super::*;

#[test]
fn standard_input_is_nothing_a_file_or_what_is_sent() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = start(&host);
    let raw = |agent: &TestAgent<'_>, name: &str| agent.cli_text(&["logs", name, "--raw"]).expect("readable");
    let echo =
        script(&agent, "echo.sh", "#!/bin/sh\nwhile read -r line; do echo \"got $line\"; done\necho end\nsleep 1000\n");
    let lines = agent.directory().join("lines");
    fs::write(&lines, "one\ntwo\n").expect("ours");
    let of_file = lines.display().to_string();
    agent.cli_text(&["start", &echo, "--name", "nothing"]).expect("started");
    agent.cli_text(&["start", &echo, "--name", "file", "--stdin", &of_file]).expect("started");
    let of_nobody = ["--user", "nobody", "--cwd", "/"];
    agent
        .cli_text(&[&["start", &echo, "--name", "pipe", "--stdin", "pipe"][..], &of_nobody].concat())
        .expect("started");
    eventually(DEADLINE, "the end", || raw(&agent, "nothing") == "end\n").expect("nothing to read");
    eventually(DEADLINE, "both lines", || raw(&agent, "file") == "got one\ngot two\nend\n").expect("read");
    agent.cli_text(&["send", "pipe", "first", "line"]).expect("sent");
    eventually(DEADLINE, "it is read", || raw(&agent, "pipe") == "got first line\n").expect("no end");
    agent.kill9().expect("killed");
    agent.restart().expect("another agent");
    agent.cli_text(&["send", "pipe", "second"]).expect("sent by another agent");
    eventually(DEADLINE, "it is read", || raw(&agent, "pipe").ends_with("got second\n")).expect("no end");
    for (words, expected) in [
        (vec!["send", "nothing", "x"], "its stdin is no pipe"),
        (vec!["start", "cat", "--name", "wrong", "--stdin", "/nonexistent/file"], "stdin /nonexistent/file"),
        (vec!["start", "cat", "--name", "wrong", "--stdin", "/dev/tty"], "stdin /dev/tty"),
    ] {
        let refused = agent.cli(&words).expect("it runs");
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains(expected), "{words:?}: {text}");
    }
    agent.cli_text(&["delete", "pipe"]).expect("deleted");
    let pipes = fs::read_dir(agent.directory().join("run/process")).expect("it is there").flatten();
    let left: Vec<_> =
        pipes.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().ends_with(".in")).collect();
    assert!(left.is_empty(), "the pipe is taken away: {left:?}");
}
