//! `/hop/PEER/HOST/PATH`: a request of this host, carried to the gateway of another node over the mesh.
//!
//! In: requests that may call the API, of any method, with bodies and answers of any length, upgrades too. Out: the same
//! request at the peer's gateway, by TLS with the certificates of the mesh at both ends; to this node itself without a
//! connection. Requests share HTTP/2 connections; an upgrade gets a connection of its own.
//!
//! | module | what it owns |
//! |---|---|
//! | `errand` | calls of methods that another node carries out |
//! | `passport` | who asked at first, in one header |
//! | `peers` | a peer by its name or machine id, and the connections to it |
//! | `link` | a connection whose other end has proven who it is |
//!
//! Invariants: nothing is sent before the other end has proven to be the node that was asked for; what a client says about
//! itself ends here, and who it is is said by this node; a request is carried on at most [`MOST_HOPS`] times; a stream is not
//! cut, a peer that is gone is noticed by its missing answers to pings.

mod errand;
mod link;
mod passport;
mod peers;

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::heads::{self, P_CALLER, TRACEPARENT, X_RAY, wants_upgrade};
use super::hosts::link::Upload;
use super::hosts::trace;
use super::request::is_forwarding;
use crate::api::body::Body;
use crate::api::error::{ApiError, ErrorCode};
use crate::foundation::task;
use crate::identity::Identity;
use crate::model::Model;
use crate::pm3::caller::{Basis, Caller};
use crate::pm3::params::decode_path;
use crate::pm3::signer::split_query;
use link::{DialError, Dialer};
use peers::{Directory, Found, InFlight, Peer};

pub(super) use errand::Errands;
pub(super) use passport::Passport;

/// How often a request may be carried on; a circle of nodes ends here.
pub(super) const MOST_HOPS: u8 = 8;

/// Carries requests to peers.
pub(super) struct Hop {
    directory: Directory,
    /// `None`: this gateway has no certificate to show.
    dialer: Option<Dialer>,
    names: trace::Names,
    node: String,
}

/// Who asks for a hop.
pub(super) struct Asker<'a> {
    pub(super) caller: &'a Caller,
    pub(super) from: IpAddr,
    /// The request came by a hop itself.
    pub(super) passport: Option<&'a Passport>,
}

/// Where a request goes.
pub(super) enum Way {
    /// To this node; the head asks for what the peer would be asked for.
    Here(Passport),
    There(Arc<Peer>),
}

/// Whether this path is a hop.
pub(super) fn is_for(path: &str) -> bool {
    path == "/hop" || path.starts_with("/hop/")
}

impl Hop {
    pub(super) fn new(model: watch::Receiver<Arc<Model>>, peer_port: u16, identity: Option<&Identity>) -> Self {
        let node = model.borrow().node.id.to_string();
        let dialer = identity.and_then(|identity| match Dialer::new(identity) {
            Ok(dialer) => Some(dialer),
            Err(error) => {
                tracing::error!(%error, "no request can be carried to a peer");
                None
            }
        });
        Self { directory: Directory::new(model, peer_port), dialer, names: trace::Names::new(&node), node }
    }

    /// Finds where a request goes and makes its head that of the carried one.
    ///
    /// # Errors
    /// It names no peer that is known, or is none that can be carried.
    pub(super) fn prepare(&self, head: &mut Parts, asker: &Asker<'_>) -> Result<Way, ApiError> {
        let target = Target::of(&head.uri)?;
        let found = self.directory.find(&target.peer)?;
        let passport = Passport::of(&self.node, asker);
        if passport.hops > MOST_HOPS {
            let text = format!("this request was carried on {MOST_HOPS} times already; the peers in it form a circle");
            return Err(ApiError::new(ErrorCode::InvalidArgument, text));
        }
        let path = if asker.caller.basis == Basis::Signature { unsigned(head, &target.path)? } else { target.path };
        let host = HeaderValue::from_str(&target.host).map_err(|_wrong| not_a_hop())?;
        tell_who(head, &passport);
        head.headers.insert(TRACEPARENT, self.names.trace(head.headers.get(TRACEPARENT)));
        head.headers.insert(X_RAY, self.names.ray_or(head.headers.get(X_RAY)));
        head.headers.insert(header::HOST, host);
        head.uri = Uri::from(path);
        if head.method.is_safe() {
            tracing::debug!(peer = target.peer, host = target.host, method = %head.method, uid = passport.uid, "hop");
        } else {
            tracing::info!(peer = target.peer, host = target.host, method = %head.method, uid = passport.uid, "hop");
        }
        Ok(match found {
            Found::Here => Way::Here(passport),
            Found::Peer(peer) => Way::There(peer),
        })
    }

    /// Carries a prepared request to a peer and its answer back.
    ///
    /// # Errors
    /// The peer cannot be reached, is not who it should be, or broke off.
    pub(super) async fn carry(&self, peer: &Peer, mut head: Parts, body: Incoming) -> Result<Response<Body>, ApiError> {
        let dialer = self.dialer.as_ref().ok_or_else(|| {
            ApiError::new(ErrorCode::NotReady, "this gateway has no certificate of the mesh, so it reaches no peer")
        })?;
        let ray = head.headers.get(X_RAY).cloned();
        let is_upgrade = head.version == Version::HTTP_11 && wants_upgrade(&head.headers);
        let upgrade = head.headers.get(header::UPGRADE).cloned().filter(|_| is_upgrade);
        heads::remove_hop_by_hop(&mut head.headers);
        head.headers.remove(header::EXPECT);
        let mut response = match upgrade {
            Some(protocol) => {
                head.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                head.headers.insert(header::UPGRADE, protocol);
                upgraded(dialer, peer, Request::from_parts(head, body)).await?
            }
            None => asked(dialer, peer, with_authority(head)?, Upload::new(body).0).await?,
        };
        if let (Some(ray), false) = (ray, response.headers().contains_key(X_RAY)) {
            response.headers_mut().insert(X_RAY, ray);
        }
        Ok(response)
    }
}

/// What a hop's path says.
#[derive(Debug, PartialEq)]
struct Target {
    peer: String,
    host: String,
    path: PathAndQuery,
}

fn not_a_hop() -> ApiError {
    ApiError::new(ErrorCode::InvalidArgument, "a hop is /hop/PEER/HOST/PATH; `weft peers` lists the peers")
}

impl Target {
    fn of(uri: &Uri) -> Result<Self, ApiError> {
        let rest = uri.path().strip_prefix("/hop/").ok_or_else(not_a_hop)?;
        let (peer, rest) = rest.split_once('/').ok_or_else(not_a_hop)?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let peer = decode_path(peer).ok_or_else(not_a_hop)?.to_ascii_lowercase();
        let host = decode_path(host).ok_or_else(not_a_hop)?;
        let is_host =
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
        if peer.is_empty() || !is_host {
            return Err(not_a_hop());
        }
        let text = uri.query().map_or_else(|| format!("/{path}"), |query| format!("/{path}?{query}"));
        Ok(Self { peer, host, path: text.parse().map_err(|_wrong| not_a_hop())? })
    }
}

/// The path without the signature that was for the hop, which the header loses too.
fn unsigned(head: &mut Parts, path: &PathAndQuery) -> Result<PathAndQuery, ApiError> {
    head.headers.remove("x-psn");
    let (query, _token) = split_query(path.query().unwrap_or_default());
    let text = if query.is_empty() { path.path().to_owned() } else { format!("{}?{query}", path.path()) };
    text.parse().map_err(|_wrong| not_a_hop())
}

/// In place of what the client says about itself.
fn tell_who(head: &mut Parts, passport: &Passport) {
    heads::remove_claims(&mut head.headers);
    head.headers.remove(header::VIA);
    let claims: Vec<HeaderName> = head.headers.keys().filter(|name| is_forwarding(name.as_str())).cloned().collect();
    for name in claims {
        head.headers.remove(name);
    }
    head.headers.insert(P_CALLER, passport.to_header());
}

/// The head as HTTP/2 has it: with an authority in place of `Host`.
fn with_authority(mut head: Parts) -> Result<Parts, ApiError> {
    let host = head.headers.remove(header::HOST).ok_or_else(not_a_hop)?;
    let path = head.uri.path_and_query().cloned().ok_or_else(not_a_hop)?;
    let uri = Uri::builder().scheme("https").authority(host.as_bytes()).path_and_query(path).build();
    head.uri = uri.map_err(|_wrong| not_a_hop())?;
    head.version = Version::HTTP_2;
    Ok(head)
}

async fn asked(dialer: &Dialer, peer: &Peer, head: Parts, upload: Upload) -> Result<Response<Body>, ApiError> {
    let may_ask_again = head.method.is_safe() && upload.is_nothing();
    let mut again = may_ask_again.then(|| head.clone());
    let mut request = Request::from_parts(head, upload);
    let mut is_last = false;
    loop {
        let link = peer.link(dialer).await?;
        let mut error = match link.sender().try_send_request(request).await {
            Ok(response) => return Ok(passed_back(response, link)),
            Err(error) => error,
        };
        drop(link);
        // The peer closed an idle connection meanwhile, or was started again: a fresh one tells.
        request = match (error.take_message(), again.take()) {
            (Some(unsent), _) if !is_last => unsent,
            (None, Some(head)) if !is_last => Request::from_parts(head, Upload::Nothing),
            _ => return Err(broke_off(peer, &error.into_error())),
        };
        is_last = true;
    }
}

fn broke_off(peer: &Peer, error: &(dyn std::error::Error + 'static)) -> ApiError {
    tracing::debug!(peer = %peer.place.id, error = crate::foundation::error::chain(error), "a peer broke off");
    ApiError::new(ErrorCode::BadGateway, format!("peer {} broke off before its answer", peer.place.id))
}

fn passed_back(response: Response<Incoming>, link: InFlight) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    heads::remove_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    let body =
        if body.is_end_stream() { Body::empty() } else { Body::Other(Box::pin(Returning { body, _link: link })) };
    Response::from_parts(head, body)
}

/// The body of an answer, on its way back.
struct Returning<L> {
    body: Incoming,
    /// In use for as long as this lasts.
    _link: L,
}

impl<L: Unpin> hyper::body::Body for Returning<L> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Asks for an upgrade on a connection of its own; once both ends agree bytes are passed as they come.
async fn upgraded(dialer: &Dialer, peer: &Peer, mut request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let ours = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let (upload, _uploaded) = Upload::new(body);
    let stream = dialer.alone(&peer.place).await?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| broke_off(peer, &error))?;
    task::detach("hop", async move {
        // How it ends is told to whoever asked on it.
        connection.with_upgrades().await.ok();
    });
    let mut response =
        sender.send_request(Request::from_parts(head, upload)).await.map_err(|error| broke_off(peer, &error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut head, body) = response.into_parts();
        heads::remove_hop_by_hop(&mut head.headers);
        return Ok(Response::from_parts(head, Body::Other(Box::pin(Returning { body, _link: sender }))));
    }
    let theirs = hyper::upgrade::on(&mut response);
    task::detach("hop", async move {
        if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            // How it ends is the affair of both sides.
            tokio::io::copy_bidirectional(&mut ours, &mut theirs).await.ok();
        }
    });
    let (head, _empty) = response.into_parts();
    Ok(Response::from_parts(head, Body::empty()))
}

impl From<DialError> for ApiError {
    fn from(error: DialError) -> Self {
        let code = match error {
            DialError::TooLate { .. } => ErrorCode::Timeout,
            DialError::Busy { .. } => ErrorCode::Busy,
            DialError::Unreachable { .. } | DialError::NoProof { .. } | DialError::AnotherNode { .. } => {
                ErrorCode::BadGateway
            }
        };
        Self::new(code, crate::foundation::error::chain(&error))
    }
}

#[cfg(test)]
mod tests;
