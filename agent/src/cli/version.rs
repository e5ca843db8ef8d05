//! `weft version`.

use serde::Serialize;
use weft_proto::weft::v1 as proto;

use super::client::{Client, ClientError};
use super::{Exit, Failure, output};
use crate::api::view;

#[derive(Debug, Serialize)]
struct Version {
    schema: u32,
    /// Of this program.
    version: &'static str,
    /// Of the running agent.
    agent: Option<String>,
}

pub(super) async fn run(client: &Client, json: bool) -> Result<Exit, Failure> {
    let agent = match client.get::<proto::Status>("/status").await {
        Ok(status) => Some(status.version),
        // This program has a version whether or not an agent runs or lets us ask.
        Err(ClientError::NotRunning(_) | ClientError::Denied(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let version = Version { schema: view::SCHEMA, version: env!("CARGO_PKG_VERSION"), agent };
    if json {
        output::print_json(&version)?;
    } else {
        output::print(&text(&version))?;
    }
    Ok(Exit::Ok)
}

fn text(version: &Version) -> String {
    match &version.agent {
        Some(agent) if agent == version.version => format!("weft {}, and so is the running agent\n", version.version),
        Some(agent) => format!("weft {}; the running agent is {agent}: restart it\n", version.version),
        None => format!("weft {}; no agent was reached\n", version.version),
    }
}
