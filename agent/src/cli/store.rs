//! `weft store`: the operator's door to the replicated database.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tonic::transport::Channel;
use weft_proto::v1;
use weft_proto::weft::store::v1 as proto;
use weft_proto::weft::store::v1::store_client::StoreClient;

use super::client::{Client, ClientError};
use super::output::{self, Align, Style, Table, cell};
use super::{ExecArgs, Exit, Failure, JsonArgs, MemberCommand, RestoreArgs, SqlArgs, StoreCommand, Target};
use crate::foundation::rfc3339;
use crate::store::{offline, time_text};

/// Number of the schema of what `--json` prints.
const SCHEMA: u32 = 1;

/// Why a command of `weft store` failed before the agent was asked, or on its answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreCommandError {
    #[error("--bind {0}: it is not [:NAME=]TYPE:VALUE, TYPE one of int, real, bool, text, blob, time, null")]
    Bind(String),
    #[error("{} exists already; it is not written over", .0.display())]
    Exists(std::path::PathBuf),
    #[error("failed to write {}", path.display())]
    Write {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Restore(#[from] offline::RestoreError),
}

pub(super) async fn run(target: &Target, command: &StoreCommand) -> Result<Exit, Failure> {
    match command {
        StoreCommand::Query(args) => query(&target.client()?, args).await,
        StoreCommand::Exec(args) => exec(&target.client()?, args).await,
        StoreCommand::Watch { tables, json } => watch(&target.client()?, tables, *json).await,
        StoreCommand::Backup { file, json } => backup(&target.client()?, file, *json).await,
        StoreCommand::Restore(args) => restore(target, args),
        StoreCommand::Member(command) => member(&target.client()?, command).await,
        StoreCommand::Status(JsonArgs { json }) => status(&target.client()?, *json).await,
    }
}

/// A member's number as it is shown.
pub(super) fn parse_number(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16)
        .map_err(|_not_hexadecimal| "it is not a number as `weft store status` shows it".to_owned())
}

fn failed(status: tonic::Status) -> Failure {
    ClientError::Status(Box::new(status)).into()
}

async fn connect(client: &Client) -> Result<StoreClient<Channel>, Failure> {
    Ok(StoreClient::new(client.channel().await?).max_decoding_message_size(super::client::LARGEST_ANSWER_BYTES))
}

async fn query(client: &Client, args: &SqlArgs) -> Result<Exit, Failure> {
    let query = v1::SqlQuery { transaction: true, statement: Some(statement(&args.sql, &args.bind)?) };
    let request = proto::QueryRequest { query: Some(query), local: args.local };
    let result = connect(client).await?.query(request).await.map_err(failed)?.into_inner();
    if args.json {
        let rows: Vec<Value> =
            result.values.into_iter().map(|row| Value::Array(row.values.into_iter().map(to_json).collect())).collect();
        output::print_json(
            &json!({ "schema": SCHEMA, "columns": result.columns, "types": result.types, "rows": rows }),
        )?;
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    let widths = columns(&result);
    line(&mut text, &widths, result.columns.iter().cloned());
    for row in result.values {
        line(&mut text, &widths, row.values.into_iter().map(shown));
    }
    output::print(&text)?;
    Ok(Exit::Ok)
}

fn columns(result: &v1::SqlQueryResult) -> Vec<usize> {
    let width = |(place, name): (usize, &String)| {
        let cells = result.values.iter().filter_map(|row| row.values.get(place)).map(|value| shown(value.clone()));
        cells.map(|cell| cell.chars().count()).chain([name.chars().count()]).max().unwrap_or_default()
    };
    result.columns.iter().enumerate().map(width).collect()
}

fn line(text: &mut String, widths: &[usize], cells: impl Iterator<Item = String>) {
    let mut line = String::new();
    for (cell, width) in cells.zip(widths) {
        write!(line, "{cell:width$}  ").expect("writing to a String cannot fail");
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

async fn exec(client: &Client, args: &ExecArgs) -> Result<Exit, Failure> {
    let mut steps = Vec::new();
    for sql in &args.sql {
        let exec = v1::SqlExec { transaction: true, statement: Some(statement(sql, &args.bind)?) };
        let entry = v1::RaftLogEntry {
            r#type: v1::RaftCommandType::Execute.into(),
            sql_exec: Some(exec),
            ..v1::RaftLogEntry::default()
        };
        steps.push(proto::Step { entry: Some(entry), own_tables: args.own_table.clone(), expecting: args.expecting });
    }
    let answer = connect(client).await?.execute(proto::ExecuteRequest { steps }).await.map_err(failed)?.into_inner();
    let results: Vec<v1::SqlExecResult> = answer.results.into_iter().filter_map(|result| result.exec_result).collect();
    if args.json {
        let results: Vec<Value> = results
            .iter()
            .map(|result| json!({ "rows_affected": result.rows_affected, "last_insert_id": result.last_insert_id }))
            .collect();
        output::print_json(&json!({ "schema": SCHEMA, "index": answer.index, "results": results }))?;
        return Ok(Exit::Ok);
    }
    for result in results {
        output::print(&format!("{} row(s) affected\n", result.rows_affected))?;
    }
    Ok(Exit::Ok)
}

async fn watch(client: &Client, tables: &[String], json: bool) -> Result<Exit, Failure> {
    let request = proto::WatchRequest { tables: tables.to_vec() };
    let mut changes = connect(client).await?.watch(request).await.map_err(failed)?.into_inner();
    while let Some(change) = changes.message().await.map_err(failed)? {
        if json {
            output::print_json_line(&json!({ "schema": SCHEMA, "index": change.index }))?;
        } else {
            output::print(&format!("entry {}\n", change.index))?;
        }
    }
    Ok(Exit::Ok)
}

/// Writes beside the file and renames, so that a backup is there whole or not at all.
async fn backup(client: &Client, file: &Path, json: bool) -> Result<Exit, Failure> {
    if file.exists() {
        return Err(StoreCommandError::Exists(file.to_owned()).into());
    }
    let mut pieces = connect(client).await?.backup(proto::BackupRequest {}).await.map_err(failed)?.into_inner();
    let beside = file.with_extension("part");
    let written = |source| StoreCommandError::Write { path: file.to_owned(), source };
    let mut options = tokio::fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&beside).await.map_err(written)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.message().await.map_err(failed)? {
        out.write_all(&piece.data).await.map_err(written)?;
        bytes += piece.data.len();
    }
    out.sync_all().await.map_err(written)?;
    tokio::fs::rename(&beside, file).await.map_err(written)?;
    let text = file.display().to_string();
    if json {
        output::print_json(&json!({ "schema": SCHEMA, "file": text, "bytes": bytes }))?;
    } else {
        output::print(&format!("wrote {text}, {}\n", output::bytes(u64::try_from(bytes).unwrap_or(u64::MAX))))?;
    }
    Ok(Exit::Ok)
}

fn restore(target: &Target, args: &RestoreArgs) -> Result<Exit, Failure> {
    let directory = target.load()?.state_dir.join("store");
    let restored = offline::restore(&directory, &args.file).map_err(StoreCommandError::from)?;
    let kept = restored.kept.map(|kept| kept.display().to_string());
    if args.json {
        output::print_json(&json!({ "schema": SCHEMA, "store": directory.display().to_string(), "kept": kept }))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!("restored {} into {}\n", args.file.display(), directory.display());
    if let Some(kept) = kept {
        text.push_str(&format!("what was there is in {kept}\n"));
    }
    text.push_str("the store is a cluster of one now: start the agent, then let the other nodes join again\n");
    output::print(&text)?;
    Ok(Exit::Ok)
}

async fn member(client: &Client, command: &MemberCommand) -> Result<Exit, Failure> {
    use proto::change_members_request::Change;
    let nothing = proto::Nothing {};
    let (node, change, done) = match command {
        MemberCommand::Add { node, number, address } => {
            let add = proto::NewMember { number: *number, address: address.clone() };
            (node, Change::Add(add), "is a member without a vote and has everything")
        }
        MemberCommand::Promote { node } => (node, Change::Promote(nothing), "has a vote"),
        MemberCommand::Demote { node } => (node, Change::Demote(nothing), "has no vote"),
        MemberCommand::Remove { node } => (node, Change::Remove(nothing), "is no member any more"),
        MemberCommand::Lead { node } => (node, Change::Lead(nothing), "leads"),
    };
    let request = proto::ChangeMembersRequest { node: node.clone(), change: Some(change) };
    connect(client).await?.change_members(request).await.map_err(failed)?;
    output::print(&format!("{node} {done}\n"))?;
    Ok(Exit::Ok)
}

async fn status(client: &Client, json: bool) -> Result<Exit, Failure> {
    let status = connect(client).await?.get_status(proto::StatusRequest {}).await.map_err(failed)?.into_inner();
    let exit = if status.errors.is_empty() && status.leader.is_some() { Exit::Ok } else { Exit::Degraded };
    if json {
        output::print_json(&status_json(&status))?;
        return Ok(exit);
    }
    let style = Style::of_stdout();
    let fields = [
        ("role", status.role.clone()),
        ("leader", status.leader.clone().unwrap_or_else(|| "none".to_owned())),
        ("number", format!("{:016x}", status.member)),
        ("term", status.term.to_string()),
        ("log", format!("{} entries, {} carried out, {} purged", status.last_log, status.applied, status.purged)),
        ("log size", output::bytes(status.log_bytes)),
        ("database", output::bytes(status.database_bytes)),
        ("behind", format!("{} entries", status.behind)),
        ("log sync", sync_text(&status)),
        (
            "disk",
            format!(
                "{} free, {} needed",
                output::bytes(status.disk_free_bytes),
                output::bytes(status.disk_needed_bytes)
            ),
        ),
        ("errors", status.errors.join("; ")),
    ];
    let mut table = Table::new(&[
        ("MEMBER", Align::Left),
        ("VOTE", Align::Left),
        ("ADDRESS", Align::Left),
        ("NUMBER", Align::Left),
    ]);
    for member in &status.members {
        let vote = if member.voter { "yes" } else { "no" };
        table.row(vec![cell(&member.node), cell(vote), cell(&member.address), cell(format!("{:016x}", member.number))]);
    }
    output::print(&format!("{}\n{}", output::fields(style, &fields), table.render(style)))?;
    Ok(exit)
}

/// How long the disk takes to make a batch of the log durable.
fn sync_text(status: &proto::Status) -> String {
    let millis = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1000.0;
    format!("{:.2} ms, longest {:.2} ms", millis(status.sync_median_micros), millis(status.sync_worst_micros))
}

/// The line of `weft doctor`: the part this member plays, how far it is, how fast its disk is and what is free there.
pub(super) async fn summary(client: &Client) -> Result<String, Failure> {
    let status = connect(client).await?.get_status(proto::StatusRequest {}).await.map_err(failed)?.into_inner();
    Ok(summary_of(&status))
}

fn summary_of(status: &proto::Status) -> String {
    format!(
        "{} of {} member(s), {} entries behind, log sync {}, {} free",
        status.role,
        status.members.len(),
        status.behind,
        sync_text(status),
        output::bytes(status.disk_free_bytes)
    )
}

fn status_json(status: &proto::Status) -> Value {
    let members: Vec<Value> = status
        .members
        .iter()
        .map(|member| json!({ "number": member.number, "node": member.node, "address": member.address, "voter": member.voter }))
        .collect();
    json!({
        "schema": SCHEMA, "role": status.role, "leader": status.leader, "term": status.term, "member": status.member,
        "last_log": status.last_log, "applied": status.applied, "snapshot": status.snapshot, "purged": status.purged,
        "log_bytes": status.log_bytes, "database_bytes": status.database_bytes, "ready": status.ready,
        "members": members, "errors": status.errors, "behind": status.behind,
        "sync_median_micros": status.sync_median_micros, "sync_worst_micros": status.sync_worst_micros,
        "disk_free_bytes": status.disk_free_bytes, "disk_needed_bytes": status.disk_needed_bytes,
    })
}

fn statement(sql: &str, bind: &[String]) -> Result<v1::SqlStatement, StoreCommandError> {
    let parameters = bind.iter().map(|text| parameter(text)).collect::<Result<_, _>>()?;
    Ok(v1::SqlStatement { sql: sql.to_owned(), parameters })
}

/// `[:NAME=]TYPE:VALUE`.
fn parameter(text: &str) -> Result<v1::SqlParameter, StoreCommandError> {
    use v1::SqlParameterType as Type;
    let wrong = || StoreCommandError::Bind(text.to_owned());
    let (name, value) = match text.strip_prefix(':').and_then(|named| named.split_once('=')) {
        Some((name, value)) => (format!(":{name}"), value),
        None => (String::new(), text),
    };
    let (kind, value) = if value == "null" { ("null", "") } else { value.split_once(':').ok_or_else(wrong)? };
    let parameter = v1::SqlParameter { name, ..v1::SqlParameter::default() };
    let typed = |kind: Type| i32::from(kind);
    Ok(match kind {
        "int" => v1::SqlParameter {
            r#type: typed(Type::SqlParamInt64),
            int64: value.parse().map_err(|_not_a_number| wrong())?,
            ..parameter
        },
        "real" => v1::SqlParameter {
            r#type: typed(Type::SqlParamDouble),
            double: value.parse().map_err(|_not_a_number| wrong())?,
            ..parameter
        },
        "bool" => v1::SqlParameter {
            r#type: typed(Type::SqlParamBool),
            bool: value.parse().map_err(|_not_a_bool| wrong())?,
            ..parameter
        },
        "text" => v1::SqlParameter { r#type: typed(Type::SqlParamString), str: value.to_owned(), ..parameter },
        "blob" => v1::SqlParameter {
            r#type: typed(Type::SqlParamBytes),
            bytes: from_hex(value).ok_or_else(wrong)?,
            ..parameter
        },
        "time" => v1::SqlParameter {
            r#type: typed(Type::SqlParamTime),
            time: Some(rfc3339::parse(value).map(prost_types::Timestamp::from).ok_or_else(wrong)?),
            ..parameter
        },
        "null" => v1::SqlParameter { r#type: typed(Type::SqlParamNull), ..parameter },
        _ => return Err(wrong()),
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    (digits.len().is_multiple_of(2)).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn time_of(value: &v1::SqlParameter) -> String {
    let time = value.time.and_then(|time| SystemTime::try_from(time).ok());
    time.map(time_text).unwrap_or_default()
}

/// A value as a table shows it.
fn shown(value: v1::SqlParameter) -> String {
    use v1::SqlParameterType as Type;
    match value.r#type() {
        Type::SqlParamInt64 => value.int64.to_string(),
        Type::SqlParamDouble => value.double.to_string(),
        Type::SqlParamBool => value.bool.to_string(),
        Type::SqlParamBytes => format!("x'{}'", to_hex(&value.bytes)),
        Type::SqlParamString => value.str.replace(|c: char| c.is_control(), "\u{fffd}"),
        Type::SqlParamTime => time_of(&value),
        Type::SqlParamNull | Type::SqlParamUnknown => "NULL".to_owned(),
    }
}

/// A value as JSON: a blob is an object with its hexadecimal digits.
fn to_json(value: v1::SqlParameter) -> Value {
    use v1::SqlParameterType as Type;
    match value.r#type() {
        Type::SqlParamInt64 => json!(value.int64),
        Type::SqlParamDouble => json!(value.double),
        Type::SqlParamBool => json!(value.bool),
        Type::SqlParamBytes => Value::Object(Map::from_iter([("blob".to_owned(), json!(to_hex(&value.bytes)))])),
        Type::SqlParamString => json!(value.str),
        Type::SqlParamTime => json!(time_of(&value)),
        Type::SqlParamNull | Type::SqlParamUnknown => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, name: &str, expected: &str) {
        let parameter = parameter(text).expect("parsed");
        assert_eq!((parameter.name.clone().as_str(), shown(parameter).as_str()), (name, expected), "{text}");
    }

    #[test]
    fn parameters_of_every_type_are_read() {
        check("int:-5", "", "-5");
        check(":n=text:a=b:c", ":n", "a=b:c");
        check("real:0.5", "", "0.5");
        check("bool:true", "", "true");
        check("blob:00ff", "", "x'00ff'");
        check("time:2026-01-02T03:04:05Z", "", "2026-01-02T03:04:05.000000000Z");
        check(":gone=null", ":gone", "NULL");
    }

    #[test]
    fn the_summary_tells_part_lag_and_disk() {
        let status = proto::Status {
            role: "leader".to_owned(),
            members: vec![proto::Member::default(); 3],
            behind: 7,
            sync_median_micros: 420,
            sync_worst_micros: 8_000,
            ..proto::Status::default()
        };
        let text = summary_of(&status);
        let expected = "leader of 3 member(s), 7 entries behind, log sync 0.42 ms, longest 8.00 ms, ";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_parameter_that_is_none_is_refused_by_its_text() {
        for text in ["5", "int:five", "blob:0", "blob:zz", "colour:red", "bool:1"] {
            let error = parameter(text).expect_err("refused").to_string();
            assert!(error.starts_with(&format!("--bind {text}: ")), "{error}");
        }
    }
}
