//! The life of one instance as a state machine without input or output of its own.
//!
//! In: an [`Input`] and the time. Out: at most one [`Action`], whose end comes back as an input, and the time at which to call
//! again. Invariants: a new process is asked for only after everything of the one before is gone; a wish that comes while an
//! action is under way is remembered, the newest wins; automatic restarts within the window are bounded by `max_restarts`.
//!
//! ```text
//! Stopped ─start▶ Spawning ─▶ Up ─stop▶ Stopping ─exit or kill timeout▶ Sweeping ─▶ Stopped
//!                    ▲         └─exit──────────────────────────────────▶ Sweeping ─▶ Waiting ─▶ Spawning …
//!                    └────────────────────────────────────────────────────────────── or Errored
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::spec::Spec;
use super::view::{Exit, Reason, Status};

/// A run this long begins the back-off anew.
const STABLE: Duration = Duration::from_secs(30);
/// The back-off grows up to this.
const LONGEST_DELAY: Duration = Duration::from_secs(15);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Somebody wants it to run.
    Start,
    /// Somebody wants it not to run.
    Stop,
    /// A new process is wanted.
    Restart(Reason),
    /// The process runs.
    Spawned,
    /// A process of an earlier agent was found running.
    Adopted { ready: bool },
    /// It could not be started.
    SpawnFailed { permanent: bool },
    /// It does what it is for.
    Ready,
    /// The process has ended.
    Exited(Exit),
    /// Nothing of it is left.
    Swept,
    /// It cannot go on as it is: memory, health. Counts like an end by itself.
    Unfit(Reason),
    /// Another process that serves took the place of the one that did.
    Replaced,
    /// The time of [`Machine::deadline`] has come.
    Tick,
}

/// What is to be done; its end is reported as an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a process: `Spawned` or `SpawnFailed`.
    Spawn,
    /// Ask it to end.
    Signal,
    /// Kill everything of it that is left: `Swept`.
    Sweep,
}

/// Where it goes once nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Stop,
    Start,
    Wait(Instant),
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Stopped,
    Spawning,
    Up { since: Instant, ready: bool },
    Stopping { kill_at: Instant, then: Then },
    Sweeping { then: Then },
    Waiting { until: Instant },
    Errored,
}

/// How restarts are decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub autorestart: bool,
    pub max_restarts: u32,
    pub window: Duration,
    pub min_uptime: Duration,
    pub fixed_delay: Option<Duration>,
    pub first_delay: Duration,
    pub stop_exit_codes: Vec<i32>,
    pub kill_timeout: Duration,
    /// It is online only when it says so.
    pub waits_for_ready: bool,
}

impl Policy {
    /// The policy a definition asks for.
    pub fn of(spec: &Spec) -> Self {
        let definition = &spec.definition;
        Self {
            autorestart: definition.autorestart,
            max_restarts: definition.max_restarts,
            window: definition.restart_window.0,
            min_uptime: definition.min_uptime.0,
            fixed_delay: definition.restart_delay.map(|delay| delay.0).filter(|delay| !delay.is_zero()),
            first_delay: definition.exp_backoff_restart_delay.0,
            stop_exit_codes: definition.stop_exit_codes.clone(),
            kill_timeout: definition.kill_timeout.0,
            waits_for_ready: spec.check.is_some(),
        }
    }
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    policy: Policy,
    state: State,
    /// What was wished for while a process was being started.
    wish: Option<Then>,
    /// Automatic and asked-for restarts since the counters were reset.
    restarts: u64,
    /// Automatic restarts within the window.
    recent: VecDeque<Instant>,
    /// Automatic restarts since the last stable run.
    streak: u32,
    /// Of the last restart.
    reason: Option<Reason>,
    random: u64,
}

impl Machine {
    /// A stopped instance; `seed` spreads the delays of many that crash together.
    pub fn new(policy: Policy, seed: u64) -> Self {
        let recent = VecDeque::new();
        let (wish, reason) = (None, None);
        Self { policy, state: State::Stopped, wish, restarts: 0, recent, streak: 0, reason, random: seed | 1 }
    }

    /// Takes another policy; it counts from the next decision on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What is shown.
    pub fn status(&self) -> Status {
        match self.state {
            State::Stopped => Status::Stopped,
            State::Spawning => match self.wish {
                Some(Then::Stop | Then::GiveUp) => Status::Stopping,
                Some(Then::Start | Then::Wait(_)) => Status::Restarting,
                None => Status::Starting,
            },
            State::Up { ready: false, .. } => Status::Starting,
            State::Up { ready: true, .. } => Status::Online,
            State::Stopping { then, .. } | State::Sweeping { then } => match then {
                Then::Stop | Then::GiveUp => Status::Stopping,
                Then::Start | Then::Wait(_) => Status::Restarting,
            },
            State::Waiting { .. } => Status::Restarting,
            State::Errored => Status::Errored,
        }
    }

    /// Whether nothing of it is left and nothing is under way.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Stopped | State::Errored)
    }

    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Why it was last restarted.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Takes the restarts over that an earlier agent counted.
    pub fn set_restarts(&mut self, restarts: u64) {
        self.restarts = restarts;
    }

    /// Forgets the restarts.
    pub fn reset(&mut self) {
        self.restarts = 0;
        self.recent.clear();
        self.streak = 0;
    }

    /// Whether something else than a start is wished for while one is under way.
    pub fn has_wish(&self) -> bool {
        self.wish.is_some()
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Stopping { kill_at, .. } => Some(kill_at),
            State::Waiting { until } => Some(until),
            State::Stopped | State::Spawning | State::Up { .. } | State::Sweeping { .. } | State::Errored => None,
        }
    }

    /// Takes an input.
    pub fn handle(&mut self, input: Input, now: Instant) -> Option<Action> {
        match input {
            Input::Start => self.start(),
            Input::Stop => self.end(Then::Stop, now),
            Input::Restart(reason) => {
                self.reason = Some(reason);
                self.restarts += 1;
                self.recent.clear();
                self.streak = 0;
                self.end(Then::Start, now)
            }
            Input::Unfit(reason) => {
                let then = self.after_failure(reason, now);
                self.end(then, now)
            }
            Input::Spawned => self.spawned(now, !self.policy.waits_for_ready),
            Input::Adopted { ready } => self.spawned(now, ready),
            Input::SpawnFailed { permanent } => self.spawn_failed(permanent, now),
            Input::Ready => {
                if let State::Up { ready, .. } = &mut self.state {
                    *ready = true;
                }
                None
            }
            Input::Replaced => {
                self.replaced(now);
                None
            }
            Input::Exited(exit) => self.exited(exit, now),
            Input::Swept => self.swept(now),
            Input::Tick => self.tick(now),
        }
    }

    fn replaced(&mut self, now: Instant) {
        if let State::Up { since, ready } = &mut self.state {
            (*since, *ready) = (now, true);
            self.reason = Some(Reason::Asked);
            self.restarts += 1;
            self.recent.clear();
            self.streak = 0;
        }
    }

    fn start(&mut self) -> Option<Action> {
        match &mut self.state {
            State::Stopped | State::Waiting { .. } | State::Errored => {
                self.recent.clear();
                self.streak = 0;
                self.spawn()
            }
            State::Stopping { then, .. } | State::Sweeping { then } => {
                *then = Then::Start;
                None
            }
            State::Spawning => {
                self.wish = None;
                None
            }
            State::Up { .. } => None,
        }
    }

    fn spawn(&mut self) -> Option<Action> {
        self.state = State::Spawning;
        self.wish = None;
        Some(Action::Spawn)
    }

    /// Brings it to an end, whatever it does now.
    fn end(&mut self, then: Then, now: Instant) -> Option<Action> {
        match &mut self.state {
            State::Stopped | State::Waiting { .. } | State::Errored => self.settle(then, now),
            State::Spawning => {
                self.wish = Some(then);
                None
            }
            State::Up { .. } => {
                self.state = State::Stopping { kill_at: now + self.policy.kill_timeout, then };
                Some(Action::Signal)
            }
            State::Stopping { then: current, .. } | State::Sweeping { then: current } => {
                *current = then;
                None
            }
        }
    }

    /// Nothing is left of it: goes where it was sent.
    fn settle(&mut self, then: Then, now: Instant) -> Option<Action> {
        self.state = match then {
            Then::Stop => State::Stopped,
            Then::Start => return self.spawn(),
            Then::Wait(until) if until <= now => return self.spawn(),
            Then::Wait(until) => State::Waiting { until },
            Then::GiveUp => State::Errored,
        };
        None
    }

    fn spawned(&mut self, now: Instant, ready: bool) -> Option<Action> {
        self.state = State::Up { since: now, ready };
        match self.wish.take() {
            Some(then) => self.end(then, now),
            None => None,
        }
    }

    fn spawn_failed(&mut self, permanent: bool, now: Instant) -> Option<Action> {
        let then = match self.wish.take() {
            Some(wish) => wish,
            None if permanent => Then::GiveUp,
            None => self.after_failure(Reason::Ended, now),
        };
        self.settle(then, now)
    }

    fn exited(&mut self, exit: Exit, now: Instant) -> Option<Action> {
        let then = match self.state {
            State::Up { since, .. } => self.after_exit(exit, now.saturating_duration_since(since), now),
            State::Stopping { then, .. } => then,
            State::Stopped | State::Spawning | State::Sweeping { .. } | State::Waiting { .. } | State::Errored => {
                return None;
            }
        };
        self.state = State::Sweeping { then };
        Some(Action::Sweep)
    }

    fn swept(&mut self, now: Instant) -> Option<Action> {
        match self.state {
            State::Sweeping { then } => self.settle(then, now),
            State::Stopped
            | State::Spawning
            | State::Up { .. }
            | State::Stopping { .. }
            | State::Waiting { .. }
            | State::Errored => None,
        }
    }

    fn tick(&mut self, now: Instant) -> Option<Action> {
        match self.state {
            State::Stopping { kill_at, then } if kill_at <= now => {
                self.state = State::Sweeping { then };
                Some(Action::Sweep)
            }
            State::Waiting { until } if until <= now => self.spawn(),
            State::Stopped
            | State::Spawning
            | State::Up { .. }
            | State::Stopping { .. }
            | State::Sweeping { .. }
            | State::Waiting { .. }
            | State::Errored => None,
        }
    }

    fn after_exit(&mut self, exit: Exit, lived: Duration, now: Instant) -> Then {
        if lived >= STABLE.max(self.policy.min_uptime) {
            self.streak = 0;
        }
        if matches!(exit, Exit::Code(code) if self.policy.stop_exit_codes.contains(&code)) {
            return Then::Stop;
        }
        if !self.policy.autorestart {
            return if exit == Exit::Code(0) { Then::Stop } else { Then::GiveUp };
        }
        self.after_failure(Reason::Ended, now)
    }

    /// An automatic restart, unless there were too many.
    fn after_failure(&mut self, reason: Reason, now: Instant) -> Then {
        while self.recent.front().is_some_and(|then| now.saturating_duration_since(*then) > self.policy.window) {
            self.recent.pop_front();
        }
        if !self.policy.autorestart
            || self.recent.len() >= usize::try_from(self.policy.max_restarts).unwrap_or(usize::MAX)
        {
            return Then::GiveUp;
        }
        self.recent.push_back(now);
        self.reason = Some(reason);
        self.restarts += 1;
        let delay = self.policy.fixed_delay.unwrap_or_else(|| self.back_off());
        self.streak = self.streak.saturating_add(1);
        Then::Wait(now + delay)
    }

    /// None for the first restart after a stable run, then growing by half each time, a quarter of it by chance.
    fn back_off(&mut self) -> Duration {
        let Some(step) = self.streak.checked_sub(1) else { return Duration::ZERO };
        let grown = self.policy.first_delay.as_secs_f64() * 1.5_f64.powi(i32::try_from(step.min(40)).unwrap_or(40));
        let delay = grown.min(LONGEST_DELAY.as_secs_f64());
        // xorshift64: enough to spread what crashed together.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let chance = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_secs_f64(delay * (0.75 + chance * 0.25))
    }
}

#[cfg(test)]
mod tests;
