//! The members as the store holds them, read anew only where they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::foundation::id::NodeId;
use crate::mesh::registry::{Heads, Registry, RegistryError};
use crate::mesh::rows::NodeRow;
use crate::mesh::schema::{BLOCKED, MESH, NODES, REVOKED};
use crate::mesh::update::Update;
use crate::model::mesh::Member;
use crate::store::{Status, Touched};

/// Reads one store, again and again.
pub(super) struct Reader {
    registry: Registry,
    /// `None` at first and after a failure: then everything is read.
    known: Option<Known>,
}

/// What was read last.
struct Known {
    /// Whose each rowid is.
    numbers: BTreeMap<i64, NodeId>,
    heads: Heads,
    status: Arc<Status>,
}

impl Reader {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, known: None }
    }

    /// What changed since it read last, of which the store says `touched`; at first everything.
    pub(super) async fn read(
        &mut self,
        status: Arc<Status>,
        touched: &BTreeMap<String, Touched>,
    ) -> Result<Update, RegistryError> {
        let rows = match touched.get(NODES) {
            None => Some(BTreeSet::new()),
            Some(Touched::Rows(rows)) => Some(rows.clone()),
            Some(Touched::Every) => None,
        };
        let before = self.known.take().filter(|known| is_same_consensus(&known.status, &status));
        let (Some(before), Some(rows)) = (before, rows) else { return self.everything(status).await };
        let are_heads_touched = [MESH, REVOKED, BLOCKED].iter().any(|table| touched.contains_key(*table));
        let heads = if are_heads_touched { self.registry.heads().await? } else { before.heads };
        self.changed(Known { numbers: before.numbers, heads, status }, &rows).await
    }

    /// Reads the rows that changed; everything where that does not add up, as after a row was replaced unheard.
    async fn changed(&mut self, mut now: Known, rows: &BTreeSet<i64>) -> Result<Update, RegistryError> {
        let found = if rows.is_empty() { BTreeMap::new() } else { self.registry.some(rows).await? };
        let mut removed: Vec<NodeId> = rows.iter().filter_map(|number| now.numbers.remove(number)).collect();
        now.numbers.extend(found.iter().map(|(number, row)| (*number, row.member.id.clone())));
        if !rows.is_empty() && self.registry.count().await? != now.numbers.len() {
            return self.everything(now.status).await;
        }
        removed.retain(|id| !found.values().any(|row| row.member.id == *id));
        let update = update(&now, found.values(), removed);
        self.known = Some(now);
        Ok(update)
    }

    async fn everything(&mut self, status: Arc<Status>) -> Result<Update, RegistryError> {
        let heads = self.registry.heads().await?;
        let found = self.registry.numbered().await?;
        let numbers = found.iter().map(|(number, row)| (*number, row.member.id.clone())).collect();
        let now = Known { numbers, heads, status };
        let update = Update { is_complete: true, ..update(&now, found.values(), Vec::new()) };
        self.known = Some(now);
        Ok(update)
    }
}

/// Whether what members are in the consensus is the same.
fn is_same_consensus(one: &Status, other: &Status) -> bool {
    one.leader == other.leader && one.members == other.members
}

/// What followers are told of these members.
fn update<'a>(now: &Known, members: impl Iterator<Item = &'a NodeRow>, removed: Vec<NodeId>) -> Update {
    let Known { numbers: _, heads, status } = now;
    let votes = |id: &NodeId| status.members.iter().any(|member| member.voter && member.node == *id);
    let members =
        members.map(|row| Arc::new(Member { is_voter: votes(&row.member.id), ..row.member.clone() })).collect();
    let Heads { ipv4, ipv6, revoked, blocked } = heads.clone();
    Update { is_complete: false, members, removed, leader: status.leader.clone(), ipv4, ipv6, revoked, blocked }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::registry::tests::{World, key, world};
    use crate::mesh::rows::put_node;
    use crate::mesh::schema::TABLES;
    use crate::mesh::tests::{id, member};
    use crate::mesh::update::State;
    use crate::model::mesh::Seat;
    use crate::store::{Changes, Consistency, Statement};

    fn put(name: &str, number: u8, endpoint: Option<&str>) -> Statement {
        let member = Member::clone(&member(name, number, endpoint));
        put_node(&NodeRow {
            member,
            certificate_key: key(number),
            is_founder: false,
            seat: Seat::Edge,
            raft_address: None,
        })
    }

    fn sql(text: &str) -> Statement {
        Statement::new(text).touching(NODES)
    }

    /// A reader, and the state of one that follows what it reads.
    struct Following {
        world: World,
        changes: Changes,
        reader: Reader,
        state: State,
    }

    impl Following {
        /// Carries out `statements`; says whether everything was read for it. What was followed is what is there.
        async fn after(&mut self, statements: Vec<Statement>) -> bool {
            let store = self.world.store();
            if !statements.is_empty() {
                store.transaction(statements).await.expect("done");
            }
            let status = Arc::clone(&store.status().borrow());
            let update = self.reader.read(Arc::clone(&status), &self.changes.take_touched()).await.expect("read");
            self.state = self.state.after(&update);
            let contents = self.world.registry.contents(Consistency::Local).await.expect("read");
            assert_eq!(self.state.mesh, contents.mesh(&id("alpha"), &status));
            update.is_complete
        }
    }

    #[tokio::test]
    async fn what_changed_is_read_and_adds_up_to_what_is_there() {
        let world = world("10.80.0.0/16").await;
        let changes = world.store().watch(&TABLES);
        let reader = Reader::new(world.registry.clone());
        let mut following = Following { world, changes, reader, state: State::empty(id("alpha")) };
        assert!(following.after(Vec::new()).await, "everything at first");
        assert!(!following.after(vec![put("beta", 2, None)]).await, "one that joins");
        assert!(!following.after(vec![put("beta", 2, Some("192.0.2.2")), put("gamma", 3, None)]).await);
        assert!(!following.after(vec![sql("DELETE FROM weft_members WHERE id = 'beta'")]).await, "one that leaves");
        let again = vec![sql("DELETE FROM weft_members WHERE id = 'gamma'"), put("gamma", 4, None)];
        assert!(!following.after(again).await, "one that left and came back");
        let replaced = "REPLACE INTO weft_members SELECT 'delta', public_key, certificate_key, raft_port, grpc_port, \
                        wireguard_port, primary_endpoint, endpoints, ipv4, ipv6, is_founder, created_at, updated_at, seat, \
                        raft_address FROM weft_members WHERE id = 'gamma'";
        following.after(vec![sql(replaced)]).await;
        let many = (10..60).map(|number| put(&format!("n{number}"), number, None)).collect();
        assert!(following.after(many).await, "many at once are read as a whole");
        let revoked = "INSERT INTO weft_revoked (key, node, at) VALUES (printf('%064x', 9), 'beta', 0)";
        following.after(vec![Statement::new(revoked).touching(REVOKED)]).await;
        assert_eq!(following.state.revoked.len(), 1);
        let blocked = "INSERT INTO weft_blocked (node, peer, reason) VALUES ('delta', 'n10', 'no answer')";
        assert!(!following.after(vec![Statement::new(blocked).touching(BLOCKED)]).await, "a pair without a way");
        assert_eq!(following.state.mesh.blocked.len(), 1);
        following.after(vec![sql("DELETE FROM weft_members"), put("omega", 7, None)]).await;
    }
}
