//! Health checks: begun when they are due, judged when they end.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Done, Launch, Platform, Purpose, Supervisor, launch};
use crate::process::definition::health::Kind;
use crate::process::health::{Verdict, probe};
use crate::process::machine::Input;
use crate::process::view::{Reason, What};

impl<P: Platform> Supervisor<P> {
    /// Begins a check.
    pub(super) fn probe(&mut self, id: u32, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some((kind, target, limit)) = instance.monitor.as_mut().map(|monitor| monitor.begin(now)) else { return };
        let Some(process) = self.processes.get(&instance.process) else { return };
        let (generation, platform) = (instance.generation, Arc::clone(&self.platform));
        let launch = launch(instance, Arc::clone(&process.spec.definition));
        self.pending.push(Box::pin(async move {
            Done::Probed(id, generation, ask(&*platform, &launch, kind, &target, limit).await)
        }));
    }

    pub(super) fn on_probed(&mut self, id: u32, generation: u64, result: Result<(), String>, now: Instant) {
        if !self.is_current(id, generation) {
            return;
        }
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(monitor) = instance.monitor.as_mut() else { return };
        let verdict = monitor.result(result, now, SystemTime::now());
        instance.health = monitor.view.clone();
        self.touched.insert(id);
        match verdict {
            Verdict::Nothing => self.set_timer(id),
            Verdict::Changed => {
                self.announce(id, What::HealthChanged);
                self.set_timer(id);
            }
            Verdict::Ready => {
                self.announce(id, What::HealthChanged);
                self.feed(id, Input::Ready, now);
            }
            Verdict::Unfit => self.give_up_on(id, now),
        }
    }

    fn give_up_on(&mut self, id: u32, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.monitor = None;
        let why = instance.health.last_error.as_deref().unwrap_or("no reason is known");
        tracing::warn!(process = %instance.name, why, "a process is not healthy and is restarted");
        instance.error = Some(format!("it was not healthy: {why}").into());
        self.announce(id, What::HealthChanged);
        self.feed(id, Input::Unfit(Reason::Health), now);
    }
}

/// Asks a process for its health.
pub(super) async fn ask<P: Platform>(
    platform: &P,
    launch: &Launch,
    kind: Kind,
    target: &str,
    limit: Duration,
) -> Result<(), String> {
    match kind {
        Kind::Http => probe::http(target, limit).await,
        Kind::Tcp => probe::tcp(target, limit).await,
        Kind::Script => platform.run(launch.clone(), target, Purpose::Check, limit).await,
    }
}
