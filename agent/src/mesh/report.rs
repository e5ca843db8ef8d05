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

/// Between two attempts to tell the mesh.
const RETRY: Duration = Duration::from_secs(2);

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
    loop {
        let blocked = wanted.borrow_and_update().clone();
        let mesh = state.borrow_and_update().mesh.clone();
        if mesh.member(&mesh.own).is_some() && said(&mesh) != blocked {
            if let Err(reason) = say(&shared, &mesh.own, &blocked).await {
                tracing::info!(reason, "the mesh does not know yet whom this node cannot reach");
            }
            // The store tells it back.
            tokio::time::sleep(RETRY).await;
            continue;
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = state.changed() => if changed.is_err() { return },
        }
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
