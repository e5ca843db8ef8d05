//! Who called how often: one entry a client address, looked up once a connection and counted without a lock.
//!
//! Invariants: at most [`MOST`] entries; an address without a request for half an hour goes first.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::foundation::rfc3339;

/// Entries at a time; an address is 16 bytes and an attacker has many of them.
const MOST: usize = 4096;
/// After this without a request an entry is forgotten.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// The zero of times that never were.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// One client address.
#[derive(Debug)]
pub struct Session {
    first_seen: SystemTime,
    requests: AtomicU64,
    /// Seconds since `first_seen`.
    last_seen: AtomicU64,
    /// Calls of the running second of `first_seen`'s clock: the second in the upper half, their number in the lower.
    window: AtomicU64,
}

impl Session {
    /// Counts a request.
    pub fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more call in the second of `now` is within `limit`.
    pub fn admits(&self, limit: u32, now: SystemTime) -> bool {
        let second = now.duration_since(self.first_seen).unwrap_or_default().as_secs() << 32;
        let count = |window: u64| if window & !u64::from(u32::MAX) == second { window + 1 } else { second + 1 };
        let update = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| Some(count(window)));
        update.is_ok_and(|before| count(before) - second <= u64::from(limit))
    }

    fn touch(&self, now: SystemTime) {
        self.last_seen.store(now.duration_since(self.first_seen).unwrap_or_default().as_secs(), Ordering::Relaxed);
    }

    fn idle_for(&self, now: SystemTime) -> Duration {
        let last = self.first_seen + Duration::from_secs(self.last_seen.load(Ordering::Relaxed));
        now.duration_since(last).unwrap_or_default()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Sessions {
    by_address: Mutex<HashMap<IpAddr, Arc<Session>>>,
}

/// What `/session` answers.
#[derive(Debug, PartialEq, Serialize)]
pub struct Report {
    num_clients: usize,
    sessions: BTreeMap<String, Row>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Row {
    avg_rps: f64,
    num_reqs: u64,
    first_seen: String,
    blocked_until: &'static str,
}

impl Sessions {
    /// The entry of `address`, made where it is missing.
    pub fn of(&self, address: IpAddr, now: SystemTime) -> Arc<Session> {
        let mut sessions = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MOST && !sessions.contains_key(&address) {
            make_room(&mut sessions, now);
        }
        let new = || {
            Arc::new(Session {
                first_seen: now,
                requests: AtomicU64::new(0),
                last_seen: AtomicU64::new(0),
                window: AtomicU64::new(0),
            })
        };
        let session = sessions.entry(address).or_insert_with(new);
        session.touch(now);
        Arc::clone(session)
    }

    /// Everything known now.
    pub fn report(&self, now: SystemTime) -> Report {
        let mut sessions = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| Arc::strong_count(session) > 1 || session.idle_for(now) < IDLE);
        let rows = sessions.iter().map(|(address, session)| (address.to_string(), row(session, now)));
        Report { num_clients: sessions.len(), sessions: rows.collect() }
    }
}

fn row(session: &Session, now: SystemTime) -> Row {
    let requests = session.requests.load(Ordering::Relaxed);
    let age = now.duration_since(session.first_seen).unwrap_or_default().as_secs_f64().max(1.0);
    Row {
        // A mean to read, not to calculate with.
        avg_rps: (requests as f64 / age * 1000.0).round() / 1000.0,
        num_reqs: requests,
        first_seen: rfc3339::format(session.first_seen),
        blocked_until: NEVER,
    }
}

/// Forgets the idle, and where none is idle, those without a connection.
fn make_room(sessions: &mut HashMap<IpAddr, Arc<Session>>, now: SystemTime) {
    sessions.retain(|_, session| session.idle_for(now) < IDLE);
    if sessions.len() >= MOST {
        sessions.retain(|_, session| Arc::strong_count(session) > 1);
    }
    if sessions.len() >= MOST {
        sessions.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_for_their_address() {
        let sessions = Sessions::default();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        let session = sessions.of(IpAddr::from([127, 0, 0, 1]), start);
        (0..30).for_each(|_| session.count());
        let report = sessions.report(start + Duration::from_secs(10));
        let row = &report.sessions["127.0.0.1"];
        assert_eq!((row.num_reqs, row.avg_rps, row.first_seen.as_str()), (30, 3.0, "1970-01-02T00:00:00Z"));
        drop(session);
        assert_eq!(sessions.report(start + Duration::from_secs(3600)).num_clients, 0);
    }

    #[test]
    fn a_limit_holds_for_each_second() {
        let start = SystemTime::UNIX_EPOCH;
        let session = Sessions::default().of(IpAddr::from([127, 0, 0, 1]), start);
        let admitted = |at: f64| (0..5).filter(|_| session.admits(3, start + Duration::from_secs_f64(at))).count();
        assert_eq!([admitted(0.0), admitted(0.9), admitted(1.0), admitted(7.5)], [3, 0, 3, 3]);
    }

    #[test]
    fn an_attacker_with_many_addresses_takes_bounded_memory() {
        let sessions = Sessions::default();
        for number in 0..u32::try_from(MOST).expect("small") * 3 {
            sessions.of(IpAddr::from(number.to_be_bytes()), SystemTime::UNIX_EPOCH);
        }
        assert!(sessions.report(SystemTime::UNIX_EPOCH).num_clients <= MOST);
    }
}
