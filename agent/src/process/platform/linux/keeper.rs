//! The log keeper as the agent starts it: this program under another verb, in a cgroup that outlives the agent.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::root_of;
use crate::foundation::id::InstanceName;
use crate::process::logs::client::Launcher;
use crate::sys::{cgroup, pidfd, spawn};

/// The verb, and the cgroup, of the log keeper.
const KEEPER: &str = "log-keeper";

/// Starts the log keeper of `run_dir`: this program under another verb, in a cgroup that outlives the agent.
pub fn launcher(instance: &InstanceName, run_dir: &Path) -> Launcher {
    let (instance, run_dir) = (instance.clone(), run_dir.to_owned());
    let last: Mutex<Option<OwnedFd>> = Mutex::default();
    Arc::new(move || {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        // Asking also takes one that has ended out of the table of processes.
        if last.as_ref().is_some_and(|keeper| matches!(pidfd::reap(keeper), Ok(None))) {
            return Ok(());
        }
        *last = Some(launch(&instance, &run_dir)?);
        Ok(())
    })
}

fn launch(instance: &InstanceName, run_dir: &Path) -> io::Result<OwnedFd> {
    let path = root_of(instance).ok_or(io::ErrorKind::NotFound)?.join(KEEPER);
    cgroup::create(&path)?;
    let (group, null) = (File::open(&path)?, OpenOptions::new().read(true).write(true).open("/dev/null")?);
    let arguments = [b"weft", KEEPER.as_bytes(), b"--run-dir", run_dir.as_os_str().as_bytes()];
    let child = spawn::Child {
        program: CString::new("/proc/self/exe")?,
        arguments: arguments.into_iter().map(CString::new).collect::<Result<_, _>>()?,
        environment: Vec::new(),
        directory: CString::new("/")?,
        stdin: null.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        cgroup: group.as_fd(),
        moves: Vec::new(),
        identity: None,
        limits: Vec::new(),
        no_new_privileges: true,
        // Log files may lie where only their owner may write.
        capabilities: Some(1 << caps::Capability::CAP_DAC_OVERRIDE.index()),
    };
    spawn::spawn(&child).map(|spawned| spawned.pidfd).map_err(io::Error::other)
}
