//! Verdicts by caller, remembered for a second: a process that calls often is looked up once.
//!
//! A process id and a name do not tell a program for ever, which is why an entry is short-lived.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::origin::{self, Cgroups};
use super::policy::{Facts, Policy, Verdict};

/// How long a verdict holds.
const LIFETIME: Duration = Duration::from_secs(1);
/// Verdicts that are remembered; then it begins anew.
const REMEMBERED: usize = 1024;

/// Whom a verdict is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) uid: u32,
    pub(super) cgroup: Option<u64>,
    pub(super) pid: Option<u32>,
    /// Name of the thread that connected, ended by zeros.
    pub(super) comm: Option<[u8; 16]>,
}

#[derive(Debug)]
pub(super) struct Verdicts {
    policy: Policy,
    cgroups: Cgroups,
    known: Mutex<HashMap<Subject, (Instant, Arc<Verdict>)>>,
}

impl Verdicts {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, cgroups: Cgroups::new(), known: Mutex::default() }
    }

    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The verdict about who connected at that moment, in nanoseconds since boot, if it is known.
    pub(super) fn of(&self, subject: &Subject, connected_at: Option<u64>) -> Arc<Verdict> {
        let now = Instant::now();
        if let Some((since, verdict)) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(subject)
            && now.duration_since(*since) < LIFETIME
        {
            return Arc::clone(verdict);
        }
        let verdict = Arc::new(self.judge(subject, connected_at));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(*subject, (now, Arc::clone(&verdict)));
        verdict
    }

    fn judge(&self, subject: &Subject, connected_at: Option<u64>) -> Verdict {
        let cgroup = subject.cgroup.and_then(|id| self.cgroups.path(id, subject.pid));
        let executable = subject.pid.and_then(origin::executable);
        let process = subject.pid.and_then(origin::process_name);
        let thread = subject.comm.as_ref().and_then(name);
        let file = executable.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        // A file that was replaced while it runs.
        let file = file.map(|file| file.strip_suffix(" (deleted)").unwrap_or(file));
        let programs: Vec<&str> = [thread, process.as_deref(), file].into_iter().flatten().collect();
        let verdict = self.policy.judge(&Facts { uid: subject.uid, cgroup: cgroup.as_deref(), programs: &programs });
        // A younger process may have the id by now; without a moment to compare with it was looked up just now.
        let is_the_one = subject.pid.zip(connected_at).is_none_or(|(pid, moment)| origin::began_before(pid, moment));
        let executable = executable.filter(|_| is_the_one).map(|path| path.to_string_lossy().into());
        Verdict { executable, ..verdict }
    }
}

fn name(comm: &[u8; 16]) -> Option<&str> {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    std::str::from_utf8(&comm[..end]).ok().filter(|name| !name.is_empty())
}
