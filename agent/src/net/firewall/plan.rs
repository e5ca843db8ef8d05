//! The difference between the table that is wanted and the one that is there.

use super::spec::Ruleset;

/// Our table as it is now, compared with what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Absent,
    AsWanted,
    /// It is there and differs in anything: a rule, a chain, an object somebody put into it.
    Different,
}

/// The one transaction to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The whole table anew.
    Replace(Ruleset),
    /// The table goes.
    Remove,
}

/// The difference; `None` if there is none.
pub fn plan(wanted: Option<&Ruleset>, standing: Standing) -> Option<Change> {
    match (wanted, standing) {
        (None, Standing::Absent) | (Some(_), Standing::AsWanted) => None,
        (None, Standing::AsWanted | Standing::Different) => Some(Change::Remove),
        (Some(ruleset), Standing::Absent | Standing::Different) => Some(Change::Replace(ruleset.clone())),
    }
}
