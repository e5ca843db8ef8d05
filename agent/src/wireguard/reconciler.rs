//! The pass: find or make our link, look at the device, plan, apply, publish.
//!
//! In: [`Settings`] and [`Model`] as `watch`. Out: [`Status`], and the [`Link`] once the device behind it holds its
//! key and peers. Invariants: a link that is not ours is never touched; nothing is written when nothing differs; a
//! link is made, but neither re-made nor set down, to apply a change; a changed peer costs the same among ten and ten
//! thousand, so what is done for each change walks over the changed peers only.
//!
//! No event tells that another tool configured the device. The embedded one counts; the kernel's is read as often as its
//! size allows, every second with some hundred peers.

mod ownership;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::device::{DeviceState, Step};
use super::metrics::Counters;
use super::nudge::{self, Nudges};
use super::plan::{plan, plan_peers};
use super::platform::{Platform, PlatformError};
use super::resolver::{HostPort, Resolver};
use super::settings::Settings;
use super::spec::{DeviceSpec, Endpoints, HANDSHAKE_OVERDUE};
use super::status::Status;
use crate::foundation::error;
use crate::foundation::lifecycle::Blocker;
use crate::foundation::reconcile::{Cause, Pass, Reconciler, Trigger};
use crate::model::key::PublicKey;
use crate::model::peer::{Endpoint, Peer};
use crate::model::{Link, Model, PeerChange};
pub(super) use ownership::{LinkError, Ownership};

/// The least time between two looks at a device: what another tool takes away comes back within a second.
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(900);
/// The share of time that looking may take: one part in this many.
const LOOKING_SHARE: u32 = 2000;

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
    /// The peers that are reached by name.
    named: BTreeMap<PublicKey, HostPort>,
    /// What was published last, for the passes that find nothing to do without looking.
    status: Arc<Status>,
    /// Peers that a first message is sent to.
    nudges: Nudges,
    /// When the device was last read, and how long that took.
    looked: Option<(Instant, Duration)>,
    /// For the log.
    pass_started: Instant,
}

/// What the device holds, as far as we know: as it was read, with what we wrote since.
struct View {
    link: Link,
    device: DeviceState,
    settings: Arc<Settings>,
    model: Arc<Model>,
    /// How often the device had been configured when it held this, where it counts.
    times_configured: Option<u64>,
    /// Which answers of the resolver it was planned with.
    answers: u64,
}

/// Which peers may differ from what is wanted.
enum Scope {
    All,
    Changed(Vec<PeerChange>),
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
            named: BTreeMap::new(),
            status: Arc::default(),
            nudges: Nudges::default(),
            looked: None,
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
        let (view, scope) = match self.view(link, settings, model).await {
            Ok(found) => found,
            Err(failure) => {
                status.errors.push(error::chain(&failure));
                return;
            }
        };
        self.bring_to_spec(view, &scope, status).await;
    }

    /// What the device holds, and which peers may differ. It is read, unless all that happened is that the wanted state
    /// changed: then what we know is good enough. A change by somebody else is seen by the next pass that reads.
    async fn view(
        &mut self,
        link: Link,
        settings: &Arc<Settings>,
        model: &Arc<Model>,
    ) -> Result<(View, Scope), PlatformError> {
        let answers = self.resolver.answers();
        let (settings, model) = (Arc::clone(settings), Arc::clone(model));
        if let Some(known) = self.view.take()
            && known.link == link
            && !(Arc::ptr_eq(&known.settings, &settings) && Arc::ptr_eq(&known.model, &model))
        {
            // An answer of the resolver may concern any peer.
            let scope =
                if known.answers == answers { Scope::Changed(changes(&model, &known.model)) } else { Scope::All };
            return Ok((View { settings, model, answers, ..known }, scope));
        }
        let times_configured = self.platform.times_configured(&link);
        let started = Instant::now();
        let device = self.platform.observe(&link).await?;
        self.looked = Some((Instant::now(), started.elapsed()));
        Ok((View { link, device, settings, model, times_configured, answers }, Scope::All))
    }

    async fn bring_to_spec(&mut self, mut view: View, scope: &Scope, status: &mut Status) {
        self.follow_names(&view, scope);
        let resolved = match scope {
            Scope::All => self.resolver.resolved(self.named.values()),
            Scope::Changed(changes) => {
                self.resolver.resolved(changes.iter().filter_map(|change| self.named.get(&change.key)))
            }
        };
        let endpoints = Endpoints { applied: &self.applied, resolved: &resolved, now: self.platform.now() };
        let spec = DeviceSpec::new(&view.settings, &view.model);
        let steps = match scope {
            Scope::All => plan(&spec, &view.device, &endpoints).steps,
            Scope::Changed(changes) => {
                plan_peers(&spec, &view.device, &endpoints, changes.iter().map(|change| &change.key)).steps
            }
        };
        let steps: Vec<Arc<Step>> = steps.into_iter().map(Arc::new).collect();
        let known = self.apply(&steps, &mut view, status).await;
        status.listen_port = Some(view.device.listen_port).filter(|port| *port != 0);
        status.peers = view.device.peers().len();
        if known {
            self.remember_endpoints(&view.model, scope, &resolved);
            self.publish_link(Some(view.link.clone()));
            if let Scope::Changed(_) = scope {
                let own = view.model.node.public_key;
                self.nudges.add(&own, &steps, view.model.peers().len(), Instant::now());
            }
            self.view = Some(view);
            self.nudge().await;
        }
    }

    /// Does the steps in order; returns whether all were done.
    async fn apply(&self, steps: &[Arc<Step>], view: &mut View, status: &mut Status) -> bool {
        let (mut all, mut changed_peers, mut written) = (true, 0, Duration::ZERO);
        for step in steps {
            match self.write(step, view, &mut written).await {
                Ok(()) => {
                    changed_peers += log_step(&view.link, step);
                    view.times_configured = view.times_configured.map(|times| times + 1);
                    status.applied_steps += 1;
                }
                Err(failure) => {
                    status.errors.push(error::chain(&failure));
                    all = false;
                    // A port that is taken keeps no peer from being served on the old one.
                    if !matches!(**step, Step::ListenPort(_)) {
                        break;
                    }
                }
            }
        }
        if changed_peers > 0 {
            let (write_us, pass_us) = (micros(written), micros(self.pass_started.elapsed()));
            tracing::info!(link = %view.link.name, changes = changed_peers, write_us, pass_us, "peers changed");
        }
        all
    }

    /// Writes a step to the device and to what we know of it. Thousands of peers are noted while they are written: if that
    /// fails, what we know is thrown away.
    async fn write(&self, step: &Arc<Step>, view: &mut View, written: &mut Duration) -> Result<(), PlatformError> {
        let View { link, device, .. } = view;
        let writing = async {
            let started = Instant::now();
            let result = self.platform.apply(link, step).await;
            (result, started.elapsed())
        };
        let notes_meanwhile = matches!(**step, Step::Peers(_));
        let noting = async {
            if notes_meanwhile {
                device.apply(step);
            }
        };
        let ((result, took), ()) = tokio::join!(biased; writing, noting);
        *written += took;
        if result.is_ok() && !notes_meanwhile {
            device.apply(step);
        }
        result
    }

    /// Sends the first messages that are due. One that cannot be sent is a handshake later, no fault.
    async fn nudge(&mut self) {
        let due = self.nudges.take(Instant::now());
        let Some(mut view) = self.view.take_if(|_| !due.is_empty()) else { return };
        let model = Arc::clone(&view.model);
        let peers: Vec<&Peer> = due.iter().filter_map(|key| model.peer(key)).collect();
        let step = Arc::new(nudge::step(&peers));
        let mut written = Duration::ZERO;
        match self.write(&step, &mut view, &mut written).await {
            Ok(()) => {
                tracing::debug!(link = %view.link.name, peers = peers.len(), "first messages sent");
                self.counters.nudged(peers.len());
                view.times_configured = view.times_configured.map(|times| times + 1);
                self.view = Some(view);
            }
            // What the device holds is not known any more: the next pass reads it.
            Err(failure) => tracing::debug!(link = %view.link.name, %failure, "first messages were not sent"),
        }
    }

    /// Whether all there is to do now is to send first messages.
    fn only_nudges(&self) -> bool {
        let is_due = self.nudges.next().is_some_and(|due| due <= Instant::now());
        let recently = self.looked.is_some_and(|(looked, _)| looked.elapsed() < Self::RESYNC);
        is_due && recently && self.view.is_some()
    }

    /// Keeps the names of the model resolved, and looks again at those whose peers do not answer.
    fn follow_names(&mut self, view: &View, scope: &Scope) {
        let changed = match scope {
            Scope::All => {
                self.named = view.model.peers().filter_map(named).collect();
                true
            }
            Scope::Changed(changes) => {
                let mut changed = false;
                for change in changes {
                    let before = self.named.remove(&change.key);
                    let after = change.after.as_deref().and_then(named).map(|(_, name)| name);
                    changed |= before != after;
                    self.named.extend(after.map(|name| (change.key, name)));
                }
                changed
            }
        };
        if changed {
            self.resolver.keep(self.named.values());
        }
        // What was not read just now says nothing about handshakes.
        if let Scope::All = scope {
            self.look_again_at_silent(view);
        }
    }

    fn look_again_at_silent(&self, view: &View) {
        let now = self.platform.now();
        let endpoints = Endpoints { applied: &self.applied, resolved: &BTreeMap::new(), now };
        for (key, name) in &self.named {
            let state = view.device.peers().get(key);
            if state.is_some_and(|state| !endpoints.handshake_within(state, HANDSHAKE_OVERDUE)) {
                self.resolver.look_again(name);
            }
        }
    }

    fn remember_endpoints(&mut self, model: &Model, scope: &Scope, resolved: &super::spec::Resolved) {
        match scope {
            Scope::All => {
                if self.applied.len() > model.peers().len() {
                    self.applied.retain(|key, _| model.peer(key).is_some());
                }
                for peer in model.peers() {
                    self.remember_endpoint(&peer.public_key, Some(peer), resolved);
                }
            }
            Scope::Changed(changes) => {
                for PeerChange { key, after, .. } in changes {
                    self.remember_endpoint(key, after.as_deref(), resolved);
                }
            }
        }
    }

    fn remember_endpoint(&mut self, key: &PublicKey, peer: Option<&Peer>, resolved: &super::spec::Resolved) {
        match peer.and_then(|peer| peer.endpoint.as_ref()) {
            None => {
                self.applied.remove(key);
            }
            Some(Endpoint::Name { host, port }) if !resolved.contains_key(&(host.clone(), *port)) => {}
            Some(endpoint) if self.applied.get(key) == Some(endpoint) => {}
            Some(endpoint) => {
                self.applied.insert(*key, endpoint.clone());
            }
        }
    }

    /// Whether a device that counts has been left alone since it was as wanted; a full look is due now and then anyway.
    fn is_left_alone(&self) -> bool {
        let recently = self.looked.is_some_and(|(looked, _)| looked.elapsed() < Self::RESYNC);
        let Some(view) = self.view.as_ref().filter(|_| recently) else { return false };
        let times_configured = self.platform.times_configured(&view.link);
        times_configured.is_some() && times_configured == view.times_configured
    }

    fn publish_link(&self, link: Option<Link>) {
        self.link.send_if_modified(|current| {
            let changed = *current != link;
            *current = link;
            changed
        });
    }

    fn unresolved(&self, model: &Model) -> Vec<String> {
        let errors: BTreeMap<HostPort, String> = self.resolver.errors().collect();
        if errors.is_empty() {
            return Vec::new();
        }
        let failing = self.named.iter().filter_map(|(key, name)| {
            let (reason, peer, (host, port)) = (errors.get(name)?, &model.peer(key)?.name, name);
            Some(format!("peer {peer}: failed to resolve endpoint {host}:{port}: {reason}; it is tried again"))
        });
        failing.collect()
    }
}

impl<P: Platform> Reconciler for Wireguard<P> {
    type Status = Arc<Status>;
    const NAME: &'static str = "wireguard";

    /// The kernel's device is dumped whole: the more peers, the more seldom. The embedded one costs nothing to ask.
    fn resync(&self) -> Duration {
        let took = self.looked.map_or(Duration::ZERO, |(_, took)| took);
        let counts = self.view.as_ref().is_some_and(|view| view.times_configured.is_some());
        let longest = if counts { LOOK_AGAIN_FIRST } else { Self::RESYNC };
        let look = (took * LOOKING_SHARE).clamp(LOOK_AGAIN_FIRST, longest);
        self.nudges.next().map_or(look, |due| look.min(due.saturating_duration_since(Instant::now())))
    }

    async fn pass(&mut self, cause: Cause) -> Pass<Arc<Status>> {
        self.pass_started = Instant::now();
        if cause == Cause::Resync && self.only_nudges() {
            self.nudge().await;
            return Pass { status: Arc::clone(&self.status), failed: false };
        }
        if cause == Cause::Resync && self.is_left_alone() {
            return Pass { status: Arc::clone(&self.status), failed: false };
        }
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
        self.status = Arc::new(status);
        Pass { status: Arc::clone(&self.status), failed }
    }
}

/// The peers that the device is to hold otherwise: those that changed, and those whose packets go another way.
fn changes(model: &Model, older: &Model) -> Vec<PeerChange> {
    let mut changes = model.changes_since(older);
    let mut rerouted = model.rerouted_since(older);
    if !rerouted.is_empty() {
        for change in &changes {
            rerouted.remove(&change.key);
        }
        let shared = |model: &Model, key| model.peer(key).cloned().map(Arc::new);
        changes.extend(rerouted.iter().map(|key| PeerChange {
            key: *key,
            before: shared(older, key),
            after: shared(model, key),
        }));
    }
    changes
}

fn named(peer: &Peer) -> Option<(PublicKey, HostPort)> {
    match peer.endpoint.as_ref()? {
        Endpoint::Address(_) => None,
        Endpoint::Name { host, port } => Some((peer.public_key, (host.clone(), *port))),
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
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
