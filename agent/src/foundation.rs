//! What every other module stands on, without a word of any domain: error texts, identifiers, secrets, tasks,
//! start and stop, the reconcile loop, logging and the metrics registry.
//!
//! Nothing here may import anything else of this crate.

pub mod error;
pub mod id;
pub mod lifecycle;
pub mod metrics;
#[cfg(test)]
pub mod mutate;
pub mod reconcile;
pub mod rfc3339;
pub mod secret;
pub mod task;
pub mod telemetry;
