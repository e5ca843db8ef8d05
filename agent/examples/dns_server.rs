//! The DNS server of the agent alone, for benches: `dns_server ADDRESS:PORT PEERS`.
//!
//! Answers for `weft.internal` with peers `n0000`, `n0001`, … until it is ended.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use weft_agent::dns::{self, Settings};
use weft_agent::foundation::lifecycle::{Readiness, Shutdown};
use weft_agent::foundation::metrics::Metrics;
use weft_agent::model::key::PublicKey;
use weft_agent::model::peer::Peer;
use weft_agent::model::{Model, Node};

fn peer(index: u16) -> anyhow::Result<Peer> {
    let [high, low] = index.to_be_bytes();
    let mut key = [7; 32];
    key[..2].copy_from_slice(&[high, low]);
    Ok(Peer {
        name: format!("n{index:04}").parse()?,
        public_key: PublicKey::from_bytes(key),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec![format!("10.81.{high}.{low}/32").parse()?],
        persistent_keepalive: None,
    })
}

fn model(peers: u16) -> anyhow::Result<Model> {
    let node = Node {
        id: "alpha".parse()?,
        addresses: vec!["10.80.0.1/15".parse()?],
        public_key: PublicKey::from_bytes([0xaa; 32]),
    };
    let peers = (0..peers).map(peer).collect::<anyhow::Result<_>>()?;
    Ok(Model::new(node, "weft.internal".to_owned(), peers)?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: dns_server ADDRESS:PORT PEERS";
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().context(usage)?.parse().context(usage)?;
    let peers = arguments.next().context(usage)?.parse().context(usage)?;
    let config = dns::config::Config {
        listen: vec![listen],
        listen_on_mesh: false,
        upstream: Some(Vec::new()),
        ..Default::default()
    };
    let (_model, model) = watch::channel(Arc::new(model(peers)?));
    let (_link, link) = watch::channel(None);
    let (metrics, readiness, shutdown) = (Metrics::default(), Readiness::default(), Shutdown::default());
    let settings = Settings::new(config, PathBuf::from("/nonexistent"));
    let _handle = dns::start(settings, model, link, &metrics, readiness.block("dns"), shutdown.stop())?;
    std::future::pending::<()>().await;
    Ok(())
}
