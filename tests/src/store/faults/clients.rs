//! Clients that write and read on every member over its socket, and remember what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1;
use weft_proto::weft::store::v1 as proto;
use weft_proto::weft::store::v1::store_client::StoreClient;

use super::linearizable::{Did, Operation, check};
use super::{DEADLINE, MEMBERS, Random};

pub(super) const REGISTERS_TABLE: &str = "CREATE TABLE registers (k INTEGER PRIMARY KEY, v INTEGER)";
pub(super) const LEDGER_TABLE: &str = "CREATE TABLE ledger (n INTEGER PRIMARY KEY)";
/// A row for each of [`REGISTERS`].
pub(super) const REGISTERS_ROWS: &str = "WITH RECURSIVE c(k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM c WHERE k < 3999) \
                                         INSERT INTO registers SELECT k, 0 FROM c";
const REGISTERS: i64 = 4000;
const CLIENTS: u64 = 4;
/// Registers in use at a time; the clients move on before a history is too long to search.
const WINDOW: i64 = 6;
const OPERATIONS: usize = 50;
/// A call that takes longer is given up: its outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(12);
/// How a refusal of the store begins, so that its reader knows what to do.
const REASONS: [&str; 7] = [
    "no leader: ",
    "the leader changed while",
    "not done within",
    "the store does not run: ",
    "the disk that holds",
    "too much is under way",
    "the agent is stopping",
];
/// Refusals of writes that were not proposed.
const NOTHING_DONE: [&str; 3] = ["no leader: ", "the disk that holds", "too much is under way"];

#[derive(Debug)]
struct World {
    sockets: Vec<PathBuf>,
    clock: AtomicU64,
    next: AtomicI64,
    done: AtomicBool,
    histories: Mutex<BTreeMap<i64, Vec<Operation>>>,
    window: AtomicI64,
    acknowledged: Mutex<BTreeSet<i64>>,
    /// Every number that was sent.
    tried: Mutex<BTreeSet<i64>>,
    refusals: Mutex<BTreeMap<String, u32>>,
}

/// Running clients.
pub(super) struct Clients {
    world: Arc<World>,
    runtime: Runtime,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(super) fn start(sockets: Vec<PathBuf>, seed: u64) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let world = Arc::new(World {
            sockets,
            clock: AtomicU64::new(0),
            next: AtomicI64::new(1),
            done: AtomicBool::new(false),
            histories: Mutex::default(),
            window: AtomicI64::new(0),
            acknowledged: Mutex::default(),
            tried: Mutex::default(),
            refusals: Mutex::default(),
        });
        let tasks = (1..=CLIENTS)
            .map(|number| runtime.spawn(client(Arc::clone(&world), Random(seed.wrapping_mul(number * 2 + 1) | 1))))
            .collect();
        Self { world, runtime, tasks }
    }

    /// Stops the clients, reads what every member has, and checks all of it. What came of it, in words.
    pub(super) fn finish(self) -> String {
        let Self { world, runtime, tasks } = self;
        world.done.store(true, Ordering::SeqCst);
        runtime.block_on(async {
            for task in tasks {
                tokio::time::timeout(DEADLINE, task).await.expect("a client ends").expect("no panic");
            }
            for socket in &world.sockets {
                check_member(&world, socket).await;
            }
        });
        let histories = world.histories.lock().expect("no panic");
        for (register, history) in histories.iter() {
            assert!(check(history, 0), "register {register} is not linearizable: {history:?}");
        }
        let operations: usize = histories.values().map(Vec::len).sum();
        let unknown = histories.values().flatten().filter(|operation| operation.ended.is_none()).count();
        let acknowledged = world.acknowledged.lock().expect("no panic").len();
        assert!(operations > 500 && acknowledged > 200, "the clients got through: {operations}, {acknowledged}");
        let refusals = world.refusals.lock().expect("no panic");
        format!(
            "operations {operations}, of unknown outcome {unknown}, acknowledged {acknowledged}, lost 0, histories {} \
             linearizable, refusals {refusals:?}",
            histories.len()
        )
    }
}

/// Everything that was acknowledged is on this member, and nothing that was never sent.
async fn check_member(world: &World, socket: &Path) {
    let mut store = connect(socket).await.expect("it answers");
    let rows = store.query(query("SELECT n FROM ledger", Vec::new())).await.expect("read").into_inner();
    let found: BTreeSet<i64> = rows.values.iter().map(|row| row.values[0].int64).collect();
    let acknowledged = world.acknowledged.lock().expect("no panic").clone();
    let lost: Vec<&i64> = acknowledged.difference(&found).collect();
    if !lost.is_empty() {
        let told = everywhere(world, &lost).await;
        assert!(lost.is_empty(), "{} lacks {lost:?} of {:?}: {told}", socket.display(), acknowledged.last());
    }
    let tried = world.tried.lock().expect("no panic").clone();
    assert!(found.is_subset(&tried), "from nowhere: {:?}", found.difference(&tried));
    let began = world.now();
    let rows =
        store.query(query("SELECT k, v FROM registers WHERE v != 0", Vec::new())).await.expect("read").into_inner();
    let values: BTreeMap<i64, i64> = rows.values.iter().map(|row| (row.values[0].int64, row.values[1].int64)).collect();
    let ended = world.now();
    for (register, history) in world.histories.lock().expect("no panic").iter_mut() {
        let value = values.get(register).copied().unwrap_or_default();
        history.push(Operation { began, ended: Some(ended), did: Did::Read(value) });
    }
}

/// Where writes that one member lacks are, so that a lost write and a read that came too early can be told apart.
async fn everywhere(world: &World, lost: &[&i64]) -> String {
    let mut told = String::new();
    for socket in &world.sockets {
        let mut store = connect(socket).await.expect("it answers");
        for local in [true, false] {
            let request = proto::QueryRequest { local, ..query("SELECT n FROM ledger", Vec::new()) };
            let rows = store.query(request).await.expect("read").into_inner();
            let found: BTreeSet<i64> = rows.values.iter().map(|row| row.values[0].int64).collect();
            let there = lost.iter().filter(|number| found.contains(number)).count();
            told +=
                &format!("\n{} local={local}: {there} of {} there, {} rows", socket.display(), lost.len(), found.len());
        }
        let status = store.get_status(proto::StatusRequest {}).await.expect("a status").into_inner();
        told += &format!("\n{status:?}");
    }
    told
}

async fn client(world: Arc<World>, mut random: Random) {
    let mut connections: [Option<StoreClient<Channel>>; MEMBERS] = [None, None, None];
    while !world.done.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(2 + random.below(8))).await;
        let place = random.place(MEMBERS);
        let Some(register) = world.register(&mut random) else { continue };
        let mut store = match connections[place].take() {
            Some(store) => store,
            // Nothing was sent.
            None => match connect(&world.sockets[place]).await {
                Some(store) => store,
                None => continue,
            },
        };
        let is_whole = if random.below(2) == 0 {
            world.write(&mut store, register).await
        } else {
            world.read(&mut store, register).await
        };
        if is_whole {
            connections[place] = Some(store);
        }
    }
}

async fn connect(socket: &Path) -> Option<StoreClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a path");
    endpoint.connect().await.ok().map(StoreClient::new)
}

/// What a member says of itself, if it answers.
pub(super) async fn status(socket: &Path) -> Option<proto::Status> {
    let asked = async { connect(socket).await?.get_status(proto::StatusRequest {}).await.ok() };
    // One that stands still answers nothing.
    let answer = tokio::time::timeout(Duration::from_secs(2), asked).await.ok()??;
    Some(answer.into_inner())
}

/// Whether one statement was carried out.
pub(super) async fn exec(socket: &Path, sql: &str) -> bool {
    let Some(mut store) = connect(socket).await else { return false };
    let step = proto::Step { expecting: None, ..step(sql, Vec::new()) };
    store.execute(proto::ExecuteRequest { steps: vec![step] }).await.is_ok()
}

/// Whether a member leads now as it was asked to.
pub(super) async fn lead(socket: &Path, node: &str) -> bool {
    let Some(mut store) = connect(socket).await else { return false };
    let change = Some(proto::change_members_request::Change::Lead(proto::Nothing {}));
    store.change_members(proto::ChangeMembersRequest { node: node.to_owned(), change }).await.is_ok()
}

fn number(value: i64) -> v1::SqlParameter {
    v1::SqlParameter { r#type: v1::SqlParameterType::SqlParamInt64.into(), int64: value, ..Default::default() }
}

fn query(sql: &str, parameters: Vec<v1::SqlParameter>) -> proto::QueryRequest {
    let statement = Some(v1::SqlStatement { sql: sql.to_owned(), parameters });
    proto::QueryRequest { query: Some(v1::SqlQuery { transaction: true, statement }), local: false }
}

fn step(sql: &str, parameters: Vec<v1::SqlParameter>) -> proto::Step {
    let statement = Some(v1::SqlStatement { sql: sql.to_owned(), parameters });
    let entry = v1::RaftLogEntry {
        r#type: v1::RaftCommandType::Execute.into(),
        sql_exec: Some(v1::SqlExec { transaction: true, statement }),
        ..v1::RaftLogEntry::default()
    };
    proto::Step { entry: Some(entry), own_tables: Vec::new(), expecting: Some(1) }
}

/// What a failed call says. A text of the agent must be an explanation; a connection that broke says nothing.
fn explained(failed: &Result<tonic::Status, tokio::time::error::Elapsed>) -> String {
    use std::error::Error as _;
    match failed {
        Ok(status) if status.source().is_some() => "the connection broke".to_owned(),
        Ok(status) => {
            let reason = REASONS.iter().find(|reason| status.message().starts_with(**reason));
            let broke = status.message().contains("h2 protocol error") || status.message().contains("broken pipe");
            assert!(reason.is_some() || broke, "a refusal that explains nothing: {status:?}");
            reason.map_or("the connection broke", |reason| reason).to_owned()
        }
        Err(_elapsed) => "no answer".to_owned(),
    }
}

impl World {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// One that has room in its history.
    fn register(&self, random: &mut Random) -> Option<i64> {
        let first = self.window.load(Ordering::SeqCst);
        assert!(first + WINDOW < REGISTERS, "there are enough registers");
        let register = first + i64::try_from(random.below(WINDOW.unsigned_abs())).expect("small");
        let histories = self.histories.lock().expect("no panic");
        let is_full = |register: i64| histories.get(&register).is_some_and(|history| history.len() >= OPERATIONS);
        if is_full(register) {
            if (first..first + WINDOW).all(is_full) {
                self.window.compare_exchange(first, first + WINDOW, Ordering::SeqCst, Ordering::SeqCst).ok();
            }
            return None;
        }
        Some(register)
    }

    fn note(&self, register: i64, operation: Operation) {
        self.histories.lock().expect("no panic").entry(register).or_default().push(operation);
    }

    /// Counts a refusal; its first words.
    fn refused(&self, failed: &Result<tonic::Status, tokio::time::error::Elapsed>) -> String {
        let text = explained(failed);
        *self.refusals.lock().expect("no panic").entry(text.clone()).or_default() += 1;
        text
    }

    /// Whether the connection may be used again.
    async fn write(&self, store: &mut StoreClient<Channel>, register: i64) -> bool {
        let value = self.next.fetch_add(1, Ordering::SeqCst);
        let steps = vec![
            step("UPDATE registers SET v = ? WHERE k = ?", vec![number(value), number(register)]),
            step("INSERT INTO ledger VALUES (?)", vec![number(value)]),
        ];
        self.tried.lock().expect("no panic").insert(value);
        let (began, did) = (self.now(), Did::Write(value));
        let failed = match tokio::time::timeout(PATIENCE, store.execute(proto::ExecuteRequest { steps })).await {
            Ok(Ok(_)) => {
                self.note(register, Operation { began, ended: Some(self.now()), did });
                self.acknowledged.lock().expect("no panic").insert(value);
                return true;
            }
            Ok(Err(status)) => Ok(status),
            Err(elapsed) => Err(elapsed),
        };
        if !NOTHING_DONE.contains(&self.refused(&failed).as_str()) {
            self.note(register, Operation { began, ended: None, did });
        }
        false
    }

    /// Whether the connection may be used again.
    async fn read(&self, store: &mut StoreClient<Channel>, register: i64) -> bool {
        let began = self.now();
        let request = query("SELECT v FROM registers WHERE k = ?", vec![number(register)]);
        let failed = match tokio::time::timeout(PATIENCE, store.query(request)).await {
            Ok(Ok(answer)) => {
                let value = answer.into_inner().values[0].values[0].int64;
                self.note(register, Operation { began, ended: Some(self.now()), did: Did::Read(value) });
                return true;
            }
            Ok(Err(status)) => Ok(status),
            Err(elapsed) => Err(elapsed),
        };
        self.refused(&failed);
        false
    }
}
