//! The processes of `weft.toml`: what is new is made, what differs is reloaded, what is gone is removed.

use std::collections::BTreeSet;
use std::time::Instant;

use super::instance::Origin;
use super::{Platform, Supervisor};
use crate::process::machine::Input;
use crate::process::spec::Spec;

impl<P: Platform> Supervisor<P> {
    /// Makes the processes of the configuration be as `specs` say; what was made by commands stays. The lines say what changed.
    pub(super) fn configure(&mut self, specs: Vec<Spec>, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        let wanted: BTreeSet<String> = specs.iter().map(|spec| spec.definition.name.clone()).collect();
        let of_configuration = self.processes.iter().filter(|(_, process)| process.origin == Origin::Configuration);
        let gone: Vec<_> =
            of_configuration.map(|(name, _)| name.clone()).filter(|name| !wanted.contains(&**name)).collect();
        for name in gone {
            self.drop_process(&name, now);
            lines.push(format!("process {name} removed"));
        }
        for spec in specs {
            lines.extend(self.configure_one(spec, now));
        }
        lines
    }

    fn configure_one(&mut self, spec: Spec, now: Instant) -> Option<String> {
        let name = spec.definition.name.clone();
        let Some(process) = self.processes.get(name.as_str()) else {
            let starts = spec.definition.autostart;
            self.add(spec, Origin::Configuration);
            let ids = self.processes.get(name.as_str()).map(|process| process.ids.clone()).unwrap_or_default();
            for id in ids {
                self.want(id, starts);
                if starts {
                    self.feed(id, Input::Start, now);
                }
            }
            return Some(format!("process {name} added"));
        };
        let was_command = self.is_of_command(&name);
        if *process.spec.definition == *spec.definition && !was_command {
            return None;
        }
        let needs_restart = *process.spec.definition != *spec.definition;
        let before = process.ids.clone();
        if let Err(error) = self.set_spec(&name, spec, now) {
            return Some(format!("process {name} stays as it is: {error}"));
        }
        let process = self.processes.get_mut(name.as_str())?;
        process.origin = Origin::Configuration;
        let (ids, definition) = (process.ids.clone(), std::sync::Arc::clone(&process.spec.definition));
        for id in ids.iter().filter(|id| !before.contains(id)) {
            self.want(*id, definition.autostart);
            if definition.autostart {
                self.feed(*id, Input::Start, now);
            }
        }
        let runs = |id: &u32| self.instances.get(id).is_some_and(|instance| instance.wanted && instance.pid.is_some());
        if needs_restart && before.iter().any(runs) {
            self.reload_quietly(&name, now);
            return Some(format!("process {name} changed and is reloaded"));
        }
        Some(format!("process {name} changed"))
    }
}
