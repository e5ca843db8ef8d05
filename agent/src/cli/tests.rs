use clap::{Command as Clap, CommandFactory as _};

use super::*;
use crate::foundation::task;

/// Every help text, in the order of the commands, as it reads 100 columns wide.
fn help() -> String {
    let mut text = String::new();
    append_help(&mut Cli::command(), "", &mut text);
    text
}

fn append_help(command: &mut Clap, above: &str, text: &mut String) {
    command.build();
    let name = format!("{above}{}", command.get_name());
    let help = command.clone().bin_name(name.clone()).term_width(100).render_long_help().to_string();
    text.push_str(&format!("===== {name}\n"));
    for line in help.trim_end().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push('\n');
    for child in command.get_subcommands_mut().filter(|child| child.get_name() != "help") {
        append_help(child, &format!("{name} "), text);
    }
}

#[test]
fn the_help_texts_are_the_reviewed_ones() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/help.txt");
    let (now, reviewed) = (help(), std::fs::read_to_string(path).expect("it lies beside the code"));
    let differs = now.lines().zip(reviewed.lines()).enumerate().find(|(_, (now, reviewed))| now != reviewed);
    assert!(
        now == reviewed,
        "{path} is not what `--help` says (first difference: {differs:?}); after a review, replace it by this:\n{now}"
    );
}

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
        let script = script(shell);
        for word in ["status", "peers", "doctor", "wg-quick", "run-dir"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

fn exit_of(arguments: &[&str]) -> ExitCode {
    let daemon = Daemon {
        run: |_launch| ExitCode::from(77),
        remove: |_config| Err(CommandError("nothing can be removed here".to_owned())),
    };
    run(std::iter::once("weft").chain(arguments.iter().copied()).map(OsString::from), daemon)
}

#[track_caller]
fn check_exit(arguments: &[&str], expected: u8) {
    // ExitCode cannot be compared but by its text.
    assert_eq!(format!("{:?}", exit_of(arguments)), format!("{:?}", ExitCode::from(expected)), "{arguments:?}");
}

#[test]
fn wrong_usage_ends_with_2() {
    check_exit(&[], 2);
    check_exit(&["jion"], 2);
    check_exit(&["status", "--check", "perhaps"], 2);
    check_exit(&["status", "--check", "ready", "--watch"], 2);
    check_exit(&["top", "--interval", "0"], 2);
    check_exit(&["ping", "beta", "--count", "0"], 2);
}

#[test]
fn help_and_version_end_with_0() {
    check_exit(&["--version"], 0);
    check_exit(&["help", "status"], 0);
}

#[test]
fn without_an_agent_the_exit_code_is_3() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run_dir = directory.path().to_str().expect("it is UTF-8");
    for words in [&["status"][..], &["peers"], &["top"], &["reload"], &["ping", "beta"], &["dns", "query", "beta"]] {
        check_exit(&[&["--run-dir", run_dir][..], words].concat(), 3);
    }
    check_exit(&["--run-dir", run_dir, "version"], 0);
}

#[test]
fn down_without_an_agent_removes_by_itself() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    check_exit(&["--run-dir", directory.path().to_str().expect("it is UTF-8"), "down"], 1);
}

#[test]
fn the_agent_gets_configuration_and_flags() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("weft.toml");
    std::fs::write(&file, "[log]\nlevel = \"warn\"\n").expect("written");
    let file = file.to_str().expect("it is UTF-8");
    check_exit(&["agent", "--config", file], 77);
    check_exit(&["agent", "--config", file, "--set", "log.level=debug"], 77);
    check_exit(&["agent", "--config", file, "--set", "log.lvel=debug"], 1);
    check_exit(&["agent", "--config", "/nonexistent/weft.toml"], 1);
}

#[test]
fn config_check_tells_right_from_wrong() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("weft.toml");
    std::fs::write(&file, "[wireguard]\nlisten_port = 7\n").expect("written");
    check_exit(&["config", "check", file.to_str().expect("it is UTF-8")], 0);
    std::fs::write(&file, "[wireguard]\nlisten_prot = 7\n").expect("written");
    check_exit(&["config", "check", file.to_str().expect("it is UTF-8")], 1);
}

#[test]
fn commands_reach_an_agent_over_its_socket() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let mut fixture = crate::api::tests::Fixture::new();
    let (directory, _control) = fixture.control();
    let (_, closed) = tokio::sync::mpsc::channel(1);
    let mut commands = std::mem::replace(&mut fixture.commands, closed);
    let _answering = task::spawn("answering", async move {
        while let Some(crate::api::Command::Reload(reply)) = commands.recv().await {
            reply.send(Ok(Vec::new())).expect("the caller waits");
        }
    });
    let run_dir = directory.path().to_str().expect("it is UTF-8");
    for (words, code) in [
        (&["status"][..], 0),
        (&["status", "--json"], 0),
        (&["status", "--check", "ready"], 0),
        (&["peers"], 0),
        (&["top", "--once", "--interval", "0.1"], 0),
        (&["top", "--once", "--interval", "0.1", "--json"], 0),
        (&["reload"], 0),
        (&["version", "--json"], 0),
        (&["ping", "delta"], 2),
        (&["dns", "query", "beta"], 1),
    ] {
        check_exit(&[&["--run-dir", run_dir][..], words].concat(), code);
    }
    let _blocker = fixture.sources.readiness.block("dns");
    check_exit(&["--run-dir", run_dir, "status"], 4);
    check_exit(&["--run-dir", run_dir, "status", "--check", "startup"], 4);
    check_exit(&["--run-dir", run_dir, "status", "--check", "live"], 0);
}
