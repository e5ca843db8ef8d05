//! Processes: `ps`, `start`, `stop`, `restart`, `reload NAME`, `scale`, `delete`, `describe`, `logs`, `send`, `save`, `reset`.

mod command;

mod args;
mod files;
mod live;
mod logs;
mod send;
mod show;
mod start;

use axum::http::Method;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::output::{self, Style};
use super::{Exit, Failure};
use crate::api::process::{List, Reloaded};
use crate::process::logs::keeper;

use args::{DeleteArgs, NameArgs, NamesArgs, PsArgs, RestartArgs, ScaleArgs};

pub(super) use args::{ImportArgs, ReloadArgs};
pub(super) use command::{ProcessCommand, run};
pub(super) use files::{FileError, import};

/// Runs the log keeper of `run_dir`; what the agent starts, not people.
pub(super) fn keep_logs(run_dir: &std::path::Path) -> Result<Exit, Failure> {
    keeper::run(run_dir).map_err(Failure::LogKeeper)?;
    Ok(Exit::Ok)
}

async fn ps(client: &Client, args: &PsArgs) -> Result<Exit, Failure> {
    if args.watch {
        return live::run(client, args).await;
    }
    print(&listed(client, args).await?, args.json)?;
    Ok(Exit::Ok)
}

/// Those that `args` want.
async fn listed(client: &Client, args: &PsArgs) -> Result<List, Failure> {
    let list: List = client.get("/process").await?;
    Ok(List { processes: list.processes.into_iter().filter(|item| args.wants(item)).collect(), ..list })
}

fn print(list: &List, json: bool) -> Result<(), Failure> {
    if json {
        output::print_json(list)?;
    } else {
        output::print(&show::table(list, std::time::SystemTime::now(), Style::of_stdout()))?;
    }
    Ok(())
}

async fn describe(client: &Client, args: &NameArgs) -> Result<Exit, Failure> {
    let list: List = client.get(&path(&args.name, "")).await?;
    if args.json {
        output::print_json(&list)?;
    } else {
        output::print(&show::describe(&list, std::time::SystemTime::now(), Style::of_stdout()))?;
    }
    Ok(Exit::Ok)
}

/// `stop`, `reset`: the same for every name, all of them tried.
async fn act(client: &Client, verb: &str, args: &NamesArgs) -> Result<Exit, Failure> {
    let mut done = Vec::new();
    for name in &args.names {
        let list: List = client.send(Method::POST, &path(name, verb), &Value::Null).await?;
        done.extend(list.processes);
    }
    finish(done, args.json)
}

fn finish(processes: Vec<crate::api::process::Item>, json: bool) -> Result<Exit, Failure> {
    let list = List { schema: crate::api::view::SCHEMA, processes };
    print(&list, json)?;
    let failed = list.processes.iter().any(|item| item.status == "errored");
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

async fn restart(client: &Client, args: &RestartArgs) -> Result<Exit, Failure> {
    let mut body = json!({});
    if let Some(port) = &args.port {
        body["port"] = Value::from(port.as_str());
    }
    if let Some(instances) = args.instances {
        body["instances"] = Value::from(instances);
    }
    let mut done = Vec::new();
    for name in &args.names {
        let list: List = client.send(Method::POST, &path(name, "restart"), &body).await?;
        done.extend(list.processes);
    }
    finish(done, args.json)
}

pub(super) async fn reload(client: &Client, name: &str, json: bool) -> Result<Exit, Failure> {
    let reloaded: Reloaded = client.send(Method::POST, &path(name, "reload"), &Value::Null).await?;
    for notice in &reloaded.notices {
        output::complain(&format!("notice: {notice}\n"));
    }
    finish(reloaded.list.processes, json)
}

async fn scale(client: &Client, args: &ScaleArgs) -> Result<Exit, Failure> {
    let wrong = || Failure::Usage(format!("{:?} is not a number like 4, +2 or -1", args.instances));
    let body = match args.instances.strip_prefix('+') {
        Some(more) => json!({ "by": more.parse::<u16>().map_err(|_not| wrong())? }),
        None if args.instances.starts_with('-') => {
            json!({ "by": args.instances.parse::<i16>().map_err(|_not| wrong())? })
        }
        None => json!({ "instances": args.instances.parse::<u32>().map_err(|_not| wrong())? }),
    };
    let list: List = client.send(Method::POST, &path(&args.name, "scale"), &body).await?;
    let list = start::wait(client, &list).await?;
    finish(list.processes, args.json)
}

async fn delete(client: &Client, args: &DeleteArgs) -> Result<Exit, Failure> {
    let mut gone = Vec::new();
    for name in &args.names {
        let list: List = client.send(Method::DELETE, &path(name, ""), &Value::Null).await?;
        gone.extend(list.processes);
    }
    if args.json {
        output::print_json(&List { schema: crate::api::view::SCHEMA, processes: gone })?;
    } else {
        let lines = gone.iter().map(|item| format!("deleted {}; its logs stay in {}\n", item.name, item.out_log));
        output::print(&lines.collect::<String>())?;
    }
    Ok(Exit::Ok)
}

async fn save(client: &Client, json: bool) -> Result<Exit, Failure> {
    let done = client.command("/process/save").await?;
    if json {
        output::print_json(&done)?;
    } else {
        output::print(&done.done.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    }
    Ok(Exit::Ok)
}

/// The path of a process, or of something of it.
fn path(name: &str, verb: &str) -> String {
    let escaped: String = name
        .bytes()
        .map(|byte| {
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            if plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
        })
        .collect();
    if verb.is_empty() { format!("/process/{escaped}") } else { format!("/process/{escaped}/{verb}") }
}

/// Whether the agent says that there is no such process.
fn is_missing(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(error) if error.code == crate::api::error::ErrorCode::NotFound)
}
