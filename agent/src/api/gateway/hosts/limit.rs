//! How often a client may ask: a rate with a burst, kept as one time a client (the generic cell rate algorithm).
//!
//! Invariant: at most [`MOST`] clients are remembered; those whose time has passed go first.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const MOST: usize = 65_536;

/// The limit of one route.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Between two requests at the rate.
    interval: Duration,
    /// How far ahead of the rate a client may be.
    ahead: Duration,
    /// Since some start: when each client would be at the rate again.
    clients: Mutex<HashMap<u128, Duration>>,
}

impl Limiter {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, ahead: interval * burst.saturating_sub(1), clients: Mutex::default() }
    }

    /// Whether `client` may ask at `now`; else how long it has to wait.
    pub(super) fn admit(&self, client: IpAddr, now: Duration) -> Result<(), Duration> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MOST {
            clients.retain(|_, even_at| *even_at > now);
            if clients.len() >= MOST {
                clients.clear();
            }
        }
        let even_at = clients.entry(key(client)).or_insert(now);
        let base = (*even_at).max(now);
        if base - now > self.ahead {
            return Err(base - now - self.ahead);
        }
        *even_at = base + self.interval;
        Ok(())
    }
}

/// A client has a whole /64 of IPv6 to itself.
fn key(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address) | u128::from(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let limiter = Limiter::new(10, 5);
        let admitted = |millis: u64| {
            (0..20).filter(|_| limiter.admit(ip("192.0.2.1"), Duration::from_millis(millis)).is_ok()).count()
        };
        assert_eq!([admitted(0), admitted(50), admitted(100), admitted(300), admitted(60_000)], [5, 0, 1, 2, 5]);
        let wait = limiter.admit(ip("192.0.2.1"), Duration::from_secs(60)).expect_err("too many");
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
    }

    #[test]
    fn clients_have_limits_of_their_own_and_a_network_of_ipv6_is_one() {
        let limiter = Limiter::new(1, 1);
        let admit = |text: &str| limiter.admit(ip(text), Duration::ZERO).is_ok();
        assert!(admit("192.0.2.1") && admit("192.0.2.2") && !admit("::ffff:192.0.2.1"));
        assert!(admit("2001:db8::1") && !admit("2001:db8::2") && admit("2001:db8:0:1::1"));
    }

    #[test]
    fn an_attacker_with_many_addresses_takes_bounded_memory() {
        let limiter = Limiter::new(1, 1);
        for number in 0..200_000_u32 {
            limiter.admit(IpAddr::from(number.to_be_bytes()), Duration::ZERO).ok();
        }
        assert!(limiter.clients.lock().expect("ours").len() <= MOST);
    }
}
