//! What this host offers of what Weft can use: each facility, what it is for, what is used without it, and the fix.
//!
//! [`probe`] looks and changes nothing; [`assess`] turns what it saw into [`Finding`]s, purely. Both work with and without
//! an agent; what a running agent really uses is added by the command line.

pub mod assess;
pub mod probe;

use serde::Serialize;

/// How good a facility is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As good as it gets.
    Ok,
    /// Worth knowing; nothing is lost unless the configuration asks for it.
    Note,
    /// Cannot be told by this user.
    Unknown,
    /// Weft works by a lesser way.
    Fallback,
    /// A part of Weft does not work.
    Missing,
}

/// One facility.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name.
    pub facility: &'static str,
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What Weft does with it.
    pub used_for: &'static str,
    /// What Weft does without it, where it has to.
    pub fallback: Option<&'static str>,
    /// What to type or change.
    pub fix: Option<String>,
}

/// Whether anything is so that an operator should act.
pub fn is_degraded(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| match finding.level {
        Level::Fallback | Level::Missing => true,
        Level::Ok | Level::Note | Level::Unknown => false,
    })
}
