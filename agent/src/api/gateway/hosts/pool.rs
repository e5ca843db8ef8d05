//! The servers of one route: which of them work, which has how much to do, and the connections that wait for work.
//!
//! Invariants: a server that refuses connections gets no requests for [`DOWN`] while another one works; one that fails its
//! health checks gets none at all; at most [`IDLE_LINKS`] idle connections a server, none older than [`IDLE_TIME`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::balance::{self, Candidate, choose};
use super::config::ProxySpec;
use super::link::Link;

const DOWN: Duration = Duration::from_secs(10);
const IDLE_LINKS: usize = 128;
const IDLE_TIME: Duration = Duration::from_secs(55);
/// Clients whose server is remembered, and for how long after their last request.
const MOST_CLIENTS: usize = 65_536;
const CLIENT_TIME: Duration = Duration::from_secs(3600);

/// One server.
pub(super) struct Server {
    pub(super) address: String,
    hash: u64,
    under_way: AtomicUsize,
    pub(super) is_healthy: AtomicBool,
    /// Milliseconds since the pool began; a server that could not be reached is left alone until then.
    down_until: AtomicU64,
    idle: Mutex<Vec<Link>>,
}

/// The servers.
pub(super) struct Pool {
    pub(super) spec: ProxySpec,
    pub(super) servers: Vec<Server>,
    turns: AtomicU64,
    clients: Mutex<HashMap<IpAddr, (usize, Instant)>>,
    began: Instant,
}

/// A request under way at a server.
pub(super) struct UnderWay {
    pool: Arc<Pool>,
    place: usize,
}

impl Pool {
    pub(super) fn new(spec: ProxySpec) -> Self {
        let server = |address: &String| Server {
            address: address.clone(),
            hash: balance::of_text(address),
            under_way: AtomicUsize::new(0),
            is_healthy: AtomicBool::new(true),
            down_until: AtomicU64::new(0),
            idle: Mutex::default(),
        };
        let servers = spec.upstreams.iter().map(server).collect();
        Self { spec, servers, turns: AtomicU64::new(0), clients: Mutex::default(), began: Instant::now() }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The server for the next attempt of a request that was tried on `tried`; `None`: none is left that may work.
    pub(super) fn choose(self: &Arc<Self>, client: IpAddr, tried: &[usize]) -> Option<UnderWay> {
        let now = self.millis();
        let is_up = |place: usize| self.servers[place].down_until.load(Ordering::Relaxed) <= now;
        let place = if self.spec.is_sticky && tried.is_empty() { self.remembered(client, is_up) } else { None };
        let place = place
            .or_else(|| self.choose_among(client, |place| !tried.contains(&place) && is_up(place)))
            // None of them is known to work: one may by now.
            .or_else(|| self.choose_among(client, |place| !tried.contains(&place)))?;
        if self.spec.is_sticky {
            self.remember(client, place);
        }
        self.servers[place].under_way.fetch_add(1, Ordering::Relaxed);
        Some(UnderWay { pool: Arc::clone(self), place })
    }

    fn choose_among(&self, client: IpAddr, may: impl Fn(usize) -> bool + Copy) -> Option<usize> {
        let candidates = self.servers.iter().enumerate().map(|(place, server)| Candidate {
            is_usable: server.is_healthy.load(Ordering::Relaxed) && may(place),
            under_way: server.under_way.load(Ordering::Relaxed),
            hash: server.hash,
        });
        choose(self.spec.balance, self.turns.fetch_add(1, Ordering::Relaxed), client, candidates)
    }

    fn remembered(&self, client: IpAddr, is_up: impl Fn(usize) -> bool) -> Option<usize> {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let (place, seen) = clients.get(&client)?;
        let works = self.servers[*place].is_healthy.load(Ordering::Relaxed) && is_up(*place);
        (works && seen.elapsed() < CLIENT_TIME).then_some(*place)
    }

    fn remember(&self, client: IpAddr, place: usize) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MOST_CLIENTS && !clients.contains_key(&client) {
            clients.retain(|_, (_, seen)| seen.elapsed() < CLIENT_TIME);
            if clients.len() >= MOST_CLIENTS {
                clients.clear();
            }
        }
        clients.insert(client, (place, Instant::now()));
    }
}

impl UnderWay {
    pub(super) fn place(&self) -> usize {
        self.place
    }

    pub(super) fn server(&self) -> &Server {
        &self.pool.servers[self.place]
    }

    /// It could not be reached.
    pub(super) fn failed(&self) {
        let until = self.pool.millis() + u64::try_from(DOWN.as_millis()).unwrap_or(u64::MAX);
        self.server().down_until.store(until, Ordering::Relaxed);
    }

    /// It answered.
    pub(super) fn succeeded(&self) {
        if self.server().down_until.load(Ordering::Relaxed) != 0 {
            self.server().down_until.store(0, Ordering::Relaxed);
        }
    }

    /// A connection that waits for work and is still open.
    pub(super) fn take_idle(&self, cx: &mut Context<'_>) -> Option<Link> {
        loop {
            let mut link = self.server().idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if link.idle_since.elapsed() < IDLE_TIME && link.is_open(cx) {
                return Some(link);
            }
        }
    }

    /// A connection whose answer has been read to its end.
    pub(super) fn give_back(&self, mut link: Link, cx: &mut Context<'_>) {
        if !link.is_open(cx) {
            return;
        }
        link.idle_since = Instant::now();
        let mut idle = self.server().idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_LINKS {
            idle.push(link);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.server().under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::gateway::hosts::balance::Balance;

    fn pool(is_sticky: bool) -> Arc<Pool> {
        let upstreams = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(str::to_owned).to_vec();
        Arc::new(Pool::new(ProxySpec {
            upstreams,
            balance: Balance::RoundRobin,
            is_sticky,
            attempts: 3,
            timeout: Duration::from_secs(1),
            health: None,
            strips: false,
            headers: Vec::new(),
        }))
    }

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_is_left_alone_for_a_while_and_only_while_another_works() {
        let pool = pool(false);
        let first = pool.choose(client(1), &[]).expect("one works");
        first.failed();
        let place = first.place();
        assert!((0..9).all(|_| pool.choose(client(1), &[]).expect("two work").place() != place));
        tokio::time::advance(DOWN).await;
        assert!((0..9).any(|_| pool.choose(client(1), &[]).expect("one works").place() == place));
        for place in 0..3 {
            UnderWay { pool: Arc::clone(&pool), place }.server().under_way.fetch_add(1, Ordering::Relaxed);
            let server = UnderWay { pool: Arc::clone(&pool), place };
            server.server().under_way.fetch_add(1, Ordering::Relaxed);
            server.failed();
        }
        assert!(pool.choose(client(1), &[]).is_some(), "one of them may work by now");
        assert!(pool.choose(client(1), &[0, 1, 2]).is_none());
        for server in &pool.servers {
            server.is_healthy.store(false, Ordering::Relaxed);
        }
        assert!(pool.choose(client(1), &[]).is_none(), "their health was asked for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_stays_with_its_server_for_as_long_as_that_works() {
        let pool = pool(true);
        let places: Vec<usize> = (0..6).map(|number| pool.choose(client(number), &[]).expect("one").place()).collect();
        for _ in 0..5 {
            for number in 0..6 {
                let again = pool.choose(client(number), &[]).expect("one").place();
                assert_eq!(again, places[usize::from(number)], "{number}");
            }
        }
        pool.servers[places[0]].is_healthy.store(false, Ordering::Relaxed);
        let moved = pool.choose(client(0), &[]).expect("one").place();
        assert_ne!(moved, places[0]);
        pool.servers[places[0]].is_healthy.store(true, Ordering::Relaxed);
        assert_eq!(pool.choose(client(0), &[]).expect("one").place(), moved, "it stays where it went");
    }
}
