//! The list of processes in the shape of `pm2 jlist`, for tools that read that. What is not known here is left out, and the
//! environment is, which that shape shows with every secret in it. Pure.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::list::cpu;
use crate::process::definition::{Definition, ExecMode};
use crate::process::quantity::Watch;
use crate::process::view::{Exit, Status, View};

/// One instance.
#[derive(Debug, Serialize)]
pub(super) struct Item<'a> {
    /// 0 while it does not run, as PM2 has it.
    pid: u32,
    name: &'a str,
    pm_id: u32,
    monit: Monit,
    pm2_env: Environment<'a>,
}

#[derive(Debug, Serialize)]
struct Monit {
    memory: u64,
    cpu: f64,
}

#[derive(Debug, Serialize)]
struct Environment<'a> {
    name: &'a str,
    pm_id: u32,
    namespace: &'a str,
    status: &'static str,
    restart_time: u64,
    /// When it was started, in milliseconds since 1970.
    pm_uptime: Option<u64>,
    created_at: u64,
    exec_mode: &'static str,
    instances: u32,
    #[serde(rename = "NODE_APP_INSTANCE")]
    node_app_instance: u32,
    pm_exec_path: &'a str,
    exec_interpreter: Option<&'a str>,
    args: &'a [String],
    pm_cwd: Option<&'a Path>,
    pm_out_log_path: &'a Path,
    pm_err_log_path: &'a Path,
    exit_code: Option<i32>,
    autorestart: bool,
    watch: bool,
    cron_restart: Option<&'a str>,
}

/// Every instance of `views`.
pub(super) fn list<'a>(views: &[&'a Arc<View>]) -> Vec<Item<'a>> {
    let instances_of = |process: &str| views.iter().filter(|view| *view.process == *process).count();
    views.iter().map(|view| item(view, u32::try_from(instances_of(&view.process)).unwrap_or(u32::MAX))).collect()
}

fn item(view: &View, instances: u32) -> Item<'_> {
    let definition: &Definition = &view.definition;
    Item {
        pid: view.pid.unwrap_or_default(),
        // PM2 tells instances apart by their id alone.
        name: &view.process,
        pm_id: view.id,
        monit: Monit { memory: view.figures.memory_bytes, cpu: cpu(view) },
        pm2_env: Environment {
            name: &view.process,
            pm_id: view.id,
            namespace: &view.namespace,
            status: status(view.status),
            restart_time: view.restarts,
            pm_uptime: view.started.map(millis),
            created_at: millis(view.created),
            exec_mode: match definition.exec_mode {
                ExecMode::Fork => "fork_mode",
                ExecMode::Cluster => "cluster_mode",
            },
            instances,
            node_app_instance: view.instance,
            pm_exec_path: &definition.script,
            exec_interpreter: definition.interpreter.as_deref(),
            args: &definition.args.0,
            pm_cwd: definition.cwd.as_deref(),
            pm_out_log_path: &view.out_log,
            pm_err_log_path: &view.error_log,
            exit_code: view.last_exit.and_then(code),
            autorestart: definition.autorestart,
            watch: definition.watch != Watch::No,
            cron_restart: definition.cron_restart.as_deref(),
        },
    }
}

/// PM2's word for it.
fn status(status: Status) -> &'static str {
    match status {
        Status::Starting => "launching",
        Status::Restarting => "waiting restart",
        Status::Online | Status::Stopping | Status::Stopped | Status::Errored => status.as_str(),
    }
}

fn code(exit: Exit) -> Option<i32> {
    match exit {
        Exit::Code(code) => Some(code),
        Exit::Signal(_) | Exit::Unknown => None,
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::definition::Scalar;
    use crate::process::quantity::Count;
    use crate::process::testing;

    #[tokio::test(start_paused = true)]
    async fn instances_share_their_name_and_no_environment_is_shown() {
        let supervised = testing::start();
        let mut web = Definition { instances: Count::Exactly(2), ..Definition::new("web", "app.js") };
        web.env.insert("TOKEN".to_owned(), Scalar("hidden".to_owned()));
        supervised.handle.create(web).await.expect("created");
        supervised.handle.create(Definition::new("job", "job.py")).await.expect("created");
        let online = |snapshot: &Arc<crate::process::view::Snapshot>| {
            snapshot.processes.iter().all(|view| view.status == Status::Online)
        };
        let mut changes = supervised.handle.changes();
        let snapshot = Arc::clone(&*changes.wait_for(online).await.expect("they start"));
        let views: Vec<&Arc<View>> = snapshot.processes.iter().collect();
        let text = serde_json::to_string(&list(&views)).expect("written");
        assert!(!text.contains("hidden"), "{text}");
        let items: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let of = |index: usize| {
            let env = &items[index]["pm2_env"];
            (env["name"].clone(), env["instances"].clone(), env["NODE_APP_INSTANCE"].clone(), env["status"].clone())
        };
        assert_eq!(of(1), ("web".into(), 2.into(), 1.into(), "online".into()));
        assert_eq!(of(2), ("job".into(), 1.into(), 0.into(), "online".into()));
        assert!(items[0]["pid"].as_u64() > Some(0) && items[0]["pm2_env"]["pm_uptime"].is_u64(), "{items}");
    }

    #[test]
    fn states_have_the_words_of_pm2() {
        let words = [Status::Starting, Status::Online, Status::Restarting, Status::Errored].map(status);
        assert_eq!(words, ["launching", "online", "waiting restart", "errored"]);
    }
}
