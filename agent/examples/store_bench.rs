//! For the bench area `store` and the tests of faults: a member of a store with its gRPC service, the forming of a cluster of them,
//! and the load, which is the same for etcd.
//!
//! ```text
//! store_bench authority FILE                                     makes the mesh's authority
//! store_bench node --authority FILE --directory D --node N --raft ADDRESS --grpc GRPC
//!                  [--snapshot-entries N] [--join]
//! store_bench form GRPC…                                         the first one adds the others, each gets a vote
//! store_bench load etcd|weft put|get CLIENTS CONNECTIONS SECONDS VALUE_BYTES ADDRESS…
//! ```
//!
//! A GRPC is an address, or the path of a socket that begins with a slash. `load` prints one JSON object: `{"operations":N,"failed":N,"seconds":S,"p50_ms":…,"p99_ms":…}`. A member talks to others by
//! TLS with certificates, as in the agent; gRPC is plain on both sides.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use tonic::transport::{Channel, Endpoint, Server};
use weft_agent::api::grpc::store::service;
use weft_agent::app::raft::Sealed;
use weft_agent::foundation::lifecycle::{Readiness, Shutdown};
use weft_agent::foundation::metrics::Metrics;
use weft_agent::foundation::secret::Secret;
use weft_agent::identity::Identity;
use weft_agent::identity::authority::Authority;
use weft_agent::store::{self, Formation, transport::Network};
use weft_proto::v1;
use weft_proto::weft::store::v1 as proto;
use weft_proto::weft::store::v1::store_client::StoreClient;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(async {
        match words.as_slice() {
            ["authority", file] => authority(Path::new(file)),
            ["node", flags @ ..] => node(flags).await,
            ["form", addresses @ ..] => form(addresses).await,
            ["load", kind, operation, numbers @ ..] => load(kind, operation, numbers).await,
            _ => bail!("see the head of agent/examples/store_bench.rs"),
        }
    })
}

fn authority(file: &Path) -> Result<()> {
    let authority = Authority::create(SystemTime::now())?;
    std::fs::write(file, format!("{}{}", authority.certificate_pem(), authority.key_pem().expose()))?;
    Ok(())
}

/// The certificate and the key in one file.
fn read_authority(file: &str) -> Result<Authority> {
    let text = std::fs::read_to_string(file)?;
    let at = text.find("-----BEGIN PRIVATE KEY").context("no key in the authority's file")?;
    Ok(Authority::from_pem(&text[..at], &Secret::new(text[at..].to_owned()))?)
}

async fn node(flags: &[&str]) -> Result<()> {
    let value = |name: &str| -> Result<&str> {
        let at = flags.iter().position(|flag| *flag == name).with_context(|| format!("{name} is missing"))?;
        flags.get(at + 1).copied().with_context(|| format!("{name} has no value"))
    };
    let node: weft_agent::foundation::id::NodeId = value("--node")?.parse()?;
    let identity = Identity::in_memory(&read_authority(value("--authority")?)?, &node, "weft.internal")?;
    let (raft, grpc): (SocketAddr, &str) = (value("--raft")?.parse()?, value("--grpc")?);
    let mut config = store::config::Config::default();
    if flags.contains(&"--snapshot-entries") {
        config.snapshot_entries = value("--snapshot-entries")?.parse()?;
    }
    config.validate()?;
    let shutdown = Shutdown::default();
    let directory = PathBuf::from(value("--directory")?);
    let inputs = store::Inputs {
        config,
        node,
        directory: directory.join("store"),
        schemas: Vec::new(),
        formation: if flags.contains(&"--join") { Formation::Join } else { Formation::Alone },
        network: Some(Network {
            listen: raft,
            advertise: raft.to_string(),
            is_fixed: true,
            secure: Arc::new(Sealed::new(identity)?),
        }),
    };
    let handle = store::start(inputs, &Metrics::default(), Readiness::default().block("store"), shutdown.stop());
    let store = service(handle, directory, shutdown.stop());
    let server = Server::builder().tcp_nodelay(true).add_service(store);
    if !grpc.starts_with('/') {
        return Ok(server.serve(grpc.parse()?).await?);
    }
    if Path::new(grpc).exists() {
        // Left by a member that was killed.
        std::fs::remove_file(grpc)?;
    }
    let listener = tokio::net::UnixListener::bind(grpc)?;
    let connections = futures_util::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    Ok(server.serve_with_incoming(connections).await?)
}

async fn connect(address: &str) -> Result<Channel> {
    let scheme = if address.starts_with('/') { "unix" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?.tcp_nodelay(true);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if Instant::now() > deadline => return Err(error).with_context(|| address.to_owned()),
            Err(_not_yet) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn form(addresses: &[&str]) -> Result<()> {
    let (first, others) = addresses.split_first().context("no member")?;
    let mut leader = StoreClient::new(connect(first).await?);
    wait_until_led(&mut leader).await?;
    for address in others {
        // GRPC=NODE=RAFT
        let [grpc, node, raft] = address.split('=').collect::<Vec<_>>()[..] else { bail!("GRPC=NODE=RAFT: {address}") };
        let mut other = StoreClient::new(connect(grpc).await?);
        let number = number_of(&mut other).await?;
        for change in [
            proto::change_members_request::Change::Add(proto::NewMember { number, address: raft.to_owned() }),
            proto::change_members_request::Change::Promote(proto::Nothing {}),
        ] {
            let request = proto::ChangeMembersRequest { node: node.to_owned(), change: Some(change) };
            leader.change_members(request).await?;
        }
    }
    let table = "CREATE TABLE IF NOT EXISTS kv (k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID";
    leader.apply(exec(table.to_owned(), Vec::new())).await?;
    Ok(())
}

async fn wait_until_led(client: &mut StoreClient<Channel>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.get_status(proto::StatusRequest {}).await?.into_inner().leader.is_none() {
        ensure!(Instant::now() < deadline, "no leader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn number_of(client: &mut StoreClient<Channel>) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match client.get_status(proto::StatusRequest {}).await?.into_inner().member {
            0 if Instant::now() > deadline => bail!("the store does not open"),
            0 => tokio::time::sleep(Duration::from_millis(20)).await,
            number => return Ok(number),
        }
    }
}

fn exec(sql: String, parameters: Vec<v1::SqlParameter>) -> v1::RaftLogEntry {
    let statement = Some(v1::SqlStatement { sql, parameters });
    v1::RaftLogEntry {
        r#type: v1::RaftCommandType::Execute.into(),
        sql_query: None,
        sql_exec: Some(v1::SqlExec { transaction: true, statement }),
    }
}

/// The two calls of etcd's `KV` that are used, by their numbers in its `rpc.proto`.
mod etcd {
    use tonic::client::Grpc;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic::transport::Channel;
    use tonic_prost::ProstCodec;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Put {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Range {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
    }

    /// What is not read.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Answer {}

    pub(super) async fn call<M: prost::Message + 'static>(
        channel: &Channel,
        path: &'static str,
        message: M,
    ) -> Result<(), tonic::Status> {
        let mut client = Grpc::new(channel.clone());
        client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<M, Answer>::default();
        let path = PathAndQuery::from_static(path);
        client.unary(tonic::Request::new(message), path, codec).await.map(drop)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    EtcdPut,
    EtcdGet,
    WeftPut,
    WeftGet,
}

async fn load(kind: &str, operation: &str, numbers: &[&str]) -> Result<()> {
    let [clients, connections, seconds, value_bytes, addresses @ ..] = numbers else { bail!("too few arguments") };
    let what = match (kind, operation) {
        ("etcd", "put") => What::EtcdPut,
        ("etcd", "get") => What::EtcdGet,
        ("weft", "put") => What::WeftPut,
        ("weft", "get") => What::WeftGet,
        _ => bail!("etcd or weft, put or get"),
    };
    let (clients, connections): (usize, usize) = (clients.parse()?, connections.parse()?);
    let (seconds, value_bytes): (f64, usize) = (seconds.parse()?, value_bytes.parse()?);
    let mut channels = Vec::new();
    for place in 0..connections {
        channels.push(connect(addresses.get(place % addresses.len()).context("no address")?).await?);
    }
    let failed = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let began = Instant::now();
    let mut tasks = Vec::new();
    for client in 0..clients {
        let channel = channels[client % connections].clone();
        let failed = Arc::clone(&failed);
        let work = one_client(what, channel, client, value_bytes, until, failed);
        tasks.push(weft_agent::foundation::task::spawn("client", work));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.join().await.context("a client stopped")?);
    }
    let took = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |part: f64| {
        let place = (latencies.len() as f64 * part) as usize;
        latencies.get(place.min(latencies.len().saturating_sub(1))).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
    };
    let report = serde_json::json!({
        "operations": latencies.len(), "failed": failed.load(Ordering::Relaxed), "seconds": took,
        "p50_ms": at(0.5), "p99_ms": at(0.99),
    });
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

/// One call after the other until the time is over; the latencies in microseconds.
async fn one_client(
    what: What,
    channel: Channel,
    client: usize,
    value_bytes: usize,
    until: Instant,
    failed: Arc<AtomicU64>,
) -> Vec<u32> {
    let mut store = StoreClient::new(channel.clone());
    let value = vec![b'v'; value_bytes];
    let mut latencies = Vec::new();
    let mut number = 0_u32;
    while Instant::now() < until {
        // Sixteen keys a client: both sides overwrite and read what is there.
        let key = format!("key-{client:03}-{:02}", number % 16);
        number = number.wrapping_add(1);
        let began = Instant::now();
        let done = match what {
            What::EtcdPut => {
                let put = etcd::Put { key: key.into_bytes(), value: value.clone() };
                etcd::call(&channel, "/etcdserverpb.KV/Put", put).await
            }
            What::EtcdGet => {
                etcd::call(&channel, "/etcdserverpb.KV/Range", etcd::Range { key: key.into_bytes() }).await
            }
            What::WeftPut => weft_put(&mut store, key, value.clone()).await,
            What::WeftGet => weft_get(&mut store, key).await,
        };
        match done {
            Ok(()) => latencies.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX)),
            Err(_) => {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    latencies
}

fn text(str: String) -> v1::SqlParameter {
    v1::SqlParameter { r#type: v1::SqlParameterType::SqlParamString.into(), str, ..v1::SqlParameter::default() }
}

async fn weft_put(store: &mut StoreClient<Channel>, key: String, bytes: Vec<u8>) -> Result<(), tonic::Status> {
    let value =
        v1::SqlParameter { r#type: v1::SqlParameterType::SqlParamBytes.into(), bytes, ..v1::SqlParameter::default() };
    let entry = exec("REPLACE INTO kv VALUES (?, ?)".to_owned(), vec![text(key), value]);
    let answer = store.apply(entry).await?.into_inner();
    if answer.error.is_empty() { Ok(()) } else { Err(tonic::Status::aborted(answer.error)) }
}

async fn weft_get(store: &mut StoreClient<Channel>, key: String) -> Result<(), tonic::Status> {
    let statement = v1::SqlStatement { sql: "SELECT v FROM kv WHERE k = ?".to_owned(), parameters: vec![text(key)] };
    let query = Some(v1::SqlQuery { transaction: true, statement: Some(statement) });
    store.query(proto::QueryRequest { query, local: false }).await.map(drop)
}
