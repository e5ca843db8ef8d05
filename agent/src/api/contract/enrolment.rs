//! `weft.v1.Enrolment`: a token becomes a membership.
//!
//! Answered to anyone, so it is the one place a stranger can make this node work: few at a time, and wrong tokens slowly.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::enrolment_server::Enrolment;

use super::listener::Connection;
use super::{failures, wire};
use crate::api::Sources;
use crate::foundation::error::chain;
use crate::identity::NODE_LIFETIME;
use crate::identity::certificate::{Role, Subject};
use crate::identity::request;
use crate::identity::token::Token;
use crate::mesh::Ends;

/// Enrolments in work at a time; more are told to come back.
const AT_ONCE: usize = 16;
static SLOTS: Semaphore = Semaphore::const_new(AT_ONCE);
/// How long a refused token waits for its answer, holding its slot: guessing takes for ever.
const SLOWLY: Duration = Duration::from_millis(500);

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol(&self, request: Request<proto::EnrolRequest>) -> Result<Response<proto::EnrolResponse>, Status> {
        let busy = |_full| Status::resource_exhausted("many nodes are joining; try again in a second");
        let _slot = SLOTS.try_acquire().map_err(busy)?;
        let ends = request.extensions().get::<Connection>().map(|connection| connection.ends);
        let ends = ends.ok_or_else(|| Status::failed_precondition("a node joins over the network"))?;
        let answer = enrol(&self.0, &request.into_inner(), ends).await;
        if answer
            .as_ref()
            .is_err_and(|refusal| matches!(refusal.code(), Code::Unauthenticated | Code::PermissionDenied))
        {
            tokio::time::sleep(SLOWLY).await;
        }
        answer.map(Response::new)
    }
}

async fn enrol(sources: &Sources, request: &proto::EnrolRequest, ends: Ends) -> Result<proto::EnrolResponse, Status> {
    let token: Token = request.token.parse().map_err(|error| Status::invalid_argument(chain(&error)))?;
    let facts = wire::enrolling_facts(request)?;
    let wanted =
        request::Request::parse(&request.request_pem).map_err(|error| Status::invalid_argument(chain(&error)))?;
    let authority = sources.identity.authority().ok_or_else(|| {
        Status::failed_precondition("this node does not keep the state of the mesh; join at one that does")
    })?;
    let mesh = &sources.mesh_handle;
    let entered = mesh.enrol(&token, &facts, wanted.fingerprint(), ends).await.map_err(|error| {
        tracing::warn!(node = %facts.id, from = %ends.remote, error = %chain(&error), "refused a node that wanted to join");
        failures::registry(&error)
    })?;
    let subject = Subject { name: facts.id, role: Role::Node, domain: sources.identity.domain().to_owned() };
    let issued = authority.issue(&wanted, &subject, NODE_LIFETIME, SystemTime::now());
    let certificate_pem = issued.map_err(|error| Status::internal(chain(&error)))?;
    tracing::info!(node = %subject.name, from = %ends.remote, key = %wanted.fingerprint(), "let a node in");
    let state = Arc::clone(&mesh.state().borrow());
    Ok(proto::EnrolResponse {
        certificate_pem,
        ca_pem: authority.certificate_pem().to_owned(),
        mesh: Some(wire::update(&state, &entered)),
    })
}
