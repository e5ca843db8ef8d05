//! The pass that keeps the link as wanted.
//!
//! In: settings, model, link. Out: the status. The ways to the peers are looked up again when something around has
//! changed, at the slow check and after a failure. Where nothing has happened but that some peers changed, and all was
//! as wanted before, only these are looked at: it costs the same among ten peers and ten thousand.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Inputs;
use super::change;
use super::config::Settings;
use super::interest::{Interest, News};
use super::metrics::NetMetrics;
use super::plan::{self, Observed, Owner, Step};
use super::platform::{ObserveError, Platform, Ways};
use super::spec::{self, Wanted};
use super::status::Status;
use crate::foundation::error::chain;
use crate::foundation::metrics::Metrics;
use crate::foundation::reconcile::{Cause, Pass, Reconciler};
use crate::model::{Link, Model, PeerChange};

/// Keeps one link as wanted.
#[derive(Debug)]
pub struct NetReconciler<P> {
    platform: P,
    inputs: Inputs,
    interest: Interest,
    metrics: NetMetrics,
    /// The newest wanted state with what it was made from.
    derived: Option<Derived>,
    /// The link as it is, after a pass that left nothing to do and nothing to tell.
    settled: Option<(Link, Observed)>,
}

#[derive(Debug, Clone)]
struct Derived {
    settings: Arc<Settings>,
    model: Arc<Model>,
    wanted: Arc<Wanted>,
}

/// What was wanted before, where only peers differ, and these.
struct Since {
    older: Arc<Wanted>,
    changes: Vec<PeerChange>,
}

impl Derived {
    fn new(settings: Arc<Settings>, model: Arc<Model>) -> Self {
        let wanted = Arc::new(spec::wanted(&settings, &model));
        Self { settings, model, wanted }
    }
}

impl<P: Platform> NetReconciler<P> {
    pub(super) fn new(platform: P, inputs: Inputs, interest: Interest, metrics: &Metrics) -> Self {
        let metrics = NetMetrics::register(metrics);
        Self { platform, inputs, interest, metrics, derived: None, settled: None }
    }

    /// What is wanted now; with what was wanted before and the peers that lead from there, where these are all that
    /// differs.
    fn derive(&mut self) -> (Derived, Option<Since>) {
        let settings = self.inputs.settings.borrow_and_update().clone();
        let model = self.inputs.model.borrow_and_update().clone();
        let older = self.derived.take();
        let (derived, since) = match older {
            Some(older) if Arc::ptr_eq(&older.settings, &settings) && Arc::ptr_eq(&older.model, &model) => {
                (older, None)
            }
            Some(older) if older.settings == settings && older.model.node == model.node => {
                let changes = model.changes_since(&older.model);
                let wanted = Arc::new(older.wanted.with(&changes));
                (Derived { settings, model, wanted }, Some(Since { older: older.wanted, changes }))
            }
            Some(_) | None => (Derived::new(settings, model), None),
        };
        self.derived = Some(derived.clone());
        (derived, since)
    }

    async fn reconcile(&mut self, link: &Link, cause: Cause) -> Result<(Status, bool), ObserveError> {
        let (Derived { wanted, .. }, since) = self.derive();
        self.interest.set_wanted(link, &wanted);
        let news = self.interest.take_news();
        let settled = self.settled.take().filter(|(settled, _)| settled == link);
        if let (Some((_, observed)), Some(Since { older, changes })) = (settled, since)
            && cause == Cause::Change
            && news == News::default()
            && let Some(status) = self.follow(link, (&older, &wanted), &changes, observed).await?
        {
            return Ok((status, false));
        }
        let ways = if news.around || cause != Cause::Change { Ways::LookUpAgain } else { Ways::Keep };
        self.look_at_all(link, &wanted, ways).await
    }

    /// Does what changed peers need; `None` where that takes a look at everything.
    async fn follow(
        &mut self,
        link: &Link,
        (older, newer): (&Wanted, &Wanted),
        changes: &[PeerChange],
        mut observed: Observed,
    ) -> Result<Option<Status>, ObserveError> {
        let mut ways = BTreeMap::new();
        for address in change::unknown_endpoints(changes, &observed) {
            ways.insert(address, self.platform.way(address).await?);
        }
        let Some(change) = change::changed_peers(changes, (older, newer), &observed, &ways) else { return Ok(None) };
        if !self.apply(link, &change.steps).await.is_empty() {
            return Ok(None);
        }
        let applied_steps = change.steps.len();
        change.apply_to(&mut observed);
        let status = status(newer, &observed, applied_steps, Vec::new(), Vec::new());
        self.settled = Some((link.clone(), observed));
        Ok(Some(status))
    }

    async fn look_at_all(&mut self, link: &Link, wanted: &Wanted, ways: Ways) -> Result<(Status, bool), ObserveError> {
        let Some(observed) = self.platform.observe(link, wanted, ways).await? else {
            return Ok((Status { errors: vec![gone(link)], ..Status::default() }, false));
        };
        self.interest.set_observed(&observed);
        self.interest.set_routes(&observed.routes);
        let plan = plan::plan(wanted, &observed);
        let mut errors: Vec<String> = plan.refusals.iter().map(ToString::to_string).collect();
        let failures = self.apply(link, &plan.steps).await;
        let failed = !failures.is_empty();
        errors.extend(failures);
        let now = if plan.steps.is_empty() {
            observed
        } else {
            self.platform.observe(link, wanted, Ways::Keep).await?.unwrap_or_default()
        };
        let notices = plan::notices(wanted, &now);
        let status = status(wanted, &now, plan.steps.len(), errors, notices);
        self.settled = (status.errors.is_empty() && status.notices.is_empty()).then(|| (link.clone(), now));
        Ok((status, failed))
    }

    /// Applies every step, whatever the one before gave, and returns what failed.
    async fn apply(&mut self, link: &Link, steps: &[Step]) -> Vec<String> {
        let mut failures = Vec::new();
        for step in steps {
            self.interest.expect(step);
            match self.platform.apply(&link.name, link.index, step).await {
                Ok(()) => tracing::info!(link = %link.name, %step, "link changed"),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(link = %link.name, error, "link not changed");
                    failures.push(error);
                }
            }
        }
        failures
    }
}

impl<P: Platform> Reconciler for NetReconciler<P> {
    type Status = Arc<Status>;
    const NAME: &'static str = "net";

    async fn pass(&mut self, cause: Cause) -> Pass<Arc<Status>> {
        let link = self.inputs.link.borrow_and_update().clone();
        let (status, failed) = match link {
            None => {
                self.interest.clear();
                self.settled = None;
                (Status::default(), false)
            }
            Some(link) => match self.reconcile(&link, cause).await {
                Ok(outcome) => outcome,
                Err(error) => (Status { errors: vec![chain(&error)], ..Status::default() }, true),
            },
        };
        self.metrics.record(&status, failed);
        Pass { status: Arc::new(status), failed }
    }
}

fn gone(link: &Link) -> String {
    format!("link {} has been deleted; it is configured again when it is back", link.name)
}

fn status(wanted: &Wanted, now: &Observed, applied_steps: usize, errors: Vec<String>, notices: Vec<String>) -> Status {
    let in_place =
        |(address, owner): &(&ipnet::IpNet, &Owner)| **owner == Owner::Ours || wanted.addresses.contains(*address);
    Status {
        mtu: Some(now.mtu),
        addresses: now.addresses.iter().filter(in_place).count(),
        routes: now.routes.len(),
        applied_steps,
        errors,
        notices,
    }
}
