//! Votes and logs: this node comes to the part it asks for, and while it leads it gives the others theirs.
//!
//! What is next is said by `plan`; here it is done and looked at again. Nothing here is waited for by tunnels or names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::plan::{self, Change, Own, Standing, Step};
use super::registry::RegistryError;
use super::remote::{Place, RemoteError};
use super::schema::{ACLS, NODES};
use super::shared::Shared;
use crate::foundation::error::chain;
use crate::identity::IdentityError;
use crate::identity::certificate::MeshId;
use crate::model::mesh::Seat;
use crate::store::{Consistency, Role, Statement, StoreError};

/// After a step that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// After a refusal, which others must lift first.
const REFUSED: Duration = Duration::from_secs(20);
/// So often a node that keeps the state looks whether a leader answers; without one it asks whether it still belongs.
const LOST: Duration = Duration::from_secs(4);
/// After so long a store without members is one that waits to be added.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the leader's answer may take.
const ANSWER: Duration = Duration::from_secs(3);

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
enum SeatError {
    #[error("no node that keeps the state of the mesh is known")]
    NoKeeper,
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Brings this node to its part, for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut store = shared.store.status();
    let mut state = shared.state.subscribe();
    let mut moves = shared.moves.subscribe();
    // Which mesh was told what this node asks for.
    let mut told: Option<MeshId> = None;
    let mut heard = Instant::now();
    loop {
        store.mark_unchanged();
        state.mark_unchanged();
        moves.mark_unchanged();
        let mut own = own(&shared, told);
        if own.issues && heard.elapsed() > LOST {
            own.is_lost = !is_led(&shared).await;
            heard = Instant::now();
        }
        let step = plan::step(own);
        let pause = match advance(&shared, step, &mut told).await {
            Ok(()) if step == Step::Nothing => LOST,
            Ok(()) => continue,
            Err(error) => {
                tracing::info!(?step, error = %chain(&error), "this node has not come to its part yet");
                match error {
                    SeatError::Remote(RemoteError::Refused(_) | RemoteError::Dismissed(_)) => REFUSED,
                    SeatError::NoKeeper
                    | SeatError::Remote(RemoteError::Unreachable { .. })
                    | SeatError::Store(_)
                    | SeatError::Identity(_)
                    | SeatError::Registry(_) => PAUSE,
                }
            }
        };
        tokio::select! {
            _ = store.changed() => {}
            _ = moves.changed() => {}
            _ = state.changed(), if pause != REFUSED => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn own(shared: &Shared, told: Option<MeshId>) -> Own {
    let id = shared.identity.id();
    Own {
        seat: shared.seat(),
        standing: plan::standing(&shared.store.status().borrow(), id),
        issues: shared.keeps(),
        is_member: shared.state.borrow().mesh.member(id).is_some(),
        has_told: told == Some(shared.identity.mesh()),
        is_lost: false,
    }
}

/// Whether a leader answers. What the store says about one outlives it.
async fn is_led(shared: &Shared) -> bool {
    let ask = shared.store.query(Statement::new("SELECT 1"), Consistency::Linearizable);
    tokio::time::timeout(ANSWER, ask).await.is_ok_and(|answer| answer.is_ok())
}

async fn advance(shared: &Shared, step: Step, told: &mut Option<MeshId>) -> Result<(), SeatError> {
    match step {
        Step::Nothing => return Ok(()),
        Step::Knock => {
            take_seat(shared, None).await?;
            shared.store.start_over().await?;
        }
        Step::Ask => {
            let mesh = shared.identity.mesh();
            let number = shared.store.raft_id().filter(|_| shared.seat() != Seat::Edge);
            take_seat(shared, number).await?;
            *told = Some(mesh);
            // The store hears of it from its leader; until then there is nothing more to ask for.
            tokio::time::sleep(PAUSE).await;
        }
        Step::BeginAlone => drop(shared.store.begin_alone().await?),
        Step::Fetch => {
            let key = from_any(shared, |place| shared.remote.authority(place)).await?;
            shared.identity.take_authority(key)?;
            shared.moves.send_modify(|moves| *moves += 1);
        }
        // A node that left a mesh has an authority of its own, and for a moment the store of before.
        Step::GiveUp if shared.registry.authority().await? != Some(shared.identity.fingerprint()) => {
            tokio::time::sleep(PAUSE).await;
            return Ok(());
        }
        Step::GiveUp => give_up(shared)?,
        Step::Probe => {
            let probed = from_any(shared, |place| shared.remote.follow(place, shared.facts())).await;
            match probed.map(drop) {
                Err(SeatError::Remote(RemoteError::Dismissed(_))) => give_up(shared)?,
                Ok(()) | Err(_) => tokio::time::sleep(PAUSE).await,
            }
            return Ok(());
        }
    }
    tracing::info!(?step, "this node came nearer to its part in the mesh");
    Ok(())
}

fn give_up(shared: &Shared) -> Result<(), SeatError> {
    shared.identity.give_up_authority()?;
    shared.moves.send_modify(|moves| *moves += 1);
    Ok(())
}

async fn take_seat(shared: &Shared, number: Option<u64>) -> Result<(), SeatError> {
    from_any(shared, |place| shared.remote.take_seat(place, shared.facts(), number)).await
}

/// What the first node that keeps the state answers; one that answers no has answered.
async fn from_any<T>(
    shared: &Shared,
    ask: impl Fn(Place) -> futures_util::future::BoxFuture<'static, Result<T, RemoteError>>,
) -> Result<T, SeatError> {
    let mut failed = SeatError::NoKeeper;
    for place in shared.keepers() {
        match ask(place).await {
            Ok(answer) => return Ok(answer),
            Err(error @ RemoteError::Unreachable { .. }) => failed = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(failed)
}

/// Gives the others their parts while this node leads, for ever.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut store = shared.store.status();
    let mut tables = shared.store.watch(&[NODES, ACLS]);
    let mut said = String::new();
    loop {
        let leads = store.borrow_and_update().role == Role::Leader && shared.keeps();
        let pause = match lead(&shared, leads).await {
            Ok(true) => continue,
            Ok(false) => {
                said.clear();
                Duration::MAX
            }
            Err(error) => {
                let text = chain(&error);
                if said != text {
                    tracing::warn!(error = text, "the votes in the mesh are not as they should be");
                    said = text;
                }
                PAUSE
            }
        };
        tokio::select! {
            changed = store.changed() => if changed.is_err() { return },
            changed = tables.changed() => if changed.is_none() { return },
            () = tokio::time::sleep(pause), if pause != Duration::MAX => {}
        }
    }
}

/// Carries out the next change; says whether there was one.
async fn lead(shared: &Shared, leads: bool) -> Result<bool, SeatError> {
    if !leads || shared.registry.authority().await? != Some(shared.identity.fingerprint()) {
        return Ok(false);
    }
    let members = shared.store.status().borrow().members.clone();
    // Nothing else about the others matters here, however many they are.
    let nodes = shared.registry.named(members.iter().map(|member| &member.node)).await?;
    let acls = shared.registry.acls(Consistency::Local).await?;
    let own = shared.identity.id();
    let Some(change) = plan::change(&members, own, &nodes, &acls, shared.config.voters) else { return Ok(false) };
    tracing::info!(?change, "the votes in the mesh change");
    let store = &shared.store;
    match change {
        Change::HandOver => store.transfer_leader(None).await?,
        Change::Remove(node) => store.remove(&node).await?,
        Change::Demote(node) => store.demote(&node).await?,
        Change::Readdress(member) => store.add_learner(member).await?,
        Change::Promote(nodes) => {
            let mut result = Ok(());
            for node in nodes {
                result = store.promote(&node).await;
                if result.is_ok() {
                    break;
                }
            }
            result?;
        }
    }
    Ok(true)
}

/// Whether this node kept the state of its mesh, has others in it, and its store is not the one it was: it waits for a
/// leader to add it, and nobody knows that it should be.
pub(super) async fn is_bereft(shared: &Shared) -> bool {
    let standing = settled(shared).await;
    standing == Standing::Waiting && shared.state.borrow().mesh.others().next().is_some()
}

/// What is done about that: where others keep the state, this node asks them for a place like one that has just joined.
pub(super) async fn without_store(shared: &Shared) -> Result<(), Bereft> {
    let others = shared.state.borrow().mesh.others().count();
    if shared.keepers().is_empty() {
        return Err(Bereft::Last { others });
    }
    tracing::warn!("the store of this node is gone; it asks the others of its mesh for a new place");
    let identity = shared.identity.clone();
    let given_up = tokio::task::spawn_blocking(move || identity.give_up_authority()).await;
    given_up.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;
    shared.moves.send_modify(|moves| *moves += 1);
    Ok(())
}

/// Why a node without its store does not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bereft {
    #[error(
        "the store of this node is gone, and of the {others} other members none keeps the state of the mesh: stop the agent and \
         bring it back with `weft store restore FILE`, or give the mesh up with `weft leave`"
    )]
    Last { others: usize },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What this node is in its store, once that is open and has had time to find its members.
async fn settled(shared: &Shared) -> Standing {
    let mut status = shared.store.status();
    // The sender lives in what we hold.
    drop(status.wait_for(|status| status.role != Role::None).await);
    // One that is opened for the first time has no members for a moment, one that waits to be added has none for ever.
    let settled = status.wait_for(|status| status.role != Role::None && !status.members.is_empty());
    drop(tokio::time::timeout(SETTLED, settled).await);
    plan::standing(&shared.store.status().borrow(), shared.identity.id())
}

/// Whether this node's store is of the mesh it founded; one of another mesh is laid aside.
pub(super) async fn own_store(shared: &Shared) -> Result<(), RegistryError> {
    let standing = settled(shared).await;
    let is_foreign = match standing {
        Standing::Closed | Standing::Alone => false,
        Standing::Waiting => true,
        Standing::Member { .. } | Standing::LeftOut => {
            shared.registry.authority().await? != Some(shared.identity.fingerprint())
        }
    };
    if is_foreign {
        tracing::info!("the store is of a mesh that this node left; it is laid aside");
        shared.store.begin_alone().await?;
    }
    Ok(())
}
