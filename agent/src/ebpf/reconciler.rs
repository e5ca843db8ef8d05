//! The pass: read the newest model and link, observe maps and hooks, plan, apply, publish.
//!
//! What the maps hold is remembered between passes, because nobody else writes them; it is read again at start, after
//! a failure and on the slow resync. What runs on the hooks is looked at in every pass.

use std::sync::Arc;

use tokio::sync::watch;

use super::Settings;
use super::config::AttachChoice;
use super::figures::Snapshot;
use super::plan::{self, Step};
use super::platform::{Hooks, MapContents, Platform, PlatformError, Slot};
use super::spec::{self, Desired, Sizes};
use super::status::{Hook, Status};
use crate::foundation::error::chain;
use crate::foundation::reconcile::{self, Cause, Pass};
use crate::model::{Link, Model};

/// Keeps the accounting as the model says.
pub(super) struct Reconciler<P> {
    /// `None` only while a pass has it on a blocking thread.
    worker: Option<Worker<P>>,
    model: watch::Receiver<Arc<Model>>,
    link: watch::Receiver<Option<Link>>,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    /// The errors that were logged last: each is logged when it comes, not in every pass.
    logged: Vec<String>,
}

struct Worker<P> {
    platform: P,
    settings: Settings,
    maps: Option<MapContents>,
}

/// What one pass of the worker found.
struct Outcome {
    status: Status,
    snapshot: Option<Snapshot>,
    failed: bool,
}

impl<P: Platform> Reconciler<P> {
    pub(super) fn new(
        platform: P,
        settings: Settings,
        model: watch::Receiver<Arc<Model>>,
        link: watch::Receiver<Option<Link>>,
        snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    ) -> Self {
        let worker = Some(Worker { platform, settings, maps: None });
        Self { worker, model, link, snapshot, logged: Vec::new() }
    }

    fn log(&mut self, errors: &[String]) {
        for error in errors {
            if !self.logged.contains(error) {
                tracing::warn!(error, "traffic is not, or not fully, counted per peer");
            }
        }
        self.logged = errors.to_vec();
    }
}

impl<P: Platform> reconcile::Reconciler for Reconciler<P> {
    type Status = Status;
    const NAME: &'static str = "ebpf";

    async fn pass(&mut self, cause: Cause) -> Pass<Status> {
        let model = Arc::clone(&self.model.borrow_and_update());
        let link = self.link.borrow_and_update().clone();
        let mut worker = self.worker.take().expect("a pass puts the worker back before it ends");
        let done = tokio::task::spawn_blocking(move || {
            let outcome = worker.pass(cause, &model, link.as_ref());
            (worker, outcome)
        });
        let (worker, outcome) = match done.await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        self.worker = Some(worker);
        self.log(&outcome.status.errors);
        if let Some(snapshot) = outcome.snapshot {
            self.snapshot.send_replace(Some(Arc::new(snapshot)));
        }
        Pass { status: outcome.status, failed: outcome.failed }
    }
}

/// The configured hook is not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "accounting.attach = \"tcx\", but this kernel has no tcx (Linux 6.6 has); set it to \"auto\" and clsact is used instead"
)]
struct NoTcx;

impl<P: Platform> Worker<P> {
    fn pass(&mut self, cause: Cause, model: &Model, link: Option<&Link>) -> Outcome {
        let Some(link) = link else {
            // Nothing to count on yet; what was counted before can be read already.
            let snapshot = self.look(cause).ok().flatten().and_then(|maps| self.snapshot(model, &maps));
            return Outcome { status: Status::default(), snapshot, failed: false };
        };
        match self.reconcile(cause, model, link) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.maps = None;
                let status = Status { errors: vec![chain(&error)], ..Status::default() };
                Outcome { status, snapshot: None, failed: true }
            }
        }
    }

    /// What the maps hold: as remembered when only the model or the link changed, else read.
    fn look(&mut self, cause: Cause) -> Result<Option<MapContents>, PlatformError> {
        if cause == Cause::Change
            && let Some(maps) = self.maps.take()
        {
            return Ok(Some(maps));
        }
        self.platform.observe_maps()
    }

    fn reconcile(&mut self, cause: Cause, model: &Model, link: &Link) -> Result<Outcome, PlatformError> {
        let hooks = self.platform.observe_hooks(link)?;
        let wanted = self.wanted_hook(&hooks);
        let hook_steps = wanted.as_ref().map_or_else(|_no_tcx| Vec::new(), |(hook, _)| plan::hooks(*hook, &hooks));
        // A program is about to be bound to what is pinned now, which need not be what is remembered.
        let cause = if hook_steps.is_empty() { cause } else { Cause::Start };
        let mut maps = match self.look(cause)? {
            Some(maps) => maps,
            None => self.create_maps(link)?,
        };
        let (wanted, fallback_reason) = match wanted {
            Ok(wanted) => wanted,
            Err(error) => {
                let status = Status { errors: vec![error.to_string()], ..Status::default() };
                return Ok(Outcome { status, snapshot: self.snapshot(model, &maps), failed: true });
            }
        };
        let desired = spec::desired(model, &maps.indexes, maps.sizes);
        let mut steps = plan::maps(&desired, &maps);
        steps.extend(hook_steps);
        for step in &steps {
            self.platform.apply(step, link)?;
            maps.after(step);
        }
        log_steps(&steps, link, wanted);
        let status = Status {
            hook: Some(wanted),
            fallback_reason,
            peers: desired.indexes.len(),
            prefixes: desired.addresses.len() + desired.prefixes.len(),
            errors: Vec::new(),
        };
        let snapshot = self.snapshot(model, &maps);
        self.maps = Some(maps);
        Ok(Outcome { status: self.complain(status, &desired, &hooks, link), snapshot, failed: false })
    }

    fn create_maps(&mut self, link: &Link) -> Result<MapContents, PlatformError> {
        let step = Step::CreateMaps(Sizes::for_peers(self.settings.config.max_peers));
        self.platform.apply(&step, link)?;
        // Some may have been there before a crash: what they hold is read, not assumed.
        match self.platform.observe_maps()? {
            Some(maps) => Ok(maps),
            None => Ok(MapContents::empty(Sizes::for_peers(self.settings.config.max_peers))),
        }
    }

    /// The hook to use, and why it is not the best there is.
    fn wanted_hook(&self, hooks: &Hooks) -> Result<(Hook, Option<String>), NoTcx> {
        match (self.settings.config.attach, hooks.tcx_supported) {
            (AttachChoice::Tcx | AttachChoice::Auto, true) => Ok((Hook::Tcx, None)),
            (AttachChoice::Tcx, false) => Err(NoTcx),
            (AttachChoice::Auto, false) => {
                Ok((Hook::Clsact, Some("this kernel has no tcx (Linux 6.6 has)".to_owned())))
            }
            (AttachChoice::Clsact, _) => Ok((Hook::Clsact, Some("accounting.attach = \"clsact\"".to_owned()))),
        }
    }

    /// Adds what the operator should know although the pass went well.
    fn complain(&self, mut status: Status, desired: &Desired, hooks: &Hooks, link: &Link) -> Status {
        status.errors.extend(desired.refused.iter().map(ToString::to_string));
        let sides = [(&hooks.ingress, "ingress"), (&hooks.egress, "egress")];
        let mut effective = true;
        for (slots, side) in sides {
            if status.hook == Some(Hook::Clsact) && slots.clsact == Slot::Foreign {
                status.errors.push(format!(
                    "a foreign filter with priority 50 and handle 1 stands on {} {side}; remove it (`tc filter del dev {} {side} pref 50`) and the accounting takes its place",
                    link.name, link.name
                ));
                effective = false;
            }
            if status.hook == Some(Hook::Tcx) && slots.behind {
                status.errors.push(format!(
                    "another tcx program runs before the accounting on {} {side}; packets it consumes are not counted, attach it after ours",
                    link.name
                ));
            }
        }
        status.hook = status.hook.filter(|_hook| effective);
        status
    }

    fn snapshot(&self, model: &Model, maps: &MapContents) -> Option<Snapshot> {
        Some(Snapshot::new(self.platform.counters()?, model, &maps.indexes))
    }
}

fn log_steps(steps: &[Step], link: &Link, hook: Hook) {
    if steps.is_empty() {
        return;
    }
    tracing::debug!(steps = steps.len(), "accounting changed");
    let attached = steps.iter().any(|step| match step {
        Step::Attach { .. } | Step::Replace { .. } => true,
        Step::CreateMaps(_)
        | Step::AssignIndex { .. }
        | Step::SetAddress { .. }
        | Step::SetPrefix { .. }
        | Step::RemoveAddress(_)
        | Step::RemovePrefix(_)
        | Step::Detach { .. }
        | Step::RemoveLayout(_) => false,
    });
    if attached {
        tracing::info!(link = %link.name, %hook, "accounting attached");
    }
}
