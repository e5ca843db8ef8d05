use super::*;
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::foundation::metrics::Metrics;
use crate::pm3::call::Verb;
use crate::pm3::caller::Caller;

/// A lone node with a real store.
struct Node {
    pm3: Arc<Pm3>,
    shutdown: Shutdown,
    _directory: tempfile::TempDir,
}

async fn node() -> Node {
    let directory = tempfile::tempdir().expect("a directory");
    let shutdown = Shutdown::default();
    let inputs = store::Inputs {
        config: store::config::Config::default(),
        node: "alpha".parse().expect("a name"),
        directory: directory.path().join("store"),
        schemas: vec![SCHEMA],
        formation: store::Formation::Alone,
        network: None,
    };
    let handle = store::start(inputs, &Metrics::default(), Readiness::default().block("store"), shutdown.stop());
    tokio::time::timeout(Duration::from_secs(30), handle.ready()).await.expect("it leads itself");
    let pm3 = crate::pm3::tests::pm3_over(directory.path(), handle);
    Node { pm3, shutdown, _directory: directory }
}

impl Node {
    async fn ask(&self, verb: Verb, path: &str, body: &str) -> Outcome {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query.to_owned())));
        let (method, parts) = self.pm3.find(verb, path)?;
        let caller = Arc::new(Caller::unknown());
        let call =
            Call { verb, parts, query, body: Bytes::from(body.to_owned()), headers: Vec::new(), caller, from: None };
        self.pm3.call(method, call).await
    }

    async fn value(&self, verb: Verb, path: &str, body: &str) -> Value {
        match self.ask(verb, path, body).await {
            Ok(Reply::Json(bytes)) => serde_json::from_slice(&bytes).expect("JSON"),
            Ok(Reply::Nothing) => json!({}),
            other => panic!("{path}: {other:?}"),
        }
    }

    async fn kind(&self, verb: Verb, path: &str, body: &str) -> Kind {
        self.ask(verb, path, body).await.expect_err(path).kind
    }

    async fn end(self) {
        let Self { pm3, shutdown, _directory } = self;
        drop(pm3);
        shutdown.drain(Duration::from_secs(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_set_read_listed_and_deleted() {
    let node = node().await;
    assert_eq!(node.kind(Verb::Get, "/kv/a", "").await, Kind::NotFound);
    assert_eq!(node.value(Verb::Get, "/kv", "").await, json!([]), "a read makes nothing");
    assert_eq!(node.value(Verb::Put, "/kv/a", "{\"value\":{\"x\":[1,\"é\"]}}").await, 1);
    assert_eq!(node.value(Verb::Get, "/kv/a", "").await, json!({ "revision": 1, "value": { "x": [1, "é"] } }));
    assert_eq!(node.value(Verb::Put, "/kv/a", "{\"revision\":1,\"value\":2}").await, 2);
    assert_eq!(node.kind(Verb::Put, "/kv/a", "{\"revision\":1,\"value\":3}").await, Kind::Conflict);
    assert_eq!(node.kind(Verb::Put, "/kv/none", "{\"revision\":7,\"value\":3}").await, Kind::Conflict);
    assert_eq!(node.value(Verb::Get, "/kv/a", "").await["value"], 2, "nothing of a refused write is there");
    node.value(Verb::Post, "/kv/b%2Fc", "\"raw\"").await;
    node.value(Verb::Post, "/kv/b2", " null ").await;
    assert_eq!(node.kind(Verb::Post, "/kv/b3", "no json").await, Kind::Invalid);
    assert_eq!(node.value(Verb::Get, "/kv", "").await, json!(["a", "b/c", "b2"]));
    assert_eq!(node.value(Verb::Get, "/kv?prefix=b&limit=1", "").await, json!(["b/c"]));
    assert_eq!(node.value(Verb::Get, "/kv?prefix=b&after=b/c", "").await, json!(["b2"]));
    assert_eq!(node.value(Verb::Delete, "/kv/a", "").await, json!({}));
    assert_eq!(node.kind(Verb::Delete, "/kv/a", "").await, Kind::NotFound);
    assert_eq!(node.kind(Verb::Put, &format!("/kv/{}", "k".repeat(257)), "{\"value\":1}").await, Kind::Invalid);
    assert_eq!(node.kind(Verb::Put, "/kv/a", "{\"colour\":1}").await, Kind::Invalid);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_swap_at_once_each_wins_once() {
    let node = node().await;
    node.value(Verb::Put, "/kv/n", "{\"value\":0}").await;
    let add = async || {
        loop {
            let now = node.value(Verb::Get, "/kv/n", "").await["value"].as_i64().expect("a number");
            let body = json!({ "expected": now, "desired": now + 1 }).to_string();
            if node.value(Verb::Post, "/kv/n/cas", &body).await["ok"] == true {
                return;
            }
        }
    };
    futures_util::future::join_all((0..16).map(|_| add())).await;
    assert_eq!(node.value(Verb::Get, "/kv/n", "").await["value"], 16);
    let refused = node.value(Verb::Post, "/kv/n/cas", "{\"expected\":{\"a\":1},\"desired\":1}").await;
    assert_eq!((&refused["ok"], &refused["diff"]["changed"]), (&json!(false), &json!([16, { "a": 1 }])));
    let made = node.value(Verb::Post, "/kv/new/cas", "{\"expected\":null,\"desired\":\"x\"}").await;
    assert_eq!((&made["ok"], &made["value"]), (&json!(true), &json!("x")));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_the_next_change_of_its_key() {
    let node = node().await;
    let waiting = node.value(Verb::Get, "/kv/w/watch?seconds=30", "");
    let writing = async {
        node.value(Verb::Put, "/kv/other", "{\"value\":1}").await;
        node.value(Verb::Put, "/kv/w", "{\"value\":\"now\"}").await
    };
    let (seen, revision) = tokio::join!(waiting, writing);
    assert_eq!(seen, json!({ "revision": revision, "value": "now" }));
    let waiting = node.ask(Verb::Get, "/kv/w/watch?revision=2&seconds=30", "");
    let (gone, _) = tokio::join!(waiting, node.value(Verb::Delete, "/kv/w", ""));
    assert!(gone.is_ok_and(|reply| reply == Reply::Json(Bytes::from_static(b"{\"revision\":0,\"value\":null}"))));
    assert_eq!(node.value(Verb::Get, "/kv/w/watch?seconds=0", "").await["revision"], 0, "after its time, as it is");
    node.end().await;
}

#[test]
fn differences_are_named_by_member() {
    let check = |current: Value, expected: Value, wanted: Value| {
        assert_eq!(difference(&current, &expected).unwrap_or_default(), wanted, "{current} {expected}");
    };
    check(json!({ "a": 1, "b": [1] }), json!({ "b": [1], "a": 1.0 }), Value::Null);
    check(json!(1), json!("1"), json!({ "changed": [1, "1"] }));
    check(
        json!({ "a": 1, "b": 2, "d": { "e": 1 } }),
        json!({ "a": 1, "c": 3, "d": { "e": 2 } }),
        json!({ "b": { "prop-added": 2 }, "c": { "prop-removed": 3 }, "d": { "e": { "changed": [1, 2] } } }),
    );
}
