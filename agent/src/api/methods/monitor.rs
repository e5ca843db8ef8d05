//! `/nats/…`: what the NATS server that the agent started says about itself, passed on as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Body, response};
use crate::foundation::task;
use crate::pm3::Pm3;
use crate::pm3::call::Verb;
use crate::pm3::failure::{Failure, Kind};

const PATIENCE: Duration = Duration::from_secs(5);
/// A list of all connections can be long.
const LONGEST: usize = 16 * 1024 * 1024;
/// What there is; the root has links to most of them.
const NAMES: [&str; 13] = [
    "varz",
    "connz",
    "routez",
    "gatewayz",
    "leafz",
    "subsz",
    "subscriptionsz",
    "stacksz",
    "accountz",
    "accstatz",
    "jsz",
    "healthz",
    "ipqueuesz",
];

/// Whether this path is about the bus.
pub(super) fn is_for(path: &str) -> bool {
    path == "/nats" || path.starts_with("/nats/")
}

/// The headers of a request that a message takes along: not those of one connection, nor what proves who asks.
pub(super) fn message_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let is_own = |name: &str| {
        matches!(
            name,
            "host"
                | "connection"
                | "keep-alive"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "content-length"
                | "expect"
                | "authorization"
                | "cookie"
                | "proxy-connection"
                | "proxy-authorization"
                | "x-psn"
                | "p-caller"
        )
    };
    let told = headers.iter().filter(|(name, _)| !is_own(name.as_str()));
    told.filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))).collect()
}

pub(super) async fn answer(
    pm3: &Arc<Pm3>,
    verb: Verb,
    path: &str,
    query: Option<&str>,
) -> Result<Response<Body>, Failure> {
    if verb != Verb::Get {
        return Err(Failure::new(Kind::WrongVerb, format!("{path} is for GET")));
    }
    let name = path.strip_prefix("/nats").unwrap_or_default().trim_start_matches('/');
    if !name.is_empty() && !NAMES.contains(&name) {
        let text = format!("there is no {path}; there is /nats/ and below it {}", NAMES.join(" "));
        return Err(Failure::new(Kind::NotFound, text));
    }
    let server = pm3.bus.monitor()?;
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    match timeout(PATIENCE, ask(server, &format!("/{name}{query}"))).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(Failure::new(Kind::Unavailable, format!("the NATS server does not tell: {error}"))),
        Err(_elapsed) => Err(Failure::new(Kind::Timeout, "the NATS server does not tell in time")),
    }
}

/// Why nothing was told.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no connection to {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("this is no query")]
    Query(#[from] axum::http::Error),
    #[error("it broke off")]
    Http(#[from] hyper::Error),
    #[error("its answer is longer than {LONGEST} bytes, or broke off")]
    Body,
}

async fn ask(server: SocketAddr, uri: &str) -> Result<Response<Body>, AskError> {
    let stream = TcpStream::connect(server).await.map_err(|source| AskError::Connect(server, source))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    task::detach("monitor", async move {
        // How it ends is told to whoever asked on it.
        connection.await.ok();
    });
    let request = Request::get(uri).header(header::HOST, server.to_string()).body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, LONGEST).collect().await.map_err(|_long| AskError::Body)?.to_bytes();
    let json = HeaderValue::from_static("application/json");
    let mut answer = response(head.headers.get(header::CONTENT_TYPE).cloned().unwrap_or(json), body.into());
    *answer.status_mut() = head.status;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_takes_along_what_is_about_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "pm3"), ("content-type", "text/plain"), ("x-a", "1"), ("authorization", "x")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.append("x-a", HeaderValue::from_static("2"));
        let told = message_headers(&headers);
        let pairs: Vec<(&str, &str)> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("content-type", "text/plain"), ("x-a", "1"), ("x-a", "2")]);
    }

    #[test]
    fn only_what_is_below_nats_is_about_it() {
        assert!(is_for("/nats") && is_for("/nats/varz"));
        assert!(!is_for("/natsx") && !is_for("/ping"));
    }
}
