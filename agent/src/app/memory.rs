//! The task that gives memory back once a burst is over: the start of the agent, of a hundred processes, of many connections.
//!
//! In: a timer. Out: what was free, or mapped and not used since, is the kernel's again. Invariants: nothing happens while the
//! agent works, and nothing is given back twice that the work at hand needs: what comes back is taken for what is needed.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::foundation::lifecycle::Readiness;
use crate::foundation::task::{self, Task};
use crate::sys::memory;

const PAUSE: Duration = Duration::from_secs(5);
/// An agent that worked longer than that in a pause is at work: a hundredth.
const WORK: Duration = Duration::from_millis(50);
/// Growth that is worth a look at every mapping.
const GROWTH_BYTES: u64 = 2 * 1024 * 1024;

/// Starts when the agent is ready: what only a start runs and allocates is the first to go.
pub(super) fn start(readiness: Readiness) -> Task {
    task::spawn("memory", async move {
        readiness.ready().await;
        let mut watcher = Watcher::new(worked());
        loop {
            tokio::time::sleep(PAUSE).await;
            if watcher.is_due(memory::resident_bytes(), worked()) {
                drop(tokio::task::spawn_blocking(memory::give_back).await);
            }
        }
    })
}

/// Processor time of this process so far.
fn worked() -> Duration {
    let microseconds = getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
    Duration::from_micros(microseconds.unsigned_abs())
}

/// When it is time.
#[derive(Debug, PartialEq, Eq)]
struct Watcher {
    worked: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is something to give back as soon as the agent is quiet.
    Full,
    /// It was given back; what a quiet agent needs comes back in this pause.
    Returning,
    /// That much is needed.
    Known(u64),
}

impl Watcher {
    fn new(worked: Duration) -> Self {
        Self { worked, state: State::Full }
    }

    /// To be asked once a pause.
    fn is_due(&mut self, resident_bytes: u64, worked: Duration) -> bool {
        let is_quiet = worked.saturating_sub(self.worked) < WORK;
        self.worked = worked;
        let is_due = match self.state {
            State::Full => is_quiet,
            State::Returning => false,
            State::Known(needed) => is_quiet && resident_bytes > needed + GROWTH_BYTES,
        };
        self.state = match self.state {
            _ if is_due => State::Returning,
            State::Returning if is_quiet => State::Known(resident_bytes),
            State::Full | State::Returning => State::Full,
            State::Known(needed) => State::Known(needed.min(resident_bytes)),
        };
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// Asks once a pause: resident memory in MiB, and the milliseconds worked in the pause.
    fn check(pauses: &[(u64, u64)], expected: &[bool]) {
        let mut watcher = Watcher::new(Duration::ZERO);
        let mut worked = Duration::ZERO;
        let due: Vec<bool> = pauses
            .iter()
            .map(|(resident, millis)| {
                worked += Duration::from_millis(*millis);
                watcher.is_due(resident * MIB, worked)
            })
            .collect();
        assert_eq!(due, expected);
    }

    #[test]
    fn the_start_is_given_back_once_it_is_over() {
        check(&[(40, 300), (40, 1), (20, 1), (20, 1)], &[false, true, false, false]);
    }

    #[test]
    fn what_comes_back_is_needed_and_stays() {
        check(&[(40, 1), (25, 1), (26, 1), (26, 1)], &[true, false, false, false]);
    }

    #[test]
    fn a_burst_is_given_back_when_it_is_over() {
        check(&[(40, 1), (20, 1), (35, 400), (35, 1), (21, 1)], &[true, false, false, true, false]);
    }

    #[test]
    fn a_burst_right_after_is_not_taken_for_need() {
        check(&[(40, 1), (35, 400), (35, 1), (20, 1), (35, 1)], &[true, false, true, false, true]);
    }

    #[test]
    fn nothing_is_given_back_while_the_agent_works() {
        check(&[(40, 400), (60, 400), (80, 400), (90, 400)], &[false; 4]);
    }
}
