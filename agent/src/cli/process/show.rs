//! Processes as tables.

use std::time::SystemTime;

use crate::api::process::{HealthCheck, Item, List, time_of};
use crate::cli::output::{self, Align, Style, Table, Tone, cell, toned};

/// One row an instance.
pub(super) fn table(list: &List, now: SystemTime, style: Style) -> String {
    if list.processes.is_empty() {
        return "no processes; `weft start ./program --name NAME` starts one, [process.NAME] in weft.toml defines one\n"
            .to_owned();
    }
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("NAME", Align::Left),
        ("STATUS", Align::Left),
        ("PID", Align::Right),
        ("UPTIME", Align::Right),
        ("RESTARTS", Align::Right),
        ("CPU", Align::Right),
        ("MEMORY", Align::Right),
        ("PORT", Align::Right),
        ("HEALTH", Align::Left),
        ("WHY", Align::Left),
    ]);
    for item in &list.processes {
        let number = |value: Option<u64>| cell(value.map_or_else(|| "-".to_owned(), |value| value.to_string()));
        let runs = item.pid.is_some();
        let figure = |text: String| cell(if runs { text } else { "-".to_owned() });
        table.row(vec![
            cell(item.id.to_string()),
            cell(&item.name),
            toned(tone(&item.status), &item.status),
            number(item.pid.map(u64::from)),
            cell(uptime(item, now)),
            cell(item.restarts.to_string()),
            figure(format!("{:.1} %", item.cpu_percent)),
            figure(output::bytes(item.memory_bytes)),
            number(item.port.map(u64::from)),
            cell(if item.health == "none" { "-" } else { &item.health }),
            toned(Tone::Faint, why(item)),
        ]);
    }
    table.render(style)
}

fn tone(status: &str) -> Tone {
    match status {
        "online" => Tone::Good,
        "errored" => Tone::Bad,
        "stopped" => Tone::Faint,
        _ => Tone::Warning,
    }
}

fn uptime(item: &Item, now: SystemTime) -> String {
    let started = item.started_ms.map(time_of);
    let passed = started.and_then(|started| now.duration_since(started).ok());
    passed.map_or_else(|| "-".to_owned(), |passed| output::seconds(passed.as_secs()))
}

/// Why it does not run, or was restarted.
fn why(item: &Item) -> String {
    match (&item.error, &item.last_exit, item.status.as_str()) {
        (Some(error), _, _) => error.clone(),
        (None, Some(exit), "errored" | "restarting") => format!("ended with {exit}"),
        (None, _, _) => String::new(),
    }
}

/// Every field of every instance.
pub(super) fn describe(list: &List, now: SystemTime, style: Style) -> String {
    let blocks: Vec<String> = list.processes.iter().map(|item| describe_one(item, now, style)).collect();
    blocks.join("\n")
}

fn describe_one(item: &Item, now: SystemTime, style: Style) -> String {
    let optional = |value: &Option<String>| value.clone().unwrap_or_default();
    let time = |millis: Option<u64>| {
        millis.map(|millis| crate::foundation::rfc3339::format(time_of(millis))).unwrap_or_default()
    };
    let mut fields = vec![
        ("name", item.name.clone()),
        ("id", item.id.to_string()),
        ("process", item.process.clone()),
        ("namespace", item.namespace.clone()),
        ("status", style.paint(tone(&item.status), &item.status)),
        ("why", why(item)),
        ("pid", item.pid.map(|pid| pid.to_string()).unwrap_or_default()),
        ("port", item.port.map(|port| port.to_string()).unwrap_or_default()),
        ("uptime", uptime(item, now)),
        ("created", time(Some(item.created_ms))),
        ("started", time(item.started_ms)),
        ("next start", time(item.next_start_ms)),
        ("restarts", item.restarts.to_string()),
        ("last restart", optional(&item.restart_reason)),
        ("next restart", time(item.next_restart_ms)),
        ("last exit", optional(&item.last_exit)),
        ("health", if item.health == "none" { String::new() } else { item.health.clone() }),
        ("health error", optional(&item.health_error)),
        ("CPU", format!("{:.1} %", item.cpu_percent)),
        ("memory", output::bytes(item.memory_bytes)),
        ("output", item.out_log.clone()),
        ("errors", item.error_log.clone()),
    ];
    let defined = item
        .definition
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !matches!(key.as_str(), "name" | "namespace"));
    let defined: Vec<(String, String)> = defined.map(|(key, value)| (key.clone(), plain(value))).collect();
    fields.extend(defined.iter().map(|(key, value)| (key.as_str(), value.clone())));
    output::fields(style, &fields) + &checks(&item.health_checks, style)
}

/// The last health checks, the newest last.
fn checks(checks: &[HealthCheck], style: Style) -> String {
    if checks.is_empty() {
        return String::new();
    }
    let columns = [("CHECKED", Align::Left), ("TOOK", Align::Right), ("HEALTH", Align::Left), ("WHY", Align::Left)];
    let mut table = Table::new(&columns);
    for check in checks {
        let (tone, word) = if check.healthy { (Tone::Good, "healthy") } else { (Tone::Bad, "failed") };
        table.row(vec![
            cell(crate::foundation::rfc3339::format(time_of(check.time_ms))),
            cell(format!("{} ms", check.duration_ms)),
            toned(tone, word),
            cell(check.error.as_deref().unwrap_or_default()),
        ]);
    }
    format!("\n{}", table.render(style))
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, status: &str) -> Item {
        Item {
            id: 0,
            name: name.to_owned(),
            process: name.to_owned(),
            instance: 0,
            namespace: "default".to_owned(),
            status: status.to_owned(),
            pid: (status == "online").then_some(1234),
            port: Some(3000),
            restarts: 2,
            created_ms: 0,
            started_ms: (status == "online").then_some(0),
            cpu_percent: 2.5,
            memory_bytes: 47_185_920,
            health: "none".to_owned(),
            health_error: None,
            health_checks: Vec::new(),
            last_exit: Some("code 3".to_owned()),
            error: None,
            next_start_ms: None,
            restart_reason: None,
            next_restart_ms: None,
            out_log: "/var/lib/weft/logs/process/web-out.log".to_owned(),
            error_log: "/var/lib/weft/logs/process/web-error.log".to_owned(),
            definition: serde_json::json!({ "script": "node server.js", "instances": 1 }),
        }
    }

    #[test]
    fn a_table_says_what_runs_and_why_not() {
        let list = List { schema: 1, processes: vec![item("web", "online"), item("job", "errored")] };
        let expected = "\
ID  NAME  STATUS    PID   UPTIME  RESTARTS    CPU    MEMORY  PORT  HEALTH  WHY
 0  web   online   1234  2 min 5 s         2  2.5 %  45.0 MiB  3000  -
 0  job   errored     -          -         2      -         -  3000  -       ended with code 3
";
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let shown = table(&list, time_of(125_000), Style::Plain);
        assert_eq!(words(&shown), words(expected), "{shown}");
    }

    #[test]
    fn a_description_has_the_definition_too() {
        let list = List { schema: 1, processes: vec![item("web", "online")] };
        let text = describe(&list, time_of(0), Style::Plain);
        assert!(text.contains("script        node server.js") && text.contains("pid           1234"), "{text}");
    }

    #[test]
    fn a_description_has_the_last_health_checks() {
        let check = |seconds: u64, error: Option<&str>| HealthCheck {
            time_ms: seconds * 1000,
            duration_ms: 12,
            healthy: error.is_none(),
            error: error.map(str::to_owned),
        };
        let checked = Item { health_checks: vec![check(0, None), check(5, Some("code 1"))], ..item("web", "online") };
        let text = describe(&List { schema: 1, processes: vec![checked] }, time_of(0), Style::Plain);
        let expected = "\n\
CHECKED               TOOK   HEALTH   WHY
1970-01-01T00:00:00Z  12 ms  healthy
1970-01-01T00:00:05Z  12 ms  failed   code 1
";
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let shown = text.find("CHECKED").map(|at| &text[at..]).expect("a table");
        assert_eq!(words(shown), words(expected), "{shown}");
    }

    #[test]
    fn nothing_says_how_to_get_something() {
        assert!(table(&List { schema: 1, processes: Vec::new() }, time_of(0), Style::Plain).contains("weft start"));
    }
}
