//! The node that keeps the state: founds the mesh in its store, and spreads what the store holds whenever that changes. A
//! changed member costs the same among ten and among a thousand: only the rows that changed are read.

mod reader;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::allocate;
use super::registry::{Contents, RegistryError};
use super::schema::TABLES;
use super::seat;
use super::shared::Shared;
use super::update::{State, Update};
use crate::foundation::error::chain;
use crate::store::Touched;
use reader::Reader;

/// Between two attempts while the store refuses.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until this node follows another one.
pub(super) async fn run(shared: &Shared) {
    // Whoever gives the authority up is started again as one that follows.
    while seat::is_bereft(shared).await {
        match seat::without_store(shared).await {
            Ok(()) => return std::future::pending().await,
            Err(error) => shared.say(vec![chain(&error)]),
        }
        tokio::time::sleep(RETRY).await;
    }
    while let Err(error) = seat::own_store(shared).await {
        shared.say(vec![format!("the store of the mesh before cannot be laid aside: {}", chain(&error))]);
        tokio::time::sleep(RETRY).await;
    }
    shared.store.ready().await;
    while let Err(error) = found(shared).await {
        shared.say(vec![format!("the mesh was not founded: {}", chain(&error))]);
        tokio::time::sleep(RETRY).await;
    }
    let mut changes = shared.store.watch(&TABLES);
    let mut leader = shared.store.status();
    let mut configured = shared.configured.clone();
    let mut reader = Reader::new(shared.registry.clone());
    loop {
        leader.mark_unchanged();
        match spread(shared, &mut reader, &changes.take_touched()).await {
            Ok(()) => shared.say(Vec::new()),
            Err(error) => shared.say(vec![chain(&error)]),
        }
        let is_other = tokio::select! {
            changed = changes.changed() => match changed {
                Some(_index) => false,
                None => return,
            },
            changed = leader.changed() => match changed {
                Ok(()) => false,
                Err(_gone) => return,
            },
            changed = configured.changed() => match changed {
                Ok(()) => true,
                Err(_gone) => return,
            },
        };
        if is_other && let Err(error) = found(shared).await {
            shared.say(vec![format!("the mesh does not know how this node is now: {}", chain(&error))]);
        }
    }
}

/// Makes the mesh if there is none, and has it know this node as it is.
async fn found(shared: &Shared) -> Result<(), RegistryError> {
    let authority = shared.identity.fingerprint();
    let prefix = allocate::prefix(authority.as_bytes());
    let key = shared.identity.certificate().member.key;
    let facts = shared.facts();
    shared.registry.found(&facts, key, authority, (shared.config.ipv4_range, prefix), SystemTime::now()).await
}

/// Spreads what changed since the reader read last.
async fn spread(
    shared: &Shared,
    reader: &mut Reader,
    touched: &BTreeMap<String, Touched>,
) -> Result<(), RegistryError> {
    let status = Arc::clone(&shared.store.status().borrow());
    let update = reader.read(status, touched).await?;
    // What this node kept before it joined another mesh concerns nobody any more.
    if shared.keeps() {
        shared.publish(&update);
    }
    Ok(())
}

/// Everything the store holds, with who leads now.
pub(super) fn complete(shared: &Shared, contents: &Contents) -> Update {
    let mesh = contents.mesh(shared.identity.id(), &shared.store.status().borrow());
    State { mesh, revoked: Arc::new(contents.revoked.clone()) }.complete()
}
