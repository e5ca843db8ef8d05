//! Reloads: one instance after the other, each only when the one before is online, so that N−1 of N always serve.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{Platform, Supervisor};
use crate::process::error::Error;
use crate::process::handle::{Reply, Target};
use crate::process::machine::Input;
use crate::process::platform::StartError;
use crate::process::view::{Reason, Status};

/// Reloads under way, by process.
#[derive(Default)]
pub(super) struct Rollouts {
    under_way: BTreeMap<Arc<str>, Rollout>,
}

struct Rollout {
    current: Option<u32>,
    waiting: VecDeque<u32>,
    all: Vec<u32>,
    reply: Option<Arc<Replies>>,
}

/// One request may reload several processes; it is answered when the last of them is done, or the first has failed.
struct Replies {
    state: Mutex<Option<Unanswered>>,
}

struct Unanswered {
    reply: Reply<Vec<u32>>,
    ids: Vec<u32>,
    processes: usize,
}

impl Replies {
    fn new(reply: Reply<Vec<u32>>, processes: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(Some(Unanswered { reply, ids: Vec::new(), processes })) })
    }

    fn done(&self, result: Result<Vec<u32>, Error>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut unanswered) = state.take() else { return };
        match result {
            Err(error) => drop(unanswered.reply.send(Err(error))),
            Ok(more) => {
                unanswered.ids.extend(more);
                unanswered.processes -= 1;
                if unanswered.processes == 0 {
                    drop(unanswered.reply.send(Ok(unanswered.ids)));
                } else {
                    *state = Some(unanswered);
                }
            }
        }
    }
}

impl<P: Platform> Supervisor<P> {
    /// Begins a reload of what is meant.
    pub(super) fn reload(&mut self, target: &Target, reply: Reply<Vec<u32>>, now: Instant) {
        let ids = match self.find_for_reload(target) {
            Ok(ids) => ids,
            Err(error) => return self.answer(reply, Err(error)),
        };
        if ids.is_empty() {
            return self.answer(reply, Ok(Vec::new()));
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
        let waiting = ids.iter().copied().collect();
        let rollout = Rollout { current: None, waiting, all: ids, reply };
        self.rollouts.under_way.insert(name.into(), rollout);
        self.roll_next(name, now);
    }

    fn roll_next(&mut self, name: &str, now: Instant) {
        let Some(rollout) = self.rollouts.under_way.get_mut(name) else { return };
        rollout.current = rollout.waiting.pop_front();
        match rollout.current {
            Some(id) => {
                self.want(id, true);
                self.feed(id, Input::Restart(Reason::Asked), now);
            }
            None => self.end_rollout(name, Ok(())),
        }
    }

    /// An instance changed: if a reload waits for it, it goes on or ends.
    pub(super) fn advance_rollout(&mut self, id: u32, now: Instant) {
        if self.rollouts.under_way.is_empty() {
            return;
        }
        let is_waited_for = |rollout: &Rollout| rollout.current == Some(id);
        let Some(name) = self.rollouts.under_way.iter().find(|(_, rollout)| is_waited_for(rollout)) else { return };
        let name = Arc::clone(name.0);
        let Some(instance) = self.instances.get(&id) else {
            return self.roll_next(&name, now);
        };
        match instance.machine.status() {
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
            let result = result.map(|()| rollout.all);
            self.replies.push(Box::new(move || reply.done(result)));
        }
    }
}
