//! A peer by its name or machine id, and the connections to it.
//!
//! Invariants: a connection carries at most [`STREAMS`] requests at a time, fewer than the other end takes; one is opened at a
//! time, so that a burst of requests waits for it in place of opening one each; a peer whose address changed is another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::client::conn::http2::SendRequest;
use tokio::sync::{Semaphore, watch};

use super::super::hosts::link::Upload;
use super::link::{DialError, Dialer, Link, Place};
use crate::api::error::{ApiError, ErrorCode};
use crate::foundation::id::NodeId;
use crate::model::Model;
use crate::model::peer::Peer as Configured;
use crate::pm3::MachineId;

/// Requests of one connection at a time; the gateway takes 128.
const STREAMS: usize = 100;
/// Connections to one peer.
const LINKS: usize = 16;
/// Spellings that are remembered until the model changes.
const SPELLINGS: usize = 4096;

/// The peers as the model has them.
pub(super) struct Directory {
    model: watch::Receiver<Arc<Model>>,
    port: u16,
    known: Mutex<Known>,
}

struct Known {
    model: Arc<Model>,
    by_text: HashMap<String, Arc<Peer>>,
    peers: HashMap<NodeId, Arc<Peer>>,
}

/// Who goes by a name.
pub(super) enum Found {
    Here,
    Peer(Arc<Peer>),
}

/// A peer and the connections to it.
pub(in crate::api::gateway) struct Peer {
    pub(super) place: Place,
    links: Mutex<Vec<Arc<Shared>>>,
    dialing: Semaphore,
}

struct Shared {
    link: Link,
    under_way: AtomicUsize,
}

/// A place on a connection, while it lives.
pub(super) struct InFlight(Arc<Shared>);

impl Directory {
    pub(super) fn new(model: watch::Receiver<Arc<Model>>, port: u16) -> Self {
        let current = Arc::clone(&model.borrow());
        let known = Known { model: current, by_text: HashMap::new(), peers: HashMap::new() };
        Self { model, port, known: Mutex::new(known) }
    }

    /// Who goes by `text`, a name or a machine id in lower case.
    ///
    /// # Errors
    /// Nobody, or one without an address.
    pub(super) fn find(&self, text: &str) -> Result<Found, ApiError> {
        let model = Arc::clone(&self.model.borrow());
        let own = &model.node;
        if own.id.as_str().eq_ignore_ascii_case(text) || MachineId::of(&own.public_key).to_string() == text {
            return Ok(Found::Here);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.model, &model) {
            known.model = Arc::clone(&model);
            known.by_text.clear();
        }
        if let Some(peer) = known.by_text.get(text) {
            return Ok(Found::Peer(Arc::clone(peer)));
        }
        let place = place_of(&model, text, self.port)?;
        let peer = match known.peers.get(&place.id) {
            Some(peer) if peer.place == place => Arc::clone(peer),
            Some(_) | None => Arc::new(Peer::new(place)),
        };
        known.peers.retain(|_, peer| peer.is_in_use());
        known.peers.insert(peer.place.id.clone(), Arc::clone(&peer));
        if known.by_text.len() >= SPELLINGS {
            known.by_text.clear();
        }
        known.by_text.insert(text.to_owned(), Arc::clone(&peer));
        Ok(Found::Peer(peer))
    }
}

fn place_of(model: &Model, text: &str, port: u16) -> Result<Place, ApiError> {
    let is_it = |peer: &&Configured| peer.name.as_str().eq_ignore_ascii_case(text);
    let has_id = |peer: &&Configured| MachineId::of(&peer.public_key).to_string() == text;
    let Some(peer) = model.peers().find(is_it).or_else(|| model.peers().find(has_id)) else {
        let text = format!("there is no peer {text:?}; `weft peers` lists them");
        return Err(ApiError::new(ErrorCode::NotFound, text));
    };
    let host = peer.allowed_ips.iter().find(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
    let Some(host) = host else {
        let text = format!("peer {} has no address of its own in allowed_ips, so it cannot be asked", peer.name);
        return Err(ApiError::new(ErrorCode::BadGateway, text));
    };
    Ok(Place { id: peer.name.clone(), address: SocketAddr::new(host.addr(), port) })
}

impl Peer {
    fn new(place: Place) -> Self {
        Self { place, links: Mutex::default(), dialing: Semaphore::new(1) }
    }

    fn is_in_use(&self) -> bool {
        !self.links.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// A place on a connection, which is opened if there is none.
    ///
    /// # Errors
    /// [`DialError`].
    pub(super) async fn link(&self, dialer: &Dialer) -> Result<InFlight, DialError> {
        if let Some(free) = self.free(dialer) {
            return Ok(free);
        }
        let busy = || DialError::Busy { id: self.place.id.clone() };
        let _dialing = self.dialing.acquire().await.map_err(|_closed| busy())?;
        if let Some(free) = self.free(dialer) {
            return Ok(free);
        }
        if self.links.lock().unwrap_or_else(PoisonError::into_inner).len() >= LINKS {
            return Err(busy());
        }
        let link = dialer.shared(&self.place).await?;
        let shared = Arc::new(Shared { link, under_way: AtomicUsize::new(1) });
        self.links.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&shared));
        Ok(InFlight(shared))
    }

    /// A place on the open connection with the least to do.
    fn free(&self, dialer: &Dialer) -> Option<InFlight> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|shared| !shared.link.sender.is_closed() && dialer.admits(&shared.link.member));
        let least = links.iter().min_by_key(|shared| shared.under_way.load(Ordering::Relaxed))?;
        if least.under_way.load(Ordering::Relaxed) >= STREAMS {
            return None;
        }
        // Under the lock of the list, so that no two take the last place.
        least.under_way.fetch_add(1, Ordering::Relaxed);
        Some(InFlight(Arc::clone(least)))
    }
}

impl InFlight {
    pub(super) fn sender(&self) -> SendRequest<Upload> {
        self.0.link.sender.clone()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
