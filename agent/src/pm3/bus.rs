//! `/publish` and `/result`: events and their results, and requests of whoever listens, over the message bus.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::call::{Call, Outcome, Reply};
use super::failure::{Failure, Kind};
use super::{Pm3, json as to_json};
use crate::bus::schema::{self, STREAM};
use crate::bus::{BusError, Message};

/// Topics that begin so are asked and answered at once, without a number.
const RAW: &str = "raw.";

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        let text = error.to_string();
        let kind = match error {
            BusError::Store(error) => return error.into(),
            BusError::Off | BusError::NotOurs | BusError::NotConnected(_) | BusError::NoResponders(_) => {
                Kind::Unavailable
            }
            BusError::Topic(_) => Kind::Invalid,
            BusError::TimedOut { .. } => Kind::Timeout,
            BusError::Refused(_) => Kind::Failed,
        };
        Self::new(kind, text)
    }
}

/// `{"stream":"ev","seq":N}` of an event; for a topic `raw.…` what its listener answers, byte for byte.
pub(super) fn publish(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let topic = call.part(0).to_owned();
        let message = Message { headers: call.headers, payload: call.body };
        if !topic.starts_with(RAW) {
            let seq = pm3.bus.publish(&topic, message).await?;
            return to_json(&json!({ "stream": STREAM, "seq": seq }));
        }
        let answer = pm3.bus.request(&topic, message).await?;
        // JSON-RPC can carry nothing else.
        Ok(match serde_json::from_slice::<serde::de::IgnoredAny>(&answer) {
            Ok(_) => Reply::Raw(answer),
            Err(_) => Reply::Other { content_type: "application/octet-stream", bytes: answer },
        })
    })
}

/// What an event was answered, as it was kept. The store has it, so this works on a node without a bus too.
pub(super) fn result(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let (stream, seq) = (call.part(0), call.part(1));
        let number: i64 = seq
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| Failure::invalid(format!("{seq:?} is no number of an event")))?;
        if let Some(value) = schema::result(&pm3.store, stream, number).await? {
            return Ok(Reply::Raw(value.into()));
        }
        let hint = if pm3.bus.is_on() { "" } else { "; this node has no message bus (bus.enabled), others may" };
        Err(Failure::new(Kind::NotFound, format!("Result not found{hint}")))
    })
}
