//! Requests as hickory-server reads and writes them: all of TCP, and over UDP whatever the fast path leaves.
//!
//! In: a query and its client. Out: the bytes of the reply, if there is one. The zone is the same snapshot that
//! `answer` uses, and both must say the same; what is not ours goes to the upstreams for those who may ask.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Metadata, Query, ResponseCode};
use hickory_proto::rr::rdata::{HINFO, NS, PTR, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder, BinEncoder};
use hickory_server::net::NetError;
use hickory_server::net::runtime::{Time, TokioTime};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder};

use super::answer::{self, Gate, Outcome, Rcode, Transport, UDP_PAYLOAD};
use super::metrics::{AnsweredBy, Metrics, Proto};
use super::upstream::{ForwardError, Forwarder, Source, Wanted};
use super::wire::{Data, WireName, rtype};
use super::zone::{Resolution, TTL, Zone};

/// What every serving thread and task looks at.
#[derive(Debug)]
pub struct Shared {
    pub zone: ArcSwap<Zone>,
    pub forwarder: ArcSwap<Forwarder>,
    pub metrics: Metrics,
}

/// Answers requests over hickory's types. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handler {
    shared: Arc<Shared>,
}

impl Handler {
    /// A handler over what the server shares.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The reply to `query`, or `None` where silence is right.
    pub async fn reply(&self, query: Vec<u8>, client: SocketAddr, transport: Transport) -> Option<Vec<u8>> {
        let (proto, protocol) = match transport {
            Transport::Udp => (Proto::Udp, Protocol::Udp),
            Transport::Tcp => (Proto::Tcp, Protocol::Tcp),
        };
        let malformed = |query: &[u8], rcode| {
            self.shared.metrics.count(proto, AnsweredBy::Refused, rcode);
            Some(answer::header_reply(query, rcode).to_vec())
        };
        let limit = match answer::gate(&query) {
            Gate::Ignore => {
                self.shared.metrics.ignored(1);
                return None;
            }
            Gate::HeaderOnly(rcode) => return malformed(&query, rcode),
            Gate::Question(question) => question.limit(transport),
        };
        let header: Vec<u8> = query[..answer::HEADER].to_vec();
        // hickory reads more of a message than we do: the data of additional records, for one.
        let Ok(request) = Request::from_bytes(query, client, protocol) else {
            return malformed(&header, Rcode::FormErr);
        };
        let collected = Collected::new(limit);
        self.handle_request::<_, TokioTime>(&request, collected.clone()).await;
        let reply = collected.take()?;
        let truncated = reply[2] & 2 != 0;
        if truncated { truncate(&request, &reply) } else { Some(reply) }
    }

    async fn decide(&self, request: &Request) -> Verdict {
        let Gate::Question(question) = answer::gate(request.as_slice()) else {
            return Verdict::refusal(Rcode::FormErr);
        };
        let Some(query) = request.queries.queries().first().map(|query| query.original().clone()) else {
            return Verdict::refusal(Rcode::FormErr);
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return Verdict::refusal(Rcode::BadVers);
        }
        if query.query_class() != DNSClass::IN || rtype::is_meta(question.rtype) {
            return Verdict::refusal(Rcode::Refused);
        }
        let zone = self.shared.zone.load_full();
        let apex = |apex_len: usize| read_name(&question.name[question.name.len() - apex_len..]);
        match zone.resolve(&question.name.to_ascii_lowercase(), question.rtype) {
            Resolution::Answer(set) => Verdict::of_zone(Rcode::NoError, to_records(query.name(), &set.records), vec![]),
            Resolution::NoData { apex_len } => {
                let soa = to_records(&apex(apex_len), &zone.soa().records);
                Verdict::of_zone(Rcode::NoError, vec![], soa)
            }
            Resolution::NoName { apex_len } => {
                let soa = to_records(&apex(apex_len), &zone.soa().records);
                Verdict::of_zone(Rcode::NxDomain, vec![], soa)
            }
            Resolution::Elsewhere if !may_forward(&zone, request) => Verdict::refusal(Rcode::Refused),
            Resolution::Elsewhere => self.forward(request, query).await,
        }
    }

    async fn forward(&self, request: &Request, query: Query) -> Verdict {
        let dnssec_ok = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let wants_ad = dnssec_ok || request.metadata.authentic_data;
        let wanted = Wanted { query, dnssec_ok, checking_disabled: request.metadata.checking_disabled };
        let forwarder = self.shared.forwarder.load_full();
        match forwarder.lookup(&wanted).await {
            Ok(found) => Verdict {
                rcode: found.rcode,
                answered_by: match found.source {
                    Source::Cache => AnsweredBy::Cache,
                    Source::Upstream => AnsweredBy::Upstream,
                },
                authoritative: false,
                authentic: found.authentic && wants_ad,
                answers: found.answers,
                authorities: found.authorities,
            },
            Err(error @ ForwardError::Loop) => {
                tracing::warn!(name = %wanted.query.name(), "{error}; remove our address from its upstreams");
                Verdict::refusal(Rcode::Refused)
            }
            Err(error) => {
                tracing::debug!(name = %wanted.query.name(), error = crate::foundation::error::chain(&error), "not forwarded");
                Verdict { answered_by: AnsweredBy::Upstream, ..Verdict::refusal(Rcode::ServFail) }
            }
        }
    }
}

/// What of a set fits says nothing that a client may rely on: it gets none of it, and asks again over TCP.
fn truncate(request: &Request, reply: &[u8]) -> Option<Vec<u8>> {
    let mut output = vec![0; usize::from(UDP_PAYLOAD)];
    let Outcome::Reply { length, .. } = answer::truncate(request.as_slice(), reply, &mut output) else { return None };
    output.truncate(length);
    Some(output)
}

fn may_forward(zone: &Zone, request: &Request) -> bool {
    request.metadata.recursion_desired && zone.may_forward(request.src().ip())
}

/// What to reply.
#[derive(Debug)]
struct Verdict {
    rcode: Rcode,
    answered_by: AnsweredBy,
    authoritative: bool,
    authentic: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Verdict {
    fn refusal(rcode: Rcode) -> Self {
        let answered_by = AnsweredBy::Refused;
        Self { rcode, answered_by, authoritative: false, authentic: false, answers: vec![], authorities: vec![] }
    }

    fn of_zone(rcode: Rcode, answers: Vec<Record>, authorities: Vec<Record>) -> Self {
        Self { rcode, answered_by: AnsweredBy::Zone, authoritative: true, authentic: false, answers, authorities }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let verdict = self.decide(request).await;
        let proto = if request.protocol() == Protocol::Udp { Proto::Udp } else { Proto::Tcp };
        self.shared.metrics.count(proto, verdict.answered_by, verdict.rcode);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = verdict.authoritative;
        metadata.authentic_data = verdict.authentic;
        metadata.recursion_available = true;
        let [_, low] = verdict.rcode.number().to_be_bytes();
        metadata.response_code = ResponseCode::from(low >> 4, low & 15);
        let edns = request.edns.as_ref().map(|client| reply_edns(client, low >> 4));
        let builder = MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let response = builder.build(metadata, &verdict.answers, &verdict.authorities, [], []);
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "a reply could not be written");
                ResponseInfo::from(hickory_proto::op::Header { metadata, counts: Default::default() })
            }
        }
    }
}

fn reply_edns(client: &Edns, rcode_high: u8) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_rcode_high(rcode_high);
    edns.set_dnssec_ok(client.flags().dnssec_ok);
    edns
}

fn read_name(wire: &[u8]) -> Name {
    // A name of the question or of the zone is well-formed; the root stands for what cannot be.
    Name::read(&mut BinDecoder::new(wire)).unwrap_or_else(|_malformed| Name::root())
}

fn to_records(owner: &Name, records: &[Data]) -> Vec<Record> {
    records.iter().map(|data| Record::from_rdata(owner.clone(), TTL, to_rdata(data))).collect()
}

fn to_rdata(data: &Data) -> RData {
    let name = |name: &WireName| read_name(name.as_bytes());
    match data {
        Data::A(address) => RData::A((*address).into()),
        Data::Aaaa(address) => RData::AAAA((*address).into()),
        Data::Ptr(target) => RData::PTR(PTR(name(target))),
        Data::Ns(target) => RData::NS(NS(name(target))),
        Data::Txt(strings) => RData::TXT(TXT::new(strings.clone())),
        Data::Soa(soa) => {
            let seconds = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
            let (refresh, retry, expire) = (seconds(soa.refresh), seconds(soa.retry), seconds(soa.expire));
            RData::SOA(SOA::new(
                name(&soa.primary),
                name(&soa.mailbox),
                soa.serial,
                refresh,
                retry,
                expire,
                soa.minimum,
            ))
        }
        Data::Rfc8482 => RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())),
    }
}

/// Takes the one response to a request as bytes.
#[derive(Debug, Clone)]
struct Collected {
    limit: usize,
    bytes: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Collected {
    fn new(limit: usize) -> Self {
        Self { limit, bytes: Arc::default() }
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait::async_trait]
impl ResponseHandler for Collected {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::try_from(self.limit).unwrap_or(u16::MAX));
        let info = response.destructive_emit(&mut encoder)?;
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        Ok(info)
    }
}

#[cfg(test)]
mod tests;
