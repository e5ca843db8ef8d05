use proptest::prelude::*;

use super::*;
use crate::process::definition::Definition;

fn machine(change: impl FnOnce(&mut Policy)) -> Machine {
    let mut policy = Policy::of(&Definition::new("web", "/bin/true").validate(1).expect("valid"));
    change(&mut policy);
    Machine::new(policy, 7)
}

/// Starts `machine` and lets it run.
fn up(machine: &mut Machine, now: Instant) {
    assert_eq!(machine.handle(Input::Start, now), Some(Action::Spawn));
    assert_eq!(machine.handle(Input::Spawned, now), None);
    assert_eq!(machine.status(), Status::Online);
}

/// Lets it crash and returns how long until the next start; `None`: it was given up.
fn crash(machine: &mut Machine, now: Instant) -> Option<Duration> {
    assert_eq!(machine.handle(Input::Exited(Exit::Code(3)), now), Some(Action::Sweep));
    match machine.handle(Input::Swept, now) {
        Some(action) => {
            assert_eq!(action, Action::Spawn);
            machine.handle(Input::Spawned, now);
            Some(Duration::ZERO)
        }
        None => {
            let until = machine.deadline()?;
            assert_eq!(machine.handle(Input::Tick, until), Some(Action::Spawn));
            machine.handle(Input::Spawned, until);
            Some(until - now)
        }
    }
}

#[test]
fn the_first_crash_is_answered_at_once_and_the_next_ones_later_and_later() {
    let mut machine = machine(|_| {});
    let start = Instant::now();
    up(&mut machine, start);
    let delays: Vec<Duration> = (0..6).filter_map(|_| crash(&mut machine, start)).collect();
    assert_eq!(delays[0], Duration::ZERO);
    assert!(delays[1] >= Duration::from_millis(75) && delays[1] <= Duration::from_millis(100), "{delays:?}");
    assert!(delays[5] > delays[2] && delays.iter().all(|delay| *delay <= LONGEST_DELAY), "{delays:?}");
    assert_eq!(machine.restarts(), 6);
}

#[test]
fn a_crash_loop_ends_errored_whether_it_lives_no_time_or_over_a_second() {
    for lived in [Duration::ZERO, Duration::from_millis(1200)] {
        let mut machine = machine(|_| {});
        let mut now = Instant::now();
        up(&mut machine, now);
        let mut crashes = 0;
        loop {
            now += lived;
            crashes += 1;
            match crash(&mut machine, now) {
                Some(delay) => now += delay,
                None => break,
            }
        }
        assert_eq!((crashes, machine.status()), (17, Status::Errored));
        assert_eq!(machine.handle(Input::Start, now), Some(Action::Spawn), "an operator may try again");
    }
}

#[test]
fn one_that_crashes_once_an_hour_is_restarted_for_ever_and_at_once() {
    let mut machine = machine(|_| {});
    let mut now = Instant::now();
    up(&mut machine, now);
    for _ in 0..100 {
        now += Duration::from_secs(3600);
        assert_eq!(crash(&mut machine, now), Some(Duration::ZERO));
    }
}

#[test]
fn a_stop_waits_for_the_end_and_kills_at_the_timeout() {
    let mut machine = machine(|_| {});
    let now = Instant::now();
    up(&mut machine, now);
    assert_eq!(machine.handle(Input::Stop, now), Some(Action::Signal));
    assert_eq!(machine.status(), Status::Stopping);
    let kill_at = machine.deadline().expect("a timeout");
    assert_eq!(kill_at - now, Duration::from_millis(1600));
    assert_eq!(machine.handle(Input::Tick, kill_at), Some(Action::Sweep));
    assert_eq!(machine.handle(Input::Exited(Exit::Signal(9)), kill_at), None);
    assert_eq!(machine.handle(Input::Swept, kill_at), None);
    assert_eq!(machine.status(), Status::Stopped);
}

#[test]
fn one_with_a_check_is_online_when_it_is_ready() {
    let mut machine = machine(|policy| policy.waits_for_ready = true);
    let now = Instant::now();
    machine.handle(Input::Start, now);
    machine.handle(Input::Spawned, now);
    assert_eq!(machine.status(), Status::Starting);
    machine.handle(Input::Ready, now);
    assert_eq!(machine.status(), Status::Online);
}

#[test]
fn a_stop_while_it_is_being_started_is_not_lost() {
    let mut machine = machine(|_| {});
    let now = Instant::now();
    machine.handle(Input::Start, now);
    assert_eq!(machine.handle(Input::Stop, now), None);
    assert_eq!(machine.handle(Input::Spawned, now), Some(Action::Signal));
    machine.handle(Input::Exited(Exit::Signal(15)), now);
    machine.handle(Input::Swept, now);
    assert_eq!(machine.status(), Status::Stopped);
}

#[test]
fn a_stop_ends_the_wait_for_a_restart() {
    let mut machine = machine(|policy| policy.fixed_delay = Some(Duration::from_secs(60)));
    let now = Instant::now();
    up(&mut machine, now);
    machine.handle(Input::Exited(Exit::Signal(11)), now);
    machine.handle(Input::Swept, now);
    assert_eq!(machine.status(), Status::Restarting);
    assert_eq!(machine.handle(Input::Stop, now), None);
    assert_eq!((machine.status(), machine.deadline()), (Status::Stopped, None));
}

#[test]
fn exit_codes_and_autorestart_decide_what_an_end_means() {
    let end = |policy: fn(&mut Policy), exit| {
        let mut machine = machine(policy);
        let now = Instant::now();
        up(&mut machine, now);
        machine.handle(Input::Exited(exit), now);
        machine.handle(Input::Swept, now);
        machine.status()
    };
    assert_eq!(end(|policy| policy.stop_exit_codes = vec![0], Exit::Code(0)), Status::Stopped);
    assert_eq!(end(|policy| policy.autorestart = false, Exit::Code(0)), Status::Stopped);
    assert_eq!(end(|policy| policy.autorestart = false, Exit::Code(1)), Status::Errored);
    assert_eq!(end(|policy| policy.max_restarts = 0, Exit::Code(1)), Status::Errored);
}

#[test]
fn what_cannot_be_started_is_given_up_only_if_trying_again_is_of_no_use() {
    let now = Instant::now();
    let mut missing = machine(|_| {});
    missing.handle(Input::Start, now);
    missing.handle(Input::SpawnFailed { permanent: true }, now);
    assert_eq!(missing.status(), Status::Errored);
    let mut busy = machine(|_| {});
    busy.handle(Input::Start, now);
    assert_eq!(busy.handle(Input::SpawnFailed { permanent: false }, now), Some(Action::Spawn));
}

proptest! {
    /// Whatever happens in whatever order: never two processes, and a stop ends at rest.
    #[test]
    fn there_is_never_a_second_process(inputs in proptest::collection::vec(0_u8..7, 0..200)) {
        let mut machine = machine(|_| {});
        let mut now = Instant::now();
        let (mut alive, mut spawning, mut sweeping) = (false, false, false);
        let drive = |machine: &mut Machine, input: Input, now, alive: &mut bool, spawning: &mut bool, sweeping: &mut bool| {
            let action = machine.handle(input, now);
            match action {
                Some(Action::Spawn) => {
                    assert!(!*alive && !*spawning && !*sweeping, "a second process");
                    *spawning = true;
                }
                Some(Action::Sweep) => *sweeping = true,
                Some(Action::Signal) => assert!(*alive),
                None => {}
            }
        };
        for input in inputs {
            now += Duration::from_millis(100);
            let input = match input {
                0 => Input::Start,
                1 => Input::Stop,
                2 => Input::Restart(Reason::Asked),
                3 if spawning => { spawning = false; alive = true; Input::Spawned }
                4 if alive => { alive = false; Input::Exited(Exit::Code(1)) }
                5 if sweeping => { sweeping = false; alive = false; Input::Swept }
                _ => Input::Tick,
            };
            drive(&mut machine, input, now, &mut alive, &mut spawning, &mut sweeping);
        }
        drive(&mut machine, Input::Stop, now, &mut alive, &mut spawning, &mut sweeping);
        for _ in 0..8 {
            now += Duration::from_secs(5);
            let input = match (spawning, sweeping) {
                (true, _) => { spawning = false; alive = true; Input::Spawned }
                (_, true) => { sweeping = false; alive = false; Input::Swept }
                _ => Input::Tick,
            };
            drive(&mut machine, input, now, &mut alive, &mut spawning, &mut sweeping);
        }
        prop_assert!(machine.is_at_rest() && !alive, "{machine:?}");
    }
}
