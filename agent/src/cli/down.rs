//! `weft down` and `weft reload`.

use super::client::{Client, ClientError, Done};
use super::{Daemon, Exit, Failure, Target, output};
use crate::api::view;

pub(super) async fn run(target: &Target, json: bool, daemon: Daemon) -> Result<Exit, Failure> {
    let done = match target.client()?.command("/down").await {
        Ok(done) => done,
        Err(ClientError::NotRunning(_)) => {
            let config = target.load()?;
            Done { schema: view::SCHEMA, done: (daemon.remove)(&config)? }
        }
        Err(error) => return Err(error.into()),
    };
    print(&done, json, "nothing of ours was left")
}

pub(super) async fn reload(client: &Client, json: bool) -> Result<Exit, Failure> {
    let done = client.command("/reload").await?;
    print(&done, json, "nothing differs")
}

fn print(done: &Done, json: bool, when_empty: &str) -> Result<Exit, Failure> {
    if json {
        output::print_json(done)?;
    } else if done.done.is_empty() {
        output::print(&format!("{when_empty}\n"))?;
    } else {
        output::print(&done.done.iter().fold(String::new(), |text, line| text + line + "\n"))?;
    }
    Ok(Exit::Ok)
}
