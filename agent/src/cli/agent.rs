//! `weft agent`, and how a command finds the configuration and the agent that is meant.

use std::process::ExitCode;

use super::client::Client;
use super::output;
use super::{AgentArgs, Daemon, Failure, Target};
use crate::app::Launch;
use crate::config::{self, Config, LoadError, Override, Source};
use crate::foundation::error::chain;
use crate::foundation::secret::Secret;

pub(super) fn run(target: &Target, args: &AgentArgs, daemon: Daemon) -> Result<ExitCode, Failure> {
    let mut overrides = environment()?;
    for flag in &args.set {
        overrides.push(Override::from_flag(flag).map_err(LoadError::from)?);
    }
    if let Some(run_dir) = &target.run_dir {
        let flag = format!("run_dir={}", run_dir.display());
        overrides.push(Override::from_flag(&flag).map_err(LoadError::from)?);
    }
    let mut config = config::load(target.source(), &overrides)?;
    config.web.api_key = api_key(args);
    Ok((daemon.run)(Launch { file: target.config.clone(), overrides, config }))
}

/// Where the key of the web API may come from beside its file, the stronger one first. The last is PMDaemon's own.
const KEY_VARIABLES: [&str; 2] = ["WEFT_API_KEY", "PMDAEMON_API_KEY"];

fn api_key(args: &AgentArgs) -> Option<Secret<String>> {
    if let Some(key) = &args.api_key {
        output::complain(
            "weft: warning: every user of this host can read --api-key in the list of processes; use web.api_key_file or \
             WEFT_API_KEY\n",
        );
        return Some(Secret::new(key.clone()));
    }
    KEY_VARIABLES.iter().find_map(|name| std::env::var(name).ok()).map(Secret::new)
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
