//! Passing a request on to a server and its answer back, as both come: nothing is kept but a head.
//!
//! A request is tried on another server if this one cannot be reached, whatever it asks; if it broke off or answered 502,
//! 503 or 504, only where asking twice does no harm and there is no body that is gone. The time a server may take ends with
//! the head of its answer: what streams after it is not cut.
//!
//! What a request keeps between two polls is copied when its task is made: heads travel in a box, and what is seldom done
//! (connecting, upgrading) is boxed where it begins.
//!
//! Invariants: headers that belong to one connection end here (RFC 9110 section 7.6.1); what the client says about where it
//! comes from is replaced by what we know.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::link::{Link, Upload};
use super::pool::{Pool, UnderWay};
use crate::api::body::Body;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::gateway::heads::{self, P_CALLER, remove_hop_by_hop, wants_upgrade};
use crate::foundation::task;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const P_IP: HeaderName = HeaderName::from_static("p-ip");
const P_INTERNAL: HeaderName = HeaderName::from_static("p-internal");
/// What is known about the client of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    pub(super) is_internal: bool,
    /// The other end of the connection; differs from the address where that is a trusted proxy.
    pub(super) peer: IpAddr,
    pub(super) is_tls: bool,
    /// A member of the mesh says who asks.
    pub(super) is_vouched_for: bool,
}

/// Passes a request on; `path` is what the server is asked for.
pub(super) async fn pass(
    pool: Arc<Pool>,
    mut head: Box<Parts>,
    body: Incoming,
    path: PathAndQuery,
    client: Client,
) -> Result<Response<Body>, ApiError> {
    let is_upgrade = head.version == Version::HTTP_11 && wants_upgrade(&head.headers);
    prepare(&mut head, path, client, is_upgrade);
    for (name, value) in &pool.spec.headers {
        head.headers.insert(name.clone(), value.clone());
    }
    if is_upgrade {
        return Box::pin(upgrade(&pool, Request::from_parts(*head, body), client)).await;
    }
    let (upload, uploaded) = Upload::new(body);
    let is_safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    // Only another server is asked again.
    let has_more = pool.spec.attempts > 1 && pool.servers.len() > 1;
    let mut again = (is_safe && has_more && upload.is_nothing()).then(|| head.clone());
    let mut request = Box::new(Request::from_parts(*head, upload));
    let mut tried = Vec::new();
    loop {
        let Some(server) = pool.choose(client.address, &tried) else { return Err(nobody(&pool, &tried)) };
        tried.push(server.place());
        let is_last = tried.len() >= pool.spec.attempts as usize || tried.len() >= pool.servers.len();
        match attempt(&pool, server, request, &uploaded).await {
            Attempt::Answered(response) if is_last || again.is_none() || !is_trouble(response.status()) => {
                return Ok(response);
            }
            Attempt::TooLate(error) => return Err(error),
            Attempt::Unsent(back, error) if is_last => {
                drop(back);
                return Err(error);
            }
            Attempt::Unsent(back, _) => request = back,
            Attempt::Broken(error) if is_last || again.is_none() => return Err(error),
            Attempt::Answered(..) | Attempt::Broken(_) => {
                let Some(head) = again.clone() else { return Err(nobody(&pool, &tried)) };
                if tried.len() + 1 >= pool.spec.attempts as usize {
                    again = None;
                }
                request = Box::new(Request::from_parts(*head, Upload::Nothing));
            }
        }
    }
}

fn is_trouble(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

fn nobody(pool: &Pool, tried: &[usize]) -> ApiError {
    let text = match tried.is_empty() {
        true => "no server of this route is healthy".to_owned(),
        false => format!("none of {} servers of this route answered", pool.servers.len()),
    };
    ApiError::new(ErrorCode::NotReady, text)
}

/// What came of asking one server.
enum Attempt {
    Answered(Response<Body>),
    /// Nothing of the request was sent.
    Unsent(Box<Request<Upload>>, ApiError),
    Broken(ApiError),
    TooLate(ApiError),
}

async fn attempt(
    pool: &Arc<Pool>,
    server: UnderWay,
    mut request: Box<Request<Upload>>,
    uploaded: &AtomicBool,
) -> Attempt {
    let idle = std::future::poll_fn(|cx| Poll::Ready(server.take_idle(cx))).await;
    let mut link = match idle {
        Some(mut link) => match ask(pool, &mut link, request, uploaded).await {
            // The server closed it in the meantime: a fresh connection tells whether it is there.
            Asked::Unsent(back) => {
                request = back;
                match Box::pin(Link::open(&server.server().address)).await {
                    Ok(link) => link,
                    Err(error) => return unreachable(&server, request, &error),
                }
            }
            told @ (Asked::Answered(_) | Asked::Broken(_) | Asked::TooLate) => {
                return answered(pool, server, link, told).await;
            }
        },
        None => match Box::pin(Link::open(&server.server().address)).await {
            Ok(link) => link,
            Err(error) => return unreachable(&server, request, &error),
        },
    };
    let asked = ask(pool, &mut link, request, uploaded).await;
    answered(pool, server, link, asked).await
}

fn unreachable(server: &UnderWay, request: Box<Request<Upload>>, error: &io::Error) -> Attempt {
    server.failed();
    tracing::debug!(server = server.server().address, %error, "a server cannot be reached");
    Attempt::Unsent(request, ApiError::new(ErrorCode::BadGateway, "the server of this route cannot be reached"))
}

enum Asked {
    Answered(Response<Incoming>),
    Unsent(Box<Request<Upload>>),
    Broken(hyper::Error),
    TooLate,
}

async fn ask(pool: &Pool, link: &mut Link, request: Box<Request<Upload>>, uploaded: &AtomicBool) -> Asked {
    let mut asking = std::pin::pin!(link.ask(*request));
    loop {
        let was_uploaded = uploaded.load(Ordering::Relaxed);
        match timeout(pool.spec.timeout, asking.as_mut()).await {
            Ok(Ok(response)) => return Asked::Answered(response),
            Ok(Err(mut error)) => {
                return match error.take_message() {
                    Some(request) => Asked::Unsent(Box::new(request)),
                    None => Asked::Broken(error.into_error()),
                };
            }
            // The server's time begins when it has the whole request; pauses of the client are bounded elsewhere.
            Err(_elapsed) if !was_uploaded => {}
            Err(_elapsed) => return Asked::TooLate,
        }
    }
}

async fn answered(pool: &Arc<Pool>, server: UnderWay, link: Link, asked: Asked) -> Attempt {
    match asked {
        Asked::Answered(response) => {
            server.succeeded();
            Attempt::Answered(relay(server, link, response).await)
        }
        Asked::Unsent(request) => {
            let error = ApiError::new(ErrorCode::BadGateway, "the server of this route closes its connections");
            Attempt::Unsent(request, error)
        }
        Asked::Broken(error) => {
            tracing::debug!(server = server.server().address, %error, "a server broke off");
            Attempt::Broken(ApiError::new(
                ErrorCode::BadGateway,
                "the server of this route broke off before its answer",
            ))
        }
        Asked::TooLate => {
            let text = format!("the server of this route did not answer within {} s", pool.spec.timeout.as_secs());
            Attempt::TooLate(ApiError::new(ErrorCode::Timeout, text))
        }
    }
}

/// The answer of a server as ours; its body is there already or follows.
async fn relay(server: UnderWay, link: Link, response: Response<Incoming>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    remove_hop_by_hop(&mut head.headers);
    let mut relayed = Relayed { body, link: Some(link), server };
    let body = std::future::poll_fn(|cx| Poll::Ready(relayed.whole(cx))).await;
    head.version = Version::HTTP_11;
    Response::from_parts(head, body.unwrap_or_else(|first| Body::Other(Box::pin(Begun { first, rest: relayed }))))
}

/// The rest of an answer, driven by whoever reads it.
struct Relayed {
    body: Incoming,
    link: Option<Link>,
    server: UnderWay,
}

impl Relayed {
    /// The whole body, if it came with the head; else what came of it.
    fn whole(&mut self, cx: &mut Context<'_>) -> Result<Body, Option<Bytes>> {
        if self.end_if_over(cx) {
            return Ok(Body::empty());
        }
        match self.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) if self.link.is_none() => Ok(bytes.into()),
                Ok(bytes) => Err(Some(bytes)),
                // Trailers without a body; they are of no use to anybody.
                Err(_trailers) => Err(None),
            },
            Poll::Ready(None) => Ok(Body::empty()),
            Poll::Ready(Some(Err(_))) | Poll::Pending => Err(None),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(link) = &mut self.link
            && link.poll_drive(cx).is_ready()
        {
            self.link = None;
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) {
            self.end(cx);
        } else if polled.is_ready() {
            self.end_if_over(cx);
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn end_if_over(&mut self, cx: &mut Context<'_>) -> bool {
        let is_over = self.body.is_end_stream();
        if is_over {
            self.end(cx);
        }
        is_over
    }

    fn end(&mut self, cx: &mut Context<'_>) {
        if let Some(link) = self.link.take() {
            self.server.give_back(link, cx);
        }
    }
}

/// A body of which a part is here.
struct Begun {
    first: Option<Bytes>,
    rest: Relayed,
}

impl hyper::body::Body for Begun {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        self.rest.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        match self.rest.body.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(first + rest),
            None => SizeHint::default(),
        }
    }
}

/// Makes the head of a client's request that of ours to a server.
fn prepare(head: &mut Parts, path: PathAndQuery, client: Client, is_upgrade: bool) {
    let upgrade = head.headers.get(header::UPGRADE).cloned().filter(|_| is_upgrade);
    if !head.headers.contains_key(header::HOST)
        && let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    }
    head.uri = Uri::from(path);
    head.version = Version::HTTP_11;
    remove_hop_by_hop(&mut head.headers);
    head.headers.remove(header::EXPECT);
    heads::remove_claims(&mut head.headers);
    if !client.is_vouched_for {
        head.headers.remove(P_CALLER);
    }
    if let Some(upgrade) = upgrade {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        head.headers.insert(header::UPGRADE, upgrade);
    }
    // Text of an address is a header's value.
    let address = HeaderValue::from_str(&client.address.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
    if client.peer == client.address {
        head.headers.insert(X_FORWARDED_FOR, address.clone());
        head.headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if client.is_tls { "https" } else { "http" }));
        if let Some(host) = head.headers.get(header::HOST).cloned() {
            head.headers.insert(X_FORWARDED_HOST, host);
        }
    } else if let Ok(proxy) = HeaderValue::from_str(&client.peer.to_string()) {
        head.headers.append(X_FORWARDED_FOR, proxy);
    }
    head.headers.insert(P_IP, address);
    head.headers.insert(P_INTERNAL, HeaderValue::from_static(if client.is_internal { "1" } else { "0" }));
}

/// Passes an upgrade on; once both sides agree their bytes are passed as they come, beside this connection.
async fn upgrade(pool: &Arc<Pool>, mut request: Request<Incoming>, client: Client) -> Result<Response<Body>, ApiError> {
    let ours = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let (upload, uploaded) = Upload::new(body);
    let Some(server) = pool.choose(client.address, &[]) else { return Err(nobody(pool, &[])) };
    let mut link = match Link::open(&server.server().address).await {
        Ok(link) => link,
        Err(error) => {
            server.failed();
            tracing::debug!(server = server.server().address, %error, "a server cannot be reached");
            return Err(ApiError::new(ErrorCode::BadGateway, "the server of this route cannot be reached"));
        }
    };
    let asked = ask(pool, &mut link, Box::new(Request::from_parts(head, upload)), &uploaded).await;
    let mut response = match asked {
        Asked::Answered(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => response,
        told @ (Asked::Answered(_) | Asked::Unsent(_) | Asked::Broken(_) | Asked::TooLate) => {
            return match answered(pool, server, link, told).await {
                Attempt::Answered(response) => Ok(response),
                Attempt::Unsent(_, error) | Attempt::Broken(error) | Attempt::TooLate(error) => Err(error),
            };
        }
    };
    let theirs = hyper::upgrade::on(&mut response);
    task::detach("upgrade", async move {
        let _under_way = server;
        let copying = async {
            if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                // How it ends is the affair of both sides.
                tokio::io::copy_bidirectional(&mut ours, &mut theirs).await.ok();
            }
        };
        tokio::join!(link.drive(), copying);
    });
    let (head, _empty) = response.into_parts();
    Ok(Response::from_parts(head, Body::empty()))
}
