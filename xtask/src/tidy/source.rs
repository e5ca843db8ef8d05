//! Rules about one Rust file: its size, its header, its name, and what it must not say.

use super::lexer::Lexed;
use super::paths::Named;
use super::{Finding, finding};

/// STYLE, Modules: 600 is the limit.
const LINES: usize = 600;
/// Names that say nothing about what a module owns.
const EMPTY_NAMES: [&str; 5] = ["utils", "util", "helpers", "common", "types"];
/// Files of these names hold pure functions.
const PURE: [&str; 8] = ["spec", "plan", "zone", "answer", "mtu", "import", "render", "machine"];
/// What a pure file must not name, as the beginning of a path.
const IMPURE: [&[&str]; 9] = [
    &["tokio"],
    &["std", "fs"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "os"],
    &["nix"],
    &["libc"],
    &["rtnetlink"],
];
/// The same, by the last words of a path.
const IMPURE_ENDINGS: [&[&str]; 6] = [
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["net", "TcpStream"],
    &["net", "TcpListener"],
    &["net", "UdpSocket"],
    &["socket2", "Socket"],
];
/// Where `unsafe` may stand.
const UNSAFE_PLACES: [&str; 6] = [
    "agent/src/sys/",
    "agent/src/sys.rs",
    "agent/tunnel/src/sys/",
    "agent/tunnel/src/sys.rs",
    "agent-ebpf/",
    "vm-tests/src/guest/sys.rs",
];
/// The one place of the tests that sleeps.
const WAIT: &str = "tests/src/lib/wait.rs";

pub(super) fn check(file: &str, text: &str, lexed: &Lexed, paths: &[Named]) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(header(file, text));
    findings.extend(length(file, text));
    findings.extend(name(file));
    findings.extend(words(file, lexed));
    if is_pure(file) {
        findings.extend(impure_paths(file, paths));
    }
    findings.extend(sleeps(file, paths));
    findings
}

/// A module's own `tests.rs` is covered by the header of that module, as an inline `mod tests` is.
fn header(file: &str, text: &str) -> Option<Finding> {
    if file.ends_with("/tests.rs") {
        return None;
    }
    let first = text.lines().find(|line| !line.starts_with("#!"))?;
    let what = "a module begins with `//!`: what it owns, what goes in and out, its invariants";
    (!first.starts_with("//! ")).then(|| finding(file, 1, what))
}

fn length(file: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    (lines > LINES).then(|| finding(file, 0, format!("{lines} lines; {LINES} is the limit")))
}

fn name(file: &str) -> Option<Finding> {
    // What stands before the last `src/` is a package, whose name is not a module's.
    let (_, inside) = file.rsplit_once("src/")?;
    let mut names = inside.trim_end_matches(".rs").split('/');
    let empty = names.find(|name| *name == "mod" || EMPTY_NAMES.contains(name))?;
    Some(match empty {
        "mod" => finding(file, 0, "modules are `foo.rs` beside `foo/`, not `mod.rs`"),
        name => finding(file, 0, format!("a module called {name} says nothing about what it owns")),
    })
}

fn words(file: &str, lexed: &Lexed) -> Vec<Finding> {
    let mut findings = Vec::new();
    let unsafe_here = UNSAFE_PLACES.iter().any(|place| file.starts_with(place));
    for (number, (code, comment)) in lexed.code.lines().zip(lexed.comments.lines()).enumerate() {
        let mut refuse = |what: &str| findings.push(finding(file, number + 1, what));
        let attribute: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        if attribute.contains("#[ignore") {
            refuse("an ignored test proves nothing: delete it or make it run");
        }
        if !unsafe_here && has_word(code, "unsafe") {
            refuse("unsafe code belongs in agent/src/sys, agent/tunnel/src/sys.rs or agent-ebpf");
        }
        let has_note = ["TODO", "FIXME", "XXX"].iter().any(|note| has_word(comment, note));
        if has_note && !comment.contains("until") {
            refuse("a note of unfinished work names the condition that ends it (`… until …`)");
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

fn is_pure(file: &str) -> bool {
    let Some(module) = file.strip_prefix("agent/src/").and_then(|file| file.strip_suffix(".rs")) else {
        return false;
    };
    let mut names = module.split('/');
    let is_test = module.ends_with("tests");
    names.clone().next() == Some("model") || (!is_test && names.any(|name| PURE.contains(&name)))
}

fn impure_paths(file: &str, paths: &[Named]) -> Vec<Finding> {
    let is_impure = |named: &&Named| {
        IMPURE.iter().any(|prefix| named.is_below(prefix))
            || IMPURE_ENDINGS.iter().any(|ending| named.segments.windows(ending.len()).any(|window| window == *ending))
    };
    let describe =
        |named: &Named| finding(file, named.line, format!("a pure file must not use {}", named.segments.join("::")));
    paths.iter().filter(is_impure).map(describe).collect()
}

fn sleeps(file: &str, paths: &[Named]) -> Vec<Finding> {
    if !file.starts_with("tests/src/") || file == WAIT {
        return Vec::new();
    }
    let sleeps = paths.iter().filter(|named| named.segments.ends_with(&["thread".to_owned(), "sleep".to_owned()]));
    sleeps.map(|named| finding(file, named.line, format!("wait on a condition with a deadline: {WAIT}"))).collect()
}
