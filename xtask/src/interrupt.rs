//! Ctrl-C as a value, so that guards on the stack run before the program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

/// Hears SIGINT, SIGTERM and SIGHUP from the moment it is made.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals from their default action. By handlers and not by blocking them: a child inherits a blocked
    /// signal and could not be stopped, while a handler ends with `exec`.
    pub(crate) fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let handle = |kind| signal(kind).context("failed to handle a signal");
        let mut interrupt = handle(SignalKind::interrupt())?;
        let mut terminate = handle(SignalKind::terminate())?;
        let mut hangup = handle(SignalKind::hangup())?;
        drop(inside);
        let heard = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&heard);
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    flag.store(true, Ordering::Relaxed);
                }
            });
        });
        Ok(Self(heard))
    }

    pub(crate) fn heard(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the work between two steps.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(!self.heard(), "interrupted");
        Ok(())
    }
}
