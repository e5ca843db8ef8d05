//! Numbered datagrams at a steady pace from one host to another, and how many arrived: the measure of loss.
//!
//! In: a host that sends, one or more that hold an address in the tunnel. Out: sent and received. A datagram the sender's kernel refused counts as
//! sent: to an application it is lost too. Unlike `ping` a stream ends on a word and leaves nothing in flight uncounted.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually;

use super::lab::PATIENCE;

/// Between two datagrams: 100 a second.
const PACE: Duration = Duration::from_millis(10);
const PAYLOAD: usize = 600;
/// Bytes of one datagram as an IPv4 packet.
pub(crate) const DATAGRAM: u64 = PAYLOAD as u64 + 20 + 8;
/// Datagrams still on the way when the sender stopped have this long.
const DRAIN: Duration = Duration::from_secs(5);

/// A running stream.
#[derive(Debug)]
pub(crate) struct Stream {
    name: String,
    shared: Arc<Shared>,
    sender: JoinHandle<()>,
    receivers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop_sending: AtomicBool,
    stop_receiving: AtomicBool,
    sent: AtomicU64,
    /// By number: a repeated datagram must not hide a lost one.
    received: Mutex<HashSet<u64>>,
}

impl Shared {
    fn received(&self) -> u64 {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}

/// What a stream counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Stream {
    /// Starts a stream to `address`, which every one of `to` has; whoever gets a datagram counts it.
    pub(crate) fn start(name: &str, from: &NetNs, to: &[&NetNs], address: &str) -> Result<Self> {
        let address: IpAddr = address.parse().with_context(|| format!("{address} is no address"))?;
        let mut target = SocketAddr::new(address, 0);
        let mut receiving = Vec::new();
        for host in to {
            let socket = host.enter(|| UdpSocket::bind(target))?.context("failed to bind a receiving socket")?;
            socket.set_read_timeout(Some(PACE * 10))?;
            // The first finds a port; it is free in the other namespaces too.
            target = socket.local_addr()?;
            receiving.push(socket);
        }
        let sending = from.enter(|| UdpSocket::bind("0.0.0.0:0"))?.context("failed to bind the sending socket")?;
        sending.connect(target).context("there is no route to the receiver")?;
        let shared = Arc::new(Shared::default());
        let receivers = receiving.into_iter().map(|socket| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || receive(&socket, &shared))
        });
        let receivers = receivers.collect();
        let for_sender = Arc::clone(&shared);
        let sender = std::thread::spawn(move || send(&sending, &for_sender));
        Ok(Self { name: name.to_owned(), shared, sender, receivers })
    }

    /// Waits until this many more have arrived.
    pub(crate) fn flow(&self, more: u64) -> Result<()> {
        let wanted = self.shared.received() + more;
        let what = format!("{more} more datagrams of {} arrive", self.name);
        eventually(PATIENCE, &what, || self.shared.received() >= wanted)
    }

    /// Ends it and counts.
    pub(crate) fn finish(self) -> Result<Count> {
        let shared = &self.shared;
        shared.stop_sending.store(true, Ordering::Relaxed);
        self.sender.join().ok().context("the sender panicked")?;
        let sent = shared.sent.load(Ordering::Relaxed);
        let drained = Instant::now() + DRAIN;
        let all_in = || shared.received() >= sent || Instant::now() >= drained;
        eventually(DRAIN * 2, "the stream drains", all_in)?;
        shared.stop_receiving.store(true, Ordering::Relaxed);
        for receiver in self.receivers {
            receiver.join().ok().context("a receiver panicked")?;
        }
        Ok(Count { sent, received: shared.received() })
    }

    /// Ends it; not one may be lost. Returns how many were sent.
    pub(crate) fn finish_without_loss(self) -> Result<u64> {
        let name = self.name.clone();
        let Count { sent, received } = self.finish()?;
        ensure!(sent == received, "{name}: {} of {sent} datagrams lost", sent.abs_diff(received));
        Ok(sent)
    }
}

fn send(socket: &UdpSocket, shared: &Shared) {
    let mut payload = [0; PAYLOAD];
    while !shared.stop_sending.load(Ordering::Relaxed) {
        let number = shared.sent.fetch_add(1, Ordering::Relaxed);
        payload[..8].copy_from_slice(&number.to_be_bytes());
        socket.send(&payload).ok();
        std::thread::sleep(PACE);
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) {
    let mut payload = [0; PAYLOAD];
    while !shared.stop_receiving.load(Ordering::Relaxed) {
        // A timeout is the moment to look whether to stop.
        let Ok(PAYLOAD) = socket.recv(&mut payload) else { continue };
        let Some(number) = payload.first_chunk::<8>() else { continue };
        shared.received.lock().unwrap_or_else(PoisonError::into_inner).insert(u64::from_be_bytes(*number));
    }
}
