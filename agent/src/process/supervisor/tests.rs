use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::foundation::metrics::Metrics as Registry;
use crate::foundation::task::{self, Task};
use crate::process::definition::stdin::Stdin;
use crate::process::error::Error;
use crate::process::handle::{Change, Handle, Scale, Shared, Target};
use crate::process::logs::client::LogKeeper;
use crate::process::platform::fake::Fake;
use crate::process::quantity::{Count, Ports, Span, Watch};
use crate::process::view::{HealthStatus, Reason, Status};

/// A supervisor over a fake host; its list is in a directory of its own.
struct World {
    host: Fake,
    handle: Handle,
    directory: std::sync::Arc<tempfile::TempDir>,
    shutdown: Shutdown,
    _tasks: [Task; 2],
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::on(Fake::default(), std::sync::Arc::new(directory), Vec::new())
    }

    fn on(host: Fake, directory: std::sync::Arc<tempfile::TempDir>, configured: Vec<Spec>) -> Self {
        let (logs, logs_task) =
            LogKeeper::start(directory.path(), Arc::new(|| Err(std::io::ErrorKind::Unsupported.into())));
        let log_policy = LogPolicy {
            directory: directory.path().to_owned(),
            max_bytes: 1 << 20,
            max_age_s: 60,
            keep: 1,
            compress: false,
        };
        let (requests, received) = mpsc::channel(16);
        let (publish, snapshot) = watch::channel(Arc::default());
        let events = broadcast::Sender::new(64);
        let watchers = Arc::new(Watchers::default());
        let inputs = Inputs {
            platform: host.clone(),
            log_policy,
            state_file: directory.path().join("processes.json"),
            configured,
            requests: received,
            snapshot: publish,
            events: events.clone(),
            watchers: Arc::clone(&watchers),
            metrics: Metrics::new(&Registry::default(), snapshot.clone()),
        };
        let (supervisor, configured) = Supervisor::new(inputs);
        let shutdown = Shutdown::default();
        let run = supervisor.run(configured, Readiness::default().block("process"), shutdown.stop());
        let handle = Handle { shared: Ok(Arc::new(Shared { requests, snapshot, events, logs, watchers })) };
        Self { host, handle, directory, shutdown, _tasks: [task::spawn("process", run), logs_task] }
    }

    /// Ends the agent and starts another on the same host.
    async fn next_agent(self, configured: Vec<Spec>) -> Self {
        assert!(self.shutdown.drain(Duration::from_secs(5)).await);
        Self::on(self.host, self.directory, configured)
    }

    async fn until(&self, wanted: &[(&str, Status)]) {
        let mut changes = self.handle.changes();
        let is_so = |snapshot: &Arc<Snapshot>| {
            let now: Vec<(&str, Status)> = snapshot.processes.iter().map(|view| (&*view.name, view.status)).collect();
            now == wanted
        };
        let waited = tokio::time::timeout(Duration::from_secs(120), changes.wait_for(is_so)).await;
        if waited.is_err() {
            panic!("{wanted:?} never came; there is {:?}", self.handle.snapshot());
        }
    }
}

fn definition(name: &str) -> Definition {
    Definition::new(name, "/bin/true")
}

fn cluster(name: &str, count: u32) -> Definition {
    Definition { instances: Count::Exactly(count), ..definition(name) }
}

fn spec(definition: Definition) -> Spec {
    definition.validate(2).expect("valid")
}

fn named(name: &str) -> Target {
    Target::parse(name)
}

#[tokio::test(start_paused = true)]
async fn a_process_is_started_stopped_and_forgotten() {
    let world = World::new();
    let made = world.handle.create(definition("web")).await.expect("created");
    assert_eq!((made.len(), made[0].id, &*made[0].name), (1, 0, "web"));
    world.until(&[("web", Status::Online)]).await;
    assert_eq!(world.host.running(), ["web@0.1"]);
    let stopped = world.handle.stop(&named("web")).await.expect("stopped");
    assert_eq!((stopped[0].status, stopped[0].pid), (Status::Stopped, None));
    assert!(world.host.running().is_empty());
    world.handle.start(&named("0")).await.expect("by its id");
    world.until(&[("web", Status::Online)]).await;
    assert!(matches!(world.handle.start(&named("web")).await, Err(Error::AlreadyRunning { .. })));
    world.handle.delete(&named("web")).await.expect("deleted");
    assert!(world.host.running().is_empty() && world.handle.snapshot().processes.is_empty());
    let missing = world.handle.stop(&named("web")).await.expect_err("gone");
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn input_is_written_to_a_pipe_that_somebody_reads_and_to_nothing_else() {
    let world = World::new();
    let reads = Definition { stdin: Stdin::Pipe, ..cluster("reads", 2) };
    world.handle.create(reads).await.expect("created");
    world.handle.create(definition("deaf")).await.expect("created");
    world.until(&[("reads-0", Status::Online), ("reads-1", Status::Online), ("deaf", Status::Online)]).await;
    let sent = world.handle.send(&named("reads"), b"hello\n".to_vec()).await.expect("both read");
    assert_eq!(sent.len(), 2);
    let expected = ["reads@0.1", "reads@1.1"].map(|name| (name.to_owned(), b"hello\n".to_vec()));
    assert_eq!(world.host.sent(), expected);
    let why = |result: Result<_, Error>| result.expect_err("refused").to_string();
    assert!(why(world.handle.send(&Target::All, b"x".to_vec()).await).contains("'deaf' takes no input"));
    world.handle.stop(&named("reads-1")).await.expect("stopped");
    assert!(why(world.handle.send(&named("reads"), b"x".to_vec()).await).contains("does not run"));
    assert_eq!(world.host.sent(), expected, "a refusal writes nothing to anybody");
}

#[tokio::test(start_paused = true)]
async fn a_crash_leads_to_exactly_one_new_process() {
    let world = World::new();
    world.handle.create(definition("web")).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    world.host.end("web@0.1", Exit::Signal(11));
    let mut changes = world.handle.changes();
    let restarted =
        |snapshot: &Arc<Snapshot>| snapshot.processes[0].restarts == 1 && snapshot.processes[0].pid.is_some();
    let view = Arc::clone(&changes.wait_for(restarted).await.expect("it runs").processes[0]);
    assert_eq!(view.last_exit, Some(Exit::Signal(11)));
    assert_eq!(world.host.running(), ["web@0.2"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_at_once_for_ever_is_given_up() {
    let world = World::new();
    let quick = Definition { max_restarts: 3, ..definition("web") };
    world.handle.create(quick).await.expect("created");
    for generation in 1..=4 {
        let mut changes = world.handle.changes();
        let cgroup = format!("web@0.{generation}");
        let host = world.host.clone();
        let runs = |_: &Arc<Snapshot>| host.running() == [cgroup.as_str()];
        tokio::time::timeout(Duration::from_secs(60), changes.wait_for(runs))
            .await
            .expect("started")
            .map(drop)
            .expect("alive");
        world.host.end(&cgroup, Exit::Code(3));
    }
    world.until(&[("web", Status::Errored)]).await;
    assert_eq!(world.host.starts().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_ignores_the_signal_is_killed_with_everything_it_started() {
    let world = World::new();
    world.handle.create(Definition { kill_timeout: Span::millis(500), ..definition("web") }).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    world.host.ignore_signals();
    world.handle.stop(&named("web")).await.expect("stopped");
    world.until(&[("web", Status::Stopped)]).await;
    assert!(world.host.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_takes_over_what_runs_and_restarts_nothing() {
    let world = World::new();
    world.handle.create(cluster("web", 2)).await.expect("created");
    world.handle.create(definition("job")).await.expect("created");
    world.until(&[("web-0", Status::Online), ("web-1", Status::Online), ("job", Status::Online)]).await;
    world.handle.stop(&named("job")).await.expect("stopped");
    let before: Vec<_> = world.handle.snapshot().processes.iter().map(|view| (view.id, view.pid)).collect();
    let world = world.next_agent(Vec::new()).await;
    world.until(&[("web-0", Status::Online), ("web-1", Status::Online), ("job", Status::Stopped)]).await;
    let after: Vec<_> = world.handle.snapshot().processes.iter().map(|view| (view.id, view.pid)).collect();
    assert_eq!((after, world.host.starts().len()), (before, 3));
}

#[tokio::test(start_paused = true)]
async fn what_died_while_no_agent_ran_is_started_and_what_nobody_knows_is_cleared() {
    let world = World::new();
    world.handle.create(definition("web")).await.expect("created");
    world.handle.create(definition("old")).await.expect("created");
    world.until(&[("web", Status::Online), ("old", Status::Online)]).await;
    let (host, directory) = (world.host.clone(), Arc::clone(&world.directory));
    assert!(world.shutdown.drain(Duration::from_secs(5)).await);
    host.end("web@0.1", Exit::Code(1));
    let file = directory.path().join("processes.json");
    let mut saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("saved")).expect("JSON");
    saved["processes"].as_array_mut().expect("a list").retain(|process| process["definition"]["name"] != "old");
    std::fs::write(&file, saved.to_string()).expect("written");
    let world = World::on(host, directory, Vec::new());
    world.until(&[("web", Status::Online)]).await;
    let mut changes = world.handle.changes();
    tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.ok();
    assert_eq!(world.host.running(), ["web@0.2"]);
}

#[tokio::test(start_paused = true)]
async fn processes_of_the_configuration_come_change_and_go_with_it() {
    let world = World::new();
    world.handle.create(definition("mine")).await.expect("created");
    let lines = world.handle.configure(vec![spec(definition("web"))]).await.expect("taken");
    assert_eq!(lines, ["process web added"]);
    world.until(&[("mine", Status::Online), ("web", Status::Online)]).await;
    assert_eq!(world.handle.configure(vec![spec(definition("web"))]).await.expect("taken"), Vec::<String>::new());
    let other = Definition { kill_timeout: Span::millis(1), ..definition("web") };
    let lines = world.handle.configure(vec![spec(other)]).await.expect("taken");
    assert_eq!(lines, ["process web changed and is reloaded"]);
    assert!(matches!(world.handle.delete(&named("web")).await, Err(Error::Configured { .. })));
    world.handle.configure(Vec::new()).await.expect("taken");
    world.until(&[("mine", Status::Online)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_restarts_what_an_earlier_agent_started() {
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let world = World::on(Fake::default(), directory, vec![spec(definition("web"))]);
    world.until(&[("web", Status::Online)]).await;
    let other = Definition { kill_timeout: Span::millis(1), ..definition("web") };
    let world = world.next_agent(vec![spec(other)]).await;
    let mut changes = world.handle.changes();
    let host = world.host.clone();
    let renewed = |_: &Arc<Snapshot>| host.running() == ["web@0.2"];
    tokio::time::timeout(Duration::from_secs(60), changes.wait_for(renewed))
        .await
        .expect("renewed")
        .map(drop)
        .expect("alive");
}

#[tokio::test(start_paused = true)]
async fn a_scale_makes_and_takes_instances_with_their_ports() {
    let world = World::new();
    let web = Definition { port: Ports::parse("3000-3009"), ..definition("web") };
    world.handle.create(web).await.expect("created");
    world.handle.scale("web", Scale::To(3)).await.expect("scaled");
    world.until(&[("web-0", Status::Online), ("web-1", Status::Online), ("web-2", Status::Online)]).await;
    let ports: Vec<_> = world.handle.snapshot().processes.iter().map(|view| view.port).collect();
    assert_eq!(ports, [Some(3000), Some(3001), Some(3002)]);
    world.handle.scale("web", Scale::By(-2)).await.expect("scaled");
    world.until(&[("web", Status::Online)]).await;
    assert_eq!(world.host.running(), ["web@0.1"]);
    assert!(world.handle.scale("web", Scale::By(-1)).await.is_err());
    assert!(world.handle.scale("web", Scale::To(11)).await.is_err(), "there are ten ports");
}

#[tokio::test(start_paused = true)]
async fn a_port_that_somebody_has_is_refused_or_passed_over() {
    let world = World::new();
    world.host.use_port(3000);
    let one = Definition { port: Ports::parse("3000"), ..definition("web") };
    let error = world.handle.create(one).await.expect_err("in use");
    assert_eq!(error, Error::PortInUse { name: "web".to_owned(), port: 3000 });
    assert!(world.handle.snapshot().processes.is_empty(), "nothing is kept");
    for (name, port) in [("a", 3001), ("b", 3002)] {
        let free = Definition { port: Ports::parse("auto:3000-3002"), ..definition(name) };
        world.handle.create(free).await.expect("created");
        let mut changes = world.handle.changes();
        let has = |snapshot: &Arc<Snapshot>| snapshot.processes.last().is_some_and(|view| view.port == Some(port));
        tokio::time::timeout(Duration::from_secs(5), changes.wait_for(has))
            .await
            .expect("in time")
            .map(drop)
            .expect("alive");
    }
    let third = Definition { port: Ports::parse("auto:3000-3002"), ..definition("c") };
    assert!(matches!(world.handle.create(third).await, Err(Error::PortInUse { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_is_wrong_or_cannot_start_leaves_nothing() {
    let world = World::new();
    assert!(matches!(world.handle.create(definition("a/b")).await, Err(Error::Invalid(_))));
    world.host.refuse(Some(StartError { why: "script: there is no file".to_owned(), permanent: true }));
    assert!(matches!(world.handle.create(definition("web")).await, Err(Error::Start { .. })));
    world.host.refuse(None);
    world.handle.create(cluster("web", 2)).await.expect("created");
    assert!(matches!(world.handle.create(definition("web-1")).await, Err(Error::Exists { .. })));
    assert!(matches!(world.handle.create(definition("web")).await, Err(Error::Exists { .. })));
    assert_eq!(world.handle.snapshot().processes.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_restart_takes_another_port_and_number() {
    let world = World::new();
    world.handle.create(Definition { port: Ports::parse("3000"), ..definition("web") }).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    let change = Change { port: Ports::parse("4000-4001"), instances: Some(2) };
    let views = world.handle.restart(&named("web"), change).await.expect("restarted");
    let ports: Vec<_> = views.iter().map(|view| (view.status, view.port)).collect();
    assert_eq!(ports, [(Status::Online, Some(4000)), (Status::Online, Some(4001))]);
}

#[tokio::test(start_paused = true)]
async fn a_changed_view_has_the_version_of_its_snapshot_and_others_keep_theirs() {
    let world = World::new();
    world.handle.create(definition("a")).await.expect("created");
    world.handle.create(definition("b")).await.expect("created");
    world.until(&[("a", Status::Online), ("b", Status::Online)]).await;
    let before = world.handle.snapshot();
    world.handle.stop(&named("b")).await.expect("stopped");
    let after = world.handle.snapshot();
    assert!(after.version > before.version && after.processes[1].version > before.version);
    assert!(Arc::ptr_eq(&after.processes[0], &before.processes[0]), "what did not change is the same");
}

fn with_check(name: &str, restart: bool) -> Definition {
    let check = serde_json::json!({ "check_type": "script", "script": "check", "interval": "1s", "retries": 2, "restart": restart });
    Definition { health_check: Some(serde_json::from_value(check).expect("a check")), ..definition(name) }
}

#[tokio::test(start_paused = true)]
async fn one_with_a_check_is_online_once_it_is_healthy_and_restarted_when_it_is_not() {
    let world = World::new();
    world.host.set_failing("check", true);
    world.handle.create(with_check("web", true)).await.expect("created");
    let mut changes = world.handle.changes();
    let was_asked = |snapshot: &Arc<Snapshot>| snapshot.processes.iter().any(|view| view.health.total > 2);
    changes.wait_for(was_asked).await.map(drop).expect("asked");
    assert_eq!(world.handle.snapshot().processes[0].status, Status::Starting);
    world.host.set_failing("check", false);
    world.until(&[("web", Status::Online)]).await;
    assert!(world.host.commands().iter().all(|command| command == "web@0.1 check"));
    world.host.set_failing("check", true);
    let host = world.host.clone();
    let is_new = |_: &Arc<Snapshot>| host.starts().len() == 2;
    changes.wait_for(is_new).await.map(drop).expect("restarted");
    world.host.set_failing("check", false);
    world.until(&[("web", Status::Online)]).await;
    assert_eq!(world.handle.snapshot().processes[0].restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_one_that_is_not_to_be_restarted_is_shown_as_such() {
    let world = World::new();
    world.handle.create(with_check("web", false)).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    world.host.set_failing("check", true);
    let mut changes = world.handle.changes();
    let is_unhealthy = |snapshot: &Arc<Snapshot>| snapshot.processes[0].health.status == HealthStatus::Unhealthy;
    changes.wait_for(is_unhealthy).await.map(drop).expect("noticed");
    assert_eq!(world.handle.snapshot().processes[0].health.last_error.as_deref(), Some("code 1"));
    assert_eq!(world.host.starts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_process_waits_for_those_it_depends_on() {
    let world = World::new();
    let needs_db = Definition { depends_on: vec!["db".to_owned()], ..definition("web") };
    let missing = world.handle.create(needs_db.clone()).await.expect_err("nothing to wait for");
    assert!(matches!(missing, Error::Invalid(_)), "{missing}");
    world.host.set_failing("check", true);
    world.handle.create(with_check("db", true)).await.expect("created");
    world.handle.create(needs_db).await.expect("created");
    world.until(&[("db", Status::Starting), ("web", Status::Starting)]).await;
    assert_eq!(world.host.starts(), ["db@0.1"]);
    assert_eq!(world.handle.snapshot().processes[1].error.as_deref(), Some("it waits for db"));
    world.handle.stop(&named("web")).await.expect("a wait can be ended");
    world.handle.start(&named("web")).await.expect("and begun again");
    world.host.set_failing("check", false);
    world.until(&[("db", Status::Online), ("web", Status::Online)]).await;
    assert_eq!(world.host.starts(), ["db@0.1", "web@0.1"]);
}

#[tokio::test(start_paused = true)]
async fn hooks_run_before_a_start_and_after_an_end() {
    let world = World::new();
    let hooks = ["before", "after"].map(|name| Some(name.to_owned()));
    let [pre_start, post_stop] = hooks;
    world.handle.create(Definition { pre_start, post_stop, ..definition("web") }).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    world.handle.stop(&named("web")).await.expect("stopped");
    assert_eq!(world.host.commands(), ["web@0.1 before", "web@0.1 after"]);
    world.host.set_failing("before", true);
    world.handle.start(&named("web")).await.expect("accepted");
    let mut changes = world.handle.changes();
    let failed = |snapshot: &Arc<Snapshot>| snapshot.processes[0].error.as_deref() == Some("pre_start: code 1");
    changes.wait_for(failed).await.map(drop).expect("it is told");
    assert_eq!(world.host.starts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_calendar_restarts_what_runs_and_starts_what_has_ended_but_not_what_was_stopped() {
    let world = World::new();
    let wrong = Definition { cron_restart: Some("61 * * * *".to_owned()), ..definition("web") };
    let refused = world.handle.create(wrong).await.expect_err("no such minute");
    assert!(matches!(&refused, Error::Invalid(error) if error.key == "cron_restart"), "{refused:?}");
    let hourly =
        |name: &str| Definition { cron_restart: Some("0 * * * *".to_owned()), autorestart: false, ..definition(name) };
    for name in ["web", "job", "off"] {
        world.handle.create(hourly(name)).await.expect("created");
    }
    world.until(&[("web", Status::Online), ("job", Status::Online), ("off", Status::Online)]).await;
    world.host.end("job@0.1", Exit::Code(0));
    world.handle.stop(&named("off")).await.expect("stopped");
    world.until(&[("web", Status::Online), ("job", Status::Stopped), ("off", Status::Stopped)]).await;
    let next = |index: usize| world.handle.snapshot().processes[index].next_restart;
    assert!(next(0).is_some_and(|next| next > world.host.wall_clock()) && next(1) == next(0) && next(2).is_none());
    let mut changes = world.handle.changes();
    let renewed = |snapshot: &Arc<Snapshot>| snapshot.processes[..2].iter().all(|view| view.restarts == 1);
    tokio::time::timeout(Duration::from_secs(3660), changes.wait_for(renewed))
        .await
        .expect("in time")
        .map(drop)
        .expect("alive");
    world.until(&[("web", Status::Online), ("job", Status::Online), ("off", Status::Stopped)]).await;
    assert_eq!(world.host.running(), ["job@0.2", "web@0.2"]);
    assert_eq!(world.handle.snapshot().processes[0].restart_reason, Some(Reason::Cron));
    assert!(next(0).is_some_and(|next| next > world.host.wall_clock()));
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_keeps_to_the_calendar_and_makes_up_for_nothing() {
    let world = World::new();
    world
        .handle
        .create(Definition { cron_restart: Some("0 * * * *".to_owned()), ..definition("web") })
        .await
        .expect("created");
    world.until(&[("web", Status::Online)]).await;
    let before = world.handle.snapshot().processes[0].next_restart;
    let world = world.next_agent(Vec::new()).await;
    world.until(&[("web", Status::Online)]).await;
    assert_eq!(world.handle.snapshot().processes[0].next_restart, before);
    assert_eq!(world.host.starts().len(), 1);
}

fn watching(name: &str) -> Definition {
    let cwd = Some("/srv/app".into());
    Definition { watch: Watch::Directory, cwd, ..definition(name) }
}

/// Touches a file until somebody watches it: the watch is opened beside the start.
async fn touch(world: &World, path: &str) {
    while world.host.touch(path) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until the only process has another `error`.
async fn until_error(world: &World, expected: Option<&str>) {
    let mut changes = world.handle.changes();
    let is_so = |snapshot: &Arc<Snapshot>| match (snapshot.processes[0].error.as_deref(), expected) {
        (Some(error), Some(expected)) => error.contains(expected),
        (error, expected) => error == expected,
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), changes.wait_for(is_so)).await;
    assert!(waited.is_ok(), "{expected:?} never came; there is {:?}", world.handle.snapshot());
}

#[tokio::test(start_paused = true)]
async fn many_changes_of_files_are_one_restart_and_none_while_it_is_stopped() {
    let world = World::new();
    world.handle.create(watching("web")).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    touch(&world, "/srv/app/a.js").await;
    for _ in 0..10 {
        world.host.touch("/srv/app/b.js");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut changes = world.handle.changes();
    let renewed = |snapshot: &Arc<Snapshot>| snapshot.processes[0].restarts > 0 && snapshot.processes[0].pid.is_some();
    let view = Arc::clone(&changes.wait_for(renewed).await.expect("it runs").processes[0]);
    assert_eq!((view.restart_reason, view.restarts), (Some(Reason::Watch), 1));
    assert_eq!(world.host.running(), ["web@0.2"]);
    world.handle.stop(&named("web")).await.expect("stopped");
    while world.host.touch("/srv/app/a.js") > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.handle.start(&named("web")).await.expect("started");
    touch(&world, "/srv/app/a.js").await;
    changes.wait_for(|snapshot| snapshot.processes[0].restarts == 2).await.map(drop).expect("restarted");
}

#[tokio::test(start_paused = true)]
async fn one_that_changes_its_own_files_is_not_restarted_for_ever() {
    let world = World::new();
    world.handle.create(watching("web")).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    for restarts in 1..=20 {
        touch(&world, "/srv/app/cache.db").await;
        let mut changes = world.handle.changes();
        let renewed = |snapshot: &Arc<Snapshot>| {
            snapshot.processes[0].restarts == restarts && snapshot.processes[0].status == Status::Online
        };
        changes.wait_for(renewed).await.map(drop).expect("restarted");
    }
    touch(&world, "/srv/app/cache.db").await;
    until_error(&world, Some("now for /srv/app/cache.db")).await;
    assert_eq!(world.handle.snapshot().processes[0].status, Status::Online, "it goes on running");
    world.handle.restart(&named("web"), Change::default()).await.expect("restarted");
    until_error(&world, None).await;
    touch(&world, "/srv/app/a.js").await;
    let mut changes = world.handle.changes();
    changes.wait_for(|snapshot| snapshot.processes[0].restarts == 22).await.map(drop).expect("it is watched again");
}

#[tokio::test(start_paused = true)]
async fn files_that_cannot_be_watched_are_told_and_the_process_runs() {
    let world = World::new();
    world.host.blind("watch: the kernel takes no more");
    world.handle.create(watching("web")).await.expect("the fake host checks nothing");
    until_error(&world, Some("the kernel takes no more")).await;
    world.until(&[("web", Status::Online)]).await;
}

mod reloads;
