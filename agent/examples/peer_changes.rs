//! What one changed peer costs, for benches: `peer_changes LINK PEERS CHANGES`, in a network namespace of its own.
//!
//! Starts the domains that follow the peers (tunnel on the embedded device, link, accounting) with `PEERS` peers. Then one more
//! peer with an address and a routed network joins and leaves `CHANGES` times, each time through the `watch` of the model, and
//! each change is waited for until device, routes and maps hold it. Prints one JSON object: how much processor time and
//! how much time a change took. All of it lies between two resyncs.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::sync::watch;
use weft_agent::foundation::lifecycle::{Readiness, Shutdown};
use weft_agent::foundation::metrics::Metrics;
use weft_agent::model::key::{PrivateKey, PublicKey};
use weft_agent::model::peer::Peer;
use weft_agent::model::{Edit, Model, Node};
use weft_agent::sys::rtnetlink::monitor::Monitor;
use weft_agent::wireguard::config::BackendChoice;
use weft_agent::{ebpf, net, wireguard};

const PATIENCE: Duration = Duration::from_secs(60);
/// Changes before the measured ones.
const WARM_UP: u32 = 20;

fn peer(number: u32) -> anyhow::Result<Peer> {
    let [_, high, middle, low] = number.to_be_bytes();
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    Ok(Peer {
        name: format!("n{number:05}").parse()?,
        public_key: PublicKey::from_bytes(key),
        preshared_key: None,
        endpoint: Some(format!("192.0.2.{}:51820", low.max(1)).parse()?),
        allowed_ips: vec![
            format!("10.80.{middle}.{low}/32").parse()?,
            format!("fd99:{high:x}:{middle:x}:{low:x}::/64").parse()?,
        ],
        persistent_keepalive: None,
    })
}

/// The domains and what they tell.
struct Domains {
    model: watch::Sender<Arc<Model>>,
    wireguard: wireguard::Handle,
    net: net::Handle,
    accounting: ebpf::Handle,
    _monitor: Monitor,
}

impl Domains {
    fn start(instance: &str, model: Model, private_key: PrivateKey, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let (metrics, readiness) = (Metrics::default(), Readiness::default());
        let settings = wireguard::settings::Settings {
            instance: instance.parse()?,
            link: instance.parse()?,
            listen_port: 0,
            backend: BackendChoice::Userspace,
            fwmark: 0,
            private_key,
        };
        let (_, settings) = watch::channel(Arc::new(settings));
        let (model, receiver) = watch::channel(Arc::new(model));
        let monitor = Monitor::start()?;
        let blocker = readiness.block("wireguard");
        let wireguard = wireguard::start(settings, receiver.clone(), &metrics, blocker, shutdown.stop());
        let (_, network) = watch::channel(Arc::new(net::config::Config::default().validate(0)?));
        let inputs = net::Inputs { settings: network, model: receiver.clone(), link: wireguard.link() };
        let net = net::start(inputs, &metrics, &monitor, shutdown.stop())?;
        let counting = ebpf::Settings::new(instance.parse()?, ebpf::config::Config::default());
        let accounting = ebpf::start(counting, receiver, wireguard.link(), &metrics, shutdown.stop());
        Ok(Self { model, wireguard, net, accounting, _monitor: monitor })
    }

    /// Waits until everything holds `peers` peers.
    async fn hold(&self, peers: usize) -> anyhow::Result<()> {
        let (mut wireguard, mut net, mut accounting) =
            (self.wireguard.status(), self.net.status(), self.accounting.status());
        let held = async {
            wireguard.wait_for(|status| status.peers == peers && status.errors.is_empty()).await?;
            net.wait_for(|status| status.routes == peers && status.errors.is_empty()).await?;
            accounting.wait_for(|status| status.peers == peers && status.prefixes == 2 * peers).await?;
            anyhow::Ok(())
        };
        let held = tokio::time::timeout(PATIENCE, held).await;
        held.with_context(|| {
            let (net, accounting) = (self.net.status(), self.accounting.status());
            format!("{peers} peers are not held: {:?} {:?}", net.borrow(), accounting.borrow())
        })?
    }

    /// One peer beside `peers` others joins or leaves, `changes` times.
    async fn change(&self, peers: u32, changes: u32) -> anyhow::Result<()> {
        let one = peer(peers + 2)?;
        for change in 0..changes {
            let joins = change % 2 == 0;
            let edit = if joins { Edit::Set(one.clone()) } else { Edit::Remove(one.public_key) };
            let newer = self.model.borrow().with([edit])?;
            self.model.send_replace(Arc::new(newer));
            self.hold(peers as usize + usize::from(joins)).await?;
        }
        Ok(())
    }
}

fn processor_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: peer_changes LINK PEERS CHANGES";
    let mut arguments = std::env::args().skip(1);
    let instance = arguments.next().context(usage)?;
    let peers: u32 = arguments.next().context(usage)?.parse().context(usage)?;
    let changes: u32 = arguments.next().context(usage)?.parse().context(usage)?;
    let private_key = PrivateKey::from_bytes([0x42; 32]);
    let node =
        Node { id: "alpha".parse()?, addresses: vec!["10.80.0.1/15".parse()?], public_key: private_key.public() };
    // Number 1 has the node's own address.
    let all = (2..peers + 2).map(peer).collect::<anyhow::Result<Vec<Peer>>>()?;
    let shutdown = Shutdown::default();
    let model = Model::new(node, "weft.internal".to_owned(), all)?;
    let domains = Domains::start(&instance, model, private_key, &shutdown)?;
    domains.hold(peers as usize).await?;
    let measured = measure(&domains, peers, changes).await;
    drop(domains);
    let settings = ebpf::Settings::new(instance.parse()?, ebpf::config::Config::default());
    ebpf::down(&settings)?;
    let (processor, time) = measured?;
    let each = |took: Duration| took.as_secs_f64() * 1e6 / f64::from(changes);
    writeln!(std::io::stdout(), "{{\"processor_us\":{:.1},\"time_us\":{:.1}}}", each(processor), each(time))?;
    Ok(())
}

async fn measure(domains: &Domains, peers: u32, changes: u32) -> anyhow::Result<(Duration, Duration)> {
    domains.change(peers, WARM_UP).await?;
    let (before, started) = (processor_time()?, Instant::now());
    domains.change(peers, changes).await?;
    Ok((processor_time()? - before, started.elapsed()))
}
