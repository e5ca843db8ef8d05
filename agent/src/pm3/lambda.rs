//! Functions that a connected client answers: opened over a WebSocket, called by anyone internal by their id.
//!
//! The transport owns the connection and registers it here with the sending half of a bounded queue. An entry lives exactly as
//! long as its [`Registration`]; the id is no secret but cannot be guessed, and taking an id over again needs the proof that
//! only its opener was told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::{constant_time, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::call::{Call, Outcome, Reply, Verb};
use super::failure::{Failure, Kind};
use super::params::encode_path;
use super::{MachineId, Pm3, json};
use crate::foundation::rfc3339;

/// Functions at a time.
const MOST: usize = 4096;
/// Calls of one function that wait to be written to its connection.
pub const QUEUE: usize = 64;
/// How long a function may take to answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Random bytes of an id, beside the four that name the machine.
const RANDOM_BYTES: usize = 16;

/// One call on its way to the function.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    /// JSON; `null` where the verb has no body.
    pub parameter: Bytes,
    pub reply: oneshot::Sender<Outcome>,
}

/// One function.
#[derive(Debug)]
struct Entry {
    /// Tells this connection from a later one of the same id.
    generation: u64,
    opened: SystemTime,
    codec: &'static str,
    headers: Vec<(String, String)>,
    requests: mpsc::Sender<Request>,
}

/// All of them, by id.
#[derive(Debug)]
pub struct Lambdas {
    machine: MachineId,
    entries: Mutex<HashMap<String, Entry>>,
    /// Proofs of ids that were opened, kept while the id may be taken over.
    proofs: Mutex<HashMap<String, String>>,
    generations: AtomicU64,
}

/// A new identity: the id that everybody uses, the proof that only the opener knows.
#[derive(Debug, Clone)]
pub struct Identity {
    pub id: String,
    pub proof: String,
}

/// Keeps a function in the table; dropping it takes it out at once.
#[derive(Debug)]
pub struct Registration {
    lambdas: Arc<Lambdas>,
    id: String,
    generation: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut entries = self.lambdas.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.get(&self.id).is_some_and(|entry| entry.generation == self.generation) {
            entries.remove(&self.id);
        }
    }
}

impl Lambdas {
    pub(super) fn new(machine: MachineId) -> Self {
        Self { machine, entries: Mutex::default(), proofs: Mutex::default(), generations: AtomicU64::new(0) }
    }

    /// An identity nobody can guess.
    ///
    /// # Errors
    /// Too many functions, or no random bytes.
    pub fn new_identity(&self) -> Result<Identity, Failure> {
        let random = |bytes: &mut [u8]| {
            rand::fill(bytes).map_err(|_unspecified| Failure::failed("the system gives no random bytes"))
        };
        let mut id = [0; 4 + RANDOM_BYTES];
        id[..4].copy_from_slice(&self.machine.0.to_le_bytes());
        random(&mut id[4..])?;
        let mut proof = [0; 24];
        random(&mut proof)?;
        let identity = Identity { id: URL_SAFE_NO_PAD.encode(id), proof: URL_SAFE_NO_PAD.encode(proof) };
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        if proofs.len() >= MOST {
            self.forget_closed(&mut proofs);
        }
        if proofs.len() >= MOST {
            return Err(Failure::new(Kind::Busy, format!("{MOST} functions are open; close one first")));
        }
        proofs.insert(identity.id.clone(), identity.proof.clone());
        Ok(identity)
    }

    fn forget_closed(&self, proofs: &mut HashMap<String, String>) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.retain(|id, _| entries.contains_key(id));
    }

    /// The identity of an id that was opened before, for whoever has its proof.
    ///
    /// # Errors
    /// No such id, or the proof is not its own.
    pub fn identity_again(&self, id: &str, proof: &str) -> Result<Identity, Failure> {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = proofs
            .get(id)
            .is_some_and(|wanted| constant_time::verify_slices_are_equal(wanted.as_bytes(), proof.as_bytes()).is_ok());
        if known {
            return Ok(Identity { id: id.to_owned(), proof: proof.to_owned() });
        }
        let text = "no such lambda, or the header x-lambda-proof is not what its opener was told";
        Err(Failure::new(Kind::Forbidden, text))
    }

    /// Registers a function that has answered its opening; a connection that had the id before loses it.
    pub fn register(
        self: &Arc<Self>,
        id: &str,
        codec: &'static str,
        headers: Vec<(String, String)>,
    ) -> (Registration, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { generation, opened: SystemTime::now(), codec, headers, requests };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), entry);
        (Registration { lambdas: Arc::clone(self), id: id.to_owned(), generation }, receiver)
    }

    fn sender(&self, id: &str) -> Option<mpsc::Sender<Request>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(id).map(|entry| entry.requests.clone())
    }

    async fn call(&self, id: &str, method: String, parameter: Bytes) -> Outcome {
        let Some(requests) = self.sender(id) else { return Err(self.missing(id)) };
        let (reply, answer) = oneshot::channel();
        let closed = || Failure::new(Kind::Unavailable, format!("lambda {id} closed its connection"));
        let work = async {
            requests.send(Request { method, parameter, reply }).await.map_err(|_closed| closed())?;
            answer.await.map_err(|_closed| closed())?
        };
        within_deadline(id, work).await
    }

    /// The machine that an id names; `None`: it is no id.
    fn machine_of(&self, id: &str) -> Option<MachineId> {
        let bytes = URL_SAFE_NO_PAD.decode(id).ok().filter(|bytes| bytes.len() == 4 + RANDOM_BYTES)?;
        bytes.first_chunk().copied().map(u32::from_le_bytes).map(MachineId)
    }

    fn missing(&self, id: &str) -> Failure {
        match self.machine_of(id) {
            Some(machine) if machine != self.machine => {
                let text =
                    format!("lambda {id} belongs to machine {machine}, and there is no gateway to call it there");
                Failure::new(Kind::NotFound, text)
            }
            Some(_) | None => Failure::new(Kind::NotFound, format!("there is no lambda {id}")),
        }
    }
}

async fn within_deadline(id: &str, work: impl Future<Output = Outcome>) -> Outcome {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => {
            let text = format!("lambda {id} did not answer within {} s", DEADLINE.as_secs());
            Err(Failure::new(Kind::Timeout, text))
        }
    }
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    timestamp: String,
    code: &'a str,
    headers: std::collections::BTreeMap<&'a str, Vec<&'a str>>,
}

pub(super) fn list(pm3: &Pm3, _call: &Call) -> Outcome {
    let entries = pm3.lambdas.entries.lock().unwrap_or_else(PoisonError::into_inner);
    let rows = entries.iter().map(|(id, entry)| {
        let mut headers = std::collections::BTreeMap::<&str, Vec<&str>>::new();
        for (name, value) in &entry.headers {
            headers.entry(name).or_default().push(value);
        }
        let row = Row { id, timestamp: rfc3339::format(entry.opened), code: entry.codec, headers };
        (id.as_str(), row)
    });
    json(&rows.collect::<std::collections::BTreeMap<_, _>>())
}

pub(super) fn call(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let parameter = match call.verb {
            Verb::Post | Verb::Put | Verb::Patch if !call.body.trim_ascii().is_empty() => {
                serde_json::from_slice::<serde::de::IgnoredAny>(&call.body)
                    .map_err(|error| Failure::invalid(format!("the body is not JSON: {error}")))?;
                call.body.clone()
            }
            Verb::Get | Verb::Delete | Verb::Post | Verb::Put | Verb::Patch => Bytes::from_static(b"null"),
        };
        let elsewhere = pm3.lambdas.machine_of(call.part(0)).filter(|machine| *machine != pm3.lambdas.machine);
        if let (Some(machine), Some(carrier)) = (elsewhere, pm3.carrier.get()) {
            let path = format!("/lambda/{}/{}", encode_path(call.part(0)), encode_path(call.part(1)));
            return within_deadline(call.part(0), carrier.carry(machine, path, call.clone())).await;
        }
        let reply = pm3.lambdas.call(call.part(0), call.part(1).to_owned(), parameter).await?;
        Ok(match reply {
            Reply::Json(bytes) => Reply::Raw(bytes),
            other @ (Reply::Raw(_) | Reply::Other { .. } | Reply::Nothing) => other,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lambdas() -> Arc<Lambdas> {
        Arc::new(Lambdas::new(MachineId(42)))
    }

    #[tokio::test]
    async fn a_call_reaches_the_function_and_a_null_is_an_answer() {
        let lambdas = lambdas();
        let identity = lambdas.new_identity().expect("room");
        let (_registration, mut requests) = lambdas.register(&identity.id, "json-rpc", Vec::new());
        let answered = tokio::join!(lambdas.call(&identity.id, "add".to_owned(), Bytes::from_static(b"[1]")), async {
            let request = requests.recv().await.expect("called");
            assert_eq!((request.method.as_str(), request.parameter.as_ref()), ("add", b"[1]".as_slice()));
            request.reply.send(Ok(Reply::Json(Bytes::from_static(b"null")))).expect("awaited");
        });
        assert_eq!(answered.0, Ok(Reply::Json(Bytes::from_static(b"null"))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_function_that_says_nothing_runs_into_its_deadline() {
        let lambdas = lambdas();
        let identity = lambdas.new_identity().expect("room");
        let (_registration, _requests) = lambdas.register(&identity.id, "json-rpc", Vec::new());
        let outcome = lambdas.call(&identity.id, "x".to_owned(), Bytes::new()).await;
        assert_eq!(outcome.expect_err("late").kind, Kind::Timeout);
    }

    #[tokio::test]
    async fn a_closed_function_is_gone_at_once() {
        let lambdas = lambdas();
        let identity = lambdas.new_identity().expect("room");
        let (registration, requests) = lambdas.register(&identity.id, "json-rpc", Vec::new());
        drop((registration, requests));
        let outcome = lambdas.call(&identity.id, "x".to_owned(), Bytes::new()).await;
        assert_eq!(outcome.expect_err("gone").kind, Kind::NotFound);
    }

    #[test]
    fn taking_an_id_over_needs_its_proof() {
        let lambdas = lambdas();
        let identity = lambdas.new_identity().expect("room");
        for wrong in ["", "x", &identity.id] {
            assert_eq!(lambdas.identity_again(&identity.id, wrong).expect_err("no proof").kind, Kind::Forbidden);
        }
        assert!(lambdas.identity_again("unknown", &identity.proof).is_err());
        assert!(lambdas.identity_again(&identity.id, &identity.proof).is_ok());
    }

    #[tokio::test]
    async fn the_end_of_an_old_connection_leaves_the_new_one() {
        let lambdas = lambdas();
        let identity = lambdas.new_identity().expect("room");
        let (old, _old_requests) = lambdas.register(&identity.id, "json-rpc", Vec::new());
        let (_new, mut requests) = lambdas.register(&identity.id, "jrpc", Vec::new());
        drop(old);
        let (outcome, ()) = tokio::join!(lambdas.call(&identity.id, "x".to_owned(), Bytes::new()), async {
            let request = requests.recv().await.expect("called");
            request.reply.send(Ok(Reply::Nothing)).expect("awaited");
        });
        assert!(outcome.is_ok());
    }

    #[test]
    fn ids_are_never_alike_and_name_their_machine() {
        let lambdas = lambdas();
        let ids: std::collections::HashSet<String> =
            (0..100).map(|_| lambdas.new_identity().expect("room").id).collect();
        assert_eq!(ids.len(), 100);
        let elsewhere = Lambdas::new(MachineId(7)).missing(ids.iter().next().expect("one"));
        assert!(elsewhere.text.contains("machine 0000002a"), "{elsewhere}");
    }
}
