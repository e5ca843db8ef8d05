//! `weft start`: what is defined already, or something new; then the wait until it is online.

use std::path::Path;
use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::{Map, Value, json};

use super::args::StartArgs;
use super::{files, finish, is_missing, path};
use crate::api::process::List;
use crate::cli::client::{Client, ClientError};
use crate::cli::output;
use crate::cli::{Exit, Failure};
use crate::process::definition::Scalar;

/// How long a start is waited for; a process that takes longer goes on starting.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(30);
/// A wait that lasts longer says what it waits for.
const QUIET: Duration = Duration::from_secs(1);

pub(in crate::cli) async fn run(client: &Client, args: &StartArgs) -> Result<Exit, Failure> {
    let list = match files::kind(Path::new(&args.script)) {
        Some(kind) => start_file(client, args, kind).await?,
        None => match start_known(client, args).await? {
            Some(list) => list,
            None => client.send(Method::POST, "/process", &definition(args)?).await?,
        },
    };
    let list = if args.no_wait { list } else { wait(client, &list).await? };
    finish(list.processes, args.json)
}

/// Starts every definition of a file; one whose name is known is started as it is.
async fn start_file(client: &Client, args: &StartArgs, kind: files::Kind) -> Result<List, Failure> {
    let ecosystem = files::read(Path::new(&args.script), kind, args.env_profile.as_deref())?;
    for note in &ecosystem.notes {
        output::complain(&format!("note: {note}\n"));
    }
    let mut all = List { schema: crate::api::view::SCHEMA, processes: Vec::new() };
    let is_wanted = |name: &String| args.only.is_empty() || args.only.contains(name);
    for mut definition in ecosystem.definitions.into_iter().filter(|definition| is_wanted(&definition.name)) {
        if let (false, Ok(path)) = (definition.env.contains_key("PATH"), std::env::var("PATH")) {
            definition.env.insert("PATH".to_owned(), Scalar(path));
        }
        let name = definition.name.clone();
        let body = serde_json::to_value(&definition).map_err(|error| Failure::Usage(error.to_string()))?;
        let list: List = match client.send(Method::POST, "/process", &body).await {
            Err(ClientError::Refused(error)) if error.error.contains("exists already") => {
                output::complain(&format!(
                    "{name} is defined already and is started as it is; delete it to define it anew\n"
                ));
                match client.send(Method::POST, &path(&name, "start"), &Value::Null).await {
                    Err(ClientError::Refused(error)) if error.error.contains("runs already") => {
                        client.get(&path(&name, "")).await?
                    }
                    other => other?,
                }
            }
            other => other?,
        };
        all.processes.extend(list.processes);
    }
    Ok(all)
}

/// Starts what has this name or id, unless a definition is meant.
async fn start_known(client: &Client, args: &StartArgs) -> Result<Option<List>, Failure> {
    let is_file = args.script.contains('/') || Path::new(&args.script).is_file();
    if args.defines() || is_file {
        return Ok(None);
    }
    match client.send(Method::POST, &path(&args.script, "start"), &Value::Null).await {
        Ok(list) => Ok(Some(list)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn definition(args: &StartArgs) -> Result<Value, Failure> {
    let here = std::env::current_dir().map_err(Failure::Write)?;
    let absolute = |path: &Path| here.join(path).display().to_string();
    let mut definition = json!({
        "name": args.name.clone().unwrap_or_else(|| name_of(&args.script)),
        "script": args.script,
        "args": args.arguments,
        "cwd": args.cwd.as_deref().map_or_else(|| here.display().to_string(), &absolute),
        "env": environment(&args.env)?,
        "autorestart": !args.no_autorestart,
    });
    let texts = [
        ("instances", &args.instances),
        ("port", &args.port),
        ("interpreter", &args.interpreter),
        ("namespace", &args.namespace),
        ("user", &args.user),
        ("group", &args.group),
        ("max_memory_restart", &args.max_memory),
        ("cron_restart", &args.cron_restart),
        ("kill_timeout", &args.kill_timeout),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            definition[key] = Value::from(text.as_str());
        }
    }
    if let Some(file) = &args.env_file {
        definition["env_file"] = Value::from(absolute(file));
    }
    if let Some(stdin) = &args.stdin {
        let is_word = matches!(stdin.as_str(), "null" | "pipe");
        definition["stdin"] = Value::from(if is_word { stdin.clone() } else { absolute(Path::new(stdin)) });
    }
    add_watch(&mut definition, args);
    if let Some(url) = &args.health_check_url {
        definition["health_check"] = json!({ "check_type": "http", "url": url });
    }
    if let Some(count) = args.max_restarts {
        definition["max_restarts"] = Value::from(count);
    }
    Ok(definition)
}

/// `--watch` alone is about the working directory.
fn add_watch(definition: &mut Value, args: &StartArgs) {
    let paths: Vec<&Path> = args.watch.iter().map(|path| path.as_path()).collect();
    match paths[..] {
        [] => return,
        [one] if one == Path::new(".") => definition["watch"] = true.into(),
        _ => definition["watch"] = paths.iter().map(|path| path.display().to_string()).collect(),
    }
    if !args.ignore_watch.is_empty() {
        definition["ignore_watch"] = args.ignore_watch.iter().map(String::as_str).collect();
    }
}

/// The name of the program or script, without directory and ending.
fn name_of(script: &str) -> String {
    let first = script.split_whitespace().next().unwrap_or(script);
    // Of `node server.js` the script is what people know it by.
    let known = ["node", "python", "python3", "bash", "sh", "ruby", "php", "perl", "bun", "deno"];
    let second = script.split_whitespace().nth(1).filter(|word| !word.starts_with('-'));
    let chosen = if known.contains(&first) { second.unwrap_or(first) } else { first };
    Path::new(chosen).file_stem().map_or_else(|| chosen.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// The variables, and PATH as it is here, so that a program is found as it is found by hand.
fn environment(given: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut variables = Map::new();
    if let Ok(path) = std::env::var("PATH") {
        variables.insert("PATH".to_owned(), path.into());
    }
    for variable in given {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let missing = |_error| Failure::Usage(format!("--env {variable}: there is no such variable here"));
                (variable.as_str(), std::env::var(variable).map_err(missing)?)
            }
        };
        variables.insert(name.to_owned(), value.into());
    }
    Ok(variables)
}

/// Waits until every instance of `list` is online or given up; returns how they are then.
pub(super) async fn wait(client: &Client, list: &List) -> Result<List, Failure> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let now: List = client.get("/process").await?;
        let is_meant = |item: &crate::api::process::Item| list.processes.iter().any(|wanted| wanted.id == item.id);
        let meant = List { processes: now.processes.into_iter().filter(is_meant).collect(), ..now };
        let is_settled =
            |item: &crate::api::process::Item| matches!(item.status.as_str(), "online" | "errored" | "stopped");
        if meant.processes.iter().all(is_settled) || begun.elapsed() > PATIENCE {
            return Ok(meant);
        }
        if begun.elapsed() > QUIET && !told {
            told = true;
            let waiting = meant.processes.iter().filter(|item| !is_settled(item)).map(|item| item.name.as_str());
            output::complain(&format!("waiting for {}\n", waiting.collect::<Vec<_>>().join(", ")));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_after_what_people_know() {
        let cases = [("./bin/server", "server"), ("app.js", "app"), ("node server.js", "server"), ("sleep 7", "sleep")];
        for (script, name) in cases {
            assert_eq!(name_of(script), name);
        }
    }

    #[test]
    fn watch_alone_is_about_the_working_directory() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: StartArgs,
        }
        let watched = |words: &[&str]| {
            let line = <Line as clap::Parser>::parse_from([&["start"], words].concat());
            let mut definition = json!({});
            add_watch(&mut definition, &line.args);
            (line.args.script, definition)
        };
        let app = || "app.js".to_owned();
        assert_eq!(watched(&["--watch", "app.js"]), (app(), json!({ "watch": true })));
        assert_eq!(watched(&["app.js"]), (app(), json!({})));
        let given = ["app.js", "--watch=lib", "--watch=a.json", "--ignore-watch", "*.log"];
        assert_eq!(watched(&given), (app(), json!({ "watch": ["lib", "a.json"], "ignore_watch": ["*.log"] })));
    }

    #[test]
    fn variables_are_given_or_handed_on() {
        let variables = environment(&["A=1=2".to_owned(), "PATH".to_owned()]).expect("both are there");
        assert_eq!((variables["A"].as_str(), variables.len()), (Some("1=2"), 2));
        assert!(environment(&["NO_SUCH_VARIABLE_HERE".to_owned()]).is_err());
    }
}
