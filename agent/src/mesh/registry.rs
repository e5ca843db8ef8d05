//! What the store keeps about the mesh, and every change of it: the one place that writes these tables.
//!
//! Invariants: a change is one transaction that says what it expects to find, so that two at once cannot give one address or
//! one token twice; the second is tried again on what the first left. A member's addresses stay its own while it is a member.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::acl::{self, Acl, AclError, Action};
use super::allocate::{self, AllocationError};
use super::remote::Facts;
use super::rows::{self, NodeRow, RowError, seconds};
use super::schema::{ACLS, BLOCKED, MESH, NODES, REVOKED, TOKENS};
use crate::foundation::id::NodeId;
use crate::identity::certificate::Fingerprint;
use crate::identity::token::{ATTEMPTS, NoRandomness, Refusal, Token, Verdict};
use crate::model::mesh::{Blocked, Member, Mesh};
use crate::store::{Consistency, Handle as Store, Refusal as StoreRefusal, Rows, Statement, Status, StoreError};

/// How long a change waits for the mesh to be founded, as just after the first start.
const FOUNDING: Duration = Duration::from_secs(5);
/// Attempts at a change that another one got in the way of.
const ATTEMPTS_AT_ONCE: usize = 16;
/// Names that mean something else below the mesh domain.
const RESERVED: [&str; 5] = ["leader", "voters", "svc", "pm3", "localhost"];

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Row(#[from] RowError),
    #[error(transparent)]
    Token(#[from] Refusal),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    #[error(transparent)]
    Address(#[from] AllocationError),
    #[error(transparent)]
    Acl(#[from] AclError),
    #[error("{0} cannot be a node id: the mesh domain uses that name; choose another node.id")]
    Reserved(NodeId),
    #[error("there is a node {0} already, with another key; choose another node.id, or have that node leave first")]
    IdTaken(NodeId),
    #[error("node {0} has the same WireGuard key; remove private.key on the new node, which was copied with it")]
    KeyTaken(NodeId),
    #[error("there is no node {0} in this mesh")]
    UnknownNode(NodeId),
    #[error("{0} is the only node with a vote in this mesh; it cannot leave while the mesh has other members")]
    LastVoter(NodeId),
    #[error("there is no ACL {0:?}")]
    UnknownAcl(String),
    #[error("there is no token {0}; `weft token list` names them")]
    UnknownToken(String),
    #[error("node {node} may not vote: {reason}; `weft acl` shows the ACLs")]
    MayNotVote { node: NodeId, reason: String },
    #[error("{0} nodes vote already; more make every change slower and nothing safer: join without as_voter")]
    NoMoreVoters(usize),
    #[error("{0} nodes hold the log already, which is enough; node {1} is told what changes")]
    NoMoreHolders(usize, NodeId),
    #[error(
        "the other nodes do not know where the Raft listener of {0} answers: set raft.advertise or mesh.endpoint there, and \
         raft.enabled if it is off; or mesh.role = \"edge\", which needs none"
    )]
    NoRaftAddress(NodeId),
    #[error("others keep changing the same things; try again")]
    Contention,
}

/// What stands in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) nodes: Vec<NodeRow>,
    pub(super) ipv4: Option<Ipv4Net>,
    pub(super) ipv6: Option<Ipv6Net>,
    pub(super) revoked: BTreeSet<Fingerprint>,
    pub(super) blocked: Blocked,
}

/// What members are told beside the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) ipv4: Option<Ipv4Net>,
    pub(super) ipv6: Option<Ipv6Net>,
    pub(super) revoked: BTreeSet<Fingerprint>,
    pub(super) blocked: Blocked,
}

/// A token that was made.
#[derive(Debug)]
pub struct NewToken {
    pub token: Token,
    pub expires_at: SystemTime,
}

/// A token as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    pub id: String,
    pub created_at: SystemTime,
    pub expires_at: SystemTime,
    pub attempts_left: u32,
}

/// The tables of the mesh in one store.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    store: Store,
}

impl Registry {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Everything that members are told.
    pub(super) async fn contents(&self, consistency: Consistency) -> Result<Contents, RegistryError> {
        let nodes = rows::nodes(&self.store.query(rows::select_nodes(), consistency).await?)?;
        let Heads { ipv4, ipv6, revoked, blocked } = self.heads().await?;
        Ok(Contents { nodes, ipv4, ipv6, revoked, blocked })
    }

    /// What members are told beside the members, as it stands here.
    pub(super) async fn heads(&self) -> Result<Heads, RegistryError> {
        let revoked = Statement::new("SELECT key FROM weft_revoked");
        let revoked = self.store.query(revoked, Consistency::Local).await?;
        let revoked = rows::column(REVOKED, "key", &revoked, "a fingerprint")?.into_iter().collect();
        let blocked = Statement::new("SELECT node, peer, reason FROM weft_blocked");
        let blocked = rows::blocked(&self.store.query(blocked, Consistency::Local).await?)?;
        let (ipv4, ipv6) = (self.head("ipv4_range").await?, self.head("ipv6_prefix").await?);
        Ok(Heads { ipv4, ipv6, revoked, blocked })
    }

    /// All nodes by their rowids, as they stand here.
    pub(super) async fn numbered(&self) -> Result<BTreeMap<i64, NodeRow>, RegistryError> {
        Ok(rows::numbered(&self.store.query(rows::select_numbered(), Consistency::Local).await?)?)
    }

    /// Those of the nodes with these rowids that are there.
    pub(super) async fn some(&self, numbers: &BTreeSet<i64>) -> Result<BTreeMap<i64, NodeRow>, RegistryError> {
        Ok(rows::numbered(&self.store.query(rows::select_some(numbers), Consistency::Local).await?)?)
    }

    /// Those of these nodes that there are, as they stand here.
    pub(super) async fn named(&self, ids: impl Iterator<Item = &NodeId>) -> Result<Vec<NodeRow>, RegistryError> {
        Ok(rows::nodes(&self.store.query(rows::select_named(ids), Consistency::Local).await?)?)
    }

    /// How many nodes there are here.
    pub(super) async fn count(&self) -> Result<usize, RegistryError> {
        let count = Statement::new("SELECT count(*) FROM weft_members");
        let found = self.store.query(count, Consistency::Local).await?;
        let count = found.rows.first().and_then(|row| row.first()).and_then(crate::store::Value::as_integer);
        Ok(count.and_then(|count| usize::try_from(count).ok()).unwrap_or_default())
    }

    async fn head<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, RegistryError> {
        let statement = Statement::new("SELECT value FROM weft_mesh WHERE key = ?1").bind(key);
        let found = self.store.query(statement, Consistency::Local).await?;
        Ok(rows::column(MESH, "value", &found, "a network")?.pop())
    }

    /// Whose mesh the tables hold.
    pub(super) async fn authority(&self) -> Result<Option<Fingerprint>, RegistryError> {
        self.head("authority").await
    }

    /// Waits until the tables hold the mesh of `authority`, but not for long: founding it empties them.
    pub(super) async fn founded(&self, authority: Fingerprint) {
        let mut changes = self.store.watch(&[MESH]);
        let founded = async {
            // Before the first start there is not even a table.
            while !matches!(self.authority().await, Ok(Some(held)) if held == authority) {
                if changes.changed().await.is_none() {
                    return;
                }
            }
        };
        if tokio::time::timeout(FOUNDING, founded).await.is_err() {
            tracing::debug!("the mesh is not founded yet");
        }
    }

    /// Makes the mesh of one where the tables hold none or another authority's, and says how its founder is now.
    pub(super) async fn found(
        &self,
        facts: &Facts,
        key: Fingerprint,
        authority: Fingerprint,
        (range, prefix): (Ipv4Net, Ipv6Net),
        now: SystemTime,
    ) -> Result<(), RegistryError> {
        if self.authority().await? != Some(authority) {
            let mut statements: Vec<Statement> = [MESH, NODES, REVOKED, BLOCKED, TOKENS, ACLS]
                .map(|table| Statement::new(format!("DELETE FROM {table}")).touching(table))
                .into();
            let sql =
                "INSERT INTO weft_mesh (key, value) VALUES ('authority', ?1), ('ipv4_range', ?2), ('ipv6_prefix', ?3)";
            let heads =
                Statement::new(sql).bind(authority.to_string()).bind(range.to_string()).bind(prefix.to_string());
            statements.push(heads.touching(MESH).expecting(3));
            self.store.transaction(statements).await?;
        }
        self.announce(facts, key, None, now).await
    }

    /// Writes how a member is now, where that differs from what is known.
    pub(super) async fn announce(
        &self,
        facts: &Facts,
        key: Fingerprint,
        observed: Option<IpAddr>,
        now: SystemTime,
    ) -> Result<(), RegistryError> {
        let is_founding = observed.is_none();
        for _attempt in 0..ATTEMPTS_AT_ONCE {
            let contents = self.contents(Consistency::Linearizable).await?;
            let known = contents.nodes.iter().find(|row| row.member.id == facts.id);
            if known.is_none() && !(is_founding && contents.nodes.is_empty()) {
                return Err(RegistryError::UnknownNode(facts.id.clone()));
            }
            refuse_contradictions(&contents, facts, key, known)?;
            let row = placed(&contents, facts, key, observed, now)?;
            if known.is_some_and(|known| is_as_known(known, &row)) {
                return Ok(());
            }
            if !self.lost_race(vec![rows::put_node(&row)]).await? {
                return Ok(());
            }
        }
        Err(RegistryError::Contention)
    }

    /// Lets the bearer of `token` in; says what the mesh then holds.
    pub(super) async fn enrol(
        &self,
        token: &Token,
        facts: &Facts,
        key: Fingerprint,
        observed: IpAddr,
        now: SystemTime,
    ) -> Result<Contents, RegistryError> {
        if RESERVED.contains(&facts.id.as_str()) {
            return Err(RegistryError::Reserved(facts.id.clone()));
        }
        for _attempt in 0..ATTEMPTS_AT_ONCE {
            let is_again = self.judge(token, facts, key, now).await?;
            let contents = self.contents(Consistency::Linearizable).await?;
            let known = contents.nodes.iter().find(|row| row.member.id == facts.id);
            if is_again && known.is_some() {
                return Ok(contents);
            }
            refuse_contradictions(&contents, facts, key, known)?;
            let row = placed(&contents, facts, key, Some(observed), now)?;
            let mut statements = vec![spend(token, &facts.id, key), rows::put_node(&row)];
            statements.extend(known.filter(|known| known.certificate_key != key).map(|known| revoke(known, now)));
            if !self.lost_race(statements).await? {
                return self.contents(Consistency::Linearizable).await;
            }
        }
        Err(RegistryError::Contention)
    }

    /// Whether the token lets this node in once more; a wrong secret costs an attempt.
    async fn judge(
        &self,
        token: &Token,
        facts: &Facts,
        key: Fingerprint,
        now: SystemTime,
    ) -> Result<bool, RegistryError> {
        let found = self.store.query(rows::select_token(token.id), Consistency::Linearizable).await?;
        let Some(record) = rows::token(token.id, &found)? else { return Err(Refusal::Wrong.into()) };
        match record.judge(token, &facts.id, key, now) {
            Verdict::Admit => Ok(false),
            Verdict::Again => Ok(true),
            Verdict::Refuse(Refusal::Wrong) => {
                let sql =
                    "UPDATE weft_tokens SET attempts_left = attempts_left - 1 WHERE id = ?1 AND attempts_left > 0";
                self.store.exec(Statement::new(sql).bind(token.id.to_string()).touching(TOKENS)).await?;
                Err(Refusal::Wrong.into())
            }
            Verdict::Refuse(refusal) => Err(refusal.into()),
        }
    }

    /// Carries out `statements`; `true`: another change came first and nothing was done.
    async fn lost_race(&self, statements: Vec<Statement>) -> Result<bool, RegistryError> {
        match self.store.transaction(statements).await {
            Ok(_outcomes) => Ok(false),
            Err(StoreError::Refused(StoreRefusal::Expectation { .. } | StoreRefusal::Constraint(_))) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses what is no member.
    pub(super) async fn refuse_unknown(&self, id: &NodeId) -> Result<(), RegistryError> {
        let contents = self.contents(Consistency::Linearizable).await?;
        let known = contents.nodes.iter().any(|row| row.member.id == *id);
        if known { Ok(()) } else { Err(RegistryError::UnknownNode(id.clone())) }
    }

    /// Writes which part in the consensus a node asks for, where that differs from what is known.
    pub(super) async fn put_seat(&self, row: &NodeRow) -> Result<(), RegistryError> {
        let sql = "UPDATE weft_members SET seat = ?2, raft_address = ?3 WHERE id = ?1 AND (seat, raft_address) IS NOT (?2, ?3)";
        let put = Statement::new(sql).bind(row.member.id.to_string()).bind(row.seat.as_str());
        self.store.exec(put.bind(row.raft_address.clone()).touching(NODES)).await?;
        Ok(())
    }

    /// Writes whom a node cannot reach, in the place of what it said before.
    pub(super) async fn put_blocked(
        &self,
        id: &NodeId,
        blocked: &BTreeMap<NodeId, String>,
    ) -> Result<(), RegistryError> {
        let mut statements =
            vec![Statement::new("DELETE FROM weft_blocked WHERE node = ?1").bind(id.to_string()).touching(BLOCKED)];
        for (peer, reason) in blocked {
            let sql = "INSERT INTO weft_blocked (node, peer, reason) SELECT ?1, ?2, ?3 \
                       WHERE EXISTS (SELECT 1 FROM weft_members WHERE id = ?1)";
            let insert = Statement::new(sql).bind(id.to_string()).bind(peer.to_string()).bind(reason.clone());
            statements.push(insert.touching(BLOCKED));
        }
        self.store.transaction(statements).await?;
        Ok(())
    }

    /// Removes a node: its addresses are free and its key is refused.
    pub(super) async fn remove(&self, id: &NodeId, now: SystemTime) -> Result<(), RegistryError> {
        let contents = self.contents(Consistency::Linearizable).await?;
        let known = contents.nodes.iter().find(|row| row.member.id == *id);
        let known = known.ok_or_else(|| RegistryError::UnknownNode(id.clone()))?;
        let delete = Statement::new("DELETE FROM weft_members WHERE id = ?1").bind(id.to_string());
        let unblock = Statement::new("DELETE FROM weft_blocked WHERE node = ?1 OR peer = ?1").bind(id.to_string());
        let statements = vec![delete.touching(NODES).expecting(1), revoke(known, now), unblock.touching(BLOCKED)];
        if self.lost_race(statements).await? { Err(RegistryError::UnknownNode(id.clone())) } else { Ok(()) }
    }

    /// Makes a token that lets one node in until `now + lifetime`.
    pub(super) async fn create_token(
        &self,
        authority: Fingerprint,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<NewToken, RegistryError> {
        let token = Token::new(authority)?;
        let expires_at = now + lifetime;
        let sql =
            "INSERT INTO weft_tokens (id, hash, created_at, expires_at, attempts_left) VALUES (?1, ?2, ?3, ?4, ?5)";
        let insert = Statement::new(sql)
            .bind(token.id.to_string())
            .bind(token.hash().to_vec())
            .bind(seconds(now))
            .bind(seconds(expires_at))
            .bind(i64::from(ATTEMPTS))
            .touching(TOKENS)
            .expecting(1);
        // What is spent or over is of no more use, a day later not even to say so.
        let old = Statement::new("DELETE FROM weft_tokens WHERE expires_at < ?1");
        let old = old.bind(seconds(now) - 24 * 60 * 60).touching(TOKENS);
        self.store.transaction(vec![old, insert]).await?;
        Ok(NewToken { token, expires_at })
    }

    pub(super) async fn tokens(&self, now: SystemTime) -> Result<Vec<TokenInfo>, RegistryError> {
        let sql = "SELECT id, created_at, expires_at, attempts_left FROM weft_tokens \
                   WHERE used_by IS NULL AND attempts_left > 0 AND expires_at > ?1 ORDER BY expires_at, id";
        let found = self.store.query(Statement::new(sql).bind(seconds(now)), Consistency::Linearizable).await?;
        Ok(rows::token_infos(&found)?)
    }

    pub(super) async fn delete_token(&self, id: &str) -> Result<(), RegistryError> {
        let delete = Statement::new("DELETE FROM weft_tokens WHERE id = ?1").bind(id).touching(TOKENS);
        match self.store.exec(delete).await?.rows_affected {
            0 => Err(RegistryError::UnknownToken(id.to_owned())),
            _ => Ok(()),
        }
    }

    pub(super) async fn acls(&self, consistency: Consistency) -> Result<Vec<Acl>, RegistryError> {
        Ok(rows::acls(&self.all_acls(consistency).await?)?)
    }

    async fn all_acls(&self, consistency: Consistency) -> Result<Rows, RegistryError> {
        let all = Statement::new("SELECT name, patterns, action FROM weft_acls ORDER BY name");
        Ok(self.store.query(all, consistency).await?)
    }

    pub(super) async fn put_acl(&self, acl: &Acl, now: SystemTime) -> Result<(), RegistryError> {
        let sql = "INSERT INTO weft_acls (name, patterns, action, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?4) \
                   ON CONFLICT (name) DO UPDATE SET patterns = ?2, action = ?3, updated_at = ?4";
        let action = match acl.action {
            Action::Deny => 0,
            Action::Allow => 1,
        };
        let put =
            Statement::new(sql).bind(acl.name.clone()).bind(acl.patterns.join(",")).bind(action).bind(seconds(now));
        self.store.exec(put.touching(ACLS).expecting(1)).await?;
        Ok(())
    }

    pub(super) async fn delete_acl(&self, name: &str) -> Result<(), RegistryError> {
        let delete = Statement::new("DELETE FROM weft_acls WHERE name = ?1").bind(name).touching(ACLS);
        match self.store.exec(delete).await?.rows_affected {
            0 => Err(RegistryError::UnknownAcl(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// Refuses a vote that the ACLs do not give.
    pub(super) async fn judge_vote(&self, id: &NodeId) -> Result<(), RegistryError> {
        let acls = self.acls(Consistency::Linearizable).await?;
        let (allowed, reason) = acl::may_vote(&acls, id.as_str());
        if allowed { Ok(()) } else { Err(RegistryError::MayNotVote { node: id.clone(), reason }) }
    }
}

fn spend(token: &Token, id: &NodeId, key: Fingerprint) -> Statement {
    let sql = "UPDATE weft_tokens SET used_by = ?2, used_key = ?3 WHERE id = ?1 AND attempts_left > 0 AND \
               (used_by IS NULL OR (used_by = ?2 AND used_key = ?3))";
    let spend = Statement::new(sql).bind(token.id.to_string()).bind(id.to_string()).bind(key.to_string());
    spend.touching(TOKENS).expecting(1)
}

fn revoke(row: &NodeRow, now: SystemTime) -> Statement {
    let sql = "INSERT INTO weft_revoked (key, node, at) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO NOTHING";
    let revoke = Statement::new(sql).bind(row.certificate_key.to_string()).bind(row.member.id.to_string());
    revoke.bind(seconds(now)).touching(REVOKED)
}

fn refuse_contradictions(
    contents: &Contents,
    facts: &Facts,
    key: Fingerprint,
    known: Option<&NodeRow>,
) -> Result<(), RegistryError> {
    if let Some(other) =
        contents.nodes.iter().find(|row| row.member.public_key == facts.public_key && row.member.id != facts.id)
    {
        return Err(RegistryError::KeyTaken(other.member.id.clone()));
    }
    match known {
        Some(known) if known.member.public_key != facts.public_key && known.certificate_key != key => {
            Err(RegistryError::IdTaken(facts.id.clone()))
        }
        Some(_) | None => Ok(()),
    }
}

/// The row of a node: what it has, else what is free.
fn placed(
    contents: &Contents,
    facts: &Facts,
    key: Fingerprint,
    observed: Option<IpAddr>,
    now: SystemTime,
) -> Result<NodeRow, RegistryError> {
    let known = contents.nodes.iter().find(|row| row.member.id == facts.id);
    let others = Contents {
        nodes: contents.nodes.iter().filter(|row| row.member.id != facts.id).cloned().collect(),
        ..contents.clone()
    };
    let before = known.map(|known| (known.member.ipv4, known.member.ipv6));
    // Who founds a mesh may have had its addresses before, whatever the range.
    let is_founder = known.map_or(contents.nodes.is_empty(), |known| known.is_founder);
    let (ipv4, ipv6) = addresses(&others, facts, before, is_founder)?;
    let seen = observed.filter(|address| facts.interfaces.contains(address) && !address.is_loopback());
    let before = known.and_then(|known| known.member.primary_endpoint);
    let member = Member {
        id: facts.id.clone(),
        public_key: facts.public_key,
        // The one that is known stays while it is there: a call by another way is no reason to move every tunnel.
        primary_endpoint: facts.endpoint.or(before.filter(|address| facts.interfaces.contains(address))).or(seen),
        endpoints: facts.interfaces.clone(),
        ports: facts.ports,
        ipv4,
        ipv6,
        is_voter: false,
        created_at: known.map_or(now, |known| known.member.created_at),
        updated_at: now,
    };
    let seat = facts.seat.or(known.map(|known| known.seat)).unwrap_or_default();
    let raft_address = facts.raft_address.clone().or_else(|| known.and_then(|known| known.raft_address.clone()));
    Ok(NodeRow { member, certificate_key: key, is_founder, seat, raft_address })
}

/// The addresses its configuration names, else those it has, else free ones.
fn addresses(
    others: &Contents,
    facts: &Facts,
    before: Option<(Option<Ipv4Addr>, Option<Ipv6Net>)>,
    is_founder: bool,
) -> Result<(Option<Ipv4Addr>, Option<Ipv6Net>), AllocationError> {
    let taken: BTreeSet<Ipv4Addr> = others.nodes.iter().filter_map(|row| row.member.ipv4).collect();
    let named = facts.addresses.iter().find_map(|network| match network {
        IpNet::V4(network) => Some(network.addr()),
        IpNet::V6(_) => None,
    });
    let ipv4 = match (named, others.ipv4, before) {
        (Some(wanted), _, _) if is_founder => Some(wanted),
        (Some(wanted), Some(range), _) => Some(allocate::static_ipv4(range, wanted, &taken)?),
        (_, _, Some((ipv4, _))) => ipv4,
        (_, _, None) => free_ipv4(others)?,
    };
    let named = facts.addresses.iter().find_map(|network| match network {
        IpNet::V4(_) => None,
        IpNet::V6(network) => Ipv6Net::new(network.addr(), 64).ok().map(|subnet| subnet.trunc()),
    });
    let ipv6 = match (named, others.ipv6, before) {
        (Some(wanted), _, _) if is_founder => Some(wanted),
        (Some(wanted), Some(prefix), _) => Some(allocate::static_subnet(prefix, wanted, &subnets(others))?),
        (_, _, Some((_, ipv6))) => ipv6,
        (_, _, None) => free_ipv6(others, facts)?,
    };
    Ok((ipv4, ipv6))
}

fn subnets(contents: &Contents) -> BTreeSet<Ipv6Net> {
    contents.nodes.iter().filter_map(|row| row.member.ipv6).collect()
}

fn free_ipv4(contents: &Contents) -> Result<Option<Ipv4Addr>, AllocationError> {
    let Some(range) = contents.ipv4 else { return Ok(None) };
    let taken = contents.nodes.iter().filter_map(|row| row.member.ipv4).collect();
    allocate::ipv4(range, &taken).map(Some)
}

fn free_ipv6(contents: &Contents, facts: &Facts) -> Result<Option<Ipv6Net>, AllocationError> {
    let Some(prefix) = contents.ipv6 else { return Ok(None) };
    allocate::subnet(prefix, &facts.public_key, &subnets(contents)).map(Some)
}

/// Whether nothing but the time differs.
fn is_as_known(known: &NodeRow, row: &NodeRow) -> bool {
    let member = Member { updated_at: known.member.updated_at, ..row.member.clone() };
    NodeRow { member, ..row.clone() } == *known
}

impl Contents {
    /// The mesh as members see it; who votes and who leads is what the store says.
    pub(super) fn mesh(&self, own: &NodeId, store: &Status) -> Mesh {
        let leader = store.leader.clone();
        let voters: BTreeSet<&NodeId> =
            store.members.iter().filter(|member| member.voter).map(|member| &member.node).collect();
        let blocked = std::sync::Arc::new(self.blocked.clone());
        let mut mesh = Mesh { leader, ipv4: self.ipv4, ipv6: self.ipv6, blocked, ..Mesh::empty(own.clone()) };
        for row in &self.nodes {
            let is_voter = voters.contains(&row.member.id);
            mesh.members.insert(row.member.id.clone(), std::sync::Arc::new(Member { is_voter, ..row.member.clone() }));
        }
        mesh
    }
}

#[cfg(test)]
pub(super) mod tests;
