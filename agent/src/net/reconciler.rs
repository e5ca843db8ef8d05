//! The pass that keeps the link as wanted.
//!
//! In: settings, model, link. Out: the status. The ways to the peers are looked up again when something around has
//! changed, at the slow check and after a failure; between these they are remembered, so that one changed peer does
//! not cost a look-up for each other peer.

use std::sync::Arc;

use super::Inputs;
use super::config::Settings;
use super::interest::Interest;
use super::metrics::NetMetrics;
use super::plan::{self, Observed, Owner, Plan};
use super::platform::{ObserveError, Platform, Ways};
use super::spec::{self, Wanted};
use super::status::Status;
use crate::foundation::error::chain;
use crate::foundation::metrics::Metrics;
use crate::foundation::reconcile::{Cause, Pass, Reconciler};
use crate::model::{Link, Model};

/// Keeps one link as wanted.
#[derive(Debug)]
pub struct NetReconciler<P> {
    platform: P,
    inputs: Inputs,
    interest: Interest,
    metrics: NetMetrics,
    /// The newest wanted state with what it was made from.
    derived: Option<(Arc<Settings>, Arc<Model>, Arc<Wanted>)>,
}

impl<P: Platform> NetReconciler<P> {
    pub(super) fn new(platform: P, inputs: Inputs, interest: Interest, metrics: &Metrics) -> Self {
        Self { platform, inputs, interest, metrics: NetMetrics::register(metrics), derived: None }
    }

    fn wanted(&mut self) -> Arc<Wanted> {
        let settings = self.inputs.settings.borrow_and_update().clone();
        let model = self.inputs.model.borrow_and_update().clone();
        if let Some((from_settings, from_model, wanted)) = &self.derived
            && Arc::ptr_eq(from_settings, &settings)
            && Arc::ptr_eq(from_model, &model)
        {
            return Arc::clone(wanted);
        }
        let wanted = Arc::new(spec::wanted(&settings, &model));
        self.derived = Some((settings, model, Arc::clone(&wanted)));
        wanted
    }

    async fn reconcile(&mut self, link: &Link, cause: Cause) -> Result<(Status, bool), ObserveError> {
        let wanted = self.wanted();
        self.interest.set_wanted(link, &wanted);
        let changed = self.interest.take_surroundings_changed();
        let ways = if changed || cause != Cause::Change { Ways::LookUpAgain } else { Ways::Keep };
        let Some(observed) = self.platform.observe(link, &wanted, ways).await? else {
            return Ok((Status { errors: vec![gone(link)], ..Status::default() }, false));
        };
        self.interest.set_observed(&observed);
        let plan = plan::plan(&wanted, &observed);
        let mut errors: Vec<String> = plan.refusals.iter().map(ToString::to_string).collect();
        let failures = self.apply(link, &plan).await;
        let failed = !failures.is_empty();
        errors.extend(failures);
        let now = if plan.steps.is_empty() {
            observed
        } else {
            self.platform.observe(link, &wanted, Ways::Keep).await?.unwrap_or_default()
        };
        let notices = plan::notices(&wanted, &now);
        Ok((status(&wanted, &now, plan.steps.len(), errors, notices), failed))
    }

    /// Applies every step, whatever the one before gave, and returns what failed.
    async fn apply(&mut self, link: &Link, plan: &Plan) -> Vec<String> {
        let mut failures = Vec::new();
        for step in &plan.steps {
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
