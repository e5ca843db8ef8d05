//! The pass: find or make our link, read the device, plan, apply, publish.
//!
//! In: [`Settings`] and [`Model`] as `watch`. Out: [`Status`], and the [`Link`] once the device behind it holds its
//! key and peers. Invariants: a link that is not ours is never touched; nothing is written when nothing differs; a
//! link is made, but neither re-made nor set down, to apply a change.

mod ownership;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::device::{DeviceState, Step};
use super::metrics::Counters;
use super::plan::plan;
use super::platform::{Platform, PlatformError};
use super::resolver::Resolver;
use super::settings::Settings;
use super::spec::{DeviceSpec, Endpoints, HANDSHAKE_OVERDUE};
use super::status::Status;
use crate::foundation::error;
use crate::foundation::lifecycle::Blocker;
use crate::foundation::reconcile::{Cause, Pass, Reconciler, Trigger};
use crate::model::key::PublicKey;
use crate::model::peer::{Endpoint, Peer};
use crate::model::{Link, Model};
pub(super) use ownership::{LinkError, Ownership};

/// What the reconciler works with.
pub(super) struct Inputs<P> {
    pub(super) platform: Arc<P>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) model: watch::Receiver<Arc<Model>>,
    pub(super) link: watch::Sender<Option<Link>>,
    pub(super) counters: Counters,
    pub(super) trigger: Trigger,
    pub(super) blocker: Blocker,
}

/// Keeps the tunnel device as settings and model want it.
pub(super) struct Wireguard<P> {
    platform: Arc<P>,
    settings: watch::Receiver<Arc<Settings>>,
    model: watch::Receiver<Arc<Model>>,
    link: watch::Sender<Option<Link>>,
    counters: Counters,
    resolver: Resolver<P>,
    ownership: Ownership<P>,
    /// Drops with the first pass that leaves nothing to do.
    blocker: Option<Blocker>,
    /// The errors that stand in the log already.
    told: Vec<String>,
    view: Option<View>,
    /// The configured endpoint that each peer was given; tells a changed configuration from a peer that moved.
    applied: BTreeMap<PublicKey, Endpoint>,
    /// For the log.
    pass_started: Instant,
}

/// What the device holds, as far as we know: as it was read, with what we wrote since.
struct View {
    link: Link,
    device: DeviceState,
    settings: Arc<Settings>,
    model: Arc<Model>,
}

impl<P: Platform> Wireguard<P> {
    pub(super) fn new(inputs: Inputs<P>) -> Self {
        let Inputs { platform, settings, model, link, counters, trigger, blocker } = inputs;
        Self {
            resolver: Resolver::new(Arc::clone(&platform), trigger),
            ownership: Ownership::new(Arc::clone(&platform)),
            platform,
            settings,
            model,
            link,
            counters,
            blocker: Some(blocker),
            told: Vec::new(),
            view: None,
            applied: BTreeMap::new(),
            pass_started: Instant::now(),
        }
    }

    /// Brings the device to where it should be; what went wrong on the way is in `status`.
    async fn converge(&mut self, settings: &Arc<Settings>, model: &Arc<Model>, status: &mut Status) {
        let link = match self.ownership.ensure(settings).await {
            Ok(link) => link,
            Err(failure) => {
                self.view = None;
                self.publish_link(None);
                status.errors.push(error::chain(&failure));
                return;
            }
        };
        status.link = Some(link.clone());
        status.fallback_reason = self.ownership.fallback_reason();
        let device = match self.device(&link, settings, model).await {
            Ok(device) => device,
            Err(failure) => {
                status.errors.push(error::chain(&failure));
                return;
            }
        };
        let view = View { link, device, settings: Arc::clone(settings), model: Arc::clone(model) };
        self.bring_to_spec(view, status).await;
    }

    /// What the device holds. It is read, unless all that happened is that the wanted state changed: then what we
    /// know is good enough, so that a change costs the same among ten and ten thousand peers. A change by somebody
    /// else is seen by the next pass that reads.
    async fn device(
        &mut self,
        link: &Link,
        settings: &Arc<Settings>,
        model: &Arc<Model>,
    ) -> Result<DeviceState, PlatformError> {
        if let Some(view) = self.view.take()
            && view.link == *link
            && !(Arc::ptr_eq(&view.settings, settings) && Arc::ptr_eq(&view.model, model))
        {
            return Ok(view.device);
        }
        self.platform.observe(link).await
    }

    async fn bring_to_spec(&mut self, mut view: View, status: &mut Status) {
        self.follow_names(&view);
        let resolved = self.resolver.resolved();
        let endpoints = Endpoints { applied: &self.applied, resolved: &resolved, now: self.platform.now() };
        let spec = DeviceSpec::new(&view.settings, &view.model);
        let steps = plan(&spec, &view.device, &endpoints).steps;
        let known = self.apply(steps, &mut view, status).await;
        status.listen_port = Some(view.device.listen_port).filter(|port| *port != 0);
        status.peers = view.device.peers().len();
        if known {
            self.remember_endpoints(&view.model, &resolved);
            self.publish_link(Some(view.link.clone()));
            self.view = Some(view);
        }
    }

    /// Does the steps in order; returns whether all were done.
    async fn apply(&self, steps: Vec<Step>, view: &mut View, status: &mut Status) -> bool {
        let (mut all, mut changed_peers) = (true, 0);
        let started = Instant::now();
        for step in steps {
            match self.platform.apply(&view.link, step.clone()).await {
                Ok(()) => {
                    changed_peers += log_step(&view.link, &step);
                    view.device.apply(&step);
                    status.applied_steps += 1;
                }
                Err(failure) => {
                    status.errors.push(error::chain(&failure));
                    all = false;
                    // A port that is taken keeps no peer from being served on the old one.
                    if !matches!(step, Step::ListenPort(_)) {
                        break;
                    }
                }
            }
        }
        if changed_peers > 0 {
            let (write_us, pass_us) = (micros(started), micros(self.pass_started));
            tracing::info!(link = %view.link.name, changes = changed_peers, write_us, pass_us, "peers changed");
        }
        all
    }

    /// Keeps the names of the model resolved, and looks again at those whose peers do not answer.
    fn follow_names(&mut self, view: &View) {
        let named: Vec<(&Peer, (String, u16))> = view.model.peers().filter_map(named).collect();
        self.resolver.keep(named.iter().map(|(_, name)| name.clone()).collect());
        let now = self.platform.now();
        let endpoints = Endpoints { applied: &self.applied, resolved: &BTreeMap::new(), now };
        for (peer, name) in &named {
            let state = view.device.peers().get(&peer.public_key);
            if state.is_some_and(|state| !endpoints.handshake_within(state, HANDSHAKE_OVERDUE)) {
                self.resolver.look_again(name);
            }
        }
    }

    fn remember_endpoints(&mut self, model: &Model, resolved: &super::spec::Resolved) {
        if self.applied.len() > model.peers().len() {
            self.applied.retain(|key, _| model.peer(key).is_some());
        }
        for peer in model.peers() {
            match &peer.endpoint {
                None => {
                    self.applied.remove(&peer.public_key);
                }
                Some(Endpoint::Name { host, port }) if !resolved.contains_key(&(host.clone(), *port)) => {}
                Some(endpoint) if self.applied.get(&peer.public_key) == Some(endpoint) => {}
                Some(endpoint) => {
                    self.applied.insert(peer.public_key, endpoint.clone());
                }
            }
        }
    }

    fn publish_link(&self, link: Option<Link>) {
        self.link.send_if_modified(|current| {
            let changed = *current != link;
            *current = link;
            changed
        });
    }

    fn unresolved(&self, model: &Model) -> Vec<String> {
        let errors = self.resolver.errors();
        if errors.is_empty() {
            return Vec::new();
        }
        let errors: BTreeMap<(String, u16), String> = errors.into_iter().collect();
        let failing = model.peers().filter_map(named).filter_map(|(peer, name)| {
            let reason = errors.get(&name)?;
            let Peer { name: peer, .. } = peer;
            let (host, port) = name;
            Some(format!("peer {peer}: failed to resolve endpoint {host}:{port}: {reason}; it is tried again"))
        });
        failing.collect()
    }
}

impl<P: Platform> Reconciler for Wireguard<P> {
    type Status = Arc<Status>;
    const NAME: &'static str = "wireguard";

    async fn pass(&mut self, _cause: Cause) -> Pass<Arc<Status>> {
        self.pass_started = Instant::now();
        let settings = Arc::clone(&self.settings.borrow_and_update());
        let model = Arc::clone(&self.model.borrow_and_update());
        let mut status = Status::default();
        self.converge(&settings, &model, &mut status).await;
        let failed = !status.errors.is_empty();
        self.counters.pass(status.applied_steps, failed);
        if failed && status.errors != self.told {
            // Said once: the same failure comes back with every retry.
            tracing::warn!(link = %settings.link, errors = ?status.errors, "the tunnel device is not as wanted");
        }
        if !failed {
            self.blocker = None;
        }
        self.told.clone_from(&status.errors);
        status.errors.extend(self.unresolved(&model));
        Pass { status: Arc::new(status), failed }
    }
}

fn named(peer: &Peer) -> Option<(&Peer, (String, u16))> {
    match peer.endpoint.as_ref()? {
        Endpoint::Address(_) => None,
        Endpoint::Name { host, port } => Some((peer, (host.clone(), *port))),
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Logs a change of the device; changes of peers are only counted, they come by the thousand.
fn log_step(link: &Link, step: &Step) -> usize {
    let link = &link.name;
    match step {
        Step::PrivateKey(key) => tracing::info!(%link, public_key = %key.public(), "private key set"),
        Step::Fwmark(mark) => tracing::info!(%link, mark, "mark set"),
        Step::ListenPort(port) => tracing::info!(%link, port, "listen port set"),
        Step::Peers(changes) => return changes.len(),
    }
    0
}

#[cfg(test)]
mod tests;
