//! Log records of the BPF programs, handed to the agent's log as they come.
//!
//! The ring buffer is pinned, so that programs which outlived an agent speak to the next one too.

use super::loader::{self, LoadError};
use super::pins::Pins;
use crate::foundation::error::chain;
use crate::foundation::task::{self, Task};
use crate::sys::bpf::watch_readable;

/// Follows the records for as long as the task is kept. Counting does not need them: a failure is logged only.
pub(super) fn follow(pins: &Pins) -> Option<Task> {
    match start(pins) {
        Ok(task) => Some(task),
        Err(error) => {
            tracing::warn!(error = chain(&error), "log records of the BPF programs are not read");
            None
        }
    }
}

fn start(pins: &Pins) -> Result<Task, LoadError> {
    let (readiness, mut flush) = loader::open_logs(pins)?;
    let readiness = watch_readable(readiness).map_err(LoadError::LogReadiness)?;
    Ok(task::spawn("ebpf-logs", async move {
        // The wait can only fail when the runtime ends.
        while let Ok(mut ready) = readiness.readable().await {
            ready.clear_ready();
            flush();
        }
    }))
}
