//! Clients write and read on every member while members are stopped, started, cut off and cut off one way; then every history is
//! checked. The seed of a run is printed; `WEFT_FAULT_SEED` runs it again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::cluster::{Cluster, PATIENCE};
use super::linearizable::{Did, Operation, check};
use crate::store::{Consistency, Handle, Statement, StoreError};

const MEMBERS: usize = 3;
const CLIENTS: usize = 4;
const REGISTERS: i64 = 24;
/// A register's clients move on before its history is too long to search.
const OPERATIONS: usize = 60;

/// Numbers that look random and are the same for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn place(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(u64::try_from(limit).expect("small"))).expect("small")
    }
}

/// What all clients share.
#[derive(Default)]
struct World {
    clock: AtomicU64,
    done: AtomicBool,
    histories: Mutex<BTreeMap<i64, Vec<Operation>>>,
    handles: Mutex<Vec<Option<Handle>>>,
    next: AtomicU64,
}

impl World {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, register: i64, operation: Operation) {
        self.histories.lock().expect("no panic").entry(register).or_default().push(operation);
    }

    fn is_full(&self, register: i64) -> bool {
        let histories = self.histories.lock().expect("no panic");
        histories.get(&register).is_some_and(|history| history.len() >= OPERATIONS)
    }

    fn handle(&self, place: usize) -> Option<Handle> {
        self.handles.lock().expect("no panic")[place].clone()
    }
}

async fn client(world: Arc<World>, mut random: Random) {
    while !world.done.load(Ordering::SeqCst) {
        let register = i64::try_from(random.below(u64::try_from(REGISTERS).expect("positive"))).expect("small");
        let (Some(handle), false) = (world.handle(random.place(MEMBERS)), world.is_full(register)) else {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        };
        let began = world.now();
        if random.below(2) == 0 {
            let value = i64::try_from(world.next.fetch_add(1, Ordering::SeqCst) + 1).expect("small");
            let write = Statement::new("UPDATE registers SET v = ? WHERE k = ?").bind(value).bind(register);
            let did = Did::Write(value);
            match handle.exec(write).await {
                Ok(_) => world.note(register, Operation { began, ended: Some(world.now()), did }),
                // Nothing was proposed.
                Err(StoreError::NoLeader(_) | StoreError::Busy) => {}
                Err(_) => world.note(register, Operation { began, ended: None, did }),
            }
        } else {
            let read = Statement::new("SELECT v FROM registers WHERE k = ?").bind(register);
            if let Ok(rows) = handle.query(read, Consistency::Linearizable).await {
                let value = rows.rows[0][0].as_integer().expect("a number");
                world.note(register, Operation { began, ended: Some(world.now()), did: Did::Read(value) });
            }
        }
        tokio::time::sleep(Duration::from_millis(random.below(4))).await;
    }
}

/// One fault and its end. A majority is there before and after.
async fn disturb(cluster: &mut Cluster, world: &World, random: &mut Random) -> &'static str {
    let leader = cluster.leader().await;
    let victim = match random.below(2) {
        0 => leader,
        _ => random.place(MEMBERS),
    };
    let pause = Duration::from_millis(300 + random.below(900));
    match random.below(4) {
        0 => {
            world.handles.lock().expect("no panic")[victim] = None;
            cluster.nodes[victim].stop().await;
            tokio::time::sleep(pause).await;
            cluster.nodes[victim].start();
            world.handles.lock().expect("no panic")[victim] = Some(cluster.nodes[victim].handle().clone());
            "stopped and started"
        }
        1 => {
            for other in (0..MEMBERS).filter(|other| *other != victim) {
                cluster.faults.cut(victim, other);
                cluster.faults.cut(other, victim);
            }
            tokio::time::sleep(pause).await;
            cluster.faults.heal();
            "cut off"
        }
        2 => {
            for other in (0..MEMBERS).filter(|other| *other != victim) {
                cluster.faults.cut(victim, other);
            }
            tokio::time::sleep(pause).await;
            cluster.faults.heal();
            "cannot call"
        }
        _ => {
            cluster.faults.cut((victim + 1) % MEMBERS, victim);
            tokio::time::sleep(pause).await;
            cluster.faults.heal();
            "not called by one"
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_stay_linearizable_and_no_acknowledged_write_is_lost() {
    let seed = std::env::var("WEFT_FAULT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9 + 1);
    println!("WEFT_FAULT_SEED={seed}");
    let mut random = Random(seed);
    let mut cluster = Cluster::start(MEMBERS).await;
    cluster.exec(0, Statement::new("CREATE TABLE registers (k INTEGER PRIMARY KEY, v INTEGER)")).await.expect("made");
    for register in 0..REGISTERS {
        let insert = Statement::new("INSERT INTO registers VALUES (?, 0)").bind(register);
        cluster.exec(0, insert).await.expect("made");
    }
    let world = Arc::new(World::default());
    *world.handles.lock().expect("no panic") = cluster.nodes.iter().map(|node| Some(node.handle().clone())).collect();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            crate::foundation::task::spawn("client", client(Arc::clone(&world), Random(random.below(u64::MAX) | 1)))
        })
        .collect();
    let mut faults = BTreeMap::<&str, u32>::new();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(random.below(300))).await;
        *faults.entry(disturb(&mut cluster, &world, &mut random).await).or_default() += 1;
    }
    world.done.store(true, Ordering::SeqCst);
    for client in clients {
        tokio::time::timeout(PATIENCE, client.join()).await.expect("it ends");
    }
    // Everything is healed: what every member has in the end belongs to the history too.
    for place in 0..MEMBERS {
        let handle = cluster.nodes[place].handle().clone();
        tokio::time::timeout(PATIENCE, handle.ready()).await.expect("the member is back in time");
        for register in 0..REGISTERS {
            let began = world.now();
            let read = Statement::new("SELECT v FROM registers WHERE k = ?").bind(register);
            let rows = cluster.nodes[place].handle().query(read, Consistency::Linearizable).await.expect("read");
            let value = rows.rows[0][0].as_integer().expect("a number");
            world.note(register, Operation { began, ended: Some(world.now()), did: Did::Read(value) });
        }
    }
    let histories = world.histories.lock().expect("no panic").clone();
    let operations: Vec<&Operation> = histories.values().flatten().collect();
    let unknown = operations.iter().filter(|operation| operation.ended.is_none()).count();
    println!("faults {faults:?}; operations {}, of unknown outcome {unknown}", operations.len());
    assert!(operations.len() > 200, "the clients got through: {}", operations.len());
    for (register, history) in &histories {
        assert!(check(history, 0), "register {register} is not linearizable: {history:?}");
    }
    drop(histories);
    world.handles.lock().expect("no panic").clear();
    cluster.stop().await;
}
