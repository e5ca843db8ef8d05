//! One peer: its noise state, where it is, and its counters.
//!
//! The noise state is made on first use, since it holds room for eight sessions. A peer is *awake* while it has a
//! session, a handshake in flight or a keepalive to send; only then is it in the list of the timer thread.
//! Invariant: the noise state of a peer that is not awake is reset before it is used, because its clock
//! stands still while nobody calls its timers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gotatun::noise::Tunn;
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use gotatun::x25519::PublicKey;
use zeroize::Zeroizing;

use crate::shared::{Identity, Shared};

/// A key of 32 bytes that is wiped when dropped.
pub(crate) type SecretKey = Zeroizing<[u8; 32]>;

/// A peer of the device.
pub(crate) struct Peer {
    pub(crate) key: [u8; 32],
    removed: AtomicBool,
    state: Mutex<PeerState>,
}

/// What changes while a peer lives.
#[derive(Default)]
pub(crate) struct PeerState {
    tunn: Option<Box<Tunn>>,
    awake: bool,
    pub(crate) preshared_key: Option<SecretKey>,
    /// Seconds; 0 is off.
    pub(crate) keepalive: u16,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) last_handshake: Option<SystemTime>,
    /// Our index of the session we answered a handshake with, until its first message proves that the peer has it.
    pub(crate) unconfirmed: Option<u32>,
}

impl Peer {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key, removed: AtomicBool::new(false), state: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerState> {
        // A thread that panicked has marked the device dead; its half-done work is of no interest.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// Ends its sessions and wipes their keys; the timer thread and the session table forget it when they see the mark.
    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        state.tunn = None;
        state.preshared_key = None;
    }
}

impl PeerState {
    /// The noise state, fit for use, with the peer in the hands of the timer thread.
    pub(crate) fn wake(&mut self, peer: &Arc<Peer>, identity: &Identity, shared: &Shared) -> &mut Tunn {
        let is_new = self.tunn.is_none();
        let preshared_key = self.preshared_key.as_deref().copied();
        let keepalive = self.keepalive;
        let tunn = self.tunn.get_or_insert_with(|| {
            Box::new(Tunn::new(
                identity.private.clone(),
                PublicKey::from(peer.key),
                preshared_key,
                Some(keepalive),
                shared.index_table.clone(),
                Arc::clone(&identity.rate_limiter),
            ))
        });
        if !self.awake {
            if !is_new {
                tunn.reset();
            }
            self.awake = true;
            shared.timers.add(Arc::clone(peer));
        }
        tunn
    }

    /// The noise state of a peer that was used before.
    pub(crate) fn tunn(&mut self) -> Option<&mut Tunn> {
        self.tunn.as_deref_mut()
    }

    pub(crate) fn set_preshared_key(&mut self, key: Option<SecretKey>) {
        if let Some(tunn) = &mut self.tunn {
            tunn.set_preshared_key(key.as_deref().copied());
        }
        self.preshared_key = key;
    }

    pub(crate) fn set_keepalive(&mut self, seconds: u16) {
        self.keepalive = seconds;
        if let Some(tunn) = &mut self.tunn {
            tunn.set_persistent_keepalive(Some(seconds));
        }
    }

    /// The device has another key, or none: sessions end, counters stay.
    pub(crate) fn set_identity(&mut self, identity: Option<&Identity>) {
        self.unconfirmed = None;
        match (identity, &mut self.tunn) {
            (Some(identity), Some(tunn)) => {
                let limiter = Arc::clone(&identity.rate_limiter);
                tunn.set_static_private(identity.private.clone(), identity.public, limiter);
                tunn.reset();
            }
            (None, tunn) => *tunn = None,
            (Some(_), None) => {}
        }
    }

    /// Runs the timers. `None`: nothing is going on and nothing is due, the peer sleeps now.
    pub(crate) fn tick(&mut self) -> Option<Option<WgKind>> {
        let can_send = self.endpoint.is_some();
        let keepalive = self.keepalive != 0;
        let Some(tunn) = &mut self.tunn else {
            self.awake = false;
            return None;
        };
        if !can_send {
            self.awake = false;
            return None;
        }
        match tunn.update_timers() {
            Ok(message) => Some(message),
            Err(error) => {
                tracing::trace!(?error, "peer expired");
                if keepalive {
                    // Kernel WireGuard goes on trying for as long as a keepalive is asked for.
                    tunn.reset();
                    return Some(tunn.format_handshake_initiation(false).map(WgKind::from));
                }
                self.awake = false;
                None
            }
        }
    }

    /// Counts a message that is about to be sent and makes its session known.
    pub(crate) fn note_sent(&mut self, peer: &Arc<Peer>, message: &WgKind, shared: &Shared) {
        let (length, index) = match message {
            WgKind::HandshakeInit(message) => (148, Some(message.sender_idx.get())),
            WgKind::HandshakeResp(message) => (92, Some(message.sender_idx.get())),
            WgKind::Data(message) => (message.encrypted_encapsulated_packet_and_tag.len() + 16, None),
            WgKind::CookieReply(_) => return,
        };
        self.tx_bytes += u64::try_from(length).unwrap_or(0);
        if let Some(index) = index {
            shared.sessions_mut().insert(index, Arc::clone(peer));
        }
    }

    /// What waited for a session, encrypted. A waiting keepalive has done its work by opening the session.
    pub(crate) fn take_queued(&mut self, mtu: usize) -> Vec<WgKind> {
        let mut mtu = MtuWatcher::new(u16::try_from(mtu).unwrap_or(u16::MAX));
        let Some(tunn) = &mut self.tunn else { return Vec::new() };
        tunn.get_queued_packets(&mut mtu)
            .filter(|message| !matches!(message, WgKind::Data(data) if data.is_keepalive()))
            .collect()
    }
}

/// The bytes of a message.
pub(crate) fn message_bytes(message: WgKind) -> Packet {
    message.into()
}
