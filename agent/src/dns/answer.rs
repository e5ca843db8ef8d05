//! Query bytes in, answer bytes out, from a zone snapshot: the fast path of the server, without any allocation.
//!
//! Pure. Everything that needs no upstream is decided here: refusals, malformed queries, and every name of
//! [`Zone`]. What is left is [`Outcome::Elsewhere`]. The hickory request handler answers the same questions from
//! the same snapshot for TCP; a property test holds the two against each other.
//!
//! Invariants: no input panics; the reply to a malformed query is its 12-byte header, so it never grows;
//! a reply over UDP never exceeds what the client takes, nor [`UDP_PAYLOAD`].

use super::wire::{CLASS_IN, NAME_MAX, rtype};
use super::zone::{Resolution, RrSet, Zone};

/// The largest UDP reply, and what we tell clients to send at most: no fragments on any path (DNS flag day 2020).
pub const UDP_PAYLOAD: u16 = 1232;
/// The largest UDP reply to a client without EDNS (RFC 1035 section 4.2.1).
pub const PLAIN_PAYLOAD: u16 = 512;

/// Bytes of a message's header.
pub const HEADER: usize = 12;
const OPT_SIZE: usize = 11;

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rcode {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    BadVers,
}

impl Rcode {
    /// Every code, in the order of the type.
    pub const ALL: [Self; 7] =
        [Self::NoError, Self::FormErr, Self::ServFail, Self::NxDomain, Self::NotImp, Self::Refused, Self::BadVers];

    /// The assigned number.
    pub const fn number(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::BadVers => 16,
        }
    }
}

/// How large a reply may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As large as the client says, at most [`UDP_PAYLOAD`].
    Udp,
    /// 65535 bytes.
    Tcp,
}

/// What to do with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Send the first `length` bytes of the output.
    Reply { length: usize, rcode: Rcode },
    /// Not a query: a reply would be noise, or the other half of a loop between two servers.
    Ignore,
    /// A well-formed question about a name that is not ours.
    Elsewhere,
}

/// A question, read without copying the message.
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// The name as the client wrote it.
    pub name: &'q [u8],
    pub rtype: u16,
    pub class: u16,
    pub edns: Option<ClientEdns>,
}

/// What the client says in its OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEdns {
    pub payload: u16,
    pub version: u8,
    pub dnssec_ok: bool,
}

/// What the first look at a message says.
#[derive(Debug, Clone, Copy)]
pub enum Gate<'q> {
    Ignore,
    /// The reply is a bare header with this code.
    HeaderOnly(Rcode),
    Question(Question<'q>),
}

/// Looks at a message: is it a query, and one that can be understood?
pub fn gate(message: &[u8]) -> Gate<'_> {
    if message.len() < HEADER || message[2] & 0x80 != 0 {
        return Gate::Ignore;
    }
    let opcode = (message[2] >> 3) & 15;
    if opcode != 0 {
        return Gate::HeaderOnly(Rcode::NotImp);
    }
    read(message).map_or(Gate::HeaderOnly(Rcode::FormErr), Gate::Question)
}

/// Answers `query` into `output`, which must have room for [`UDP_PAYLOAD`] bytes over UDP and 65535 over TCP.
pub fn answer(query: &[u8], zone: &Zone, transport: Transport, output: &mut [u8]) -> Outcome {
    let question = match gate(query) {
        Gate::Ignore => return Outcome::Ignore,
        Gate::HeaderOnly(rcode) => {
            output[..HEADER].copy_from_slice(&header_reply(query, rcode));
            return Outcome::Reply { length: HEADER, rcode };
        }
        Gate::Question(question) => question,
    };
    let reply = Reply { query, question: &question, limit: question.limit(transport) };
    if question.edns.is_some_and(|edns| edns.version != 0) {
        return reply.empty(Rcode::BadVers, output);
    }
    if question.class != CLASS_IN || rtype::is_meta(question.rtype) {
        return reply.empty(Rcode::Refused, output);
    }
    let mut lower = [0; NAME_MAX];
    let name = &mut lower[..question.name.len()];
    // Length bytes are at most 63, below every letter: lowering all bytes changes letters only.
    name.copy_from_slice(question.name);
    name.make_ascii_lowercase();
    match zone.resolve(name, question.rtype) {
        Resolution::Answer(set) => reply.positive(set, output),
        Resolution::NoData { apex_len } => reply.negative(Rcode::NoError, zone.soa(), apex_len, output),
        Resolution::NoName { apex_len } => reply.negative(Rcode::NxDomain, zone.soa(), apex_len, output),
        Resolution::Elsewhere => Outcome::Elsewhere,
    }
}

/// A reply without records that the caller decided on, to a query that [`gate`] let pass.
pub fn refuse(query: &[u8], rcode: Rcode, transport: Transport, output: &mut [u8]) -> Outcome {
    let Gate::Question(question) = gate(query) else { return Outcome::Ignore };
    Reply { query, question: &question, limit: question.limit(transport) }.empty(rcode, output)
}

/// "Ask again over TCP", to a query that [`gate`] let pass; its header is that of the reply which was too large.
pub fn truncate(query: &[u8], too_large: &[u8], output: &mut [u8]) -> Outcome {
    let Gate::Question(question) = gate(query) else { return Outcome::Ignore };
    let reply = Reply { query, question: &question, limit: question.limit(Transport::Udp) };
    let outcome = reply.truncated(output);
    output[2..4].copy_from_slice(&too_large[2..4]);
    output[2] |= 2;
    outcome
}

/// The question of a query with exactly one, no answers, and well-formed additional records; else `None`.
fn read(query: &[u8]) -> Option<Question<'_>> {
    let count = |at: usize| query.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    if (count(4)?, count(6)?, count(8)?) != (1, 0, 0) {
        return None;
    }
    let name_end = skip_plain_name(query, HEADER)?;
    let (rtype, class) = (count(name_end)?, count(name_end + 2)?);
    let edns = read_additional(query, name_end + 4, count(10)?)?;
    Some(Question { name: &query[HEADER..name_end], rtype, class, edns })
}

/// The end of the name at `at`, which must not be compressed.
fn skip_plain_name(message: &[u8], at: usize) -> Option<usize> {
    let mut next = at;
    loop {
        let length = usize::from(*message.get(next)?);
        if length > 63 {
            return None;
        }
        next += length + 1;
        if next - at > NAME_MAX {
            return None;
        }
        if length == 0 {
            return Some(next);
        }
    }
}

/// The end of any name, a compression pointer included.
fn skip_name(message: &[u8], at: usize) -> Option<usize> {
    let mut next = at;
    loop {
        let length = usize::from(*message.get(next)?);
        match length {
            0 => return Some(next + 1),
            1..=63 => next += length + 1,
            0xc0..=0xff => return Some(next + 2),
            _ => return None,
        }
    }
}

/// The OPT record among `count` additional records; outer `None`: malformed.
fn read_additional(message: &[u8], mut at: usize, count: u16) -> Option<Option<ClientEdns>> {
    let mut edns = None;
    for _ in 0..count {
        let owner = at;
        let fixed_at = skip_name(message, owner)?;
        let fixed = message.get(fixed_at..fixed_at + 10)?;
        let data_length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        at = fixed_at + 10 + data_length;
        if at > message.len() {
            return None;
        }
        if u16::from_be_bytes([fixed[0], fixed[1]]) != rtype::OPT {
            continue;
        }
        // At most one, and it belongs to the root (RFC 6891 section 6.1.1).
        if edns.is_some() || message[owner] != 0 || !options_are_whole(&message[fixed_at + 10..at]) {
            return None;
        }
        let payload = u16::from_be_bytes([fixed[2], fixed[3]]);
        edns = Some(ClientEdns { payload, version: fixed[5], dnssec_ok: fixed[6] & 0x80 != 0 });
    }
    Some(edns)
}

fn options_are_whole(mut options: &[u8]) -> bool {
    while !options.is_empty() {
        let Some(length) = options.get(2..4) else { return false };
        let end = 4 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        let Some(rest) = options.get(end..) else { return false };
        options = rest;
    }
    true
}

impl Question<'_> {
    /// The largest reply that the client takes.
    pub fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => usize::from(edns.payload.clamp(PLAIN_PAYLOAD, UDP_PAYLOAD)),
            (Transport::Udp, None) => usize::from(PLAIN_PAYLOAD),
        }
    }
}

/// A bare header as the reply to `query`, which has a whole header itself.
pub fn header_reply(query: &[u8], rcode: Rcode) -> [u8; HEADER] {
    let mut reply = [0; HEADER];
    reply[..2].copy_from_slice(&query[..2]);
    write_flags(query, Flags { authoritative: false, truncated: false, rcode }, &mut reply);
    reply
}

struct Flags {
    authoritative: bool,
    truncated: bool,
    rcode: Rcode,
}

/// Opcode, RD and CD are the client's (RFC 1035, RFC 4035 section 3.2.2); recursion is on offer.
fn write_flags(query: &[u8], flags: Flags, output: &mut [u8]) {
    let (authoritative, truncated) = (u8::from(flags.authoritative) << 2, u8::from(flags.truncated) << 1);
    output[2] = 0x80 | (query[2] & 0x79) | authoritative | truncated;
    let [_, low] = flags.rcode.number().to_be_bytes();
    output[3] = 0x80 | (query[3] & 0x10) | (low & 15);
}

struct Reply<'q> {
    query: &'q [u8],
    question: &'q Question<'q>,
    limit: usize,
}

impl Reply<'_> {
    fn positive(&self, set: &RrSet, output: &mut [u8]) -> Outcome {
        let question_end = self.question_end();
        let end = question_end + set.wire.len();
        if end + self.opt_size() > self.limit {
            return self.truncated(output);
        }
        output[question_end..end].copy_from_slice(&set.wire);
        let count = u16::try_from(set.records.len()).unwrap_or(u16::MAX);
        let flags = Flags { authoritative: true, truncated: false, rcode: Rcode::NoError };
        self.finish(flags, [count, 0], end, output)
    }

    fn negative(&self, rcode: Rcode, soa: &RrSet, apex_len: usize, output: &mut [u8]) -> Outcome {
        let question_end = self.question_end();
        let end = question_end + soa.wire.len();
        let flags = Flags { authoritative: true, truncated: false, rcode };
        if end + self.opt_size() > self.limit {
            return self.finish(Flags { truncated: true, ..flags }, [0, 0], question_end, output);
        }
        let soa_wire = &mut output[question_end..end];
        soa_wire.copy_from_slice(&soa.wire);
        // The owner is the zone: a pointer into the name of the question. A name is shorter than a pointer reaches.
        let apex_at = u16::try_from(HEADER + self.question.name.len() - apex_len).unwrap_or(0);
        soa_wire[..2].copy_from_slice(&(0xc000 | apex_at).to_be_bytes());
        self.finish(flags, [0, 1], end, output)
    }

    fn truncated(&self, output: &mut [u8]) -> Outcome {
        let flags = Flags { authoritative: true, truncated: true, rcode: Rcode::NoError };
        self.finish(flags, [0, 0], self.question_end(), output)
    }

    fn empty(&self, rcode: Rcode, output: &mut [u8]) -> Outcome {
        let flags = Flags { authoritative: false, truncated: false, rcode };
        self.finish(flags, [0, 0], self.question_end(), output)
    }

    fn question_end(&self) -> usize {
        HEADER + self.question.name.len() + 4
    }

    fn opt_size(&self) -> usize {
        if self.question.edns.is_some() { OPT_SIZE } else { 0 }
    }

    /// Header, question and OPT around the records that are in place. `counts`: answer, authority.
    fn finish(&self, flags: Flags, counts: [u16; 2], end: usize, output: &mut [u8]) -> Outcome {
        let rcode = flags.rcode;
        let question_end = self.question_end();
        output[..2].copy_from_slice(&self.query[..2]);
        write_flags(self.query, flags, output);
        output[HEADER..question_end].copy_from_slice(&self.query[HEADER..question_end]);
        let additional = u16::from(self.question.edns.is_some());
        for (at, count) in [(4, 1), (6, counts[0]), (8, counts[1]), (10, additional)] {
            output[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        if let Some(edns) = self.question.edns {
            write_opt(edns, rcode, &mut output[end..end + OPT_SIZE]);
        }
        Outcome::Reply { length: end + self.opt_size(), rcode }
    }
}

fn write_opt(client: ClientEdns, rcode: Rcode, output: &mut [u8]) {
    let [payload_high, payload_low] = UDP_PAYLOAD.to_be_bytes();
    let [_, type_low] = rtype::OPT.to_be_bytes();
    // The four bits of the code in the header are its low ones.
    let [_, rcode_high] = (rcode.number() >> 4).to_be_bytes();
    let dnssec_ok = u8::from(client.dnssec_ok) << 7;
    output.copy_from_slice(&[0, 0, type_low, payload_high, payload_low, rcode_high, 0, dnssec_ok, 0, 0, 0]);
}

#[cfg(test)]
mod tests;
