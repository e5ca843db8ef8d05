//! The messages of the spec ("WebSocket API"), each one JSON text. Pure.

use std::time::SystemTime;

use serde::Serialize;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::api::web::{list, system};
use crate::foundation::rfc3339;
use crate::pm3::system::HostFigures;
use crate::process::view::{Event, View};

#[derive(Serialize)]
struct Message<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    data: T,
}

fn text(kind: &'static str, data: impl Serialize) -> Utf8Bytes {
    // Text and numbers can always be written.
    serde_json::to_string(&Message { kind, data }).unwrap_or_default().into()
}

/// An instance as it is now.
pub(super) fn process(view: &View, now: SystemTime) -> Utf8Bytes {
    #[derive(Serialize)]
    struct Process<'a> {
        id: u32,
        name: &'a str,
        status: &'static str,
        pid: Option<u32>,
        cpu: f64,
        memory: u64,
        timestamp: String,
    }
    let data = Process {
        id: view.id,
        name: &view.name,
        status: view.status.as_str(),
        pid: view.pid,
        cpu: list::cpu(view),
        memory: view.figures.memory_bytes,
        timestamp: rfc3339::format(now),
    };
    text("process_update", data)
}

/// The figures of the host.
pub(super) fn system(figures: &HostFigures, now: SystemTime) -> Utf8Bytes {
    text("system_update", system::update(figures, now))
}

/// What the newest health check of an instance said.
pub(super) fn health(view: &View, now: SystemTime) -> Utf8Bytes {
    #[derive(Serialize)]
    struct Health<'a> {
        process: &'a str,
        status: &'static str,
        timestamp: String,
    }
    let timestamp = rfc3339::format(view.health.last_check.unwrap_or(now));
    text("health_update", Health { process: &view.name, status: view.health.status.as_str(), timestamp })
}

#[derive(Serialize)]
struct Happened<'a> {
    event: &'a str,
    process: Option<&'a str>,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<u64>,
}

/// Something that happened to an instance.
pub(super) fn event(event: &Event) -> Utf8Bytes {
    let (what, process) = (event.what.as_str(), Some(&*event.name));
    text("process_event", Happened { event: what, process, timestamp: rfc3339::format(event.at), missed: None })
}

/// That messages were lost: what follows is everything as it is now, and what else is known is to be read again.
pub(super) fn resync(missed: u64) -> Utf8Bytes {
    let timestamp = rfc3339::format(SystemTime::now());
    text("process_event", Happened { event: "resync", process: None, timestamp, missed: Some(missed) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::process::view::What;

    #[test]
    fn an_event_has_the_documented_shape() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_705_329_025);
        let happened = Event { at, id: 1, name: Arc::from("new-api"), what: What::Started };
        let expected = r#"{"type":"process_event","data":{"event":"started","process":"new-api","timestamp":"2024-01-15T14:30:25Z"}}"#;
        assert_eq!(event(&happened).as_str(), expected);
    }

    #[test]
    fn a_loss_is_told_with_its_size() {
        let value: serde_json::Value = serde_json::from_str(&resync(7)).expect("JSON");
        assert_eq!((&value["data"]["event"], &value["data"]["missed"]), (&"resync".into(), &7.into()));
    }
}
