//! Forwards what is not ours to the upstream resolvers, and remembers what they said.
//!
//! In: a question that the zone left to others. Out: [`Found`] or why not. Transport, retransmission, the change to
//! TCP and the sharing of equal questions in flight are hickory's, one pool per upstream; which upstream is asked,
//! and when the next one, is decided here.
//!
//! Invariants: a question leaves with the case of its letters shuffled, and a question that arrives in exactly the
//! shuffle of one in flight is ours come back: [`ForwardError::Loop`]. A loop through a server that lowers the case
//! ends in the shared question in flight and its deadline. Nothing waits longer than [`DEADLINE`].

pub mod host;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, PTR};
use hickory_proto::rr::{Name, RData, Record};
use hickory_resolver::config::{NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::DnsHandle as _;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig};
use tokio::sync::Semaphore;

use super::answer::{Rcode, UDP_PAYLOAD};
use super::metrics::Metrics;

/// The client gives up after about 5 seconds (resolver(5)); it hears of a failure before that.
const DEADLINE: Duration = Duration::from_secs(4);
/// How long one upstream may take before the next is asked as well.
const HEDGE: Duration = Duration::from_millis(600);
/// How long one upstream is waited for at all.
const PATIENCE: Duration = Duration::from_secs(3);
/// Questions in flight; each holds a UDP socket and some kilobytes.
const IN_FLIGHT: usize = 256;
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(86_400);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(3600);
/// Fewer letters than this shuffle too few ways to tell our question from that of a client that shuffles too.
const LETTERS_FOR_LOOP_DETECTION: usize = 8;

/// What a client wants to know.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// In the client's own case.
    pub query: Query,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

/// What others said.
#[derive(Debug, Clone)]
pub struct Found {
    pub rcode: Rcode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    /// The upstream says that it validated the answer.
    pub authentic: bool,
    pub source: Source,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Cache,
    Upstream,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("the question is our own come back: an upstream forwards to us")]
    Loop,
    #[error("too many questions are in flight")]
    Busy,
    #[error("there is no upstream to ask")]
    NoUpstream,
    #[error("no upstream answered in time")]
    Timeout,
    #[error("the upstreams failed")]
    Failed(#[source] NetError),
}

/// Why a set of upstreams cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to prepare the upstream resolvers")]
pub struct PrepareError(#[source] NetError);

type Pool = NameServerPool<TokioRuntimeProvider>;

/// The upstreams and their cache.
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    pools: Vec<Pool>,
    /// The one that answered last is asked first.
    preferred: AtomicUsize,
    plain: ResponseCache,
    /// Answers with DNSSEC records.
    secure: ResponseCache,
    shuffles: Mutex<HashMap<Vec<u8>, usize>>,
    permits: Semaphore,
    metrics: Metrics,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("upstreams", &self.upstreams).finish_non_exhaustive()
    }
}

impl Forwarder {
    /// Forwards to `upstreams`, in order of preference, and keeps at most `cache_entries` answers.
    ///
    /// # Errors
    /// Only if the resolver library cannot be set up.
    pub fn new(upstreams: Vec<SocketAddr>, cache_entries: u64, metrics: Metrics) -> Result<Self, PrepareError> {
        let mut options = ResolverOpts::default();
        options.timeout = PATIENCE;
        options.edns_payload_len = UDP_PAYLOAD;
        options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
        options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        let ttl = TtlConfig::from_opts(&options);
        let context = Arc::new(PoolContext::new(options, TlsConfig::new().map_err(PrepareError)?));
        let pool = |address: &SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            Pool::from_config([server], Arc::clone(&context), TokioRuntimeProvider::default())
        };
        Ok(Self {
            pools: upstreams.iter().map(pool).collect(),
            upstreams,
            preferred: AtomicUsize::new(0),
            plain: ResponseCache::new(cache_entries, ttl.clone()),
            secure: ResponseCache::new(cache_entries, ttl),
            shuffles: Mutex::default(),
            permits: Semaphore::new(IN_FLIGHT),
            metrics,
        })
    }

    /// The upstreams in order of preference.
    pub fn upstreams(&self) -> &[SocketAddr] {
        &self.upstreams
    }

    /// Finds the answer in the cache or at an upstream.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub async fn lookup(&self, wanted: &Wanted) -> Result<Found, ForwardError> {
        if self.is_own_shuffle(wanted.query.name()) {
            return Err(ForwardError::Loop);
        }
        let cache = if wanted.dnssec_ok { &self.secure } else { &self.plain };
        let mut key = wanted.query.clone();
        key.name = key.name.to_lowercase();
        // Without validation the upstream may say other things, which must not reach clients that want it.
        let cacheable = !wanted.checking_disabled;
        if let Some(result) = cache.get(&key, Instant::now()).filter(|_| cacheable) {
            return into_found(result, wanted, Source::Cache);
        }
        let result = self.ask(wanted).await?;
        if cacheable {
            cache.insert(key, result.clone(), Instant::now());
        }
        into_found(result, wanted, Source::Upstream)
    }

    async fn ask(&self, wanted: &Wanted) -> Result<Result<Message, NetError>, ForwardError> {
        if self.pools.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let _permit = self.permits.try_acquire().map_err(|_full| ForwardError::Busy)?;
        let (request, _shuffle) = self.shuffled(wanted);
        let start = Instant::now();
        let result = tokio::time::timeout(DEADLINE, self.ask_in_turn(request)).await;
        self.metrics.upstream_took(start.elapsed());
        result.map_err(|_elapsed| ForwardError::Timeout)?
    }

    /// Asks one upstream after the other: the next when one fails, or is slow.
    async fn ask_in_turn(&self, request: DnsRequest) -> Result<Result<Message, NetError>, ForwardError> {
        let count = self.pools.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut waiting = (0..count).map(|step| (first + step) % count);
        let mut asked = FuturesUnordered::new();
        let mut last_error = None;
        loop {
            let next = waiting.next();
            if let Some(index) = next {
                asked.push(ask_one(&self.pools[index], index, request.clone()));
            }
            let answered = tokio::select! {
                answered = asked.next() => answered,
                () = tokio::time::sleep(HEDGE), if next.is_some() => None,
            };
            match answered {
                Some((index, Ok(result))) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(result);
                }
                Some((_, Err(error))) => last_error = Some(error),
                None => {}
            }
            if next.is_none() && asked.is_empty() {
                return Err(last_error.map_or(ForwardError::Timeout, ForwardError::Failed));
            }
        }
    }

    /// The request in a shuffle that is remembered as long as the guard lives.
    fn shuffled(&self, wanted: &Wanted) -> (DnsRequest, Option<ShuffleGuard<'_>>) {
        let mut query = wanted.query.clone();
        query.name.randomize_label_case();
        let guard = shuffle_of(&query.name).map(|shuffle| ShuffleGuard::new(self, shuffle));
        let mut options = DnsRequestOptions::default();
        options.edns_payload_len = UDP_PAYLOAD;
        options.edns_set_dnssec_ok = wanted.dnssec_ok;
        let mut request = DnsRequest::from_query(query, options);
        request.metadata.checking_disabled = wanted.checking_disabled;
        // Asks for the AD bit without the records behind it (RFC 6840 section 5.7).
        request.metadata.authentic_data = true;
        (request, guard)
    }

    fn is_own_shuffle(&self, name: &Name) -> bool {
        let shuffles = self.shuffles.lock().unwrap_or_else(PoisonError::into_inner);
        !shuffles.is_empty() && shuffle_of(name).is_some_and(|shuffle| shuffles.contains_key(&shuffle))
    }
}

/// Outer error: this upstream is of no help, ask another. Inner: what it said, a negative answer included.
async fn ask_one(
    pool: &Pool,
    index: usize,
    request: DnsRequest,
) -> (usize, Result<Result<Message, NetError>, NetError>) {
    let result = pool.send(request).next().await.unwrap_or(Err(NetError::NoConnections));
    let judged = match result {
        Ok(response) => Ok(Ok(response.into_message())),
        Err(error @ NetError::Dns(DnsError::NoRecordsFound(_))) => Ok(Err(error)),
        Err(error) => Err(error),
    };
    (index, judged)
}

/// The labels with their case, if they can be told from what others send: mixed, and enough of them.
fn shuffle_of(name: &Name) -> Option<Vec<u8>> {
    let labels: Vec<u8> = name.iter().collect::<Vec<_>>().join(&b'.');
    let upper = labels.iter().filter(|byte| byte.is_ascii_uppercase()).count();
    let lower = labels.iter().filter(|byte| byte.is_ascii_lowercase()).count();
    (upper > 0 && lower > 0 && upper + lower >= LETTERS_FOR_LOOP_DETECTION).then_some(labels)
}

/// Remembers a shuffle while its question is in flight.
struct ShuffleGuard<'f> {
    forwarder: &'f Forwarder,
    shuffle: Vec<u8>,
}

impl<'f> ShuffleGuard<'f> {
    fn new(forwarder: &'f Forwarder, shuffle: Vec<u8>) -> Self {
        let mut shuffles = forwarder.shuffles.lock().unwrap_or_else(PoisonError::into_inner);
        *shuffles.entry(shuffle.clone()).or_insert(0) += 1;
        Self { forwarder, shuffle }
    }
}

impl Drop for ShuffleGuard<'_> {
    fn drop(&mut self) {
        let mut shuffles = self.forwarder.shuffles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = shuffles.get_mut(&self.shuffle) {
            *count -= 1;
            if *count == 0 {
                shuffles.remove(&self.shuffle);
            }
        }
    }
}

fn into_found(result: Result<Message, NetError>, wanted: &Wanted, source: Source) -> Result<Found, ForwardError> {
    let (code, mut answers, mut authorities, authentic) = match result {
        Ok(message) => {
            let authentic = message.metadata.authentic_data;
            (message.metadata.response_code, message.answers, message.authorities, authentic)
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let mut authorities = none.authorities.map(|records| records.to_vec()).unwrap_or_default();
            if let Some(soa) = none.soa.filter(|_| authorities.is_empty()) {
                authorities.push(soa.into_record_of_rdata());
            }
            (none.response_code, Vec::new(), authorities, false)
        }
        Err(error) => return Err(ForwardError::Failed(error)),
    };
    for record in answers.iter_mut().chain(&mut authorities) {
        restore_case(record, wanted.query.name());
    }
    // A code that is neither yes nor no says nothing about the name: the client hears that we failed to find out.
    let known = [(ResponseCode::NoError, Rcode::NoError), (ResponseCode::NXDomain, Rcode::NxDomain)];
    let rcode = known.iter().find(|(theirs, _)| *theirs == code).map_or(Rcode::ServFail, |(_, ours)| *ours);
    Ok(Found { rcode, answers, authorities, authentic, source })
}

/// Shows the client its own case again instead of our shuffle. Names that end like the question do so by pointers to
/// it (RFC 1035 section 4.1.4), so the shuffle shows in owners and in targets.
fn restore_case(record: &mut Record, asked: &Name) {
    record.name = in_case_of(&record.name, asked);
    if let RData::CNAME(CNAME(target)) | RData::NS(NS(target)) | RData::PTR(PTR(target)) = &mut record.data {
        *target = in_case_of(target, asked);
    } else if let RData::MX(exchange) = &mut record.data {
        exchange.exchange = in_case_of(&exchange.exchange, asked);
    } else if let RData::SOA(soa) = &mut record.data {
        soa.mname = in_case_of(&soa.mname, asked);
        soa.rname = in_case_of(&soa.rname, asked);
    }
}

/// `name`, with the labels that it shares with the end of `asked` written as there.
fn in_case_of(name: &Name, asked: &Name) -> Name {
    let same = |(left, right): &(&[u8], &[u8])| left.eq_ignore_ascii_case(right);
    let shared = name.iter().rev().zip(asked.iter().rev()).take_while(same).count();
    let own = name.iter().take(name.iter().count() - shared);
    let theirs = asked.iter().skip(asked.iter().count() - shared);
    // Labels of two names that are right cannot make one that is wrong: the result is as long as `name`.
    Name::from_labels(own.chain(theirs)).unwrap_or_else(|_impossible| name.clone())
}

#[cfg(test)]
mod tests;
