//! `weft tail`: the agent's log, or those of all nodes, history first, then live.

mod mesh;

use serde_json::{Map, Value, json};

use super::client::Client;
use super::output::{self, Style, Tone};
use super::{Exit, Failure, TailArgs};

pub(super) async fn run(client: &Client, args: &TailArgs) -> Result<Exit, Failure> {
    let mut options = json!({ "follow": !args.no_follow, "line_limit": args.lines });
    let texts = [
        ("domain", &args.domain),
        ("level", &args.level),
        ("after", &args.after),
        ("before", &args.before),
        ("substr", &args.contains),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            options[name] = Value::from(value.as_str());
        }
    }
    let style = Style::of_stdout();
    if args.mesh {
        let most = usize::try_from(args.lines).unwrap_or(usize::MAX);
        let show = |node: &str, line: &str| if args.json { named(line, node) } else { render(line, Some(node), style) };
        return mesh::run(client, &options, most, show).await;
    }
    let mut lines = client.lines("/tail", &options).await?;
    while let Some(line) = lines.next().await? {
        if args.json {
            output::print(&format!("{line}\n"))?;
        } else {
            output::print(&render(&line, None, style))?;
        }
    }
    Ok(Exit::Ok)
}

/// The line with the name of its node as one more member.
fn named(line: &str, node: &str) -> String {
    match serde_json::from_str::<Map<String, Value>>(line) {
        Ok(mut members) => {
            members.insert("node".to_owned(), Value::from(node));
            format!("{}\n", Value::Object(members))
        }
        Err(_damaged) => format!("{line}\n"),
    }
}

/// `TIME LEVEL [node ]domain: message name=value …`.
fn render(line: &str, node: Option<&str>, style: Style) -> String {
    let Ok(mut members) = serde_json::from_str::<Map<String, Value>>(line) else { return format!("{line}\n") };
    let time = members.remove("t").and_then(|time| time.as_u64()).unwrap_or_default();
    let mut text = |name: &str| match members.remove(name) {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (level, domain, message) = (text("l"), text("dom"), text("msg"));
    let time = crate::foundation::rfc3339::format(std::time::UNIX_EPOCH + std::time::Duration::from_millis(time));
    let tone = match level.as_str() {
        "error" => Tone::Bad,
        "warn" => Tone::Warning,
        _ => Tone::Neutral,
    };
    let level = style.paint(tone, &format!("{:5}", level.to_uppercase()));
    let node = node.map(|node| format!("{node} ")).unwrap_or_default();
    let mut out = format!("{time} {level} {node}{domain}: {message}");
    for (name, value) in members {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out.push_str(&format!(" {name}={value}"));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_from_left_to_right() {
        let line = r#"{"t":86400000,"l":"warn","dom":"dns","msg":"it broke","count":7,"name":"a b"}"#;
        assert_eq!(render(line, None, Style::Plain), "1970-01-02T00:00:00Z WARN  dns: it broke count=7 name=a b\n");
        assert!(render(line, Some("beta"), Style::Plain).starts_with("1970-01-02T00:00:00Z WARN  beta dns: it broke"));
        assert_eq!(render("no json", Some("beta"), Style::Plain), "no json\n");
        assert!(named(line, "beta").contains("\"node\":\"beta\"") && named(line, "beta").contains("\"count\":7"));
    }
}
