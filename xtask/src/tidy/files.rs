//! Rules about every tracked file: nothing in it may name the machine it was written on.

use super::{Finding, finding};

/// First components of paths that exist on a developer's or builder's machine only.
const MACHINE_DIRECTORIES: [&str; 6] = ["home", "root", "Users", "work", "workspace", "builds"];

pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().enumerate();
    let named = lines.filter_map(|(number, line)| Some((number, machine_path(line)?)));
    named.map(|(number, path)| finding(file, number + 1, format!("{path} exists on one machine only"))).collect()
}

/// A path below one of [`MACHINE_DIRECTORIES`] in `line`.
fn machine_path(line: &str) -> Option<String> {
    MACHINE_DIRECTORIES.iter().map(|directory| format!("/{directory}/")).find(|path| {
        line.match_indices(path.as_str()).any(|(at, _)| {
            // In the middle of a longer path it is an ordinary directory name.
            line[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && !"._-/}*".contains(before))
        })
    })
}
