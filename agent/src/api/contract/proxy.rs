//! Hands a call on to the node that keeps the state, where this one does not: every method, unary or streaming, alike.
//!
//! The request goes on as it came, over mutual TLS, with the name of who called it. Headers that say so are believed from
//! nodes of the mesh and dropped from everyone else ([`proven`]).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, Uri};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::Status;

use super::caller::Caller;
use super::remote;
use crate::api::Sources;
use crate::foundation::error::chain;
use crate::foundation::task;
use crate::identity::certificate::{Member, Role};

/// Who called the node that hands on, as `ROLE/NAME/KEY`.
const PROXIED_FOR: &str = "x-webmesh-proxied-for";
/// The node that hands on.
const PROXIED_FROM: &str = "x-webmesh-proxied-from";
/// Asks for the leader's answer where any node could give one: the contract's name and its later one.
const PREFER_LEADER: [&str; 2] = ["prefer-leader", "x-webmesh-prefer-leader"];

/// The caller as the connection proved it, or as the node that hands the call on says. Takes those headers off.
pub(super) fn proven(caller: &Caller, headers: &mut HeaderMap) -> Caller {
    headers.remove(PROXIED_FROM);
    let named = headers.remove(PROXIED_FOR);
    match (caller, named) {
        (Caller::Member(node), Some(named)) if node.role == Role::Node => {
            named.to_str().ok().and_then(parse).unwrap_or(Caller::Nobody)
        }
        _ => caller.clone(),
    }
}

fn parse(text: &str) -> Option<Caller> {
    if text == "local" {
        return Some(Caller::Local);
    }
    let mut parts = text.splitn(3, '/');
    let role = match parts.next()? {
        "node" => Role::Node,
        "operator" => Role::Operator,
        _ => return None,
    };
    Some(Caller::Member(Member { role, name: parts.next()?.parse().ok()?, key: parts.next()?.parse().ok()? }))
}

fn written(caller: &Caller) -> Option<HeaderValue> {
    match caller {
        Caller::Nobody => None,
        Caller::Local => Some(HeaderValue::from_static("local")),
        Caller::Member(member) => {
            HeaderValue::from_str(&format!("{}/{}/{}", member.role.as_str(), member.name, member.key)).ok()
        }
    }
}

/// Whether only the node that keeps the state can answer, or its answer is asked for.
pub(super) fn is_for_leader(path: &str, headers: &HeaderMap) -> bool {
    let prefers = PREFER_LEADER.iter().any(|name| headers.get(*name).is_some_and(|value| value.as_bytes() == b"true"));
    let needs = path.starts_with("/v1.Admin/")
        || matches!(
            path,
            "/v1.Node/Join"
                | "/v1.Node/Leave"
                | "/weft.v1.Membership/CreateToken"
                | "/weft.v1.Membership/ListTokens"
                | "/weft.v1.Membership/DeleteToken"
                | "/weft.v1.Membership/Renew"
        );
    let may = path.starts_with("/v1.") || path.starts_with("/weft.v1.Membership/");
    needs || (prefers && may)
}

/// Hands the request of `caller` on and answers what comes back.
pub(super) async fn hand_on(sources: &Sources, caller: &Caller, mut request: Request<Body>) -> Response<Body> {
    let headers = request.headers_mut();
    // The other end decides for itself; told to prefer its leader it would hand on for ever.
    for name in PREFER_LEADER {
        headers.remove(name);
    }
    let Some(named) = written(caller) else { return Status::unauthenticated("a certificate is required").into_http() };
    headers.insert(PROXIED_FOR, named);
    if let Ok(own) = HeaderValue::from_str(sources.identity.id().as_str()) {
        headers.insert(PROXIED_FROM, own);
    }
    match send(sources, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_http(),
    }
}

async fn send(sources: &Sources, mut request: Request<Body>) -> Result<Response<Body>, Status> {
    let mut failed = Status::unavailable("no node that keeps the state of the mesh is known");
    for place in sources.mesh_handle.keepers() {
        let stream = match remote::dial(&sources.identity, &place).await {
            Ok(stream) => stream,
            Err(error) => {
                failed = Status::unavailable(format!("node {} leads: {error}", place.id));
                continue;
            }
        };
        let broken = |error: &(dyn std::error::Error + 'static)| {
            Status::unavailable(format!("node {} leads and the call did not reach it: {}", place.id, chain(error)))
        };
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        task::detach("proxy", async move {
            // Its failure is the call's too.
            connection.await.ok();
        });
        let path = request.uri().path().to_owned();
        let uri = Uri::builder().scheme("https").authority(place.id.as_str()).path_and_query(path).build();
        *request.uri_mut() = uri.map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        return Ok(response.map(Body::new));
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::certificate::Fingerprint;

    fn member(role: Role, name: &str) -> Caller {
        Caller::Member(Member { name: name.parse().expect("an id"), role, key: Fingerprint::from_bytes([5; 32]) })
    }

    fn headers(caller: &Caller) -> HeaderMap {
        HeaderMap::from_iter([(PROXIED_FOR.parse().expect("a name"), written(caller).expect("a value"))])
    }

    #[test]
    fn a_node_is_believed_and_anyone_else_is_not() {
        let operator = member(Role::Operator, "ops");
        let mut sent = headers(&operator);
        assert_eq!(proven(&member(Role::Node, "beta"), &mut sent), operator);
        assert!(sent.is_empty());
        for outsider in [Caller::Nobody, member(Role::Operator, "eve")] {
            let mut forged = headers(&operator);
            assert_eq!(proven(&outsider, &mut forged), outsider);
            assert!(forged.is_empty(), "it goes no further");
        }
        let mut broken =
            HeaderMap::from_iter([(PROXIED_FOR.parse().expect("a name"), HeaderValue::from_static("root"))]);
        assert_eq!(proven(&member(Role::Node, "beta"), &mut broken), Caller::Nobody);
    }

    #[test]
    fn the_leader_is_asked_for_what_it_alone_can_say_or_on_request() {
        let none = HeaderMap::new();
        assert!(is_for_leader("/v1.Admin/ListRaftACLs", &none) && is_for_leader("/v1.Node/Leave", &none));
        assert!(!is_for_leader("/v1.Mesh/ListNodes", &none));
        for name in PREFER_LEADER {
            let asked = HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_static("true"))]);
            assert!(is_for_leader("/v1.Mesh/ListNodes", &asked));
            assert!(!is_for_leader("/weft.v1.Local/JoinMesh", &asked));
        }
    }
}
