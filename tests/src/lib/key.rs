//! WireGuard keys, made by the `wg` tool and not by the code under test.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// A private key and its public key, in base64.
#[derive(Debug, Clone)]
pub struct KeyPair {
    pub private: String,
    pub public: String,
}

impl KeyPair {
    /// A new pair from `wg genkey` and `wg pubkey`.
    ///
    /// # Errors
    /// `wg` is not installed or failed.
    pub fn generate() -> Result<Self> {
        let private = wg(&["genkey"], "")?;
        let public = wg(&["pubkey"], &private)?;
        Ok(Self { private, public })
    }
}

/// A new preshared key in base64.
///
/// # Errors
/// `wg` is not installed or failed.
pub fn preshared() -> Result<String> {
    wg(&["genpsk"], "")
}

fn wg(args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("wg")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start wg; the package is wireguard-tools")?;
    child.stdin.take().context("wg has no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "wg {args:?} ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
