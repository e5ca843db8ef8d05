//! The processes in `weft top`: the busiest first. Pure.

use std::cmp::Reverse;

use serde::Serialize;

use crate::api::process::{Item, List};
use crate::cli::output::{self, Align, Style, Table, Tone, cell, toned};

/// What one instance uses; in the JSON of `weft top --json` too.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ProcessFigures {
    pub(super) id: u32,
    pub(super) name: String,
    status: String,
    pid: Option<u32>,
    restarts: u64,
    /// Of one processor.
    cpu_percent: f64,
    memory_bytes: u64,
    health: String,
}

/// What each instance uses, the busiest first.
pub(super) fn figures(list: List) -> Vec<ProcessFigures> {
    let mut figures: Vec<ProcessFigures> = list.processes.into_iter().map(of).collect();
    figures.sort_by(|one, other| {
        let busy = other.cpu_percent.total_cmp(&one.cpu_percent);
        let rest = |item: &ProcessFigures| (Reverse(item.memory_bytes), item.id);
        busy.then_with(|| rest(one).cmp(&rest(other)))
    });
    figures
}

fn of(item: Item) -> ProcessFigures {
    ProcessFigures {
        id: item.id,
        name: item.name,
        status: item.status,
        pid: item.pid,
        restarts: item.restarts,
        cpu_percent: item.cpu_percent,
        memory_bytes: item.memory_bytes,
        health: item.health,
    }
}

pub(super) fn render(processes: &[ProcessFigures], style: Style) -> String {
    let mut table = Table::new(&[
        ("PROCESS", Align::Left),
        ("STATUS", Align::Left),
        ("PID", Align::Right),
        ("CPU", Align::Right),
        ("MEMORY", Align::Right),
        ("RESTARTS", Align::Right),
        ("HEALTH", Align::Left),
    ]);
    for item in processes {
        let runs = item.pid.is_some();
        let figure = |text: String| cell(if runs { text } else { "-".to_owned() });
        let tone = match item.status.as_str() {
            "online" => Tone::Good,
            "errored" => Tone::Bad,
            "stopped" => Tone::Faint,
            _ => Tone::Warning,
        };
        table.row(vec![
            cell(&item.name),
            toned(tone, &item.status),
            cell(item.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
            figure(format!("{:.1} %", item.cpu_percent)),
            figure(output::bytes(item.memory_bytes)),
            cell(item.restarts.to_string()),
            cell(if item.health == "none" { "-" } else { &item.health }),
        ]);
    }
    format!("{} process(es)\n{}", processes.len(), table.render(style))
}

#[cfg(test)]
pub(super) fn example() -> ProcessFigures {
    tests::item(0, "web", 2.5, 2048)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn item(id: u32, name: &str, cpu_percent: f64, memory_bytes: u64) -> ProcessFigures {
        let (status, health) = ("online".to_owned(), "none".to_owned());
        ProcessFigures {
            id,
            name: name.to_owned(),
            status,
            pid: Some(7),
            restarts: 3,
            cpu_percent,
            memory_bytes,
            health,
        }
    }

    #[test]
    fn the_busiest_comes_first() {
        let json = |figures: &ProcessFigures| {
            let mut value = serde_json::to_value(figures).expect("JSON");
            let more = serde_json::json!({ "process": "p", "instance": 0, "namespace": "default", "created_ms": 0,
                "out_log": "", "error_log": "", "definition": {} });
            value.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            value
        };
        let items =
            [item(0, "small", 0.0, 1), item(1, "busy", 12.5, 1), item(2, "large", 0.0, 9)].map(|item| json(&item));
        let list = serde_json::from_value(serde_json::json!({ "schema": 1, "processes": items })).expect("a list");
        let names: Vec<_> = figures(list).into_iter().map(|item| item.name).collect();
        assert_eq!(names, ["busy", "large", "small"]);
    }

    #[test]
    fn a_process_that_does_not_run_uses_nothing() {
        let stopped = ProcessFigures { pid: None, status: "stopped".to_owned(), ..item(1, "job", 0.0, 0) };
        let text = render(&[example(), stopped], Style::Plain);
        let expected = "2 process(es) PROCESS STATUS PID CPU MEMORY RESTARTS HEALTH web online 7 2.5 % 2.00 KiB 3 - \
                        job stopped - - - 3 -";
        assert_eq!(text.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    }
}
