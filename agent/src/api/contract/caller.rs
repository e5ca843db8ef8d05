//! Who calls, and which method is for whom: the one table.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::{Code, Status};

use super::proxy;
use crate::api::Sources;
use crate::foundation::id::NodeId;
use crate::identity::certificate::{Member, Role};

/// Who calls, as the connection proved it; in the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum Caller {
    /// Over the control socket: this host's administrator.
    Local,
    /// The holder of a certificate of this mesh.
    Member(Member),
    /// The administrator of a node that votes, by that node's word.
    Administrator(NodeId),
    /// Over TLS without a certificate.
    Nobody,
}

impl Caller {
    /// Whether the caller may administer the mesh.
    pub(super) fn is_operator(&self) -> bool {
        match self {
            Self::Local | Self::Administrator(_) => true,
            Self::Member(member) => member.role == Role::Operator,
            Self::Nobody => false,
        }
    }
}

impl Caller {
    /// Whether the caller is the node `id`.
    pub(super) fn is_node(&self, id: &NodeId) -> bool {
        matches!(self, Self::Member(member) if member.role == Role::Node && member.name == *id)
    }

    /// The caller of a request; a request that no connection marked comes from nobody.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or(Self::Nobody)
    }
}

/// Who a method is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    Anybody,
    Members,
    Operators,
    /// The control socket only.
    Local,
}

/// What is not named here is for members.
fn audience(path: &str) -> Audience {
    match path {
        "/v1.Admin/PutRaftACL" | "/v1.Admin/DeleteRaftACL" => Audience::Operators,
        _ if path.starts_with("/grpc.health.v1.Health/") => Audience::Anybody,
        _ if path.starts_with("/weft.v1.Enrolment/") => Audience::Anybody,
        _ if path.starts_with("/weft.v1.Certificates/") || path.starts_with("/weft.v1.Local/") => Audience::Local,
        "/weft.v1.Membership/CreateToken" | "/weft.v1.Membership/ListTokens" | "/weft.v1.Membership/DeleteToken" => {
            Audience::Operators
        }
        _ => Audience::Members,
    }
}

fn judge(caller: &Caller, path: &str) -> Result<(), Status> {
    let allowed = match audience(path) {
        Audience::Anybody => true,
        Audience::Members => !matches!(caller, Caller::Nobody),
        Audience::Operators => caller.is_operator(),
        Audience::Local => matches!(caller, Caller::Local),
    };
    match (allowed, caller, audience(path)) {
        (true, _, _) => Ok(()),
        (false, Caller::Nobody, _) => Err(Status::unauthenticated(
            "a certificate of this mesh is required: `weft cert issue NAME` on a member makes one",
        )),
        (false, Caller::Member(member), Audience::Local) => Err(Status::permission_denied(format!(
            "{path} is answered on the control socket of the node only, not to {}",
            member.name
        ))),
        (false, Caller::Member(member), _) => Err(Status::permission_denied(format!(
            "{path} is for operators, and {} is a {}: `weft cert issue NAME` makes an operator's certificate",
            member.name,
            member.role.as_str()
        ))),
        (false, Caller::Local | Caller::Administrator(_), _) => {
            Err(Status::new(Code::PermissionDenied, format!("{path} is not for this socket")))
        }
    }
}

/// Lets a request through to its service, hands it on, or answers why not.
pub(super) async fn authorize(State(sources): State<Arc<Sources>>, mut request: Request, next: Next) -> Response<Body> {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Nobody);
    let arrival = match proxy::arrive(&sources, &caller, &mut request) {
        Ok(arrival) => arrival,
        Err(refusal) => return refusal.into_http(),
    };
    request.extensions_mut().insert(arrival.caller.clone());
    let mesh = &sources.mesh_handle;
    let path = request.uri().path();
    let is_elsewhere = proxy::is_elsewhere(path, request.headers(), mesh.keeps(), mesh.leads());
    let judged = judge(&arrival.caller, path).and_then(|()| match (arrival.is_handed_on, &arrival.caller) {
        (true, _) if is_direct(path) => Err(Status::permission_denied(format!("{path} is never handed on"))),
        (true, _) if is_elsewhere => Err(Status::unavailable(format!(
            "{} was asked in place of the leader and does not keep the state of the mesh",
            sources.identity.id()
        ))),
        (false, Caller::Local) if is_elsewhere && !mesh.keeps() && audience(path) == Audience::Operators => {
            Err(not_here(&sources, path))
        }
        _ => Ok(()),
    });
    match judged {
        Ok(()) if is_elsewhere => proxy::hand_on(&sources, &arrival.caller, request).await,
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_http(),
    }
}

/// What a node says about itself to another one, with nobody between.
fn is_direct(path: &str) -> bool {
    path == "/weft.v1.Membership/GetAuthority"
}

/// Root of a node without a vote is that node to the others, and a node does not administer the mesh.
fn not_here(sources: &Sources, path: &str) -> Status {
    let mesh = sources.mesh.borrow();
    let voters = mesh.members.values().filter(|member| member.is_voter).map(|member| member.id.as_str());
    Status::permission_denied(format!(
        "{path} is for operators, and {} has no vote: do this on {}, or with the certificate that `weft cert issue NAME` makes there",
        mesh.own,
        voters.collect::<Vec<_>>().join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::certificate::Fingerprint;

    fn member(role: Role) -> Caller {
        Caller::Member(Member { name: "beta".parse().expect("an id"), role, key: Fingerprint::from_bytes([1; 32]) })
    }

    fn code(caller: &Caller, path: &str) -> Code {
        judge(caller, path).map_or_else(|refusal| refusal.code(), |()| Code::Ok)
    }

    #[test]
    fn nobody_may_enrol_and_ask_for_health_and_nothing_else() {
        assert_eq!(code(&Caller::Nobody, "/grpc.health.v1.Health/Check"), Code::Ok);
        assert_eq!(code(&Caller::Nobody, "/weft.v1.Enrolment/Enrol"), Code::Ok);
        for path in ["/v1.Mesh/ListNodes", "/v1.Node/Join", "/v1.Admin/PutRaftACL", "/weft.v1.Certificates/Issue", "/x"]
        {
            assert_eq!(code(&Caller::Nobody, path), Code::Unauthenticated, "{path}");
        }
    }

    #[test]
    fn a_node_reads_and_does_not_administer() {
        assert_eq!(code(&member(Role::Node), "/v1.Mesh/ListNodes"), Code::Ok);
        assert_eq!(code(&member(Role::Node), "/v1.Admin/ListRaftACLs"), Code::Ok);
        assert_eq!(code(&member(Role::Node), "/v1.Admin/PutRaftACL"), Code::PermissionDenied);
        assert_eq!(code(&member(Role::Operator), "/v1.Admin/PutRaftACL"), Code::Ok);
    }

    #[test]
    fn certificates_are_issued_on_the_control_socket_only() {
        assert_eq!(code(&member(Role::Operator), "/weft.v1.Certificates/Issue"), Code::PermissionDenied);
        assert_eq!(code(&Caller::Local, "/weft.v1.Certificates/Issue"), Code::Ok);
    }
}
