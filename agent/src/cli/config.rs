//! `weft config`.

use std::path::Path;

use super::{Exit, Failure, Target, output};
use crate::config::{self, Source};

pub(super) fn check(target: &Target, file: Option<&Path>) -> Result<Exit, Failure> {
    let config = match file {
        // The environment belongs to the agent that runs here, not to a file on its way to another host.
        Some(file) => config::load(Source::File(file), &[])?,
        None => target.load()?,
    };
    config::check(&config)?;
    output::print("ok\n")?;
    Ok(Exit::Ok)
}
