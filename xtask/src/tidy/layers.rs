//! The layer table of DESIGN section 3: which room of `agent/src` may use which.

use super::paths::Named;
use super::{Finding, finding};

/// The rooms from the bottom up. A room may use the layers below its own and itself; rooms of one layer never use each other.
const LAYERS: &[&[&str]] = &[
    &["foundation"],
    &["sys", "model"],
    &["store", "identity"],
    &["wireguard", "net", "ebpf", "dns", "mesh", "process", "bus"],
    &["doctor"],
    &["pm3"],
    &["api"],
    &["config"],
    &["app"],
    &["cli"],
];

/// Edges to a higher or equal layer that the table grants, each with its reason. Change it on purpose or not at all.
const GRANTED: &[(&str, &str)] = &[];

/// Findings about the `crate::` paths of one file.
pub(super) fn check(file: &str, paths: &[Named]) -> Vec<Finding> {
    let Some(module) = file.strip_prefix("agent/src/").and_then(|file| file.strip_suffix(".rs")) else {
        return Vec::new();
    };
    if matches!(module, "lib" | "main") {
        return Vec::new();
    }
    let depth = module.split('/').count();
    let room = module.split('/').next().unwrap_or(module);
    let Some(layer) = layer(room) else {
        return vec![finding(file, 0, format!("{room} is not in the layer table of xtask/src/tidy/layers.rs"))];
    };
    let used = paths.iter().filter_map(|named| Some((named, used_room(named, depth)?)));
    let forbidden = used.filter(|(_, used)| *used != room && !is_allowed(room, layer, used));
    forbidden
        .map(|(named, used)| {
            finding(file, named.line, format!("{room} must not use {used}: see the layers in DESIGN.md"))
        })
        .collect()
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

/// The room that a path leads to, if it leaves through the crate's root.
fn used_room(named: &Named, depth: usize) -> Option<&str> {
    let first = named.segments.first()?.as_str();
    let supers = named.segments.iter().take_while(|segment| *segment == "super").count();
    let target = match first {
        "crate" => named.segments.get(1),
        "super" if supers >= depth => named.segments.get(supers),
        _ => None,
    }?;
    layer(target).map(|_| target.as_str())
}

fn is_allowed(room: &str, own: usize, used: &str) -> bool {
    layer(used).is_some_and(|other| other < own) || GRANTED.contains(&(room, used))
}
