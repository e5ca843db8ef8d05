//! Runs other programs (apt-get, dpkg-deb, ldd, strip, ip, …) and says which one failed and what it said.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs `command` to its end; its standard output if it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| missing(&name))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Feeds `input` to a decompressor and returns what comes out, however it ends: what follows a stream inside a
/// kernel image is not its, and decompressors complain about that after having done their work.
pub(crate) fn filter(program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| missing(program))?;
    let mut stdin = child.stdin.take().context("the child has a piped standard input")?;
    let output = std::thread::scope(|scope| {
        // A decompressor that has seen enough closes its input; the broken pipe is not an error.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output()
    })?;
    Ok(output.stdout)
}

fn missing(program: &str) -> String {
    format!("failed to run {program}; the packages in vm-tests/debian-packages.txt bring it")
}
