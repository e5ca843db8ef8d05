//! `weft dns query`: one question to the agent's name server, by UDP, by TCP when the answer was cut.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use weft_proto::weft::v1 as proto;

use super::output::{self, Align, Style, Table, Tone, cell};
use super::{Exit, Failure, QueryArgs, Target};
use crate::api::view;

/// The server is on this host: what takes longer does not come.
const WAIT: Duration = Duration::from_secs(3);
/// What reaches everybody without fragments (DNS flag day 2020).
const UDP_PAYLOAD_BYTES: u16 = 1232;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum DnsError {
    #[error("{0:?} is not a domain name")]
    Name(String),
    #[error("{0:?} is not a record type like A, AAAA, PTR or TXT")]
    Kind(String),
    #[error("--server {0:?} is not ADDRESS or ADDRESS:PORT")]
    Server(String),
    #[error("the agent answers no DNS: see `weft status`, and dns.enabled in the configuration")]
    NotListening,
    #[error("failed to write the question")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("failed to ask {server}")]
    Exchange {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{server} did not answer within {} s", WAIT.as_secs())]
    Timeout { server: SocketAddr },
    #[error("{server} sent something that is not an answer")]
    Decode {
        server: SocketAddr,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DnsError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Name(_) | Self::Kind(_) | Self::Server(_) => Exit::Usage,
            Self::NotListening
            | Self::Encode(_)
            | Self::Exchange { .. }
            | Self::Timeout { .. }
            | Self::Decode { .. } => Exit::Failed,
        }
    }
}

/// The answer as JSON.
#[derive(Debug, Serialize)]
struct Answer {
    schema: u32,
    name: String,
    r#type: String,
    server: SocketAddr,
    protocol: &'static str,
    milliseconds: f64,
    /// The response code, like `NoError` or `NXDomain`.
    code: String,
    authoritative: bool,
    answers: Vec<Row>,
    authorities: Vec<Row>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    name: String,
    ttl_seconds: u32,
    r#type: String,
    data: String,
}

pub(super) async fn run(target: &Target, args: &QueryArgs) -> Result<Exit, Failure> {
    let kind = parse_kind(&args.kind)?;
    let (server, domain) = match &args.server {
        Some(text) => (parse_server(text)?, None),
        None => running_server(target).await?,
    };
    let name = full_name(&args.name, domain.as_deref())?;
    let asked_at = Instant::now();
    let (message, protocol) = ask(server, &name, kind).await?;
    let milliseconds = asked_at.elapsed().as_secs_f64() * 1000.0;
    let exit = if message.answers.is_empty() { Exit::Failed } else { Exit::Ok };
    let answer = Answer {
        schema: view::SCHEMA,
        name: name.to_string(),
        r#type: kind.to_string(),
        server,
        protocol,
        milliseconds,
        code: code(message.metadata.response_code),
        authoritative: message.metadata.authoritative,
        answers: rows(&message.answers),
        authorities: rows(&message.authorities),
    };
    if args.json {
        output::print_json(&answer)?;
    } else {
        output::print(&render(&answer, Style::of_stdout()))?;
    }
    Ok(exit)
}

fn parse_kind(text: &str) -> Result<RecordType, DnsError> {
    text.to_ascii_uppercase().parse().map_err(|_unknown| DnsError::Kind(text.to_owned()))
}

fn parse_server(text: &str) -> Result<SocketAddr, DnsError> {
    let bare = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
    text.parse().ok().or_else(bare).ok_or_else(|| DnsError::Server(text.to_owned()))
}

/// Where the running agent answers, and its domain.
async fn running_server(target: &Target) -> Result<(SocketAddr, Option<String>), Failure> {
    let status: proto::Status = target.client()?.get("/status").await?;
    let dns = status.dns.unwrap_or_default();
    let server = dns.listening.iter().find_map(|text| text.parse().ok()).ok_or(DnsError::NotListening)?;
    Ok((server, Some(dns.domain)))
}

/// A single label belongs to the mesh domain; everything else is a whole name.
fn full_name(text: &str, domain: Option<&str>) -> Result<Name, DnsError> {
    let text_in_domain = match domain {
        Some(domain) if !text.contains('.') && !text.is_empty() => format!("{text}.{domain}"),
        Some(_) | None => text.to_owned(),
    };
    let mut name = Name::from_ascii(&text_in_domain).map_err(|_error| DnsError::Name(text.to_owned()))?;
    if text.is_empty() {
        return Err(DnsError::Name(text.to_owned()));
    }
    name.set_fqdn(true);
    Ok(name)
}

async fn ask(server: SocketAddr, name: &Name, kind: RecordType) -> Result<(Message, &'static str), DnsError> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_BYTES);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(|error| DnsError::Encode(error.into()))?;
    let answer = within(server, over_udp(server, &bytes)).await?;
    let message = decode(server, &answer)?;
    if !message.metadata.truncation {
        return Ok((message, "udp"));
    }
    let answer = within(server, over_tcp(server, &bytes)).await?;
    Ok((decode(server, &answer)?, "tcp"))
}

async fn within(server: SocketAddr, exchange: impl Future<Output = io::Result<Vec<u8>>>) -> Result<Vec<u8>, DnsError> {
    match timeout(WAIT, exchange).await {
        Ok(answer) => answer.map_err(|source| DnsError::Exchange { server, source }),
        Err(_elapsed) => Err(DnsError::Timeout { server }),
    }
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).await?;
    // Connected: the kernel drops what others send and reports a closed port.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // An answer has the identifier of its question.
        if length >= 2 && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn decode(server: SocketAddr, bytes: &[u8]) -> Result<Message, DnsError> {
    Message::from_vec(bytes).map_err(|error| DnsError::Decode { server, source: error.into() })
}

fn rows(records: &[Record]) -> Vec<Row> {
    records
        .iter()
        .map(|record| Row {
            name: record.name.to_string(),
            ttl_seconds: record.ttl,
            r#type: record.record_type().to_string(),
            data: record.data.to_string(),
        })
        .collect()
}

fn code(code: ResponseCode) -> String {
    format!("{code:?}")
}

fn render(answer: &Answer, style: Style) -> String {
    let tone = if answer.answers.is_empty() { Tone::Bad } else { Tone::Good };
    let verdict = match (answer.code.as_str(), answer.answers.as_slice()) {
        ("NoError", []) => format!("the name exists, but has no {}", answer.r#type),
        ("NXDomain", _) => "there is no such name".to_owned(),
        ("NoError", some) => format!("{} record(s)", some.len()),
        (other, _) => format!("the server answered {other}"),
    };
    let origin = if answer.authoritative { "of the mesh" } else { "from upstream" };
    let mut text = format!(
        "{} {}: {}, {origin}; {} by {} in {:.1} ms\n",
        answer.name,
        answer.r#type,
        style.paint(tone, &verdict),
        answer.server,
        answer.protocol,
        answer.milliseconds
    );
    let shown = if answer.answers.is_empty() { &answer.authorities } else { &answer.answers };
    if shown.is_empty() {
        return text;
    }
    let mut table =
        Table::new(&[("NAME", Align::Left), ("TTL", Align::Right), ("TYPE", Align::Left), ("DATA", Align::Left)]);
    for row in shown {
        table.row(vec![cell(&row.name), cell(row.ttl_seconds.to_string()), cell(&row.r#type), cell(&row.data)]);
    }
    text.push_str(&table.render(style));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_label_belongs_to_the_mesh_domain() {
        let name =
            |text, domain| full_name(text, domain).map(|name| name.to_string()).map_err(|error| error.to_string());
        assert_eq!(name("beta", Some("weft.internal")), Ok("beta.weft.internal.".to_owned()));
        assert_eq!(name("example.org", Some("weft.internal")), Ok("example.org.".to_owned()));
        assert_eq!(name("example.org.", None), Ok("example.org.".to_owned()));
        for wrong in ["", "a..b", &"x".repeat(64)] {
            assert!(name(wrong, Some("weft.internal")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn types_and_servers_are_parsed_or_named() {
        assert_eq!(parse_kind("aaaa").expect("a type"), RecordType::AAAA);
        assert!(parse_kind("nonsense").expect_err("no type").to_string().contains("\"nonsense\""));
        assert_eq!(parse_server("::1").expect("an address").to_string(), "[::1]:53");
        assert!(parse_server("localhost").expect_err("a name").to_string().contains("--server"));
    }

    #[test]
    fn what_is_missing_is_said_in_words() {
        let mut answer = Answer {
            schema: 1,
            name: "x.weft.internal.".to_owned(),
            r#type: "A".to_owned(),
            server: SocketAddr::from(([127, 0, 3, 3], 53)),
            protocol: "udp",
            milliseconds: 0.5,
            code: "NXDomain".to_owned(),
            authoritative: true,
            answers: Vec::new(),
            authorities: Vec::new(),
        };
        let expected = "x.weft.internal. A: there is no such name, of the mesh; 127.0.3.3:53 by udp in 0.5 ms\n";
        assert_eq!(render(&answer, Style::Plain), expected);
        answer.code = "NoError".to_owned();
        assert!(render(&answer, Style::Plain).contains("the name exists, but has no A"));
    }
}
