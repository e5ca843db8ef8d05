//! Whether a test may run on this machine.
//!
//! A test that needs root or a tool begins with `if !gate::root_and(&["wg"]) { return; }`. What is missing is printed and the
//! test passes, unless `WEFT_TESTS_STRICT=1` is set, as CI does: then it fails.

use std::io::Write as _;
use std::path::PathBuf;

/// Whether the test may change network namespaces.
pub fn root() -> bool {
    root_and(&[])
}

/// Whether the test may change network namespaces and every one of `tools` is installed.
///
/// # Panics
/// Under `WEFT_TESTS_STRICT=1`, where a missing condition fails the test.
pub fn root_and(tools: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        return refuse("it needs root");
    }
    match tools.iter().find(|tool| find_tool(tool).is_none()) {
        Some(missing) => refuse(&format!("`{missing}` is not installed (`cargo xtask setup` installs it)")),
        None => true,
    }
}

/// Where `tool` is installed. System directories are searched even when `PATH` lacks them.
pub fn find_tool(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(tool)).find(|file| file.is_file())
}

fn refuse(why: &str) -> bool {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    assert!(!std::env::var("WEFT_TESTS_STRICT").is_ok_and(|value| value == "1"), "{test} must run here, but {why}");
    // Not `eprintln`, whose output the test program keeps to itself while tests pass.
    writeln!(std::io::stderr(), "skipped: {test}: {why}").ok();
    false
}
