//! Another process of an instance beside the one that runs: started, shown to serve, put in its place; then the one before is
//! asked to end. If it does not come up, it is taken away and nothing has happened to the one that runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::probing::ask;
use super::{Done, HOOK_LIMIT, Platform, Supervisor, choose_port, clear_away, launch};
use crate::process::definition::KillSignal;
use crate::process::health::Check;
use crate::process::machine::Input;
use crate::process::platform::{Launch, Purpose};
use crate::process::quantity::Ports;
use crate::process::succession::{Succession, Wish, plan};
use crate::process::view::{Exit, HealthStatus, Status, What};

/// How long the next process may take until it listens, where no health check says another time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is asked for its health.
const ASK: Duration = Duration::from_millis(200);

/// The process that is to take the place of the one that runs.
pub(super) struct Standby {
    generation: u64,
    pub(super) port: Option<u16>,
    fingerprint: u64,
    /// It is called off when this is dropped.
    _cancel: oneshot::Sender<()>,
}

/// What shows that a process serves.
struct Proof {
    must_listen: Vec<u16>,
    check: Option<(Check, Option<u16>)>,
    /// Where nothing else does: it lived this long.
    min_uptime: Duration,
}

impl<P: Platform> Supervisor<P> {
    /// Begins to replace an instance that serves; returns whether it does.
    pub(super) fn replace(&mut self, id: u32) -> bool {
        let used: BTreeSet<u16> = self.instances.values().flat_map(|instance| instance.ports()).collect();
        let Some(instance) = self.instances.get(&id).filter(|instance| instance.standby.is_none()) else {
            return false;
        };
        let Some(process) = self.processes.get(&instance.process) else { return false };
        if instance.machine.status() != Status::Online || instance.child.is_none() {
            return false;
        }
        let definition = &process.spec.definition;
        let keeps = match definition.port {
            Some(Ports::Free { .. }) | None => None,
            Some(ports) => ports.of_instance(instance.index).next().filter(|port| instance.port == Some(*port)),
        };
        let next = match keeps {
            Some(port) => Ok(Some(port)),
            None => choose_port(&*self.platform, definition, instance.index, &used),
        };
        let (generation, port, place) = (instance.generation, instance.port, instance.place());
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            let next = match next {
                Ok(next) => next,
                Err(error) => {
                    return Done::Looked(id, generation, None, Succession::After { why: error.why });
                }
            };
            let is_free = next.is_none_or(|port| platform.is_port_free(port));
            let wish = Wish { port, next, is_free, ephemeral: platform.ephemeral_ports() };
            let listeners = platform.listeners(place).await;
            Done::Looked(id, generation, next, plan(&wish, listeners.as_deref()))
        }));
        true
    }

    /// Starts the next process, unless the one that runs has to end first.
    pub(super) fn on_looked(
        &mut self,
        id: u32,
        generation: u64,
        port: Option<u16>,
        succession: Succession,
        now: Instant,
    ) {
        if !self.is_looked_at(id) {
            return;
        }
        let is_as_it_was = self.is_current(id, generation)
            && self.instances.get(&id).is_some_and(|instance| instance.machine.status() == Status::Online);
        match succession {
            Succession::Beside { must_listen } if is_as_it_was => self.stand_by(id, port, must_listen),
            Succession::Beside { .. } => self.stop_then_start(id, None, now),
            Succession::After { why } => self.stop_then_start(id, Some(why), now),
        }
    }

    fn stand_by(&mut self, id: u32, port: Option<u16>, must_listen: Vec<u16>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(process) = self.processes.get(&instance.process) else { return };
        instance.newest += 1;
        instance.beside += 1;
        let generation = instance.newest;
        self.rollouts.stands_by(id, generation);
        let mut launch = launch(instance, Arc::clone(&process.spec.definition));
        launch.place.generation = generation;
        launch.record.port = port;
        launch.record.fingerprint = process.fingerprint;
        launch.record.standby = true;
        let proof = Proof {
            must_listen,
            check: process.spec.check.clone().map(|check| (check, port)),
            min_uptime: launch.definition.min_uptime.0,
        };
        let (cancel, mut cancelled) = oneshot::channel();
        instance.standby = Some(Standby { generation, port, fingerprint: process.fingerprint, _cancel: cancel });
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            let started = start(&*platform, &launch).await;
            let result = match started {
                Err(why) => Err(why),
                Ok(child) => tokio::select! {
                    _dropped = &mut cancelled => Err("it was called off".to_owned()),
                    shown = show(&*platform, &launch, child.clone(), &proof) => shown.map(|()| child),
                },
            };
            if result.is_err() {
                platform.sweep(launch.place).await;
            }
            Done::StoodBy(id, generation, result)
        }));
    }

    /// The next process serves, or not.
    pub(super) fn on_stood_by(&mut self, id: u32, generation: u64, result: Result<P::Child, String>, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let standby = instance.standby.take_if(|standby| standby.generation == generation);
        match (result, standby) {
            (Ok(child), Some(standby)) => self.put_in_place(id, &standby, child, now),
            (Ok(child), None) => {
                let mut launch = self.launch_of(id);
                if let Some(launch) = &mut launch {
                    launch.place.generation = generation;
                }
                self.drain(id, generation, launch, child);
            }
            (Err(why), standby) => {
                instance.beside -= 1;
                if standby.is_some() {
                    let why = format!("{why}; the process before it goes on");
                    self.fail_rollout_of(id, &why);
                }
                self.settle_beside(id, generation, now);
            }
        }
    }

    fn put_in_place(&mut self, id: u32, standby: &Standby, child: P::Child, now: Instant) {
        let before = self.launch_of(id);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let old = instance.child.take();
        instance.generation = standby.generation;
        instance.port = standby.port;
        instance.fingerprint = standby.fingerprint;
        let place = instance.place();
        let record = instance.record();
        self.platform.promote(&child, &place, &record);
        self.metrics.started.inc();
        self.run_child(id, child, SystemTime::now(), true, now);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.sampled = None;
        if let Some(monitor) = &mut instance.monitor {
            monitor.view.status = HealthStatus::Healthy;
            instance.health = monitor.view.clone();
        }
        self.announce(id, What::Started);
        match old {
            Some(old) => self.drain(id, standby.generation, before, old),
            None => self.fewer_beside(id),
        }
        self.feed(id, Input::Replaced, now);
    }

    fn launch_of(&self, id: u32) -> Option<Launch> {
        let instance = self.instances.get(&id)?;
        let process = self.processes.get(&instance.process)?;
        Some(launch(instance, Arc::clone(&process.spec.definition)))
    }

    /// Asks a process to end that is none of its instance any more, and clears away what is left of it; `generation` is of the one
    /// that stood by.
    fn drain(&mut self, id: u32, generation: u64, launch: Option<Launch>, child: P::Child) {
        let Some(launch) = launch else { return };
        let (signal, limit) = (launch.definition.kill_signal, launch.definition.kill_timeout.0);
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            end(&*platform, launch, child, signal, limit).await;
            Done::Drained(id, generation)
        }));
    }

    /// The process before is gone.
    pub(super) fn on_drained(&mut self, id: u32, generation: u64, now: Instant) {
        self.fewer_beside(id);
        self.settle_beside(id, generation, now);
    }

    fn fewer_beside(&mut self, id: u32) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.beside = instance.beside.saturating_sub(1);
        }
    }

    /// A process less beside an instance: what waited for that goes on.
    fn settle_beside(&mut self, id: u32, generation: u64, now: Instant) {
        self.touched.insert(id);
        self.remove_if_due(id);
        self.end_replacing(id, generation, now);
    }
}

/// Starts the next process; it is not called off meanwhile, so that it is known.
async fn start<P: Platform>(platform: &P, launch: &Launch) -> Result<P::Child, String> {
    if let Some(command) = launch.definition.pre_start.clone() {
        let hook = platform.run(launch.clone(), &command, Purpose::Hook, HOOK_LIMIT);
        hook.await.map_err(|why| format!("pre_start: {why}"))?;
    }
    platform.spawn(launch.clone()).await.map_err(|error| error.why)
}

/// Waits until the process serves.
async fn show<P: Platform>(platform: &P, launch: &Launch, child: P::Child, proof: &Proof) -> Result<(), String> {
    tokio::select! {
        exit = platform.ended(child) => Err(format!("the next process ended ({}) before it served", exit_text(exit))),
        shown = serves(platform, launch, proof) => shown,
    }
}

async fn serves<P: Platform>(platform: &P, launch: &Launch, proof: &Proof) -> Result<(), String> {
    let limit = proof.check.as_ref().map_or(PATIENCE, |(check, _)| check.start_timeout);
    let mut why = String::new();
    let listens_and_is_well = async {
        for port in &proof.must_listen {
            why = format!("the next process does not listen on port {port}, as the one before it does");
            while !listens(platform, launch, *port).await {
                tokio::time::sleep(LOOK).await;
            }
        }
        let Some((check, port)) = &proof.check else { return };
        while let Err(error) = ask(platform, launch, check.kind, &check.target_for(*port), check.timeout).await {
            why = format!("the next process is not healthy: {error}");
            tokio::time::sleep(ASK).await;
        }
    };
    if tokio::time::timeout(limit, listens_and_is_well).await.is_err() {
        return Err(format!("{why} (waited {} s)", limit.as_secs()));
    }
    if proof.must_listen.is_empty() && proof.check.is_none() {
        tokio::time::sleep(proof.min_uptime).await;
    }
    Ok(())
}

fn exit_text(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("code {code}"),
        Exit::Signal(signal) => format!("signal {signal}"),
        Exit::Unknown => "nobody knows how".to_owned(),
    }
}

async fn listens<P: Platform>(platform: &P, launch: &Launch, port: u16) -> bool {
    let listeners = platform.listeners(launch.place.clone()).await;
    listeners.is_some_and(|listeners| listeners.iter().any(|listener| listener.address.port() == port))
}

async fn end<P: Platform>(platform: &P, launch: Launch, child: P::Child, signal: KillSignal, limit: Duration) {
    platform.signal(&child, signal);
    // One that is late is killed with everything of it.
    tokio::time::timeout(limit, platform.ended(child)).await.map(drop).ok();
    clear_away(platform, launch).await;
}
