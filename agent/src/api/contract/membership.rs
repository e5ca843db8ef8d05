//! `weft.v1.Membership`: what members ask beyond the contract.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::sync::{broadcast, watch};
use tonic::{Request, Response, Status};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::membership_server::Membership;

use super::caller::Caller;
use super::{failures, text, wire};
use crate::api::{Sources, view};
use crate::foundation::error::chain;
use crate::foundation::lifecycle::Stop;
use crate::identity::NODE_LIFETIME;
use crate::identity::certificate::{Member, Role, Subject};
use crate::identity::request;
use crate::mesh::Happened;
use crate::mesh::update::{Event, State};
use crate::model::mesh::BlockedPair;
use crate::model::mesh::Seat;

/// How long a token may live, in seconds.
const LIFETIMES: std::ops::RangeInclusive<u32> = 60..=7 * 24 * 60 * 60;

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) struct Service {
    pub(super) sources: Arc<Sources>,
    pub(super) stop: Stop,
}

impl Service {
    fn until_stop<T: Send + 'static>(
        &self,
        items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Streaming<T> {
        let mut stop = self.stop.clone();
        let stopped = Box::pin(async move { stop.requested().await });
        Box::pin(items.take_until(stopped))
    }
}

#[tonic::async_trait]
impl Membership for Service {
    type WatchMeshStream = Streaming<proto::MeshUpdate>;

    async fn watch_mesh(
        &self,
        request: Request<proto::WatchMeshRequest>,
    ) -> Result<Response<Self::WatchMeshStream>, Status> {
        let caller = Caller::of(&request);
        let state = self.sources.mesh_handle.state();
        if let Caller::Member(member) = &caller
            && member.role == Role::Node
            && state.borrow().mesh.member(&member.name).is_none()
        {
            return Err(Status::not_found(format!("{} is no member of this mesh any more", member.name)));
        }
        Ok(Response::new(self.until_stop(updates(state))))
    }

    async fn take_seat(&self, request: Request<proto::TakeSeatRequest>) -> Result<Response<()>, Status> {
        let member = node(&Caller::of(&request))?;
        let request = request.into_inner();
        let (seat, raft_address) = wire::seat(&request)?;
        let mesh = &self.sources.mesh_handle;
        if seat == Seat::Voter {
            mesh.judge_vote(&member.name).await.map_err(|error| failures::registry(&error))?;
        }
        let taken = mesh.take_seat(&member.name, seat, raft_address, request.raft_id).await;
        taken.map_err(|error| failures::registry(&error))?;
        Ok(Response::new(()))
    }

    async fn say_blocked(&self, request: Request<proto::BlockedPeers>) -> Result<Response<()>, Status> {
        let member = node(&Caller::of(&request))?;
        let blocked = wire::read_blocked(&request.into_inner())?;
        let said = self.sources.mesh_handle.say_blocked(&member.name, &blocked).await;
        said.map_err(|error| failures::registry(&error))?;
        Ok(Response::new(()))
    }

    async fn get_authority(&self, request: Request<()>) -> Result<Response<proto::Authority>, Status> {
        let member = node(&Caller::of(&request))?;
        if !self.sources.mesh_handle.votes(&member.name) {
            let text = format!("{} has no vote in this mesh: the authority's key is for nodes that vote", member.name);
            return Err(Status::permission_denied(text));
        }
        let authority = self.sources.identity.authority().ok_or_else(|| {
            Status::failed_precondition("this node does not hold the authority's key; ask another one that votes")
        })?;
        tracing::info!(node = %member.name, "gave the authority's key to a node that votes");
        Ok(Response::new(proto::Authority { key_pem: authority.key_pem().expose().clone() }))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::RenewResponse>, Status> {
        let Caller::Member(member) = Caller::of(&request) else {
            return Err(Status::permission_denied("a node renews its own certificate, with the one it has"));
        };
        let wanted = request::Request::parse(&request.into_inner().request_pem)
            .map_err(|error| Status::invalid_argument(chain(&error)))?;
        if member.role != Role::Node || wanted.fingerprint() != member.key {
            return Err(Status::permission_denied("a renewal is for the key of the certificate that asks for it"));
        }
        let identity = &self.sources.identity;
        let authority =
            identity.authority().ok_or_else(|| Status::failed_precondition("this node may not issue certificates"))?;
        let subject = Subject { name: member.name, role: Role::Node, domain: identity.domain().to_owned() };
        let issued = authority.issue(&wanted, &subject, NODE_LIFETIME, SystemTime::now());
        let certificate_pem = issued.map_err(|error| Status::internal(chain(&error)))?;
        Ok(Response::new(proto::RenewResponse { certificate_pem }))
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreatedToken>, Status> {
        let seconds = request.into_inner().lifetime_seconds;
        if !LIFETIMES.contains(&seconds) {
            let text = format!("a token lives {} to {} seconds, not {seconds}", LIFETIMES.start(), LIFETIMES.end());
            return Err(Status::invalid_argument(text));
        }
        let mesh = &self.sources.mesh_handle;
        let made = mesh.create_token(Duration::from_secs(seconds.into())).await;
        let made = made.map_err(|error| failures::registry(&error))?;
        tracing::info!(token = %made.token.id, seconds, "made a join token");
        let state = Arc::clone(&mesh.state().borrow());
        Ok(Response::new(proto::CreatedToken {
            id: made.token.id.to_string(),
            token: made.token.text().to_string(),
            expires_at: Some(text::timestamp(made.expires_at)),
            address: address(&state),
        }))
    }

    async fn list_tokens(&self, _: Request<()>) -> Result<Response<proto::TokenList>, Status> {
        let tokens = self.sources.mesh_handle.tokens().await.map_err(|error| failures::registry(&error))?;
        let shown = tokens.into_iter().map(|token| proto::TokenInfo {
            id: token.id,
            created_at: Some(text::timestamp(token.created_at)),
            expires_at: Some(text::timestamp(token.expires_at)),
            attempts_left: token.attempts_left,
        });
        Ok(Response::new(proto::TokenList { tokens: shown.collect() }))
    }

    async fn delete_token(&self, request: Request<proto::DeleteTokenRequest>) -> Result<Response<()>, Status> {
        let id = request.into_inner().id;
        self.sources.mesh_handle.delete_token(&id).await.map_err(|error| failures::registry(&error))?;
        Ok(Response::new(()))
    }

    type WatchEventsStream = Streaming<proto::Event>;

    async fn watch_events(
        &self,
        _: Request<proto::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(self.until_stop(events(self.sources.mesh_handle.events()))))
    }
}

/// The node that calls; nobody else.
fn node(caller: &Caller) -> Result<Member, Status> {
    match caller {
        Caller::Member(member) if member.role == Role::Node => Ok(member.clone()),
        Caller::Local | Caller::Member(_) | Caller::Administrator(_) | Caller::Nobody => {
            Err(Status::permission_denied("a node asks this about itself, with its certificate"))
        }
    }
}

/// Where this node's gRPC listener is reached, as far as it knows; else the first address of its interfaces.
fn address(state: &State) -> String {
    let Some(own) = state.mesh.member(&state.mesh.own) else { return String::new() };
    let reached = own.primary_endpoint.or_else(|| own.endpoints.first().copied());
    reached.map(|address| std::net::SocketAddr::from((address, own.ports.grpc)).to_string()).unwrap_or_default()
}

/// Everything, then what changed. A slow reader gets several changes as one.
fn updates(state: watch::Receiver<Arc<State>>) -> impl Stream<Item = Result<proto::MeshUpdate, Status>> {
    stream::unfold((state, None::<Arc<State>>), |(mut state, last)| async move {
        loop {
            let newest = Arc::clone(&state.borrow_and_update());
            let update = match &last {
                None => Some(newest.complete()),
                Some(last) => newest.since(last),
            };
            if let Some(update) = update {
                let sent = wire::update(&newest, &update);
                return Some((Ok(sent), (state, Some(newest))));
            }
            state.changed().await.ok()?;
        }
    })
}

fn events(events: broadcast::Receiver<Happened>) -> impl Stream<Item = Result<proto::Event, Status>> {
    stream::unfold(events, |mut events| async move {
        match events.recv().await {
            Ok(happened) => Some((Ok(shown(&happened)), events)),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let lost = Status::data_loss(format!("{missed} events were missed; read the state and watch again"));
                Some((Err(lost), events))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    })
}

fn shown(happened: &Happened) -> proto::Event {
    let (kind, node, text) = match &happened.event {
        Event::Joined(id) => ("joined", Some(id), format!("{id} joined the mesh")),
        Event::Left(id) => ("left", Some(id), format!("{id} left the mesh")),
        Event::Changed(id) => {
            ("changed", Some(id), format!("{id} has other addresses, endpoints, ports or another key"))
        }
        Event::Leader(Some(id)) => ("leader", Some(id), format!("{id} leads")),
        Event::PeerUp { peer, endpoint } => {
            let at = endpoint.map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
            ("peer-up", Some(peer), format!("{peer} answers over the tunnel{at}"))
        }
        Event::PeerDown { peer, reason } => ("peer-down", Some(peer), format!("{peer} cannot be reached: {reason}")),
        Event::PeerMoved { peer, from, to } => {
            let from = from.map(|from| format!(", before at {from}")).unwrap_or_default();
            ("peer-moved", Some(peer), format!("{peer} is at {to}{from}"))
        }
        Event::Blocked(BlockedPair { first, second, via, reason }) => {
            let how = via.as_ref().map_or("and nobody carries it".to_owned(), |via| format!("it goes through {via}"));
            ("relayed", Some(first), format!("nothing goes directly between {first} and {second}, {how}: {reason}"))
        }
        Event::Unblocked { first, second } => {
            ("direct", Some(first), format!("{first} and {second} reach each other directly again"))
        }
        Event::Leader(None) => ("leader", None, "nobody leads".to_owned()),
    };
    proto::Event {
        schema: view::SCHEMA,
        at: Some(text::timestamp(happened.at)),
        kind: kind.to_owned(),
        node: node.map(ToString::to_string).unwrap_or_default(),
        text,
    }
}
