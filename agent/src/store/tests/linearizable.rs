//! Whether a history of one register is linearizable (Wing and Gong's search, with a memory of what was tried).
//!
//! An operation has the time it began and the time it ended; one of unknown outcome has no end and may have happened at any time
//! after it began, or never. Pure.

use std::collections::HashSet;

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Did {
    Write(i64),
    Read(i64),
}

/// One operation; times are places in one order of all beginnings and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) began: u64,
    /// `None`: its outcome is unknown.
    pub(super) ended: Option<u64>,
    pub(super) did: Did,
}

/// Whether one order of `history` explains every answer, from the value `first` on. At most 128 operations.
pub(super) fn check(history: &[Operation], first: i64) -> bool {
    assert!(history.len() <= 128, "a register's history is cut into pieces that the search can hold");
    let known = history.iter().enumerate().filter(|(_, operation)| operation.ended.is_some());
    let wanted = known.fold(0_u128, |wanted, (place, _)| wanted | 1 << place);
    let mut tried = HashSet::new();
    let mut stack = vec![(0_u128, first)];
    while let Some((done, value)) = stack.pop() {
        if done & wanted == wanted {
            return true;
        }
        if !tried.insert((done, value)) {
            continue;
        }
        let open = || history.iter().enumerate().filter(|(place, _)| done & 1 << place == 0);
        // Nothing that began after another one had ended may come before it.
        let limit = open().filter_map(|(_, operation)| operation.ended).min().unwrap_or(u64::MAX);
        for (place, operation) in open().filter(|(_, operation)| operation.began < limit) {
            match operation.did {
                Did::Write(written) => stack.push((done | 1 << place, written)),
                Did::Read(read) if read == value => stack.push((done | 1 << place, value)),
                Did::Read(_) => {}
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(began: u64, ended: u64, did: Did) -> Operation {
        Operation { began, ended: Some(ended), did }
    }

    #[test]
    fn a_read_of_what_was_written_before_or_meanwhile_is_explained() {
        let history = [operation(0, 3, Did::Write(1)), operation(1, 2, Did::Read(0)), operation(4, 5, Did::Read(1))];
        assert!(check(&history, 0));
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = [operation(0, 1, Did::Write(1)), operation(2, 3, Did::Read(0))];
        assert!(!check(&history, 0));
    }

    #[test]
    fn a_lost_write_is_found() {
        let history = [operation(0, 1, Did::Write(1)), operation(2, 3, Did::Read(1)), operation(4, 5, Did::Read(0))];
        assert!(!check(&history, 0));
    }

    #[test]
    fn two_readers_that_see_two_orders_are_found() {
        let history = [
            operation(0, 9, Did::Write(1)),
            operation(0, 9, Did::Write(2)),
            operation(1, 2, Did::Read(1)),
            operation(3, 4, Did::Read(2)),
            operation(5, 6, Did::Read(1)),
        ];
        assert!(!check(&history, 0));
    }

    #[test]
    fn an_unknown_write_may_have_happened_or_not() {
        let unknown = Operation { began: 0, ended: None, did: Did::Write(7) };
        assert!(check(&[unknown, operation(2, 3, Did::Read(0)), operation(4, 5, Did::Read(7))], 0));
        assert!(check(&[unknown, operation(2, 3, Did::Read(0))], 0));
        assert!(!check(&[unknown, operation(2, 3, Did::Read(7)), operation(4, 5, Did::Read(0))], 0));
    }
}
