//! `weft cert`: certificates for people and tools.
//!
//! The key is made here and never leaves: the agent sees the request only.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::certificates_client::CertificatesClient;

use super::client::{Client, ClientError};
use super::{Exit, Failure, output};
use crate::api::view;
use crate::foundation::id::NodeId;
use crate::identity::authority::AuthorityError;
use crate::identity::request::Request;
use crate::sys::file::{self, FileError};

#[derive(Debug, Subcommand)]
pub(super) enum CertCommand {
    /// Make a key and a certificate that let an operator or a tool call the mesh over gRPC
    ///
    /// The agent must hold the mesh's authority, as its first node does. Files that exist are never overwritten.
    #[command(
        after_help = "Examples:\n  sudo weft cert issue ops\n  sudo weft cert issue ci --days 30 --output /etc/ci"
    )]
    Issue(IssueArgs),
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The operator's name: a-z, 0-9 and -
    name: String,
    /// Where NAME.crt, NAME.key and ca.crt are written
    #[arg(long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// How many days it is valid, 1 to 825
    #[arg(long, default_value_t = 90)]
    days: u32,
    /// What was written, as JSON
    #[arg(long)]
    json: bool,
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertError {
    #[error(transparent)]
    Name(#[from] crate::foundation::id::InvalidName),
    #[error("{} exists already; move it away, or choose another --output", .0.display())]
    Exists(PathBuf),
    #[error(transparent)]
    Key(#[from] AuthorityError),
    #[error(transparent)]
    Write(#[from] FileError),
}

pub(super) async fn run(client: &Client, command: &CertCommand) -> Result<Exit, Failure> {
    match command {
        CertCommand::Issue(args) => issue(client, args).await,
    }
}

async fn issue(client: &Client, args: &IssueArgs) -> Result<Exit, Failure> {
    let name: NodeId = args.name.parse().map_err(CertError::Name)?;
    let paths = ["crt", "key"].map(|kind| args.output.join(format!("{name}.{kind}")));
    refuse_existing(&paths)?;
    let (request, key_pem) = Request::new().map_err(CertError::Key)?;
    let wanted = proto::IssueCertificateRequest {
        name: name.to_string(),
        request_pem: request.pem().to_owned(),
        days: args.days,
    };
    let mut certificates = CertificatesClient::new(client.channel().await?);
    let issued = certificates.issue(wanted).await.map_err(ClientError::from)?.into_inner();
    let [certificate, key] = paths;
    let ca = args.output.join("ca.crt");
    file::create_directory(&args.output, 0o755).map_err(CertError::Write)?;
    file::write_atomic(&key, key_pem.expose().as_bytes(), 0o600).map_err(CertError::Write)?;
    file::write_atomic(&certificate, issued.certificate_pem.as_bytes(), 0o644).map_err(CertError::Write)?;
    file::write_atomic(&ca, issued.ca_pem.as_bytes(), 0o644).map_err(CertError::Write)?;
    tell(&[certificate, key, ca], args.json)?;
    Ok(Exit::Ok)
}

fn refuse_existing(paths: &[PathBuf]) -> Result<(), CertError> {
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(existing) => Err(CertError::Exists(existing.clone())),
        None => Ok(()),
    }
}

fn tell(written: &[PathBuf], json: bool) -> std::io::Result<()> {
    if json {
        return output::print_json(&serde_json::json!({ "schema": view::SCHEMA, "written": written }));
    }
    let lines = written.iter().map(|path| format!("wrote {}\n", path.display()));
    output::print(&lines.collect::<String>())
}
