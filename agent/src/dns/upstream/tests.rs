use std::net::Ipv4Addr;

use hickory_proto::op::MessageType;
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::{A, SOA};
use tokio::net::UdpSocket;

use super::*;
use crate::foundation::task::{self, Task};

/// An upstream on loopback that answers with `reply` and counts what it was asked.
struct Scripted {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _task: Task,
}

async fn scripted(reply: impl Fn(&Message) -> Option<Message> + Send + 'static) -> Scripted {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let task = task::spawn("scripted-upstream", async move {
        let mut buffer = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::SeqCst);
            let Some(reply) = Message::from_vec(&buffer[..length]).ok().and_then(|query| reply(&query)) else {
                continue;
            };
            socket.send_to(&reply.to_vec().expect("it encodes"), client).await.expect("sent");
        }
    });
    Scripted { address, asked, _task: task }
}

fn reply_to(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::query();
    reply.metadata = hickory_proto::op::Metadata::response_from_request(&query.metadata);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.response_code = code;
    reply.queries.clone_from(&query.queries);
    reply
}

fn address_reply(query: &Message) -> Option<Message> {
    let mut reply = reply_to(query, ResponseCode::NoError);
    let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 80)));
    reply.answers.push(Record::from_rdata(query.queries[0].name().clone(), 300, address));
    Some(reply)
}

fn forwarder(upstreams: &[SocketAddr]) -> Forwarder {
    let metrics = Metrics::new(&crate::foundation::metrics::Metrics::default());
    Forwarder::new(upstreams.to_vec(), 64, metrics).expect("prepared")
}

fn wanted(name: &str) -> Wanted {
    let query = Query::query(Name::from_ascii(name).expect("a name"), RecordType::A);
    Wanted { query, dnssec_ok: false, checking_disabled: false }
}

#[tokio::test]
async fn an_answer_is_kept_and_shows_the_case_of_each_client() {
    let upstream = scripted(address_reply).await;
    let forwarder = forwarder(&[upstream.address]);
    let first = forwarder.lookup(&wanted("www.Example.COM.")).await.expect("answered");
    assert_eq!((first.source, first.rcode), (Source::Upstream, Rcode::NoError));
    assert_eq!(first.answers[0].name.to_string(), "www.Example.COM.");
    let second = forwarder.lookup(&wanted("WWW.example.com.")).await.expect("answered");
    assert_eq!(second.source, Source::Cache);
    assert_eq!(second.answers[0].name.to_string(), "WWW.example.com.");
    assert_eq!(upstream.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_negative_answer_is_passed_on_with_its_soa_and_kept() {
    let upstream = scripted(|query| {
        let mut reply = reply_to(query, ResponseCode::NXDomain);
        let zone: Name = "com.".parse().expect("a name");
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, 60);
        reply.authorities.push(Record::from_rdata(zone, 60, RData::SOA(soa)));
        Some(reply)
    })
    .await;
    let forwarder = forwarder(&[upstream.address]);
    for source in [Source::Upstream, Source::Cache] {
        let found = forwarder.lookup(&wanted("nowhere.example.com.")).await.expect("answered");
        assert_eq!((found.rcode, found.source), (Rcode::NxDomain, source));
        assert_eq!(found.authorities.len(), 1);
        assert_eq!(found.authorities[0].record_type(), RecordType::SOA);
    }
    assert_eq!(upstream.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_upstream_that_fails_or_is_silent_gives_way_to_the_next() {
    let refusing = scripted(|query| Some(reply_to(query, ResponseCode::Refused))).await;
    let silent = scripted(|_query| None).await;
    let good = scripted(address_reply).await;
    let forwarder = forwarder(&[refusing.address, silent.address, good.address]);
    let start = Instant::now();
    let found = forwarder.lookup(&wanted("www.example.com.")).await.expect("answered");
    assert_eq!(found.rcode, Rcode::NoError);
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    // The one that answered is asked first from now on.
    forwarder.lookup(&wanted("ftp.example.com.")).await.expect("answered");
    assert_eq!(refusing.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn dead_upstreams_fail_at_once() {
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port").local_addr().expect("bound");
    let start = Instant::now();
    let error = forwarder(&[gone]).lookup(&wanted("www.example.com.")).await.expect_err("nobody there");
    assert!(matches!(error, ForwardError::Failed(_) | ForwardError::Timeout), "{error}");
    assert!(start.elapsed() < DEADLINE + HEDGE, "{:?}", start.elapsed());
    let error = forwarder(&[]).lookup(&wanted("www.example.com.")).await.expect_err("no upstream");
    assert!(matches!(error, ForwardError::NoUpstream));
}

#[tokio::test]
async fn our_own_question_come_back_is_a_loop() {
    let (seen_tx, mut seen_rx) = tokio::sync::mpsc::channel(1);
    let silent = scripted(move |query| {
        seen_tx.try_send(query.queries[0].name().clone()).ok();
        None
    })
    .await;
    let forwarder = forwarder(&[silent.address]);
    let asked = wanted("www.some-long-name.example.com.");
    let come_back = async {
        let shuffled = seen_rx.recv().await.expect("forwarded");
        let mut looped = wanted("x.");
        looped.query.name = shuffled;
        forwarder.lookup(&looped).await
    };
    tokio::select! {
        result = come_back => assert!(matches!(result, Err(ForwardError::Loop)), "{result:?}"),
        result = forwarder.lookup(&asked) => panic!("the upstream is silent: {result:?}"),
    }
    assert!(!forwarder.is_own_shuffle(&wanted("www.some-long-name.example.com.").query.name));
}

#[test]
fn shared_ends_are_written_as_asked() {
    let name = |text: &str| Name::from_ascii(text).expect("a name");
    let restored = |text: &str, asked: &str| in_case_of(&name(text), &name(asked)).to_string();
    assert_eq!(restored("wWw.CoRP.eXaMplE.", "Alias.corp.Example."), "wWw.corp.Example.");
    assert_eq!(restored("CoRP.eXaMplE.", "alias.corp.example."), "corp.example.");
    assert_eq!(restored("WWW.example.", "www.example."), "www.example.");
    assert_eq!(restored("Other.NET.", "www.example."), "Other.NET.");
}
