//! Ctrl-C as a value, so that guards on the stack run before the program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

/// Hears SIGINT and SIGTERM from the moment it is made.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals from their default action. Call it before any other thread starts; child processes are not
    /// affected, because the standard library starts them with an empty signal mask.
    pub(crate) fn listen() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGHUP);
        signals.thread_block().context("failed to block the signals")?;
        let heard = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&heard);
        std::thread::spawn(move || {
            while signals.wait().is_ok() {
                flag.store(true, Ordering::Relaxed);
            }
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
