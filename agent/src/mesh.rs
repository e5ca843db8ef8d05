//! The mesh: who is a member, how one becomes one, and what this node makes of it.
//!
//! In: the store (on the node that keeps the state) or another member's word (on every other), what `weft.toml` says. Out:
//! the [`State`](update::State) as a `watch`, the [`Model`] that the tunnel, the links and the names follow, events.
//!
//! | file | what |
//! |---|---|
//! | `schema` `rows` `registry` | the tables, and every change of them |
//! | `allocate` `acl` `project` `update` | pure: addresses, votes, mesh to model, what changed |
//! | `keep` `follow` | where the state comes from |
//! | `paths` `report` | which way each member is reached, and telling the mesh who is not |
//! | `plan` `seat` | who votes and who holds the log; the authority's key goes to those who vote |
//! | `join` | becoming a member, and leaving |
//! | `saved` | the last good state on disk |
//! | `remote` | other members, as this room asks them; `api` carries it |
//!
//! Invariants: tunnels and names come from the last good state at once and never wait for a leader; whoever keeps the state
//! keeps the authority; a member's addresses are its own for as long as it is one; nothing about a peer of `weft.toml` is
//! changed by the mesh.

pub mod acl;
mod allocate;
pub mod config;
mod follow;
mod join;
mod keep;
mod paths;
mod plan;
mod report;
mod seat;
mod project;
mod registry;
pub mod remote;
mod rows;
mod saved;
pub mod schema;
mod shared;
pub mod update;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, watch};

use crate::foundation::error::chain;
use crate::foundation::id::NodeId;
use crate::foundation::task::{self, Task};
use crate::identity::Identity;
use crate::identity::certificate::Fingerprint;
use crate::identity::token::Token;
use crate::model::Model;
use crate::model::mesh::{Mesh, Ports, Seat};
use crate::store::Consistency;
use acl::Acl;
use registry::Registry;
use remote::{Facts, Remote};
use shared::Shared;
use update::{State, Update};

pub use join::{JoinError, Joined};
pub use paths::Sighting;
pub use registry::{NewToken, RegistryError, TokenInfo};
pub use shared::Happened;

/// What the mesh is started with.
#[derive(Debug)]
pub struct Inputs {
    pub identity: Identity,
    pub store: crate::store::Handle,
    pub remote: Arc<dyn Remote>,
    /// Where the last good state lies; made if it is missing.
    pub directory: PathBuf,
    pub config: config::Config,
    /// What `weft.toml` says.
    pub configured: watch::Receiver<Arc<Model>>,
    pub ports: Ports,
    /// Where the Raft listener answers, as configured.
    pub raft_address: Option<String>,
    /// The tunnel's link.
    pub link: String,
}

/// The running mesh; cheap to clone. The last clone stops it.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    model: watch::Receiver<Arc<Model>>,
    mesh: watch::Receiver<Arc<Mesh>>,
    _tasks: Arc<[Task; 7]>,
}

/// Whether the last good state, if it is this identity's, names other members.
pub fn remembers_others(directory: &std::path::Path, identity: &Identity) -> bool {
    saved::read(directory, identity).is_some_and(|state| state.mesh.others().next().is_some())
}

/// Starts it. The model is there at once, from the last good state.
pub fn start(inputs: Inputs) -> Handle {
    let Inputs { identity, store, remote, directory, config, configured, ports, raft_address, link } = inputs;
    let saved = saved::read(&directory, &identity);
    let state = saved.unwrap_or_else(|| State::empty(identity.id().clone()));
    identity.revoke(std::collections::BTreeSet::clone(&state.revoked));
    let shared = Arc::new(Shared {
        identity,
        registry: Registry::new(store.clone()),
        store,
        remote,
        directory,
        config,
        configured,
        ports,
        raft_address,
        link,
        state: watch::Sender::new(Arc::new(state)),
        events: Shared::events_channel(),
        contradictions: watch::Sender::default(),
        errors: watch::Sender::default(),
        saving: std::sync::Mutex::default(),
        moves: watch::Sender::new(0),
        chosen: watch::Sender::default(),
        out_of_reach: watch::Sender::default(),
        paths: std::sync::Mutex::default(),
    });
    let (model, projecting) = project::start(&shared);
    let (mesh_tx, mesh) = watch::channel(Arc::new(shared.state.borrow().mesh.clone()));
    let state = shared.state.subscribe();
    let tasks = [
        task::spawn("mesh", run(Arc::clone(&shared))),
        task::spawn("mesh-save", join::save(Arc::clone(&shared))),
        task::spawn("mesh-state", meshes(state, mesh_tx)),
        task::spawn("mesh-seat", seat::run(Arc::clone(&shared))),
        task::spawn("mesh-votes", seat::keep(Arc::clone(&shared))),
        task::spawn("mesh-report", report::run(Arc::clone(&shared))),
        projecting,
    ];
    Handle { shared, model, mesh, _tasks: Arc::new(tasks) }
}

/// The mesh alone, for those who care for nothing else.
async fn meshes(mut state: watch::Receiver<Arc<State>>, mesh: watch::Sender<Arc<Mesh>>) {
    while state.changed().await.is_ok() {
        mesh.send_replace(Arc::new(state.borrow_and_update().mesh.clone()));
    }
}

/// Keeps or follows, and changes over when this node joins or leaves.
async fn run(shared: Arc<Shared>) {
    let mut moves = shared.moves.subscribe();
    loop {
        moves.mark_unchanged();
        let keeps = shared.keeps();
        tokio::select! {
            () = keep::run(&shared), if keeps => return,
            () = follow::run(&shared), if !keeps => return,
            changed = moves.changed() => if changed.is_err() { return },
        }
    }
}

impl Handle {
    /// The members, and every change of them.
    pub fn mesh(&self) -> watch::Receiver<Arc<Mesh>> {
        self.mesh.clone()
    }

    /// The members and the refused keys, and every change of them.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.shared.state.subscribe()
    }

    /// What this node acts on: the mesh and `weft.toml` in one.
    pub fn model(&self) -> watch::Receiver<Arc<Model>> {
        self.model.clone()
    }

    /// What happens from now on. A reader that lags reads the state anew.
    pub fn events(&self) -> broadcast::Receiver<Happened> {
        self.shared.events.subscribe()
    }

    /// What is wrong now, a sentence each.
    pub fn errors(&self) -> Vec<String> {
        let mut errors = self.shared.errors.borrow().clone();
        errors.extend(self.shared.contradictions.borrow().clone());
        errors
    }

    /// Takes in what the tunnel device says about its peers; returns when to look again.
    pub fn sighted(&self, sightings: &[Sighting]) -> Duration {
        report::sighted(&self.shared, sightings)
    }

    /// Writes whom a member cannot reach. On a node that keeps the state only.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing was changed.
    pub async fn say_blocked(&self, id: &NodeId, blocked: &BTreeMap<NodeId, String>) -> Result<(), RegistryError> {
        self.shared.registry.put_blocked(id, blocked).await
    }

    /// Whether this node keeps the state and may change it; else it follows one that does.
    pub fn keeps(&self) -> bool {
        self.shared.keeps()
    }

    /// Members that keep the state, the leader first.
    pub fn keepers(&self) -> Vec<remote::Place> {
        self.shared.keepers()
    }

    /// Where a member answers, by every address it is known by.
    pub fn places_of(&self, id: &NodeId) -> Vec<remote::Place> {
        self.shared.places_of(id)
    }

    /// Joins the mesh of the member at `address`.
    ///
    /// # Errors
    /// [`JoinError`]; this node is where it was.
    pub async fn join(&self, address: &str, token: &str) -> Result<Joined, JoinError> {
        join::join(&self.shared, address, token).await
    }

    /// Leaves the mesh it joined, and founds one of its own again.
    ///
    /// # Errors
    /// [`JoinError`]; this node is where it was.
    pub async fn leave(&self) -> Result<crate::identity::certificate::MeshId, JoinError> {
        join::leave(&self.shared).await
    }

    /// Lets the bearer of a token in. On the node that keeps the state only.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing was changed but perhaps an attempt counted.
    pub async fn enrol(
        &self,
        token: &Token,
        facts: &Facts,
        key: Fingerprint,
        ends: Ends,
    ) -> Result<Update, RegistryError> {
        let now = SystemTime::now();
        self.learn_endpoint(ends.local).await?;
        let contents = self.shared.registry.enrol(token, facts, key, ends.remote, now).await?;
        Ok(keep::complete(&self.shared, &contents))
    }

    /// Takes the address a joiner reached this node at for its endpoint, where none is known.
    async fn learn_endpoint(&self, local: IpAddr) -> Result<(), RegistryError> {
        let own = self.shared.identity.id();
        let is_known = self.shared.state.borrow().mesh.member(own).is_some_and(|own| own.primary_endpoint.is_some());
        if is_known || local.is_loopback() {
            return Ok(());
        }
        let key = self.shared.identity.certificate().member.key;
        self.shared.registry.announce(&self.shared.facts(), key, Some(local), SystemTime::now()).await
    }

    /// Takes in how a member is now; says what the mesh then holds.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing was changed.
    pub async fn announce(&self, facts: &Facts, key: Fingerprint, observed: IpAddr) -> Result<Mesh, RegistryError> {
        self.shared.registry.announce(facts, key, Some(observed), SystemTime::now()).await?;
        let contents = self.shared.registry.contents(Consistency::Local).await?;
        Ok(contents.mesh(self.shared.identity.id(), &self.shared.store.status().borrow()))
    }

    /// Refuses a vote that the ACLs do not give, or that would be one too many.
    ///
    /// # Errors
    /// [`RegistryError::MayNotVote`], [`RegistryError::NoMoreVoters`].
    pub async fn judge_vote(&self, id: &NodeId) -> Result<(), RegistryError> {
        self.shared.registry.judge_vote(id).await?;
        let status = self.shared.store.status().borrow().clone();
        let voters: Vec<&NodeId> =
            status.members.iter().filter(|member| member.voter).map(|member| &member.node).collect();
        match voters.len() {
            count if count >= plan::MOST_VOTERS && !voters.contains(&id) => Err(RegistryError::NoMoreVoters(count)),
            _ => Ok(()),
        }
    }

    /// Notes which part a member asks for, and has the store of number `raft_id` hold the log. Without a number nothing is
    /// changed: it only says whether it could be.
    ///
    /// # Errors
    /// [`RegistryError`] says what is in the way.
    pub async fn take_seat(
        &self,
        id: &NodeId,
        seat: Seat,
        raft_address: Option<String>,
        raft_id: Option<u64>,
    ) -> Result<(), RegistryError> {
        let contents = self.shared.registry.contents(Consistency::Linearizable).await?;
        let row = contents.nodes.into_iter().find(|row| row.member.id == *id);
        let row = row.ok_or_else(|| RegistryError::UnknownNode(id.clone()))?;
        let row = rows::NodeRow { seat, raft_address: raft_address.or_else(|| row.raft_address.clone()), ..row };
        if seat == Seat::Edge {
            // The leader takes it out of the store, if it is in it.
            return self.shared.registry.put_seat(&row).await;
        }
        let members = self.shared.store.status().borrow().members.clone();
        let known = members.iter().find(|member| member.node == *id).map(|member| member.raft_id);
        if known.is_none() && members.len() >= plan::MOST_HOLDERS {
            return Err(RegistryError::NoMoreHolders(members.len(), id.clone()));
        }
        let address = row.reached_at().ok_or_else(|| RegistryError::NoRaftAddress(id.clone()))?;
        let Some(raft_id) = raft_id else { return Ok(()) };
        self.shared.registry.put_seat(&row).await?;
        if known.is_some_and(|known| known != raft_id) {
            self.shared.store.remove(id).await?;
        }
        let member = crate::store::Member { raft_id, node: id.clone(), address, voter: false };
        Ok(self.shared.store.add_learner(member).await?)
    }

    /// Whether the store's membership gives this node a vote.
    pub fn votes(&self, id: &NodeId) -> bool {
        self.shared.store.status().borrow().members.iter().any(|member| member.node == *id && member.voter)
    }

    /// Whether this node leads the store.
    pub fn leads(&self) -> bool {
        self.keeps() && self.shared.store.status().borrow().role == crate::store::Role::Leader
    }

    /// Removes a member: first from the store, so that what is left of it can still decide, then from the mesh.
    ///
    /// # Errors
    /// [`RegistryError`]; the member is where it was, or out of the store only.
    pub async fn remove(&self, id: &NodeId) -> Result<(), RegistryError> {
        self.shared.registry.refuse_unknown(id).await?;
        let status = self.shared.store.status().borrow().clone();
        let voters = status.members.iter().filter(|member| member.voter);
        match voters.map(|member| &member.node).collect::<Vec<_>>().as_slice() {
            [last] if *last == id => return Err(RegistryError::LastVoter(id.clone())),
            _ => {}
        }
        if status.members.iter().any(|member| member.node == *id) {
            if status.leader.as_ref() == Some(id) {
                self.shared.store.transfer_leader(None).await?;
            }
            self.shared.store.remove(id).await?;
        }
        self.shared.registry.remove(id, SystemTime::now()).await
    }

    /// Makes a token that lets one node in.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn create_token(&self, lifetime: Duration) -> Result<NewToken, RegistryError> {
        let authority = self.shared.identity.fingerprint();
        self.shared.registry.founded(authority).await;
        self.shared.registry.create_token(authority, lifetime, SystemTime::now()).await
    }

    /// The tokens that let somebody in.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, RegistryError> {
        self.shared.registry.tokens(SystemTime::now()).await
    }

    /// Ends a token.
    ///
    /// # Errors
    /// [`RegistryError::UnknownToken`].
    pub async fn delete_token(&self, id: &str) -> Result<(), RegistryError> {
        self.shared.registry.delete_token(id).await
    }

    /// The Raft ACLs, by name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn acls(&self) -> Result<Vec<Acl>, RegistryError> {
        self.shared.registry.acls(Consistency::Linearizable).await
    }

    /// Puts an ACL in the place of the one with its name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn put_acl(&self, acl: &Acl) -> Result<(), RegistryError> {
        self.shared.registry.founded(self.shared.identity.fingerprint()).await;
        self.shared.registry.put_acl(acl, SystemTime::now()).await
    }

    /// Removes an ACL.
    ///
    /// # Errors
    /// [`RegistryError::UnknownAcl`].
    pub async fn delete_acl(&self, name: &str) -> Result<(), RegistryError> {
        self.shared.registry.delete_acl(name).await
    }

    /// Has another certificate issued for the key this node has, by one that may.
    ///
    /// # Errors
    /// Nobody that may could be asked, or all refused.
    pub async fn renew(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let request = self.shared.identity.request()?;
        let mut failed = "no node that may issue certificates is known".to_owned();
        for place in self.shared.keepers() {
            match self.shared.remote.renew(place, request.clone()).await {
                Ok(certificate_pem) => return Ok(self.shared.identity.renew_with(certificate_pem)?),
                Err(error) => failed = chain(&error),
            }
        }
        Err(failed.into())
    }
}

/// The two ends of a joiner's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// This node's.
    pub local: IpAddr,
    /// The joiner's, as this node sees it.
    pub remote: IpAddr,
}

#[cfg(test)]
mod tests;
