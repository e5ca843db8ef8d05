//! The one place that waits: a condition is asked again until it holds or its deadline has passed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to wait between two looks: short against what is waited for, long against the look itself.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks `condition` until it is true.
///
/// # Errors
/// `what` did not become true within `deadline`.
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    eventually_some(deadline, what, || condition().then_some(()))
}

/// Asks `look` until it finds something.
///
/// # Errors
/// `what` was not found within `deadline`.
pub fn eventually_some<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("not within {deadline:?}: {what}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets a fault last: nothing is waited for.
pub fn for_a_while(lasting: Duration) {
    std::thread::sleep(lasting);
}
