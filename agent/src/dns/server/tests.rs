use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};

use hickory_proto::op::{Message, ResponseCode};

use super::*;
use crate::dns::Settings;
use crate::dns::wire::{WireName, rtype};
use crate::dns::zone::tests::mesh;
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::foundation::metrics::Metrics as Registry;

/// A running server on free loopback ports.
struct Running {
    handle: crate::dns::Handle,
    model: watch::Sender<Arc<Model>>,
    _link: watch::Sender<Option<crate::model::Link>>,
    _root: tempfile::TempDir,
    registry: Registry,
    readiness: Readiness,
    shutdown: Shutdown,
}

fn config(listen: &[&str]) -> Config {
    let listen = listen.iter().map(|text| text.parse().expect("an address")).collect();
    Config { listen, listen_on_mesh: false, upstream: Some(Vec::new()), ..Config::default() }
}

fn start(config: Config) -> Running {
    let root = tempfile::tempdir().expect("a temporary directory");
    let (registry, readiness, shutdown) = (Registry::default(), Readiness::default(), Shutdown::default());
    let (model, model_rx) = watch::channel(Arc::new(mesh(3)));
    let (link, link_rx) = watch::channel(None);
    let settings = Settings { config, state_dir: root.path().to_owned(), root: root.path().to_owned() };
    let handle = crate::dns::start(settings, model_rx, link_rx, &registry, readiness.block("dns"), shutdown.stop());
    let handle = handle.expect("started");
    Running { handle, model, _link: link, _root: root, registry, readiness, shutdown }
}

impl Running {
    async fn status(&self, until: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let mut status = self.handle.status();
        let found = tokio::time::timeout(Duration::from_secs(10), status.wait_for(until)).await;
        Arc::clone(&found.expect("in time").expect("the server runs"))
    }

    async fn address(&self) -> SocketAddr {
        self.status(|status| !status.listening.is_empty()).await.listening[0]
    }
}

fn query(name: &str, rtype: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(WireName::parse(name).expect("a name").as_bytes());
    bytes.extend_from_slice(&[0, u8::try_from(rtype).expect("a low type"), 0, 1]);
    bytes
}

/// Asks over UDP from a thread, as the runtime of a test has one only.
async fn ask(server: SocketAddr, query: Vec<u8>) -> Message {
    let ask = move || {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        client.send_to(&query, server).expect("sent");
        let mut buffer = [0; 2048];
        let length = client.recv(&mut buffer).expect("a reply");
        Message::from_vec(&buffer[..length]).expect("well-formed")
    };
    tokio::task::spawn_blocking(ask).await.expect("no panic")
}

#[tokio::test]
async fn both_protocols_answer_and_are_counted() {
    let running = start(config(&["127.0.0.1:0"]));
    let server = running.address().await;
    running.readiness.ready().await;
    assert_eq!(ask(server, query("n0001.weft.internal", rtype::A)).await.answers.len(), 1);
    let over_tcp = move || {
        let mut stream = TcpStream::connect(server).expect("connected");
        let query = query("n0001.weft.internal", rtype::A);
        // Two queries in one segment, the second in pieces: the framing is ours.
        let framed = [&[0, u8::try_from(query.len()).expect("short")][..], &query].concat();
        stream.write_all(&[&framed[..], &framed[..5]].concat()).expect("written");
        stream.write_all(&framed[5..]).expect("written");
        let mut answers = 0;
        for _ in 0..2 {
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut reply).expect("a reply");
            answers += Message::from_vec(&reply).expect("well-formed").answers.len();
        }
        answers
    };
    assert_eq!(tokio::task::spawn_blocking(over_tcp).await.expect("no panic"), 2);
    let text = running.registry.scrape().await.expect("it formats");
    for line in [
        "weft_dns_queries_total{proto=\"udp\",answered_by=\"zone\",rcode=\"NOERROR\"} 1",
        "weft_dns_queries_total{proto=\"tcp\",answered_by=\"zone\",rcode=\"NOERROR\"} 2",
        "weft_dns_zone_names ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_changed_model_changes_names_and_keeps_the_socket() {
    let running = start(config(&["127.0.0.1:0"]));
    let server = running.address().await;
    let missing = query("n0005.weft.internal", rtype::A);
    assert_eq!(ask(server, missing.clone()).await.metadata.response_code, ResponseCode::NXDomain);
    let before = running.status(|_| true).await.names;
    running.model.send_replace(Arc::new(mesh(6)));
    let status = running.status(|status| status.names > before).await;
    assert_eq!(status.listening, [server]);
    assert_eq!(ask(server, missing).await.answers.len(), 1);
}

#[tokio::test]
async fn mesh_addresses_are_followed() {
    let mut with_mesh = config(&["127.0.0.1:0"]);
    with_mesh.listen_on_mesh = true;
    let running = start(with_mesh);
    let mesh_address: SocketAddr = "10.80.0.1:53".parse().expect("an address");
    let status = running.status(|status| !status.listening.is_empty()).await;
    // Port 53 needs a privilege that a developer may not have: then the error says so and the other address answers.
    let named = status.errors.iter().any(|text| text.contains("dns.listen_on_mesh 10.80.0.1:53"));
    assert!(status.listening.contains(&mesh_address) || named, "{status:?}");
    let mut moved = mesh(3);
    moved.node.addresses.clear();
    running.model.send_replace(Arc::new(moved));
    let status = running.status(|status| status.listening.len() == 1 && status.errors.is_empty()).await;
    assert!(status.listening[0].ip().is_loopback());
}

#[tokio::test]
async fn an_address_in_use_is_one_error_and_the_others_answer() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken_address = taken.local_addr().expect("bound").to_string();
    let running = start(config(&[&taken_address, "127.0.0.1:0"]));
    let status = running.status(|status| !status.listening.is_empty()).await;
    assert_eq!(status.errors.len(), 1);
    let expected = format!("dns.listen {taken_address} (udp): another server holds this address");
    assert!(status.errors[0].starts_with(&expected), "{}", status.errors[0]);
    assert_eq!(ask(status.listening[0], query("pm3", rtype::A)).await.answers.len(), 1);
    drop(taken);
    running.status(|status| status.errors.is_empty() && status.listening.len() == 2).await;
}

#[tokio::test]
async fn a_stop_is_prompt_and_frees_the_address() {
    let running = start(config(&["127.0.0.1:0"]));
    let server = running.address().await;
    drop(running.handle);
    assert!(running.shutdown.drain(Duration::from_secs(5)).await);
    assert!(UdpSocket::bind(server).is_ok());
}

#[tokio::test]
async fn disabled_means_no_socket() {
    let running = start(Config { enabled: false, ..config(&["127.0.0.1:0"]) });
    running.readiness.ready().await;
    assert!(running.status(|_| true).await.listening.is_empty());
}

#[test]
fn the_pm3_address_is_the_first_loopback_one() {
    assert_eq!(pm3_address(&config(&["10.0.0.1:53", "[::1]:53", "127.0.9.9:53"])), Ipv4Addr::new(127, 0, 9, 9));
    assert_eq!(pm3_address(&config(&[])), PM3_ADDRESS);
}
