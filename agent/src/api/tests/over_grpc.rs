//! The control socket over gRPC: the same answers, and the streams.

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::agent_client::AgentClient;

use super::*;

async fn client(directory: &Path) -> AgentClient<Channel> {
    let path = control::path(directory);
    let connector = tower::service_fn(move |_uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    AgentClient::new(Endpoint::from_static("http://weft").connect_with_connector(connector).await.expect("connected"))
}

#[tokio::test]
async fn status_and_peers_are_the_same_as_over_http() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let mut client = client(directory.path()).await;
    let status = client.get_status(proto::GetStatusRequest {}).await.expect("answered").into_inner();
    assert_eq!(status.wireguard.and_then(|wireguard| wireguard.link).as_deref(), Some("weft0"));
    let grpc = client.list_peers(proto::ListPeersRequest {}).await.expect("answered").into_inner();
    let answer = raw(directory.path(), request("GET", "/status/peers", "")).await;
    let http: proto::PeerList = serde_json::from_str(parts(&answer).1).expect("the same schema");
    assert_eq!(grpc, http);
}

#[tokio::test]
async fn a_watched_status_comes_again_when_it_changes() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let mut client = client(directory.path()).await;
    let mut stream = client.watch_status(proto::WatchStatusRequest {}).await.expect("answered").into_inner();
    let first = stream.message().await.expect("no error").expect("the state now");
    assert_eq!(first.state, "ready");
    // The same value again is no change.
    fixture.wireguard.send_modify(|_| {});
    fixture.wireguard.send_modify(|status| Arc::make_mut(status).errors.push("gone".to_owned()));
    let second = stream.message().await.expect("no error").expect("the change");
    assert_eq!(
        (second.state.as_str(), second.problems.as_slice()),
        ("degraded", ["wireguard: gone".to_owned()].as_slice())
    );
}

#[tokio::test]
async fn counters_come_once_an_interval() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let mut client = client(directory.path()).await;
    let request = proto::WatchCountersRequest { interval_ms: 100 };
    let mut stream = client.watch_counters(request).await.expect("answered").into_inner();
    let first = stream.message().await.expect("no error").expect("now");
    let second = stream.message().await.expect("no error").expect("an interval later");
    assert!(second.at_ms >= first.at_ms + 50, "{} {}", first.at_ms, second.at_ms);
    assert_eq!(first.peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["beta"]);
}

#[tokio::test]
async fn an_interval_out_of_range_is_refused() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let mut client = client(directory.path()).await;
    for interval_ms in [0, 99, 60_001] {
        let error = client.watch_counters(proto::WatchCountersRequest { interval_ms }).await.expect_err("refused");
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
    }
}

#[tokio::test]
async fn streams_end_with_the_agent() {
    let mut fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let mut client = client(directory.path()).await;
    let mut stream = client.watch_status(proto::WatchStatusRequest {}).await.expect("answered").into_inner();
    stream.message().await.expect("no error").expect("the state now");
    let shutdown = std::mem::take(&mut fixture.shutdown);
    let (drained, end) = tokio::join!(shutdown.drain(std::time::Duration::from_secs(5)), stream.message());
    assert!(drained, "nothing holds the listener");
    assert_eq!(end.expect("a clean end"), None);
}
