//! Calls of methods that another node carries out, as functions that are connected there.
//!
//! Whoever calls is named to the other node as a hop names it; the answer is taken whole.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Weak};

use axum::http::{HeaderValue, Request, StatusCode, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Limited};

use super::super::Shared;
use super::peers::Found;
use super::{Asker, Hop, Passport, asked, tell_who, with_authority};
use crate::api::error::ApiError;
use crate::api::gateway::heads::{TRACEPARENT, X_RAY};
use crate::api::gateway::hosts::link::Upload;
use crate::api::methods::MAX_BODY_BYTES;
use crate::pm3::call::{Call, Outcome, Reply};
use crate::pm3::failure::{Failure, Kind};
use crate::pm3::{Carrier, MachineId};

/// Carries calls for as long as there is a gateway.
pub(in crate::api::gateway) struct Errands(pub(in crate::api::gateway) Weak<Shared>);

impl Carrier for Errands {
    fn carry(&self, machine: MachineId, path: String, call: Call) -> BoxFuture<'static, Outcome> {
        let shared = self.0.upgrade();
        Box::pin(async move {
            let ended = || Failure::new(Kind::Unavailable, "the gateway has ended, so no other node is reached");
            let shared: Arc<Shared> = shared.ok_or_else(ended)?;
            run(&shared.hop, machine, &path, call).await
        })
    }
}

async fn run(hop: &Hop, machine: MachineId, path: &str, call: Call) -> Outcome {
    let peer = match hop.directory.find(&machine.to_string()).map_err(failure)? {
        Found::Peer(peer) => peer,
        Found::Here => return Err(Failure::new(Kind::NotFound, format!("there is no {path}"))),
    };
    let no_identity =
        || Failure::new(Kind::Unavailable, "this gateway has no certificate of the mesh (gateway.tls_listen)");
    let dialer = hop.dialer.as_ref().ok_or_else(no_identity)?;
    let from = call.from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let passport = Passport::of(&hop.node, &Asker { caller: &call.caller, from, passport: None });
    let wrong = |error: axum::http::Error| Failure::invalid(format!("this cannot be asked of another node: {error}"));
    let request = Request::builder().method(call.verb.as_str()).uri(path).header(header::HOST, "pm3");
    let (mut head, ()) = request.body(()).map_err(wrong)?.into_parts();
    tell_who(&mut head, &passport);
    head.headers.insert(TRACEPARENT, hop.names.trace(None));
    head.headers.insert(X_RAY, hop.names.ray_or(None));
    if !call.body.is_empty() {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(call.body.len()));
    }
    let head = with_authority(head).map_err(failure)?;
    let response = asked(dialer, &peer, head, Upload::whole(call.body)).await.map_err(failure)?;
    let (head, body) = response.into_parts();
    let broken = |_error| Failure::failed(format!("peer {} broke off, or its answer is too long", peer.place.id));
    let body: Bytes = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(broken)?.to_bytes();
    if head.status.is_success() { Ok(Reply::Raw(body)) } else { Err(refused(head.status, &body)) }
}

fn failure(error: ApiError) -> Failure {
    Failure::new(kind(error.code.mapping().http), error.error)
}

/// What the other node says, with the kind that its status stands for.
fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = said["error"].as_str().map_or_else(|| format!("the other node answered {status}"), str::to_owned);
    Failure::new(kind(status), text)
}

fn kind(status: StatusCode) -> Kind {
    match status.as_u16() {
        400 => Kind::Invalid,
        401 | 403 => Kind::Forbidden,
        404 => Kind::NotFound,
        405 => Kind::WrongVerb,
        409 => Kind::Conflict,
        413 => Kind::TooLarge,
        429 => Kind::Busy,
        408 | 504 => Kind::Timeout,
        502 | 503 => Kind::Unavailable,
        _ => Kind::Failed,
    }
}
