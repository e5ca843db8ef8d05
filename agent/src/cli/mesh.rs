//! `weft token`, `weft join`, `weft leave`, `weft acl` and `weft events`: the mesh as its operator handles it.

pub(super) mod hop;

use std::io::Read as _;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{ArgGroup, Args, Subcommand};
use tonic::transport::Channel;
use weft_proto::v1::LeaveRequest;
use weft_proto::v1::admin_client::AdminClient;
use weft_proto::v1::node_client::NodeClient;
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::local_client::LocalClient;
use weft_proto::weft::v1::membership_client::MembershipClient;
use weft_proto::{DeleteRaftAclRequest, RaftAcl};
use zeroize::Zeroizing;

use super::client::{Client, ClientError};
use super::output::{self, Align, Style, Table};
use super::{Exit, Failure, JsonArgs};
use crate::api::view;
use crate::foundation::rfc3339;
use crate::sys::file::{self, FileError};

#[derive(Debug, Subcommand)]
pub(super) enum MeshCommand {
    /// Make, show and end the tokens that let nodes join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Join the mesh of another node
    ///
    /// This node's addresses, peers and names then come from that mesh. Peers of weft.toml stay. Its store is laid aside for
    /// the mesh's, /kv with it, unless mesh.role is "edge".
    #[command(after_help = "Example:\n  sudo weft join 192.0.2.1 --token-file ./token")]
    Join(JoinArgs),
    /// Leave the mesh and be one of this node alone again, or remove another node
    #[command(
        after_help = "Examples:\n  sudo weft leave           this node leaves\n  sudo weft leave beta      beta is removed, whether it runs or not"
    )]
    Leave(LeaveArgs),
    /// Ask another node over HTTP, over the mesh: its pm3 API or any of its hosts
    ///
    /// The answer streams to standard output as it comes. Exit code 1: the status was 400 or above, or there was no answer.
    #[command(after_help = "Examples:\n  weft hop beta /ping\n  weft hop beta http://example.org/x -i\n  \
                      weft hop beta /kv/a -X PUT -d '{\"value\":1}'\n  weft hop beta /tail -d '{\"follow\":true}'")]
    Hop(hop::HopArgs),
    /// Decide which nodes may vote in the mesh
    #[command(subcommand)]
    Acl(AclCommand),
    /// Say what happens in the mesh, until Ctrl-C
    Events(JsonArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token that lets one node join, and print what to type there
    #[command(after_help = "Examples:\n  weft token create\n  weft token create --lifetime 600")]
    Create(CreateArgs),
    /// Show the tokens that still let somebody in, without their secrets
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End a token
    Delete {
        /// Its id, as `weft token list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Seconds until it ends, 60 to 604800
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    lifetime: u32,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("secret").required(true).args(["token", "token_file"]))]
pub(super) struct JoinArgs {
    /// Where a member's gRPC listener answers, HOST or HOST:PORT
    address: String,
    /// The token that `weft token create` printed; `-` reads it from standard input
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// A file with the token, which other users then cannot see in the list of processes
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct LeaveArgs {
    /// Another node that is to be removed, whether it runs or not
    node: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum AclCommand {
    /// Show the ACLs
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make an ACL, or replace the one with this name
    #[command(
        after_help = "Examples:\n  weft acl put servers --allow 'srv-*'\n  weft acl put no-laptops --deny 'laptop-*'"
    )]
    Put(PutAclArgs),
    /// Remove an ACL
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("action").required(true).args(["allow", "deny"]))]
pub(super) struct PutAclArgs {
    /// The name
    name: String,
    /// Nodes that may vote: ids, in which * stands for any characters
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    allow: Vec<String>,
    /// Nodes that may not vote, whatever else allows it
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    deny: Vec<String>,
}

/// Why a command about the mesh did not come to the agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum MeshError {
    #[error("failed to read the token")]
    Token(#[source] FileError),
    #[error("failed to read the token from standard input")]
    Input(#[source] std::io::Error),
    #[error("there is no file {}", .0.display())]
    NoFile(PathBuf),
    #[error(transparent)]
    Hop(#[from] hop::HopError),
}

async fn membership(client: &Client) -> Result<MembershipClient<Channel>, ClientError> {
    Ok(MembershipClient::new(client.channel().await?))
}

pub(super) async fn run(client: &Client, command: &MeshCommand) -> Result<Exit, Failure> {
    match command {
        MeshCommand::Token(command) => token(client, command).await,
        MeshCommand::Join(args) => join(client, args).await,
        MeshCommand::Leave(args) => leave(client, args).await,
        MeshCommand::Hop(args) => hop::run(client, args).await,
        MeshCommand::Acl(command) => acl(client, command).await,
        MeshCommand::Events(args) => events(client, args.json).await,
    }
}

async fn token(client: &Client, command: &TokenCommand) -> Result<Exit, Failure> {
    match command {
        TokenCommand::Create(args) => create_token(client, args).await,
        TokenCommand::List { json } => list_tokens(client, *json).await,
        TokenCommand::Delete { id } => {
            let request = proto::DeleteTokenRequest { id: id.clone() };
            membership(client).await?.delete_token(request).await.map_err(ClientError::from)?;
            output::print(&format!("token {id} is void\n"))?;
            Ok(Exit::Ok)
        }
    }
}

async fn create_token(client: &Client, args: &CreateArgs) -> Result<Exit, Failure> {
    let request = proto::CreateTokenRequest { lifetime_seconds: args.lifetime };
    let made = membership(client).await?.create_token(request).await.map_err(ClientError::from)?.into_inner();
    let expires_at = time(made.expires_at);
    if args.json {
        output::print_json(&serde_json::json!({
            "schema": view::SCHEMA, "id": made.id, "token": made.token, "expires_at": expires_at, "address": made.address,
        }))?;
        return Ok(Exit::Ok);
    }
    let address = if made.address.is_empty() { "ADDRESS" } else { &made.address };
    output::print(&format!("weft join {address} --token {}\n", made.token))?;
    output::complain(&format!("Type this on the node that is to join, as root. It works once, until {expires_at}.\n"));
    Ok(Exit::Ok)
}

async fn list_tokens(client: &Client, json: bool) -> Result<Exit, Failure> {
    let tokens = membership(client).await?.list_tokens(()).await.map_err(ClientError::from)?.into_inner().tokens;
    if json {
        let shown: Vec<_> = tokens
            .iter()
            .map(|token| {
                serde_json::json!({
                    "id": token.id, "created_at": time(token.created_at), "expires_at": time(token.expires_at),
                    "attempts_left": token.attempts_left,
                })
            })
            .collect();
        output::print_json(&serde_json::json!({ "schema": view::SCHEMA, "tokens": shown }))?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(&[("TOKEN", Align::Left), ("MADE", Align::Left), ("ENDS", Align::Left)]);
    for token in &tokens {
        let cells = [token.id.clone(), time(token.created_at), time(token.expires_at)];
        table.row(cells.map(output::cell).into());
    }
    output::print(&table.render(Style::of_stdout()))?;
    Ok(Exit::Ok)
}

fn time(time: Option<prost_types::Timestamp>) -> String {
    time.and_then(|time| SystemTime::try_from(time).ok()).map(rfc3339::format).unwrap_or_default()
}

async fn join(client: &Client, args: &JoinArgs) -> Result<Exit, Failure> {
    let token = secret(args)?;
    let request = proto::JoinMeshRequest { address: args.address.clone(), token: token.trim().to_owned() };
    let mut local = LocalClient::new(client.channel().await?);
    let joined = local.join_mesh(request).await.map_err(ClientError::from)?.into_inner();
    if args.json {
        output::print_json(&serde_json::json!({
            "schema": view::SCHEMA, "mesh": joined.mesh, "addresses": joined.addresses, "members": joined.members,
            "elapsed_ms": joined.elapsed_ms,
        }))?;
    } else {
        output::print(&format!(
            "joined mesh {} in {} ms: {} members, this node has {}\n",
            joined.mesh,
            joined.elapsed_ms,
            joined.members,
            joined.addresses.join(", ")
        ))?;
    }
    Ok(Exit::Ok)
}

fn secret(args: &JoinArgs) -> Result<Zeroizing<String>, MeshError> {
    match (&args.token, &args.token_file) {
        (Some(dash), _) if dash == "-" => {
            let mut text = Zeroizing::new(String::new());
            std::io::stdin().take(4096).read_to_string(&mut text).map_err(MeshError::Input)?;
            Ok(text)
        }
        (Some(token), _) => Ok(Zeroizing::new(token.clone())),
        (None, Some(path)) => {
            let text = file::read_if_present(path).map_err(MeshError::Token)?;
            text.map(Zeroizing::new).ok_or_else(|| MeshError::NoFile(path.clone()))
        }
        (None, None) => Ok(Zeroizing::default()),
    }
}

async fn leave(client: &Client, args: &LeaveArgs) -> Result<Exit, Failure> {
    if let Some(node) = &args.node {
        return remove(client, node, args.json).await;
    }
    let json = args.json;
    let mut local = LocalClient::new(client.channel().await?);
    let left = local.leave_mesh(proto::LeaveMeshRequest {}).await.map_err(ClientError::from)?.into_inner();
    if json {
        output::print_json(&serde_json::json!({ "schema": view::SCHEMA, "mesh": left.mesh }))?;
    } else {
        output::print(&format!("left mesh {}; this node is a mesh of its own again\n", left.mesh))?;
    }
    Ok(Exit::Ok)
}

/// Has the mesh remove another node.
async fn remove(client: &Client, node: &str, json: bool) -> Result<Exit, Failure> {
    let request = LeaveRequest { id: node.to_owned() };
    NodeClient::new(client.channel().await?).leave(request).await.map_err(ClientError::from)?;
    if json {
        output::print_json(&serde_json::json!({ "schema": view::SCHEMA, "removed": node }))?;
    } else {
        output::print(&format!("{node} is out: its addresses are free and its certificate is refused\n"))?;
    }
    Ok(Exit::Ok)
}

async fn acl(client: &Client, command: &AclCommand) -> Result<Exit, Failure> {
    let mut admin = AdminClient::new(client.channel().await?);
    match command {
        AclCommand::List { json } => {
            let items = admin.list_raft_ac_ls(()).await.map_err(ClientError::from)?.into_inner().items;
            list_acls(&items, *json)?;
        }
        AclCommand::Put(args) => {
            let (action, patterns) = if args.deny.is_empty() { (1, &args.allow) } else { (0, &args.deny) };
            let acl = RaftAcl { name: args.name.clone(), patterns: patterns.clone(), action };
            admin.put_raft_acl(acl).await.map_err(ClientError::from)?;
            output::print(&format!("ACL {} is in place\n", args.name))?;
        }
        AclCommand::Delete { name } => {
            let request = DeleteRaftAclRequest { name: name.clone() };
            admin.delete_raft_acl(request).await.map_err(ClientError::from)?;
            output::print(&format!("ACL {name} is gone\n"))?;
        }
    }
    Ok(Exit::Ok)
}

fn list_acls(items: &[RaftAcl], json: bool) -> std::io::Result<()> {
    let action = |acl: &RaftAcl| if acl.action == 0 { "deny" } else { "allow" };
    if json {
        let shown: Vec<_> = items
            .iter()
            .map(|acl| serde_json::json!({ "name": acl.name, "action": action(acl), "patterns": acl.patterns }))
            .collect();
        return output::print_json(&serde_json::json!({ "schema": view::SCHEMA, "acls": shown }));
    }
    let mut table = Table::new(&[("ACL", Align::Left), ("VOTES", Align::Left), ("NODES", Align::Left)]);
    for acl in items {
        let cells = [acl.name.clone(), action(acl).to_owned(), acl.patterns.join(", ")];
        table.row(cells.map(output::cell).into());
    }
    output::print(&table.render(Style::of_stdout()))
}

async fn events(client: &Client, json: bool) -> Result<Exit, Failure> {
    let mut membership = membership(client).await?;
    let events = membership.watch_events(proto::WatchEventsRequest {}).await.map_err(ClientError::from)?;
    let mut events = events.into_inner();
    output::complain("waiting for events; Ctrl-C ends it\n");
    let failed = |status| ClientError::Stream(Box::new(status));
    while let Some(event) = events.message().await.map_err(failed)? {
        let at = time(event.at);
        if json {
            output::print_json_line(&serde_json::json!({
                "schema": event.schema, "at": at, "kind": event.kind, "node": event.node, "text": event.text,
            }))?;
        } else {
            output::print(&format!("{at}  {}\n", event.text))?;
        }
    }
    output::complain("the agent stopped\n");
    Ok(Exit::Ok)
}
