//! Renews the node's certificate at half of its life, long before anything breaks.
//!
//! A node that may issue renews by itself. Any other is given [`renewed_by`] a function that asks one that may; a failure
//! is tried again every [`RETRY`] and said in the log, louder when the end is near. Sessions are not touched: the new
//! certificate is for the same key.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tracing::{error, info, warn};

use super::Identity;
use crate::foundation::error::chain;
use crate::foundation::task::{self, Task};

/// Between two attempts after a failure.
const RETRY: Duration = Duration::from_secs(10 * 60);
/// The longest sleep: the clock of the host may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(60 * 60);
/// From here on a failure is an error and not a warning.
const NEAR_THE_END: Duration = Duration::from_secs(7 * 24 * 60 * 60);

type Failure = Box<dyn std::error::Error + Send + Sync>;
/// Has a new certificate issued and put in place.
pub type Renew = Box<dyn Fn(Identity) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// Starts the task that keeps `identity` valid; `renew` is asked where this node cannot issue.
pub fn start(identity: Identity, renew: Renew) -> Task {
    task::spawn("renewal", async move {
        loop {
            let pause = match due(&identity, SystemTime::now()) {
                Some(pause) => pause,
                None => attempt(&identity, &renew).await,
            };
            tokio::time::sleep(pause.min(LONGEST_SLEEP)).await;
        }
    })
}

/// How long until a renewal is due; `None`: now.
fn due(identity: &Identity, now: SystemTime) -> Option<Duration> {
    identity.certificate().half_life().duration_since(now).ok().filter(|pause| !pause.is_zero())
}

async fn attempt(identity: &Identity, renew: &Renew) -> Duration {
    let result = match identity.renew_here(SystemTime::now()) {
        Ok(true) => Ok(()),
        Ok(false) => renew(identity.clone()).await,
        Err(error) => Err(error.into()),
    };
    let left = identity.certificate().not_after.duration_since(SystemTime::now()).unwrap_or_default();
    match result {
        Ok(()) => {
            info!(days = left.as_secs() / 86_400, "the certificate of this node was renewed");
            return LONGEST_SLEEP;
        }
        Err(error) if left < NEAR_THE_END => {
            error!(error = %chain(&*error), hours = left.as_secs() / 3600, "the certificate of this node ends soon and was not renewed");
        }
        Err(error) => warn!(error = %chain(&*error), "the certificate of this node was not renewed; tried again later"),
    }
    RETRY
}
