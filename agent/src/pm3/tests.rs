use super::call::Verb;
use super::caller::Caller;
use super::*;
use crate::model::Node;
use crate::model::key::PublicKey;

struct FakeAgent;

impl Agent for FakeAgent {
    fn reload(&self) -> BoxFuture<'static, Result<Vec<String>, Failure>> {
        Box::pin(async { Ok(vec!["nothing changed".to_owned()]) })
    }

    fn shutdown(&self) -> BoxFuture<'static, Result<Vec<String>, Failure>> {
        Box::pin(async { Err(Failure::new(failure::Kind::Busy, "busy")) })
    }

    fn peers(&self) -> BoxFuture<'static, Vec<PeerFigures>> {
        Box::pin(async { Vec::new() })
    }
}

/// The methods of a node over this store.
pub(super) fn pm3_over(directory: &std::path::Path, store: store::Handle) -> Arc<Pm3> {
    let node = Node {
        id: "alpha".parse().expect("a label"),
        addresses: vec!["10.80.0.1/24".parse().expect("a prefix")],
        public_key: PublicKey::from_bytes([0xaa; 32]),
    };
    let model = Model::new(node, "weft.internal".to_owned(), Vec::new()).expect("a model");
    let inputs = Inputs {
        model: watch::Sender::new(Arc::new(model)).subscribe(),
        agent: Arc::new(FakeAgent),
        state_dir: directory.to_owned(),
        history: History::default(),
        process: crate::process::handle::Handle::disabled("this is a test"),
        ip_table: None,
        store,
        bus: crate::bus::Handle::off(),
    };
    Pm3::start(inputs).expect("started")
}

fn pm3() -> (tempfile::TempDir, Arc<Pm3>) {
    let directory = tempfile::tempdir().expect("a directory");
    let pm3 = pm3_over(directory.path(), store::Handle::absent());
    (directory, pm3)
}

#[tokio::test]
async fn without_a_store_that_runs_keys_are_not_to_be_had() {
    assert_eq!(ask(Verb::Get, "/kv/a", "").await.expect_err("absent").kind, failure::Kind::Unavailable);
}

async fn ask(verb: Verb, path: &str, body: &'static str) -> Outcome {
    let (_directory, pm3) = pm3();
    let (method, parts) = pm3.find(verb, path)?;
    let call = Call {
        verb,
        parts,
        query: None,
        body: Bytes::from_static(body.as_bytes()),
        headers: Vec::new(),
        caller: Arc::new(Caller::unknown()),
        from: None,
    };
    pm3.call(method, call).await
}

fn value(outcome: Outcome) -> serde_json::Value {
    match outcome {
        Ok(Reply::Json(bytes) | Reply::Raw(bytes)) => serde_json::from_slice(&bytes).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ping_is_the_name_of_the_node_and_version_its_version() {
    assert_eq!(value(ask(Verb::Get, "/ping", "").await), "alpha");
    assert_eq!(value(ask(Verb::Post, "/version", "").await), concat!("v", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn the_system_is_there_at_once() {
    let system = value(ask(Verb::Get, "/system", "").await);
    assert_eq!(system["machine_id"].as_str().map(str::len), Some(8), "{system}");
    assert!(system["totalmem"].as_u64().is_some_and(|bytes| bytes > 0), "{system}");
}

#[tokio::test]
async fn a_lone_node_is_its_own_first_peer() {
    let peers = value(ask(Verb::Get, "/peers/alive", "").await);
    assert_eq!(
        (&peers[0]["host"], &peers[0]["me"], &peers[0]["ip"]),
        (&"alpha".into(), &true.into(), &"10.80.0.1".into())
    );
}

#[tokio::test]
async fn arguments_that_mean_nothing_are_named() {
    let failure = ask(Verb::Post, "/reload", "{\"force\":true}").await.expect_err("refused");
    assert!(failure.text.contains("\"force\""), "{failure}");
    let failure = ask(Verb::Post, "/ipinfo", "{\"ip\":\"x\"}").await.expect_err("refused");
    assert!(failure.text.contains("invalid ip \"x\""), "{failure}");
    let failure = ask(Verb::Post, "/sign", "{}").await.expect_err("refused");
    assert!(failure.text.contains("url"), "{failure}");
}

#[tokio::test]
async fn what_the_agent_answers_is_passed_on() {
    assert_eq!(value(ask(Verb::Post, "/reload", "").await)["done"][0], "nothing changed");
    assert_eq!(ask(Verb::Post, "/shutdown", "").await.expect_err("busy").kind, failure::Kind::Busy);
}
