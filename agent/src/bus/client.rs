//! The agent's own connection to the bus: events and requests out, results in.
//!
//! An event is published on `ev.TOPIC` with the subject of its result to answer to, which this agent alone listens on. The agent
//! keeps the answer in the store, where every node reads it. An answer that comes after this agent has ended is lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::connection::State;
use async_nats::{ConnectOptions, HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::config::Config;
use super::metrics::Metrics;
use super::spec::USER;
use super::{BusError, Message, StartError, schema};
use crate::foundation::error::chain;
use crate::foundation::secret::Secret;
use crate::foundation::task::{self, Task};
use crate::store;

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two attempts to connect; a child takes a moment to listen.
const SLOWEST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_TOPIC: usize = 200;
/// What answers to events are sent to: `weft.result.INBOX.NUMBER`.
const RESULTS: &str = "weft.result";

/// The connection, which comes back by itself.
#[derive(Debug)]
pub(super) struct Client {
    nats: async_nats::Client,
    place: String,
    /// Begins the subjects of results; no other agent has it.
    inbox: String,
    store: store::Handle,
    metrics: Metrics,
    state: watch::Receiver<bool>,
    problem: Arc<Mutex<Option<String>>>,
    _results: Task,
}

impl Client {
    pub(super) async fn connect(
        config: &Config,
        password: &Secret<String>,
        store: store::Handle,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let place = config.url.clone().unwrap_or_else(|| format!("nats://{}", config.listen));
        let options = match (&config.url, &config.credentials_file) {
            (None, _) => ConnectOptions::with_user_and_password(USER.to_owned(), password.expose().clone()),
            (Some(_), None) => ConnectOptions::new(),
            (Some(_), Some(path)) => {
                ConnectOptions::with_credentials_file(path).await.map_err(StartError::Credentials)?
            }
        };
        let (state_tx, state) = watch::channel(false);
        let problem = Arc::new(Mutex::new(None));
        let last = Arc::clone(&problem);
        let options = options
            .name("weft")
            .require_tls(place.starts_with("tls://"))
            .retry_on_initial_connect()
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(100)
                    .saturating_mul(u32::try_from(attempts).unwrap_or(u32::MAX))
                    .min(SLOWEST_RETRY)
            })
            .event_callback(move |event| {
                use async_nats::Event;
                let (is_up, text) = match &event {
                    Event::Connected => (Some(true), None),
                    Event::Disconnected | Event::Closed => (Some(false), None),
                    Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => (None, None),
                    Event::ServerError(_) | Event::ClientError(_) => (None, Some(event.to_string())),
                };
                tracing::debug!(%event, "message bus");
                if is_up == Some(true) || text.is_some() {
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = text;
                }
                if let Some(is_up) = is_up {
                    state_tx.send_if_modified(|known| std::mem::replace(known, is_up) != is_up);
                }
                std::future::ready(())
            });
        // It goes on trying in the background: an error here is one of the URL.
        let nats = options.connect(place.as_str()).await.map_err(StartError::Url)?;
        let inbox = format!("{RESULTS}.{}", nats.new_inbox().trim_start_matches("_INBOX."));
        let keeping = keep_results(nats.clone(), inbox.clone(), store.clone(), metrics.clone());
        let results = task::spawn("bus-results", keeping);
        Ok(Self { nats, place, inbox, store, metrics: metrics.clone(), state, problem, _results: results })
    }

    /// Whether it is connected, and every change of that.
    pub(super) fn state(&self) -> watch::Receiver<bool> {
        self.state.clone()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.nats.connection_state() == State::Connected
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// What the last attempt failed of.
    pub(super) fn problem(&self) -> Option<String> {
        let last = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(format!("not connected to {}{}", self.place, last.map(|why| format!(": {why}")).unwrap_or_default()))
    }

    pub(super) async fn publish(&self, topic: &str, message: Message) -> Result<i64, BusError> {
        let outcome = self.try_publish(topic, message).await;
        match &outcome {
            Ok(_) => self.metrics.events.inc(),
            Err(_) => self.metrics.failures.inc(),
        };
        outcome
    }

    async fn try_publish(&self, topic: &str, message: Message) -> Result<i64, BusError> {
        let topic = topic.strip_prefix("ev.").unwrap_or(topic);
        let subject = format!("{}.{}", schema::STREAM, checked(topic)?);
        let headers = headers(&message);
        let seq = schema::next_event(&self.store).await?;
        let answer_to = format!("{}.{seq}", self.inbox);
        let sent = self.nats.publish_with_reply_and_headers(subject, answer_to, headers, message.payload).await;
        sent.map_err(|error| BusError::Refused(chain(&error)))?;
        // The number means that the server has it.
        self.nats.flush().await.map_err(|error| BusError::Refused(chain(&error)))?;
        Ok(seq)
    }

    pub(super) async fn request(&self, topic: &str, message: Message) -> Result<Bytes, BusError> {
        let outcome = self.try_request(topic, message).await;
        match &outcome {
            Ok(_) => self.metrics.requests.inc(),
            Err(_) => self.metrics.failures.inc(),
        };
        outcome
    }

    async fn try_request(&self, topic: &str, message: Message) -> Result<Bytes, BusError> {
        let subject = checked(topic)?.to_owned();
        let request = Request::new().headers(headers(&message)).payload(message.payload).timeout(Some(DEADLINE));
        match self.nats.send_request(subject, request).await {
            Ok(answer) => Ok(answer.payload),
            Err(error) => Err(match error.kind() {
                RequestErrorKind::NoResponders => BusError::NoResponders(topic.to_owned()),
                RequestErrorKind::TimedOut => {
                    BusError::TimedOut { topic: topic.to_owned(), seconds: DEADLINE.as_secs() }
                }
                RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::Other => {
                    BusError::Refused(chain(&error))
                }
            }),
        }
    }
}

/// A topic that names one subject: no wildcard, no empty word.
fn checked(topic: &str) -> Result<&str, BusError> {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let is_topic = topic.len() <= LONGEST_TOPIC && topic.split('.').all(is_word);
    is_topic.then_some(topic).ok_or_else(|| BusError::Topic(topic.to_owned()))
}

/// The headers of a message; what NATS cannot carry was refused by HTTP already.
fn headers(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
    headers
}

async fn keep_results(nats: async_nats::Client, inbox: String, store: store::Handle, metrics: Metrics) {
    let mut answers = match nats.subscribe(format!("{inbox}.*")).await {
        Ok(answers) => answers,
        Err(error) => {
            tracing::warn!(error = chain(&error), "no result is kept");
            return;
        }
    };
    while let Some(answer) = answers.next().await {
        let seq = answer.subject.rsplit('.').next().and_then(|seq| seq.parse().ok());
        let (Some(seq), Some(value)) = (seq, result_of(answer.status, &answer.payload)) else { continue };
        match schema::keep_result(&store, seq, &value).await {
            Ok(()) => _ = metrics.results.inc(),
            Err(error) => tracing::warn!(seq, error = chain(&error), "a result is lost"),
        }
    }
}

/// What is kept of an answer; `None`: nothing, as it says nothing, or the server and no listener said it.
fn result_of(status: Option<StatusCode>, payload: &[u8]) -> Option<String> {
    if status.is_some() || payload.is_empty() {
        return None;
    }
    match std::str::from_utf8(payload) {
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => Some(text.to_owned()),
        // Text of any other kind is a string of JSON.
        Ok(_) | Err(_) => serde_json::to_string(&String::from_utf8_lossy(payload)).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_names_one_subject() {
        for topic in ["a", "raw.svc.web-1.call", "A_b.0"] {
            assert!(checked(topic).is_ok(), "{topic}");
        }
        for topic in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", ">", "a b", "$SYS.x", "a\r\nPUB b", &"a".repeat(201)] {
            assert!(checked(topic).is_err(), "{topic}");
        }
    }

    #[test]
    fn a_result_is_json_whatever_was_answered() {
        assert_eq!(result_of(None, b"{\"a\": 1}").as_deref(), Some("{\"a\": 1}"));
        assert_eq!(result_of(None, b"done").as_deref(), Some("\"done\""));
        assert_eq!(result_of(None, b""), None);
        assert_eq!(result_of(Some(StatusCode::NO_RESPONDERS), b"x"), None);
    }
}
