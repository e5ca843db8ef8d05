//! Reloads: beside the process that runs where both can be there, else after it.

use super::*;
use crate::sys::listeners::Listener;

fn listener(port: u16, can_be_shared: bool) -> Vec<Listener> {
    vec![Listener { address: ([0, 0, 0, 0], port).into(), can_be_shared }]
}

const THREE: [(&str, Status); 3] = [("web-0", Status::Online), ("web-1", Status::Online), ("web-2", Status::Online)];

#[tokio::test(start_paused = true)]
async fn what_can_be_beside_is_never_fewer_than_all() {
    let world = World::new();
    world.handle.create(cluster("web", 3)).await.expect("created");
    world.until(&THREE).await;
    world.host.count_fewest();
    let (views, notices) = world.handle.reload(&named("web")).await.expect("reloaded");
    assert_eq!((world.host.fewest(), notices), (3, Vec::new()));
    assert_eq!(world.host.running(), ["web@0.2", "web@1.2", "web@2.2"], "what was before is gone");
    let shown: Vec<_> = views.iter().map(|view| (view.status, view.restarts, view.restart_reason)).collect();
    assert_eq!(shown, [(Status::Online, 1, Some(Reason::Asked)); 3]);
    assert_eq!(views[0].pid, Some(4), "the process that runs now");
    world.host.end("web@0.2", Exit::Signal(11));
    world.until(&THREE).await;
    let runs = |_: &Arc<Snapshot>| world.host.running().contains(&"web@0.3".to_owned());
    world.handle.changes().wait_for(runs).await.expect("its end is seen");
}

#[tokio::test(start_paused = true)]
async fn what_listens_alone_is_stopped_first_one_after_the_other_and_that_is_said() {
    let world = World::new();
    world.host.listen("web", listener(8080, false));
    world.handle.create(cluster("web", 3)).await.expect("created");
    world.until(&THREE).await;
    world.host.count_fewest();
    let (_views, notices) = world.handle.reload(&named("web")).await.expect("reloaded");
    assert_eq!(world.host.fewest(), 2);
    assert_eq!(world.host.running(), ["web@0.2", "web@1.2", "web@2.2"]);
    assert_eq!(notices.len(), 3);
    assert!(notices[1].contains("web-1 is stopped before") && notices[1].contains("0.0.0.0:8080"), "{notices:?}");
}

#[tokio::test(start_paused = true)]
async fn a_port_is_shared_or_another_of_its_range_is_taken() {
    let world = World::new();
    let moves = Definition { port: Ports::parse("auto:5000-5001"), ..definition("web") };
    world.handle.create(moves).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    let (views, notices) = world.handle.reload(&named("web")).await.expect("reloaded");
    assert_eq!((views[0].port, notices), (Some(5001), Vec::new()));
    world.host.use_port(5000);
    let (_views, notices) = world.handle.reload(&named("web")).await.expect("reloaded");
    assert!(notices[0].contains("auto:5000-5001"), "{notices:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_come_up_changes_nothing() {
    let world = World::new();
    world.handle.create(cluster("web", 2)).await.expect("created");
    let online = [("web-0", Status::Online), ("web-1", Status::Online)];
    world.until(&online).await;
    world.host.doom(true);
    let error = world.handle.reload(&named("web")).await.expect_err("it ends at once");
    let text = crate::foundation::error::chain(&error);
    assert!(text.contains("ended (code 7)") && text.contains("goes on"), "{text}");
    world.until(&online).await;
    assert_eq!(world.host.running(), ["web@0.1", "web@1.1"]);
    world.host.doom(false);
    world.handle.reload(&named("web")).await.expect("another try");
    assert_eq!(world.host.running(), ["web@0.3", "web@1.2"]);
}

#[tokio::test(start_paused = true)]
async fn the_next_process_is_in_place_only_once_it_is_healthy() {
    let world = World::new();
    let checked = serde_json::json!({ "name": "web", "script": "x", "health_check":
        { "check_type": "script", "script": "probe", "interval": "1h", "start_timeout": "10s" } });
    world.handle.create(serde_json::from_value(checked).expect("a definition")).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    world.host.set_failing("probe", true);
    let error = world.handle.reload(&named("web")).await.expect_err("it is never healthy");
    let text = crate::foundation::error::chain(&error);
    assert!(text.contains("not healthy: code 1") && text.contains("10 s"), "{text}");
    assert_eq!(world.host.running(), ["web@0.1"]);
    world.host.set_failing("probe", false);
    let (views, _notices) = world.handle.reload(&named("web")).await.expect("healthy");
    assert_eq!((views[0].health.status, world.host.running()), (HealthStatus::Healthy, vec!["web@0.3".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_stop_calls_off_what_stands_by_and_leaves_nothing() {
    let world = World::new();
    let slow = Definition { min_uptime: Span::millis(3_600_000), ..definition("web") };
    world.handle.create(slow).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    let (target, handle) = (named("web"), world.handle.clone());
    let reload = async { handle.reload(&target).await.expect_err("called off") };
    let stop = async {
        while world.host.running().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.handle.stop(&named("web")).await.expect("stopped");
        assert!(world.host.running().is_empty(), "{:?}", world.host.running());
    };
    tokio::join!(reload, stop);
    world.handle.delete(&named("web")).await.expect("deleted");
    assert!(world.handle.snapshot().processes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_takes_the_one_that_served_over_and_clears_what_stood_by() {
    let world = World::new();
    let slow = Definition { min_uptime: Span::millis(3_600_000), ..definition("web") };
    world.handle.create(slow).await.expect("created");
    world.until(&[("web", Status::Online)]).await;
    let (target, handle) = (named("web"), world.handle.clone());
    let reload = task::spawn("reload", async move { drop(handle.reload(&target).await) });
    while world.host.running().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let next = world.next_agent(Vec::new()).await;
    drop(reload);
    next.until(&[("web", Status::Online)]).await;
    while next.host.running() != ["web@0.1"] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    next.handle.restart(&named("web"), Change::default()).await.expect("restarted");
    assert_eq!(next.host.running(), ["web@0.3"], "no generation comes twice");
}
