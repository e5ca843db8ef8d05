//! `health_check` as it is written, in the documented flat form and in the nested one that PMDaemon's own parser wants.

use serde::{Deserialize, Serialize};

use crate::process::quantity::Span;

/// How the health of an instance is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    #[serde(alias = "type")]
    pub check_type: CheckType,
    /// Of `http`: `http://HOST[:PORT][/PATH]`; `{port}` stands for the port of the instance. 2xx is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Of `tcp`: `HOST:PORT`; `{port}` as above. A connection is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Of `script`: a program with arguments, run with the rights and the environment of the process. Exit code 0 is healthy.
    #[serde(default, alias = "path", alias = "command", skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default = "timeout")]
    pub timeout: Pause,
    #[serde(default = "interval")]
    pub interval: Pause,
    /// So many failures in a row, and it is unhealthy.
    #[serde(default = "retries")]
    pub retries: u32,
    /// An unhealthy instance is restarted.
    #[serde(default = "yes")]
    pub restart: bool,
    /// It must be healthy for the first time within this, or it is restarted.
    #[serde(default = "start_timeout", alias = "start_period")]
    pub start_timeout: Pause,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CheckType {
    Named(Kind),
    Nested(Nested),
}

/// The kinds of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Http,
    Tcp,
    Script,
}

impl Kind {
    /// Its name in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Script => "script",
        }
    }
}

/// PMDaemon's nested form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nested {
    pub r#type: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, alias = "path", alias = "command", skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
}

/// A time of a check: as [`Span`], or `{secs, nanos}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Pause(pub Span);

#[derive(Deserialize)]
#[serde(untagged)]
enum PauseForm {
    Span(Span),
    Parts { secs: u64, nanos: u32 },
}

impl<'de> Deserialize<'de> for Pause {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = PauseForm::deserialize(deserializer).map_err(|_neither| {
            serde::de::Error::custom("expected a time in milliseconds, or text like \"5s\", \"2m\"")
        })?;
        Ok(Self(match form {
            PauseForm::Span(span) => span,
            PauseForm::Parts { secs, nanos } => {
                Span::millis(secs.saturating_mul(1000).saturating_add(u64::from(nanos / 1_000_000)))
            }
        }))
    }
}

impl HealthCheck {
    /// The kind, and what is asked, if it is there.
    pub fn kind_and_target(&self) -> (Kind, Option<&str>) {
        match &self.check_type {
            CheckType::Named(kind) => (*kind, pick(*kind, &self.url, &self.address, &self.script)),
            CheckType::Nested(nested) => {
                (nested.r#type, pick(nested.r#type, &nested.url, &nested.address, &nested.script))
            }
        }
    }
}

fn pick<'a>(
    kind: Kind,
    url: &'a Option<String>,
    address: &'a Option<String>,
    script: &'a Option<String>,
) -> Option<&'a str> {
    match kind {
        Kind::Http => url.as_deref(),
        Kind::Tcp => address.as_deref(),
        Kind::Script => script.as_deref(),
    }
}

fn yes() -> bool {
    true
}

const fn timeout() -> Pause {
    Pause(Span::millis(5000))
}

const fn interval() -> Pause {
    Pause(Span::millis(30_000))
}

const fn start_timeout() -> Pause {
    Pause(Span::millis(30_000))
}

fn retries() -> u32 {
    3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<HealthCheck, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_form_and_the_one_its_parser_wants_mean_the_same() {
        let flat = read(r#"{"check_type":"http","url":"http://localhost:3000/health","timeout":5000}"#).expect("flat");
        let nested =
            r#"{"check_type":{"type":"http","url":"http://localhost:3000/health"},"timeout":{"secs":5,"nanos":0}}"#;
        let nested = read(nested).expect("nested");
        assert_eq!(flat.kind_and_target(), (Kind::Http, Some("http://localhost:3000/health")));
        assert_eq!(flat.kind_and_target(), nested.kind_and_target());
        assert_eq!(flat.timeout, nested.timeout);
        assert_eq!((flat.retries, flat.interval, flat.restart), (3, interval(), true));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert!(read(r#"{"check_type":"icmp","url":"x"}"#).is_err());
        assert!(read(r#"{"check_type":"http","ulr":"x"}"#).is_err_and(|error| error.contains("ulr")));
    }
}
