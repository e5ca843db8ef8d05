//! A supervisord of the bench's own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::process::Process;
use integration_tests::wait::eventually;
use tempfile::TempDir;

use super::pen::Pen;

/// It ends with the guard, and its programs with it.
pub(super) struct Supervisord {
    process: Process,
    directory: TempDir,
    pen: Pen,
}

impl Supervisord {
    /// `count` times `sleep` as the group `s`, and a program `flood`; none is started.
    pub(super) fn start(count: usize) -> Result<Self> {
        let directory = TempDir::with_prefix("weft-supervisord-")?;
        let at = directory.path().display();
        let text = format!(
            "[unix_http_server]\nfile={at}/sock\n[supervisord]\nnodaemon=true\nlogfile={at}/log\npidfile={at}/pid\n\
             childlogdir={at}\nminfds=4096\n[rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [supervisorctl]\nserverurl=unix://{at}/sock\n\
             [program:s]\ncommand=/bin/sleep 100000\nnumprocs={count}\nprocess_name=%(process_num)03d\nstartsecs=0\n\
             autostart=false\n[program:flood]\ncommand={}\nautostart=false\nstartsecs=0\nautorestart=false\n\
             stdout_logfile={at}/flood.log\nstdout_logfile_maxbytes=1GB\n",
            super::floods::COMMAND.replace('%', "%%"),
        );
        fs::write(directory.path().join("conf"), text)?;
        let pen = Pen::new()?;
        let mut command = pen.command(Path::new("supervisord"));
        command.arg("-c").arg(directory.path().join("conf"));
        let process = Process::spawn("supervisord", command)?;
        let socket = directory.path().join("sock");
        eventually(Duration::from_secs(30), "supervisord listens", || socket.exists())?;
        Ok(Self { process, directory, pen })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(super) fn pen(&self) -> &Pen {
        &self.pen
    }

    /// Bytes that the flood has left in its log.
    pub(super) fn flooded(&self) -> u64 {
        fs::metadata(self.directory.path().join("flood.log")).map_or(0, |metadata| metadata.len())
    }

    pub(super) fn control(&mut self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("supervisorctl");
        command.arg("-c").arg(self.directory.path().join("conf")).args(words);
        let output = command.output().context("supervisorctl is installed")?;
        ensure!(self.process.is_running(), "supervisord ended: {}", self.process.log());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "supervisorctl {words:?}: {text}");
        Ok(())
    }
}

impl Drop for Supervisord {
    fn drop(&mut self) {
        // On SIGTERM it stops its programs; without, they would outlive it.
        drop(self.process.stop());
    }
}
