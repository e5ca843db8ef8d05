//! The webmesh contract and our additions to it over gRPC: the TCP listener with TLS, and the same services on the control
//! socket.
//!
//! Who calls is what TLS proved ([`caller`]); one table says which method is for whom. A session of a member whose key is
//! revoked ends at once. Headers by which one node speaks for another are believed from nodes only.

mod admin;
pub mod caller;
mod certificates;
mod discovery;
mod enrolment;
mod failures;
pub mod listener;
mod local;
mod membership;
mod mesh;
mod metrics;
mod node;
mod proxy;
pub mod remote;
mod text;
mod webrtc;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::middleware;
use serde::Deserialize;
use tonic::service::Routes;
use weft_proto::v1;
use weft_proto::weft::v1 as weft;

use super::{Sources, http};
use crate::foundation::lifecycle::Stop;

/// `[grpc]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Serve the contract over TCP at all; the control socket has it anyway.
    pub enabled: bool,
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 8443)) }
    }
}

/// Every service, behind the table of who may call what. The connection puts the [`caller::Caller`] into each request.
pub(super) fn routes(sources: &Arc<Sources>, stop: Stop) -> Router {
    let limit = http::MAX_BODY_BYTES;
    let node = v1::node_server::NodeServer::new(node::Service(Arc::clone(sources)));
    let mesh = v1::mesh_server::MeshServer::new(mesh::Service(Arc::clone(sources)));
    let discovery = v1::peer_discovery_server::PeerDiscoveryServer::new(discovery::Service(Arc::clone(sources)));
    let webrtc = v1::web_rtc_server::WebRtcServer::new(webrtc::Service);
    let certificates = weft::certificates_server::CertificatesServer::new(certificates::Service(Arc::clone(sources)));
    let admin = v1::admin_server::AdminServer::new(admin::Service(Arc::clone(sources)));
    let enrolment = weft::enrolment_server::EnrolmentServer::new(enrolment::Service(Arc::clone(sources)));
    let membership = membership::Service { sources: Arc::clone(sources), stop };
    let membership = weft::membership_server::MembershipServer::new(membership);
    let metrics = weft::metrics_server::MetricsServer::new(metrics::Service(Arc::clone(sources)));
    let local = weft::local_server::LocalServer::new(local::Service(Arc::clone(sources)));
    let routes = Routes::new(node.max_decoding_message_size(limit))
        .add_service(mesh.max_decoding_message_size(limit))
        .add_service(discovery.max_decoding_message_size(limit))
        .add_service(webrtc.max_decoding_message_size(limit))
        .add_service(admin.max_decoding_message_size(limit))
        .add_service(enrolment.max_decoding_message_size(limit))
        .add_service(membership.max_decoding_message_size(limit))
        .add_service(metrics.max_decoding_message_size(limit))
        .add_service(local.max_decoding_message_size(limit))
        .add_service(certificates.max_decoding_message_size(limit));
    let layer = middleware::from_fn_with_state(Arc::clone(sources), caller::authorize);
    with_reflection(routes).into_axum_router().layer(layer)
}

fn with_reflection(routes: Routes) -> Routes {
    let builder =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(weft_proto::DESCRIPTORS);
    // Old clients, grpcio's among them, know the alpha name only.
    let (Ok(current), Ok(alpha)) = (builder().build_v1(), builder().build_v1alpha()) else {
        tracing::error!("the descriptors of the services cannot be read; reflection is off");
        return routes;
    };
    routes.add_service(current).add_service(alpha)
}
