//! Who waits for whom: an instance whose process depends on others is held until they are online or have ended well.

use std::sync::Arc;
use std::time::Instant;

use super::{Platform, Supervisor};
use crate::process::machine::Input;
use crate::process::view::{Exit, Status};

impl<P: Platform> Supervisor<P> {
    /// Holds an instance that has to wait; returns whether it does.
    pub(super) fn hold(&mut self, id: u32) -> bool {
        let Some(instance) = self.instances.get(&id) else { return false };
        let why = self.waits_for(&instance.process).map(|name| match self.processes.contains_key(name) {
            true => format!("it waits for {name}"),
            false => format!("it waits for {name}, which is not defined"),
        });
        let Some(instance) = self.instances.get_mut(&id) else { return false };
        instance.held = why.is_some();
        if let Some(why) = why {
            instance.error = Some(why.into());
        }
        instance.held
    }

    /// The first process that `name` depends on and that is not there yet.
    fn waits_for(&self, name: &str) -> Option<&str> {
        let process = self.processes.get(name)?;
        process.spec.definition.depends_on.iter().map(String::as_str).find(|name| !self.is_there(name))
    }

    fn is_there(&self, name: &str) -> bool {
        let Some(process) = self.processes.get(name) else { return false };
        let is_there = |id: &u32| {
            self.instances.get(id).is_some_and(|instance| match instance.machine.status() {
                Status::Online => true,
                // A job that has done its work.
                Status::Stopped => instance.wanted && instance.last_exit == Some(Exit::Code(0)),
                Status::Starting | Status::Stopping | Status::Errored | Status::Restarting => false,
            })
        };
        process.ids.iter().all(is_there)
    }

    /// A held instance that is not to be started any more settles.
    pub(super) fn let_go(&mut self, id: u32, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.held && instance.machine.has_wish() {
            instance.held = false;
            instance.error = None;
            self.feed(id, Input::SpawnFailed { permanent: true }, now);
        }
    }

    /// Something changed: starts what waited for it.
    pub(super) fn release_held(&mut self, now: Instant) {
        let held: Vec<(u32, Arc<str>)> = self
            .instances
            .values()
            .filter(|instance| instance.held)
            .map(|instance| (instance.id, Arc::clone(&instance.process)))
            .collect();
        for (id, process) in held {
            if self.waits_for(&process).is_none() {
                self.touched.insert(id);
                if let Some(instance) = self.instances.get_mut(&id) {
                    instance.error = None;
                }
                self.spawn(id, now);
            }
        }
    }
}
