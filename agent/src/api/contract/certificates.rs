//! `weft.v1.Certificates`: certificates for people and tools, made on a node that holds the authority.

use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Request, Response, Status};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::certificates_server::Certificates;

use super::mesh;
use crate::api::Sources;
use crate::foundation::error::chain;
use crate::identity::certificate::{Lifetime, Role, Subject};
use crate::identity::request;

/// Days an operator's certificate may live.
const DAYS: std::ops::RangeInclusive<u32> = 1..=825;

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Certificates for Service {
    async fn issue(
        &self,
        request: Request<proto::IssueCertificateRequest>,
    ) -> Result<Response<proto::IssuedCertificate>, Status> {
        let proto::IssueCertificateRequest { name, request_pem, days } = request.into_inner();
        let name = mesh::node_id(&name)?;
        if !DAYS.contains(&days) {
            let text = format!("days {days} is not between {} and {}", DAYS.start(), DAYS.end());
            return Err(Status::invalid_argument(text));
        }
        let identity = &self.0.identity;
        let authority = identity.authority().ok_or_else(|| {
            Status::failed_precondition("this node does not hold the authority of the mesh; ask a voter of it")
        })?;
        let wanted = request::Request::parse(&request_pem).map_err(|error| Status::invalid_argument(chain(&error)))?;
        let subject = Subject { name, role: Role::Operator, domain: identity.domain().to_owned() };
        let issued = authority.issue(&wanted, &subject, Lifetime::from_days(days), SystemTime::now());
        let certificate_pem = issued.map_err(|error| Status::internal(chain(&error)))?;
        tracing::info!(name = %subject.name, days, key = %wanted.fingerprint(), "issued an operator's certificate");
        Ok(Response::new(proto::IssuedCertificate { certificate_pem, ca_pem: authority.certificate_pem().to_owned() }))
    }
}
