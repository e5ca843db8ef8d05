//! Acts on what the tunnel device shows: another address is tried, events are told, and the mesh learns who cannot be reached.
//!
//! What the mesh knows about a pair is the same on every node, so that both ends choose the same relay (`model::mesh`).

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::paths::{Seen, Sighting};
use super::shared::Shared;
use crate::foundation::error::chain;
use crate::foundation::id::NodeId;
use crate::model::mesh::Mesh;

/// Between two attempts to tell the mesh, at least.
const RETRY: Duration = Duration::from_secs(2);
/// The longest pause while nobody who keeps the state answers.
const LONGEST: Duration = Duration::from_secs(120);

/// Takes in a look at the device; returns when to look again.
pub(super) fn sighted(shared: &Shared, sightings: &[Sighting]) -> Duration {
    let mesh = shared.state.borrow().mesh.clone();
    let mut paths = shared.paths.lock().unwrap_or_else(PoisonError::into_inner);
    let Seen { events, chosen, blocked, look_again } = paths.look(&mesh, sightings, Instant::now(), SystemTime::now());
    drop(paths);
    shared.chosen.send_if_modified(|current| {
        let differs = **current != chosen;
        if differs {
            *current = Arc::new(chosen);
        }
        differs
    });
    shared.out_of_reach.send_if_modified(|current| {
        let differs = *current != blocked;
        *current = blocked;
        differs
    });
    shared.tell(events);
    look_again
}

/// Has the mesh know whom this node cannot reach, for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut wanted = shared.out_of_reach.subscribe();
    let mut state = shared.state.subscribe();
    let mut attempts = Attempts::default();
    loop {
        let blocked = wanted.borrow_and_update().clone();
        let mesh = state.borrow_and_update().mesh.clone();
        let mut pause = None;
        if mesh.member(&mesh.own).is_some() && said(&mesh) != blocked {
            let outcome = say(&shared, &mesh.own, &blocked).await;
            if let Some(news) = attempts.note(outcome.err()) {
                tracing::info!(news, "telling the mesh whom this node cannot reach");
            }
            // Whatever happens meanwhile waits as well. The store tells back what it was told.
            tokio::time::sleep(RETRY).await;
            pause = Some(attempts.pause());
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            // Somebody who keeps the state may be there again.
            changed = state.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// How telling the mesh went: pure.
#[derive(Debug, Default)]
struct Attempts {
    failures: u32,
    reason: Option<String>,
}

impl Attempts {
    /// Takes in how the last attempt went; what of it is worth a line in the log.
    fn note(&mut self, failure: Option<String>) -> Option<String> {
        self.failures = if failure.is_some() { self.failures.saturating_add(1) } else { 0 };
        if failure == self.reason {
            return None;
        }
        self.reason.clone_from(&failure);
        Some(failure.unwrap_or_else(|| "done".to_owned()))
    }

    /// How long to wait before the next one, beside [`RETRY`]: longer each time.
    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(8);
        (RETRY * 2u32.pow(doublings)).min(LONGEST)
    }
}

/// What the mesh knows from this node.
fn said(mesh: &Mesh) -> BTreeMap<NodeId, String> {
    let own = mesh.blocked.iter().filter(|((node, _peer), _reason)| *node == mesh.own);
    own.map(|((_node, peer), reason)| (peer.clone(), reason.clone())).collect()
}

async fn say(shared: &Shared, own: &NodeId, blocked: &BTreeMap<NodeId, String>) -> Result<(), String> {
    if shared.keeps() {
        return shared.registry.put_blocked(own, blocked).await.map_err(|error| chain(&error));
    }
    let mut failed = "no node that keeps the state of the mesh is known".to_owned();
    for place in shared.keepers() {
        match shared.remote.say_blocked(place, blocked.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => failed = error.to_string(),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_once_until_it_is_another_one_or_over() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.note(None), None);
        let failed = |reason: &str| Some(reason.to_owned());
        assert_eq!(attempts.note(failed("no answer")), failed("no answer"));
        assert_eq!(attempts.note(failed("no answer")), None);
        assert_eq!(attempts.note(failed("refused")), failed("refused"));
        assert_eq!(attempts.note(None), failed("done"));
        assert_eq!(attempts.note(None), None);
    }

    #[test]
    fn while_nobody_answers_the_pauses_grow_to_a_limit_and_begin_anew_after_an_answer() {
        let mut attempts = Attempts::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            attempts.note(Some("no answer".to_owned()));
            pauses.push(attempts.pause().as_secs());
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 120, 120, 120]);
        attempts.note(None);
        attempts.note(Some("no answer".to_owned()));
        assert_eq!(attempts.pause(), RETRY);
    }
}
