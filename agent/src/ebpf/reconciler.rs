//! The pass: read the newest model and link, observe maps and hooks, plan, apply, publish.
//!
//! What the maps hold is remembered between passes, because nobody else writes them; it is read again at start, after
//! a failure and on the slow resync. What runs on the hooks is looked at in every pass. While it is remembered, a change
//! of the model is planned for the peers that changed: it costs the same among ten and ten thousand.

use std::sync::Arc;

use tokio::sync::watch;

use super::Settings;
use super::config::AttachChoice;
use super::figures::Snapshot;
use super::plan::{self, Step};
use super::platform::{Hooks, MapContents, Platform, PlatformError, Slot};
use super::spec::{self, Refusal, Sizes};
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
    maps: Option<Remembered>,
}

/// What the maps hold, and the model that wanted all of it.
struct Remembered {
    maps: MapContents,
    model: Arc<Model>,
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
    fn pass(&mut self, cause: Cause, model: &Arc<Model>, link: Option<&Link>) -> Outcome {
        let Some(link) = link else {
            // Nothing to count on yet; what was counted before can be read already.
            self.maps = None;
            let maps = self.platform.observe_maps().ok().flatten();
            let snapshot = maps.and_then(|maps| self.snapshot(model, &maps));
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

    fn reconcile(&mut self, cause: Cause, model: &Arc<Model>, link: &Link) -> Result<Outcome, PlatformError> {
        let hooks = self.platform.observe_hooks(link)?;
        let (wanted, fallback_reason) = match self.wanted_hook(&hooks) {
            Ok(wanted) => wanted,
            Err(error) => return self.without_hook(model, link, &error),
        };
        let hook_steps = plan::hooks(wanted, &hooks);
        // A program about to be attached is bound to what is pinned now, which need not be what is remembered.
        let remembered = self.maps.take().filter(|_| cause == Cause::Change && hook_steps.is_empty());
        let (mut maps, mut steps, refused) = match remembered.and_then(|remembered| changes(remembered, model)) {
            Some((maps, steps)) => (maps, steps, Vec::new()),
            None => {
                let maps = self.observe_or_create(link)?;
                let desired = spec::desired(model, &maps.indexes, maps.sizes);
                let steps = plan::maps(&desired, &maps);
                (maps, steps, desired.refused)
            }
        };
        steps.extend(hook_steps);
        for step in &steps {
            self.platform.apply(step, link)?;
            maps.after(step);
        }
        log_steps(&steps, link, wanted);
        let status = Status {
            hook: Some(wanted),
            fallback_reason,
            peers: model.peers().len() - refused.iter().map(Refusal::peers).sum::<usize>(),
            prefixes: maps.addresses.len() + maps.prefixes.len(),
            errors: refused.iter().map(ToString::to_string).collect(),
        };
        let snapshot = self.snapshot(model, &maps);
        // With something left out, only a look at everything tells what has room now.
        self.maps = refused.is_empty().then(|| Remembered { maps, model: Arc::clone(model) });
        Ok(Outcome { status: self.complain(status, &hooks, link), snapshot, failed: false })
    }

    fn without_hook(&mut self, model: &Arc<Model>, link: &Link, error: &NoTcx) -> Result<Outcome, PlatformError> {
        let maps = self.observe_or_create(link)?;
        let status = Status { errors: vec![error.to_string()], ..Status::default() };
        Ok(Outcome { status, snapshot: self.snapshot(model, &maps), failed: true })
    }

    fn observe_or_create(&mut self, link: &Link) -> Result<MapContents, PlatformError> {
        match self.platform.observe_maps()? {
            Some(maps) => Ok(maps),
            None => self.create_maps(link),
        }
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
    fn complain(&self, mut status: Status, hooks: &Hooks, link: &Link) -> Status {
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

    fn snapshot(&self, model: &Arc<Model>, maps: &MapContents) -> Option<Snapshot> {
        Some(Snapshot::new(self.platform.counters()?, Arc::clone(model), maps.indexes.clone()))
    }
}

/// The steps from what is remembered to `model`, if they are sure to fit.
fn changes(remembered: Remembered, model: &Model) -> Option<(MapContents, Vec<Step>)> {
    let changes = model.changes_since(&remembered.model);
    let steps = plan::changed_peers(&changes, &remembered.maps)?;
    Some((remembered.maps, steps))
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
