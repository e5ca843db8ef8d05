//! `cron_restart`: an alarm for every instance that somebody wants to run.

use std::time::Instant;

use super::{Platform, Supervisor, clock};
use crate::process::machine::Input;
use crate::process::schedule::Alarm;
use crate::process::view::{Reason, What};

impl<P: Platform> Supervisor<P> {
    /// Sets the alarm of an instance by its definition, or takes it away.
    pub(super) fn schedule(&mut self, id: u32) {
        let wall = self.platform.wall_clock();
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let process = self.processes.get(&instance.process).filter(|_| instance.wanted && !instance.leaving);
        let schedule = process.and_then(|process| process.spec.schedule.as_ref());
        instance.alarm = schedule.and_then(|schedule| Alarm::after(schedule, wall, clock()));
        self.touched.insert(id);
        self.set_timer(id);
    }

    /// Restarts an instance whose time has come; one that has ended is started.
    pub(super) fn look_at_calendar(&mut self, id: u32, now: Instant) {
        let wall = self.platform.wall_clock();
        let Some(alarm) = self.instances.get_mut(&id).and_then(|instance| instance.alarm.as_mut()) else { return };
        if alarm.look() > now || !alarm.rings(wall, now) {
            return;
        }
        self.schedule(id);
        self.announce(id, What::Scheduled);
        self.feed(id, Input::Restart(Reason::Cron), now);
    }
}
