//! `weft hop`: a request carried to another node over the mesh, made as curl would make it.
//!
//! It goes through the gateway of this host, which says to the other node who asks; bodies stream.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use weft_proto::weft::v1 as proto;

use super::MeshError;
use crate::cli::client::Client;
use crate::cli::{Exit, Failure, output};
use crate::foundation::task::{self, Task};

#[derive(Debug, Args)]
pub(in crate::cli) struct HopArgs {
    /// The node, by its name or machine id; `weft peers` lists them
    peer: String,
    /// What is asked there: http://HOST/PATH of one of its hosts, or /PATH of its pm3 API
    url: String,
    /// The method [default: GET, with --data POST]
    #[arg(short = 'X', long = "request", value_name = "METHOD")]
    method: Option<Method>,
    /// A header, "Name: value"; can be given several times
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The body; @FILE reads it from a file, @- from standard input
    #[arg(short = 'd', long = "data", value_name = "DATA")]
    data: Option<String>,
    /// Print the status and the headers of the answer too
    #[arg(short = 'i', long)]
    include: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum HopError {
    #[error("{0:?} is no http://HOST/PATH and no /PATH")]
    Url(String),
    #[error("{0:?} is no header; write \"Name: value\"")]
    Header(String),
    #[error("failed to read the body from {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this agent has no gateway that requests could go through; set gateway.enabled = true and restart it")]
    NoGateway,
    #[error("failed to connect to the gateway at {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the gateway at {address} broke off")]
    Exchange {
        address: SocketAddr,
        #[source]
        source: hyper::Error,
    },
    #[error("{peer} answered {status}")]
    Status { peer: String, status: StatusCode },
}

impl From<HopError> for Failure {
    fn from(error: HopError) -> Self {
        match error {
            HopError::Url(_) | HopError::Header(_) => Self::Usage(error.to_string()),
            HopError::Read { .. }
            | HopError::NoGateway
            | HopError::Connect { .. }
            | HopError::Exchange { .. }
            | HopError::Status { .. } => Self::Mesh(MeshError::Hop(error)),
        }
    }
}

pub(in crate::cli) async fn run(client: &Client, args: &HopArgs) -> Result<Exit, Failure> {
    let request = request(args)?;
    let status: proto::Status = client.get("/status").await?;
    let address = gateway(&status.gateway.unwrap_or_default()).ok_or(HopError::NoGateway)?;
    let (_connection, response) = ask(address, request).await?;
    if args.include {
        output::print(&head(&response))?;
    }
    let status = response.status();
    copy(address, response).await?;
    if status.is_client_error() || status.is_server_error() {
        return Err(HopError::Status { peer: args.peer.clone(), status }.into());
    }
    Ok(Exit::Ok)
}

/// Where the gateway speaks without TLS, on loopback if it does.
pub(in crate::cli) fn gateway(gateway: &proto::GatewayStatus) -> Option<SocketAddr> {
    let plain: Vec<SocketAddr> = gateway.plain.iter().filter_map(|address| address.parse().ok()).collect();
    plain.iter().find(|address| address.ip().is_loopback()).or(plain.first()).copied()
}

/// The request for the gateway of this host.
fn request(args: &HopArgs) -> Result<Request<Full<Bytes>>, HopError> {
    let wrong = || HopError::Url(args.url.clone());
    let (host, path) = match args.url.strip_prefix("http://") {
        Some(rest) => rest.split_once('/').map_or((rest, String::new()), |(host, path)| (host, path.to_owned())),
        None => ("pm3", args.url.strip_prefix('/').ok_or_else(wrong)?.to_owned()),
    };
    if host.is_empty() || args.peer.is_empty() || args.peer.contains(['/', '?', '#']) {
        return Err(wrong());
    }
    let uri: Uri = format!("/hop/{}/{host}/{path}", args.peer).parse().map_err(|_invalid| wrong())?;
    let body = args.data.as_deref().map(body).transpose()?;
    let method = args.method.clone().unwrap_or(if body.is_some() { Method::POST } else { Method::GET });
    let mut request = Request::new(Full::new(body.unwrap_or_default()));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("pm3"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("weft/", env!("CARGO_PKG_VERSION"))));
    for line in &args.headers {
        let (name, value) = parse_header(line).ok_or_else(|| HopError::Header(line.clone()))?;
        headers.append(name, value);
    }
    Ok(request)
}

fn parse_header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let name: HeaderName = name.trim().parse().ok()?;
    // The gateway is asked as pm3; the other node's host stands in the URL.
    (name != header::HOST).then_some((name, value.trim().parse().ok()?))
}

fn body(data: &str) -> Result<Bytes, HopError> {
    let Some(path) = data.strip_prefix('@') else { return Ok(data.to_owned().into()) };
    let read = if path == "-" {
        let mut all = Vec::new();
        io::stdin().read_to_end(&mut all).map(|_count| all)
    } else {
        std::fs::read(path)
    };
    read.map(Bytes::from).map_err(|source| HopError::Read { path: path.into(), source })
}

async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<(Task, Response<Incoming>), HopError> {
    let broke = |source| HopError::Exchange { address, source };
    let stream = TcpStream::connect(address).await.map_err(|source| HopError::Connect { address, source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let driven = task::spawn("hop", async move {
        // How it ends is told to whoever reads the answer.
        connection.await.ok();
    });
    let response = sender.send_request(request).await.map_err(broke)?;
    Ok((driven, response))
}

fn head(response: &Response<Incoming>) -> String {
    let mut text = format!("{:?} {}\n", response.version(), response.status());
    for (name, value) in response.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    text.push('\n');
    text
}

/// Prints the answer as it comes, byte for byte.
async fn copy(address: SocketAddr, response: Response<Incoming>) -> Result<(), Failure> {
    let mut body = response.into_body();
    let mut out = io::stdout();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| HopError::Exchange { address, source })?;
        if let Ok(data) = frame.into_data() {
            out.write_all(&data)?;
            out.flush()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(peer: &str, url: &str) -> HopArgs {
        let (peer, url) = (peer.to_owned(), url.to_owned());
        HopArgs { peer, url, method: None, headers: Vec::new(), data: None, include: false }
    }

    #[track_caller]
    fn check(url: &str, expected: &str) {
        let made = request(&args("beta", url));
        let uri = made.map_or_else(|error| error.to_string(), |request| request.uri().to_string());
        assert!(uri.contains(expected), "{url}: {uri}");
    }

    #[test]
    fn a_url_becomes_the_path_of_a_hop() {
        check("/ping", "/hop/beta/pm3/ping");
        check("/kv/a%2Fb?pretty", "/hop/beta/pm3/kv/a%2Fb?pretty");
        check("http://example.org", "/hop/beta/example.org/");
        check("http://example.org:8080/x/y?z=1", "/hop/beta/example.org:8080/x/y?z=1");
        for wrong in ["", "ping", "https://example.org/", "http:///x", "/a b"] {
            check(wrong, "is no http://HOST/PATH");
        }
        assert!(request(&args("a/b", "/ping")).is_err());
    }

    #[test]
    fn data_makes_a_post_and_headers_are_taken_but_the_host() {
        let mut asked = args("beta", "/sign");
        asked.data = Some("{}".to_owned());
        asked.headers = vec!["X-A: 1".to_owned(), "x-a:2".to_owned()];
        let made = request(&asked).expect("a request");
        assert_eq!((made.method(), made.headers().get_all("x-a").iter().count()), (&Method::POST, 2));
        for wrong in ["no header", "Host: example.org", "a b: c"] {
            asked.headers = vec![wrong.to_owned()];
            assert!(matches!(request(&asked), Err(HopError::Header(_))), "{wrong}");
        }
    }
}
