//! What is asked of the supervisor.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::instance::{Instance, Origin, Process, fingerprint};
use super::{Done, MOST_INSTANCES, Platform, Supervisor};
use crate::process::config::processors;
use crate::process::definition::Definition;
use crate::process::error::Error;
use crate::process::handle::{Change, Reply, Request, Scale, Target};
use crate::process::machine::{Input, Policy};
use crate::process::platform::StartError;
use crate::process::quantity::{Count, Ports};
use crate::process::spec::{Spec, SpecError, cycle};
use crate::process::view::{Reason, Status, What};

impl<P: Platform> Supervisor<P> {
    pub(super) fn on_request(&mut self, request: Request, now: Instant) {
        match request {
            Request::Create(definition, reply) => self.create(*definition, reply),
            Request::Start(target, reply) => {
                let result = self.start(&target, now);
                self.answer(reply, result);
            }
            Request::Stop(target, reply) => {
                let result = self.stop(&target, now);
                self.answer(reply, result);
            }
            Request::Restart(target, change, reply) => {
                let result = self.restart(&target, change, now);
                self.answer(reply, result);
            }
            Request::Reload(target, reply) => self.reload(&target, reply, now),
            Request::Scale(name, scale, reply) => {
                let result = self.scale(&name, scale, now);
                self.answer(reply, result);
            }
            Request::Delete(target, reply) => {
                let result = self.delete(&target, now);
                self.answer(reply, result);
            }
            Request::Reset(target, reply) => {
                let result = self.reset(&target);
                self.answer(reply, result);
            }
            Request::Configure(specs, reply) => {
                let lines = self.configure(specs, now);
                self.answer(reply, Ok(lines));
            }
            Request::Send(target, input, reply) => self.send(&target, input, reply),
            Request::Sample(reply) => self.sample_for(reply, now),
            Request::Save(reply) => self.save_for(reply),
            Request::StopAll(reply) => {
                let ids: Vec<u32> = self.instances.keys().copied().collect();
                for id in &ids {
                    self.feed(*id, Input::Stop, now);
                }
                self.answer(reply, Ok(ids));
            }
        }
    }

    /// Replies once the snapshot shows the effect.
    pub(super) fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, Error>) {
        // A caller that went away needs no answer.
        self.replies.push(Box::new(move || drop(reply.send(result))));
    }

    fn create(&mut self, definition: Definition, reply: Reply<Vec<u32>>) {
        if let Err(error) = self.admit(&definition) {
            return self.answer(reply, Err(error));
        }
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            let result = platform.check(&definition).await;
            Done::Checked(Box::new(definition), result, reply)
        }));
    }

    /// Everything about a new definition that needs no look at files.
    fn admit(&self, definition: &Definition) -> Result<Spec, Error> {
        let spec = definition.clone().validate(processors())?;
        let name = &spec.definition.name;
        if self.processes.contains_key(name.as_str()) {
            return Err(Error::Exists { name: name.clone() });
        }
        for index in 0..spec.instances {
            let names = [spec.instance_name(index), spec.log_name(index)];
            let has = |instance: &Instance<P::Child>| {
                names.iter().any(|name| **name == *instance.name || **name == *instance.log_name)
            };
            if let Some(other) = self.instances.values().find(|instance| has(instance)) {
                return Err(Error::Exists { name: other.name.to_string() });
            }
        }
        self.check_dependencies(&spec)?;
        self.room_for(spec.instances)?;
        self.check_ports(&spec)?;
        Ok(spec)
    }

    /// What it waits for must be there, and must not wait for it.
    fn check_dependencies(&self, spec: &Spec) -> Result<(), SpecError> {
        let definition = &spec.definition;
        let refuse = |why: String| Err(SpecError { key: "depends_on", why });
        if let Some(missing) = definition.depends_on.iter().find(|name| !self.processes.contains_key(name.as_str())) {
            return refuse(format!("there is no process {missing:?}; define it first"));
        }
        let waits = |name: &str| {
            let of_others = self.processes.get(name).map(|process| &process.spec.definition.depends_on);
            let list = if name == definition.name { Some(&definition.depends_on) } else { of_others };
            list.into_iter().flatten().map(String::as_str).collect()
        };
        match cycle(waits, &definition.name) {
            Some(circle) => refuse(format!("it goes in a circle: {}", circle.join(" waits for "))),
            None => Ok(()),
        }
    }

    fn room_for(&self, more: u32) -> Result<(), Error> {
        let wanted = self.instances.len() + usize::try_from(more).unwrap_or(usize::MAX);
        if wanted > MOST_INSTANCES { Err(Error::TooMany { most: MOST_INSTANCES }) } else { Ok(()) }
    }

    /// Ports that are named must be free; of a range `auto:` enough must be.
    fn check_ports(&self, spec: &Spec) -> Result<(), Error> {
        let name = || spec.definition.name.clone();
        let is_ours = |port: u16| {
            let others = self.instances.values().filter(|instance| *instance.process != *spec.definition.name);
            others.into_iter().any(|instance| instance.port == Some(port))
        };
        let is_free = |port: &u16| !is_ours(*port) && self.platform.is_port_free(*port);
        let (ports, needed) = match spec.definition.port {
            None => return Ok(()),
            Some(Ports::One(port)) => (port..=port, 1),
            Some(Ports::Range { first, .. }) => {
                let more = u16::try_from(spec.instances.saturating_sub(1)).unwrap_or(u16::MAX);
                (first..=first.saturating_add(more), spec.instances)
            }
            Some(Ports::Free { first, last }) => (first..=last, spec.instances),
        };
        let needed = usize::try_from(needed).unwrap_or(usize::MAX);
        if matches!(spec.definition.port, Some(Ports::Free { .. })) {
            let enough = ports.clone().filter(is_free).take(needed).count() == needed;
            return if enough { Ok(()) } else { Err(Error::PortInUse { name: name(), port: *ports.start() }) };
        }
        match ports.into_iter().find(|port| !is_free(port)) {
            Some(port) => Err(Error::PortInUse { name: name(), port }),
            None => Ok(()),
        }
    }

    pub(super) fn on_checked(
        &mut self,
        definition: Definition,
        result: Result<(), StartError>,
        reply: Reply<Vec<u32>>,
        now: Instant,
    ) {
        let admitted = match result {
            // Another may have come first.
            Ok(()) => self.admit(&definition),
            Err(source) => Err(Error::Start { name: definition.name, source }),
        };
        let ids = admitted.map(|spec| {
            let name: Arc<str> = spec.definition.name.as_str().into();
            self.add(spec, Origin::Command);
            let ids = self.processes.get(&name).map(|process| process.ids.clone()).unwrap_or_default();
            for id in &ids {
                self.feed(*id, Input::Start, now);
            }
            ids
        });
        self.answer(reply, ids);
    }

    /// Adds a process with its instances, which do not run yet.
    pub(super) fn add(&mut self, spec: Spec, origin: Origin) {
        let name: Arc<str> = spec.definition.name.as_str().into();
        let fingerprint = fingerprint(&spec);
        let process =
            Process { fingerprint, origin, created: SystemTime::now(), watch_error: None, ids: Vec::new(), spec };
        self.processes.insert(Arc::clone(&name), process);
        self.grow(&name);
        self.store.changed();
    }

    /// Makes the instances that the spec of a process has and it has not; returns their ids.
    pub(super) fn grow(&mut self, name: &str) -> Vec<u32> {
        let mut made = Vec::new();
        let Some(process) = self.processes.get_mut(name) else { return made };
        while process.ids.len() < usize::try_from(process.spec.instances).unwrap_or(usize::MAX) {
            let id = self.next_id;
            self.next_id += 1;
            let index = u32::try_from(process.ids.len()).unwrap_or(u32::MAX);
            self.instances.insert(id, Instance::new(id, &process.spec, index));
            process.ids.push(id);
            made.push(id);
        }
        for id in &made {
            self.schedule(*id);
            self.touched.insert(*id);
            self.announce(*id, What::Created);
        }
        self.keep_watch(name);
        made
    }

    /// The ids that are meant.
    pub(super) fn find(&self, target: &Target) -> Result<Vec<u32>, Error> {
        let is_meant = |instance: &Instance<P::Child>| match target {
            Target::All => true,
            Target::Namespace(namespace) => self
                .processes
                .get(&instance.process)
                .is_some_and(|process| process.spec.definition.namespace == *namespace),
            Target::Named(name) => {
                *instance.process == **name || *instance.name == **name || instance.id.to_string() == *name
            }
        };
        let ids: Vec<u32> =
            self.instances.values().filter(|instance| is_meant(instance)).map(|instance| instance.id).collect();
        if !ids.is_empty() || *target == Target::All {
            return Ok(ids);
        }
        let available = self.instances.values().map(|instance| Arc::clone(&instance.name)).collect();
        Err(Error::NotFound { target: target.to_string(), available })
    }

    fn start(&mut self, target: &Target, now: Instant) -> Result<Vec<u32>, Error> {
        let ids = self.find(target)?;
        let runs = |id: &u32| {
            self.instances
                .get(id)
                .is_some_and(|instance| matches!(instance.machine.status(), Status::Online | Status::Starting))
        };
        if !ids.is_empty() && ids.iter().all(runs) && *target != Target::All {
            return Err(Error::AlreadyRunning { name: target.to_string() });
        }
        for id in &ids {
            self.want(*id, true);
            self.feed(*id, Input::Start, now);
        }
        Ok(ids)
    }

    fn stop(&mut self, target: &Target, now: Instant) -> Result<Vec<u32>, Error> {
        let ids = self.find(target)?;
        for id in &ids {
            self.want(*id, false);
            self.feed(*id, Input::Stop, now);
        }
        Ok(ids)
    }

    pub(super) fn want(&mut self, id: u32, wanted: bool) {
        if let Some(instance) = self.instances.get_mut(&id)
            && instance.wanted != wanted
        {
            instance.wanted = wanted;
            self.store.changed();
            self.schedule(id);
        }
        self.keep_watch_of(id);
    }

    fn restart(&mut self, target: &Target, change: Change, now: Instant) -> Result<Vec<u32>, Error> {
        let mut ids = self.find(target)?;
        if change != Change::default() {
            let name = self.instances.get(&ids[0]).map(|instance| Arc::clone(&instance.process)).unwrap_or_default();
            if ids.iter().any(|id| self.instances.get(id).is_some_and(|instance| instance.process != name)) {
                let why = "port and instances are of one process; name one".to_owned();
                return Err(SpecError { key: "port", why }.into());
            }
            self.change(&name, change, now)?;
            ids = self.processes.get(&name).map(|process| process.ids.clone()).unwrap_or_default();
        }
        for id in &ids {
            self.want(*id, true);
            self.feed(*id, Input::Restart(Reason::Asked), now);
        }
        Ok(ids)
    }

    /// Takes another port or number of instances; nothing is restarted yet.
    fn change(&mut self, name: &str, change: Change, now: Instant) -> Result<(), Error> {
        let Some(process) = self.processes.get(name) else { return Ok(()) };
        if process.origin == Origin::Configuration {
            return Err(Error::Configured { name: name.to_owned() });
        }
        let mut definition = Definition::clone(&process.spec.definition);
        if let Some(ports) = change.port {
            definition.port = Some(ports);
        }
        if let Some(count) = change.instances {
            definition.instances = Count::Exactly(count);
        }
        let spec = definition.validate(processors())?;
        if change.port.is_some() {
            self.check_ports(&spec)?;
        }
        self.set_spec(name, spec, now)
    }

    /// Gives a process another spec: fewer instances leave, more are made, the others learn the policy.
    pub(super) fn set_spec(&mut self, name: &str, spec: Spec, now: Instant) -> Result<(), Error> {
        let Some(process) = self.processes.get_mut(name) else { return Ok(()) };
        let have = process.ids.len();
        let count = usize::try_from(spec.instances).unwrap_or(usize::MAX);
        let more = count.saturating_sub(have);
        if self.instances.len() + more > MOST_INSTANCES {
            return Err(Error::TooMany { most: MOST_INSTANCES });
        }
        process.fingerprint = fingerprint(&spec);
        process.spec = spec;
        let leaving = process.ids.split_off(have.min(count));
        for id in &process.ids {
            let Some(instance) = self.instances.get_mut(id) else { continue };
            instance.machine.set_policy(Policy::of(&process.spec));
            instance.name = process.spec.instance_name(instance.index).into();
            self.touched.insert(*id);
        }
        for id in process.ids.clone() {
            self.schedule(id);
        }
        for id in leaving {
            self.leave(id, now);
        }
        self.grow(name);
        self.store.changed();
        Ok(())
    }

    /// Stops an instance and removes it once nothing of it is left.
    pub(super) fn leave(&mut self, id: u32, now: Instant) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.leaving = true;
            instance.wanted = false;
        }
        self.schedule(id);
        self.keep_watch_of(id);
        self.feed(id, Input::Stop, now);
    }

    fn scale(&mut self, name: &str, scale: Scale, now: Instant) -> Result<Vec<u32>, Error> {
        let Some(process) = self.processes.get(name) else {
            let available = self.processes.keys().cloned().collect();
            return Err(Error::NotFound { target: name.to_owned(), available });
        };
        let count = match scale {
            Scale::To(count) => i64::from(count),
            Scale::By(step) => i64::from(process.spec.instances) + i64::from(step),
        };
        let count = u32::try_from(count)
            .ok()
            .filter(|count| (1..=1000).contains(count))
            .ok_or_else(|| SpecError { key: "instances", why: format!("{count} is not a number from 1 to 1000") })?;
        let before = process.ids.clone();
        self.change(name, Change { port: None, instances: Some(count) }, now)?;
        let ids = self.processes.get(name).map(|process| process.ids.clone()).unwrap_or_default();
        for id in ids.iter().filter(|id| !before.contains(id)) {
            self.feed(*id, Input::Start, now);
        }
        Ok(ids)
    }

    fn delete(&mut self, target: &Target, now: Instant) -> Result<Vec<u32>, Error> {
        let ids = self.find(target)?;
        let mut names: Vec<Arc<str>> = Vec::new();
        for id in &ids {
            let Some(instance) = self.instances.get(id) else { continue };
            let Some(process) = self.processes.get(&instance.process) else { continue };
            if process.origin == Origin::Configuration {
                return Err(Error::Configured { name: instance.process.to_string() });
            }
            let is_whole = process.ids.iter().all(|id| ids.contains(id));
            if !is_whole {
                let why =
                    format!("{} is one of several instances; use `weft scale {}`", instance.name, instance.process);
                return Err(SpecError { key: "name", why }.into());
            }
            names.push(Arc::clone(&instance.process));
        }
        for name in names {
            self.drop_process(&name, now);
        }
        Ok(ids)
    }

    /// Removes a process: its instances leave, then it is forgotten.
    pub(super) fn drop_process(&mut self, name: &str, now: Instant) {
        let ids = self.processes.get(name).map(|process| process.ids.clone()).unwrap_or_default();
        for id in ids {
            self.leave(id, now);
        }
        self.store.changed();
    }

    /// Takes an instance away that leaves and has come to rest.
    pub(super) fn remove_if_due(&mut self, id: u32) {
        let is_due = self
            .instances
            .get(&id)
            .is_some_and(|instance| instance.leaving && instance.machine.is_at_rest() && instance.beside == 0);
        if !is_due {
            return;
        }
        self.announce(id, What::Deleted);
        let Some(instance) = self.instances.remove(&id) else { return };
        if let Some(at) = instance.timer {
            self.timers.remove(&(at, id));
        }
        self.touched.insert(id);
        let (platform, log_name) = (Arc::clone(&self.platform), Arc::clone(&instance.log_name));
        self.pending.push(Box::pin(async move {
            platform.retire(&log_name).await;
            Done::Cleared
        }));
        if let Some(process) = self.processes.get_mut(&instance.process) {
            process.ids.retain(|other| *other != id);
            if process.ids.is_empty() {
                self.processes.remove(&instance.process);
            }
        }
        self.store.changed();
    }

    fn reset(&mut self, target: &Target) -> Result<Vec<u32>, Error> {
        let ids = self.find(target)?;
        for id in &ids {
            if let Some(instance) = self.instances.get_mut(id) {
                instance.machine.reset();
                self.touched.insert(*id);
            }
        }
        Ok(ids)
    }
}
