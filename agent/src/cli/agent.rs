//! `weft agent`, and how a command finds the configuration and the agent that is meant.

use std::process::ExitCode;

use super::client::Client;
use super::output;
use super::{AgentArgs, Daemon, Failure, Target};
use crate::app::Launch;
use crate::config::{self, Config, LoadError, Override, Source};
use crate::foundation::error::chain;

pub(super) fn run(target: &Target, args: &AgentArgs, daemon: Daemon) -> Result<ExitCode, Failure> {
    let mut overrides = environment()?;
    for flag in &args.set {
        overrides.push(Override::from_flag(flag).map_err(LoadError::from)?);
    }
    if let Some(run_dir) = &target.run_dir {
        let flag = format!("run_dir={}", run_dir.display());
        overrides.push(Override::from_flag(&flag).map_err(LoadError::from)?);
    }
    let config = config::load(target.source(), &overrides)?;
    Ok((daemon.run)(Launch { file: target.config.clone(), overrides, config }))
}

fn environment() -> Result<Vec<Override>, LoadError> {
    Ok(Override::from_environment(std::env::vars_os())?)
}

impl Target {
    fn source(&self) -> Source<'_> {
        self.config.as_deref().map_or(Source::Default, Source::File)
    }

    /// The configuration of the agent that is meant.
    pub(super) fn load(&self) -> Result<Config, LoadError> {
        let mut config = config::load(self.source(), &environment()?)?;
        if let Some(run_dir) = &self.run_dir {
            config.run_dir.clone_from(run_dir);
        }
        Ok(config)
    }

    /// The agent that is meant: by `--run-dir`, else by the configuration.
    ///
    /// A default file that cannot be read is no reason to find no agent: the user may not read it, or it was broken while
    /// the agent runs on.
    pub(super) fn client(&self) -> Result<Client, LoadError> {
        if let Some(run_dir) = &self.run_dir {
            return Ok(Client::new(run_dir));
        }
        match (self.load(), &self.config) {
            (Ok(config), _) => Ok(Client::new(&config.run_dir)),
            (Err(error), Some(_)) => Err(error),
            (Err(error), None) => {
                let run_dir = Config::default().run_dir;
                output::complain(&format!("weft: {}; looking for an agent in {}\n", chain(&error), run_dir.display()));
                Ok(Client::new(&run_dir))
            }
        }
    }
}
