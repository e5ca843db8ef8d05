//! The node that keeps no state: follows one that does, and acts on the last it heard while none answers.

use std::time::Duration;

use futures_util::StreamExt as _;

use super::remote::{Place, RemoteError};
use super::shared::Shared;

/// The first wait after a failure; doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// How long one that says we are no member is left alone.
const DISMISSED: Duration = Duration::from_secs(60);

/// Follows for ever.
pub(super) async fn run(shared: &Shared) {
    let mut pause = FIRST;
    loop {
        let mut failures = Vec::new();
        let mut longest = LONGEST;
        for place in shared.keepers() {
            match follow(shared, place.clone()).await {
                Followed::Ended => {
                    pause = FIRST;
                    break;
                }
                Followed::Failed(error) => {
                    if let RemoteError::Dismissed(_) = error {
                        longest = DISMISSED;
                        pause = DISMISSED;
                    }
                    failures.push(format!("node {} tells nothing about the mesh: {error}", place.id));
                }
            }
        }
        if failures.is_empty() && shared.keepers().is_empty() {
            failures.push("no node that keeps the state of the mesh is known; join it again".to_owned());
        }
        shared.say(failures);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

enum Followed {
    /// It had answered.
    Ended,
    Failed(RemoteError),
}

async fn follow(shared: &Shared, place: Place) -> Followed {
    let mut configured = shared.configured.clone();
    configured.mark_unchanged();
    let mut updates = match shared.remote.follow(place, shared.facts()).await {
        Ok(updates) => updates,
        Err(error) => return Followed::Failed(error),
    };
    let mut has_answered = false;
    loop {
        let update = tokio::select! {
            update = updates.next() => update,
            // Told anew how this node is.
            _ = configured.changed() => return Followed::Ended,
        };
        match update {
            Some(Ok(update)) => {
                has_answered = true;
                shared.publish(&update);
                shared.say(Vec::new());
            }
            Some(Err(error @ RemoteError::Dismissed(_))) => return Followed::Failed(error),
            Some(Err(error)) if !has_answered => return Followed::Failed(error),
            Some(Err(_)) | None => return Followed::Ended,
        }
    }
}
