//! Hands a call on to a node that keeps the state, or to the leader: every method, unary or streaming, alike.
//!
//! The request goes on as it came, over mutual TLS, with who called it. What a node says about its caller is believed as far
//! as it adds nothing to what that node could do anyway ([`arrive`]): a node that votes holds the authority's key and may speak
//! for everybody; any other for itself, for callers without a certificate, and for an operator whose certificate it has seen,
//! which is what that operator trusted it with by calling through it. Headers that say so are dropped from everyone else.

use std::net::IpAddr;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::CertificateDer;
use tonic::Status;

use super::caller::Caller;
use super::listener::{Connection, Shown};
use super::remote;
use crate::api::Sources;
use crate::foundation::error::chain;
use crate::foundation::id::NodeId;
use crate::foundation::task;
use crate::identity::Identity;
use crate::identity::certificate::{Member, Role};
use crate::mesh::Ends;

/// Who called the node that hands on: `nobody`, `administrator`, or `certificate BASE64` of its DER.
const PROXIED_FOR: &str = "x-webmesh-proxied-for";
/// The node that hands on.
const PROXIED_FROM: &str = "x-webmesh-proxied-from";
/// The address of a caller without a certificate.
const PROXIED_ADDRESS: &str = "x-weft-proxied-address";
/// Asks for the leader's answer where any node could give one: the contract's name and its later one.
const PREFER_LEADER: [&str; 2] = ["prefer-leader", "x-webmesh-prefer-leader"];

/// A request as it came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) caller: Caller,
    pub(super) is_handed_on: bool,
}

/// Who calls: as the connection proved it, or as the node that hands the call on says. Takes the headers of hops off.
///
/// # Errors
/// The node may not speak for that caller.
pub(super) fn arrive(sources: &Sources, caller: &Caller, request: &mut Request<Body>) -> Result<Arrival, Status> {
    let headers = request.headers_mut();
    headers.remove(PROXIED_FROM);
    let (named, address) = (headers.remove(PROXIED_FOR), headers.remove(PROXIED_ADDRESS));
    let (Caller::Member(node), Some(named)) = (caller, named) else {
        return Ok(Arrival { caller: caller.clone(), is_handed_on: false });
    };
    if node.role != Role::Node {
        return Ok(Arrival { caller: caller.clone(), is_handed_on: false });
    }
    let votes = sources.mesh_handle.votes(&node.name);
    let named = named.to_str().unwrap_or_default();
    let caller = spoken_for(&sources.identity, node, votes, named).map_err(Status::unauthenticated)?;
    let address = address.as_ref().and_then(|address| address.to_str().ok()).and_then(|text| text.parse().ok());
    if let (Some(remote), Some(connection)) = (address, request.extensions().get::<Connection>().copied()) {
        let ends = Ends { remote, ..connection.ends };
        request.extensions_mut().insert(Connection { ends });
    }
    Ok(Arrival { caller, is_handed_on: true })
}

/// The caller that `node` names, if it may speak for it.
fn spoken_for(identity: &Identity, node: &Member, votes: bool, named: &str) -> Result<Caller, String> {
    match named.split_once(' ').unwrap_or((named, "")) {
        ("nobody", "") => Ok(Caller::Nobody),
        ("administrator", "") if votes => Ok(Caller::Administrator(node.name.clone())),
        ("administrator", "") => {
            Err(format!("{} has no vote in this mesh, and its administrator is nobody here", node.name))
        }
        ("certificate", text) => {
            let malformed = |_error| format!("{} hands on what is no certificate", node.name);
            let der = STANDARD_NO_PAD.decode(text).map_err(malformed)?;
            let member = identity.client(&CertificateDer::from(der)).map_err(|error| {
                format!("{} hands on a call with a certificate that is refused: {}", node.name, chain(&error))
            })?;
            match votes || member.role == Role::Operator || member == *node {
                true => Ok(Caller::Member(member)),
                false => Err(format!(
                    "{} has no vote in this mesh and may not speak for node {}: call a node that votes",
                    node.name, member.name
                )),
            }
        }
        _ => Err(format!("{} does not say for whom it calls", node.name)),
    }
}

/// Who called, for the node that is called in place of this one; and from where, if only that is known.
fn written(caller: &Caller, own: &Named<'_>) -> Option<(HeaderValue, Option<HeaderValue>)> {
    let certificate =
        |der: &CertificateDer<'_>| HeaderValue::from_str(&format!("certificate {}", STANDARD_NO_PAD.encode(der))).ok();
    match caller {
        // Root of a node that votes could make itself any certificate; of another one it is that node.
        Caller::Local if own.keeps => Some((HeaderValue::from_static("administrator"), None)),
        Caller::Local => Some((certificate(own.certificate)?, None)),
        Caller::Member(_) => Some((certificate(own.shown?)?, None)),
        Caller::Nobody => {
            let address = HeaderValue::from_str(&own.from?.to_string()).ok();
            Some((HeaderValue::from_static("nobody"), address))
        }
        // Was handed on already.
        Caller::Administrator(_) => None,
    }
}

/// What this node can say about a caller.
struct Named<'a> {
    keeps: bool,
    /// Of this node.
    certificate: &'a CertificateDer<'a>,
    /// Of the caller.
    shown: Option<&'a CertificateDer<'static>>,
    from: Option<IpAddr>,
}

/// Whether another node is to answer: only one that keeps the state can, or the leader's answer is asked for.
pub(super) fn is_elsewhere(path: &str, headers: &HeaderMap, keeps: bool, leads: bool) -> bool {
    let prefers = PREFER_LEADER.iter().any(|name| headers.get(*name).is_some_and(|value| value.as_bytes() == b"true"));
    let needs = path.starts_with("/v1.Admin/")
        || matches!(
            path,
            "/v1.Node/Join"
                | "/v1.Node/Leave"
                | "/weft.v1.Enrolment/Enrol"
                | "/weft.v1.Membership/CreateToken"
                | "/weft.v1.Membership/ListTokens"
                | "/weft.v1.Membership/DeleteToken"
                | "/weft.v1.Membership/SayBlocked"
                | "/weft.v1.Membership/TakeSeat"
                | "/weft.v1.Membership/Renew"
        );
    let may = path.starts_with("/v1.") || path.starts_with("/weft.v1.Membership/");
    (needs && !keeps) || (prefers && may && !leads)
}

/// Hands the request of `caller` on and answers what comes back.
pub(super) async fn hand_on(sources: &Sources, caller: &Caller, mut request: Request<Body>) -> Response<Body> {
    let certificate = sources.identity.certificate_der();
    let shown = request.extensions().get::<Shown>().cloned();
    let from = request.extensions().get::<Connection>().map(|connection| connection.ends.remote);
    let own = Named {
        keeps: sources.mesh_handle.keeps(),
        certificate: &certificate,
        shown: shown.as_ref().map(|shown| &shown.0),
        from,
    };
    let Some((named, address)) = written(caller, &own) else {
        return Status::unauthenticated("a certificate is required").into_http();
    };
    let headers = request.headers_mut();
    // The other end decides for itself.
    for name in PREFER_LEADER {
        headers.remove(name);
    }
    headers.insert(PROXIED_FOR, named);
    if let Some(address) = address {
        headers.insert(PROXIED_ADDRESS, address);
    }
    if let Some(own) = from_node(sources.identity.id()) {
        headers.insert(PROXIED_FROM, own);
    }
    match send(sources, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_http(),
    }
}

fn from_node(id: &NodeId) -> Option<HeaderValue> {
    HeaderValue::from_str(id.as_str()).ok()
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
    use std::time::SystemTime;

    use super::*;
    use crate::identity::authority::Authority;

    struct World {
        authority: Authority,
        leader: Identity,
    }

    fn world() -> World {
        let authority = Authority::create(SystemTime::now()).expect("made");
        let leader = identity(&authority, "alpha");
        World { authority, leader }
    }

    fn identity(authority: &Authority, name: &str) -> Identity {
        Identity::in_memory(authority, &name.parse().expect("an id"), "weft.internal").expect("issued")
    }

    fn operator(authority: &Authority) -> CertificateDer<'static> {
        let (request, _key) = crate::identity::request::Request::new().expect("a key");
        let name = "ops".parse().expect("a name");
        let subject =
            crate::identity::certificate::Subject { name, role: Role::Operator, domain: "weft.internal".to_owned() };
        let lifetime = crate::identity::certificate::Lifetime::from_days(1);
        let pem = authority.issue(&request, &subject, lifetime, SystemTime::now()).expect("issued");
        crate::identity::certificate::from_pem(&pem).expect("a certificate")
    }

    fn named(der: &CertificateDer<'_>) -> String {
        format!("certificate {}", STANDARD_NO_PAD.encode(der))
    }

    #[test]
    fn a_node_without_a_vote_speaks_for_itself_and_for_an_operator_that_called_it_only() {
        let world = world();
        let (beta, gamma) = (identity(&world.authority, "beta"), identity(&world.authority, "gamma"));
        let node = beta.certificate().member;
        let say = |votes, named: &str| spoken_for(&world.leader, &node, votes, named);
        assert_eq!(say(false, &named(&beta.certificate_der())), Ok(Caller::Member(node.clone())));
        let operator = named(&operator(&world.authority));
        assert!(say(false, &operator).expect("it showed its certificate").is_operator());
        assert_eq!(say(false, "nobody"), Ok(Caller::Nobody));
        let other = say(false, &named(&gamma.certificate_der())).expect_err("it could remove gamma");
        assert!(other.contains("may not speak for node gamma"), "{other}");
        assert!(say(false, "administrator").expect_err("it could administer").contains("has no vote"));
        assert_eq!(say(true, "administrator"), Ok(Caller::Administrator(node.name.clone())));
        assert!(say(true, &named(&gamma.certificate_der())).is_ok(), "it could issue itself that");
    }

    #[test]
    fn what_a_node_makes_up_is_refused() {
        let world = world();
        let node = identity(&world.authority, "beta").certificate().member;
        let say = |named: &str| spoken_for(&world.leader, &node, false, named).expect_err("made up");
        let stranger = Authority::create(SystemTime::now()).expect("made");
        assert!(say(&named(&operator(&stranger))).contains("refused"), "of another authority");
        for text in ["local", "operator/ops/00", "certificate", "certificate !", "nobody else", ""] {
            say(text);
        }
        let known = operator(&world.authority);
        let key = crate::identity::certificate::member(Some(std::slice::from_ref(&known))).expect("a member").key;
        world.leader.revoke(std::collections::BTreeSet::from([key]));
        assert!(say(&named(&known)).contains("refused"), "revoked");
    }

    #[test]
    fn root_of_a_node_is_that_node_unless_it_votes() {
        let world = world();
        let beta = identity(&world.authority, "beta");
        let certificate = beta.certificate_der();
        let own = |keeps| Named { keeps, certificate: &certificate, shown: None, from: None };
        let (named, _) = written(&Caller::Local, &own(false)).expect("a value");
        let node = beta.certificate().member;
        let heard = spoken_for(&world.leader, &node, false, named.to_str().expect("text"));
        assert_eq!(heard, Ok(Caller::Member(node)), "no operator");
        assert_eq!(written(&Caller::Local, &own(true)).expect("a value").0, "administrator");
        assert_eq!(written(&Caller::Nobody, &own(true)), None, "from nowhere");
    }

    #[test]
    fn another_node_is_asked_for_what_it_alone_can_say_or_on_request() {
        let none = HeaderMap::new();
        for path in ["/v1.Admin/ListRaftACLs", "/v1.Node/Leave", "/weft.v1.Enrolment/Enrol"] {
            assert!(is_elsewhere(path, &none, false, false), "{path}");
            assert!(!is_elsewhere(path, &none, true, false), "{path}");
        }
        assert!(!is_elsewhere("/v1.Mesh/ListNodes", &none, false, false));
        for name in PREFER_LEADER {
            let asked = HeaderMap::from_iter([(name.parse().expect("a name"), HeaderValue::from_static("true"))]);
            assert!(is_elsewhere("/v1.Mesh/ListNodes", &asked, true, false));
            assert!(!is_elsewhere("/v1.Mesh/ListNodes", &asked, true, true));
            assert!(!is_elsewhere("/weft.v1.Local/JoinMesh", &asked, false, false));
        }
    }
}
