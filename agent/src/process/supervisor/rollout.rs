//! Reloads: one instance after the other. Its next process is started beside the one that runs, and takes its place once it
//! serves; where both cannot be there at once, the one that runs is stopped first, so that N−1 of N always serve.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{Platform, Supervisor};
use crate::process::error::Error;
use crate::process::handle::{Reloaded, Reply, Target};
use crate::process::machine::Input;
use crate::process::platform::StartError;
use crate::process::view::{Reason, Status};

/// Reloads under way, by process.
#[derive(Default)]
pub(super) struct Rollouts {
    under_way: BTreeMap<Arc<str>, Rollout>,
}

/// The next process of the instance whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// There is none: the one that ran is stopped first.
    After,
    /// It is found out whether it can be beside the one that runs.
    Looking,
    /// It is beside it, in this generation.
    Beside(u64),
}

impl Rollouts {
    /// The next process of an instance is beside it.
    pub(super) fn stands_by(&mut self, id: u32, generation: u64) {
        if let Some(rollout) = self.of(id) {
            rollout.next = Next::Beside(generation);
        }
    }

    /// The reload in which it is this one's turn.
    fn of(&mut self, id: u32) -> Option<&mut Rollout> {
        self.under_way.values_mut().find(|rollout| rollout.current == Some(id))
    }
}

struct Rollout {
    current: Option<u32>,
    /// How far its next process is, while the current one is online all the time.
    next: Next,
    notices: Vec<String>,
    waiting: VecDeque<u32>,
    all: Vec<u32>,
    reply: Option<Arc<Replies>>,
}

/// One request may reload several processes; it is answered when the last of them is done, or the first has failed.
struct Replies {
    state: Mutex<Option<Unanswered>>,
}

struct Unanswered {
    reply: Reply<Reloaded>,
    reloaded: Reloaded,
    processes: usize,
}

impl Replies {
    fn new(reply: Reply<Reloaded>, processes: usize) -> Arc<Self> {
        let reloaded = Reloaded::default();
        Arc::new(Self { state: Mutex::new(Some(Unanswered { reply, reloaded, processes })) })
    }

    fn done(&self, result: Result<Reloaded, Error>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut unanswered) = state.take() else { return };
        match result {
            Err(error) => drop(unanswered.reply.send(Err(error))),
            Ok(more) => {
                unanswered.reloaded.ids.extend(more.ids);
                unanswered.reloaded.notices.extend(more.notices);
                unanswered.processes -= 1;
                if unanswered.processes == 0 {
                    drop(unanswered.reply.send(Ok(unanswered.reloaded)));
                } else {
                    *state = Some(unanswered);
                }
            }
        }
    }
}

impl<P: Platform> Supervisor<P> {
    /// Begins a reload of what is meant.
    pub(super) fn reload(&mut self, target: &Target, reply: Reply<Reloaded>, now: Instant) {
        let ids = match self.find_for_reload(target) {
            Ok(ids) => ids,
            Err(error) => return self.answer(reply, Err(error)),
        };
        if ids.is_empty() {
            return self.answer(reply, Ok(Reloaded::default()));
        }
        let replies = Replies::new(reply, ids.len());
        for (name, ids) in ids {
            self.roll(&name, ids, Some(Arc::clone(&replies)), now);
        }
    }

    /// Reloads a process whose definition changed; nobody waits.
    pub(super) fn reload_quietly(&mut self, name: &str, now: Instant) {
        let ids = self.processes.get(name).map(|process| process.ids.clone()).unwrap_or_default();
        self.rollouts.under_way.remove(name);
        self.roll(name, ids, None, now);
    }

    fn find_for_reload(&self, target: &Target) -> Result<BTreeMap<Arc<str>, Vec<u32>>, Error> {
        let mut by_process: BTreeMap<Arc<str>, Vec<u32>> = BTreeMap::new();
        for id in self.find(target)? {
            let Some(instance) = self.instances.get(&id) else { continue };
            by_process.entry(Arc::clone(&instance.process)).or_default().push(id);
        }
        match by_process.keys().find(|name| self.rollouts.under_way.contains_key(*name)) {
            Some(name) => Err(Error::Busy { name: name.to_string() }),
            None => Ok(by_process),
        }
    }

    fn roll(&mut self, name: &str, ids: Vec<u32>, reply: Option<Arc<Replies>>, now: Instant) {
        for id in &ids {
            if let Some(instance) = self.instances.get_mut(id) {
                // Of a reload before, with another definition.
                instance.standby = None;
            }
        }
        let (waiting, notices) = (ids.iter().copied().collect(), Vec::new());
        let rollout = Rollout { current: None, next: Next::After, notices, waiting, all: ids, reply };
        self.rollouts.under_way.insert(name.into(), rollout);
        self.roll_next(name, now);
    }

    fn roll_next(&mut self, name: &str, now: Instant) {
        let Some(rollout) = self.rollouts.under_way.get_mut(name) else { return };
        rollout.current = rollout.waiting.pop_front();
        match rollout.current {
            Some(id) => {
                rollout.next = Next::Looking;
                self.want(id, true);
                if !self.replace(id) {
                    self.stop_then_start(id, None, now);
                }
            }
            None => self.end_rollout(name, Ok(())),
        }
    }

    /// Restarts the instance that is being reloaded; `why` not beside the one that runs.
    pub(super) fn stop_then_start(&mut self, id: u32, why: Option<String>, now: Instant) {
        let Some(instance) = self.instances.get(&id) else { return };
        let notice = why.map(|why| {
            format!("{} is stopped before it is started again, and serves nobody for that time: {why}", instance.name)
        });
        if let Some(rollout) = self.rollouts.of(id) {
            rollout.next = Next::After;
            if let Some(notice) = notice {
                tracing::warn!(notice, "a reload with a gap");
                rollout.notices.push(notice);
            }
        }
        self.feed(id, Input::Restart(Reason::Asked), now);
    }

    /// Whether a reload waits to hear how this instance can be followed.
    pub(super) fn is_looked_at(&mut self, id: u32) -> bool {
        self.rollouts.of(id).is_some_and(|rollout| rollout.next == Next::Looking)
    }

    /// The next process did not come up: the reload ends, the instances after it stay as they are.
    pub(super) fn fail_rollout_of(&mut self, id: u32, why: &str) {
        let Some(instance) = self.instances.get(&id) else { return };
        let (process, name) = (Arc::clone(&instance.process), instance.name.to_string());
        tracing::warn!(process = %name, why, "a process was not replaced");
        if self.rollouts.of(id).is_some() {
            let source = StartError { why: why.to_owned(), permanent: false };
            self.end_rollout(&process, Err(Error::Start { name, source }));
        }
    }

    /// What followed from the process that stood by in `generation` is over.
    pub(super) fn end_replacing(&mut self, id: u32, generation: u64, now: Instant) {
        if let Some(rollout) = self.rollouts.of(id).filter(|rollout| rollout.next == Next::Beside(generation)) {
            rollout.next = Next::After;
            self.advance_rollout(id, now);
        }
    }

    /// An instance changed: if a reload waits for it, it goes on or ends.
    pub(super) fn advance_rollout(&mut self, id: u32, now: Instant) {
        if self.rollouts.under_way.is_empty() {
            return;
        }
        let is_waited_for = |rollout: &Rollout| rollout.current == Some(id);
        let found = self.rollouts.under_way.iter().find(|(_, rollout)| is_waited_for(rollout));
        let Some((name, next)) = found.map(|(name, rollout)| (Arc::clone(name), rollout.next)) else { return };
        let Some(instance) = self.instances.get(&id) else {
            return self.roll_next(&name, now);
        };
        match instance.machine.status() {
            // It is there all the time; what is beside it says when it is done.
            Status::Online if next != Next::After => {}
            Status::Online => self.roll_next(&name, now),
            Status::Errored | Status::Stopped => {
                let why = instance.error.as_deref().unwrap_or("it ended before it was online");
                let source = StartError { why: why.to_owned(), permanent: false };
                self.end_rollout(&name, Err(Error::Start { name: instance.name.to_string(), source }));
            }
            Status::Starting | Status::Stopping | Status::Restarting => {}
        }
    }

    fn end_rollout(&mut self, name: &str, result: Result<(), Error>) {
        let Some(rollout) = self.rollouts.under_way.remove(name) else { return };
        if let Some(reply) = rollout.reply {
            let result = result.map(|()| Reloaded { ids: rollout.all, notices: rollout.notices });
            self.replies.push(Box::new(move || reply.done(result)));
        }
    }
}
