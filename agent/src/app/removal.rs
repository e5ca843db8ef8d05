//! `weft down`: takes away exactly what is ours, in the order opposite to how it was built.

use crate::api::{CommandError, CommandResult};
use crate::config::{Config, Settings, check};
use crate::dns::hook::resolv_conf::Restored;
use crate::foundation::error::chain;
use crate::{bus, dns, ebpf, net, process, wireguard};

/// Removes what is ours while no agent runs; the lines say what was removed. Doing it again removes nothing.
///
/// # Errors
/// What is still there, each part with its reason; the other parts are gone.
pub fn remove(config: &Config) -> CommandResult {
    let settings = check(config).map_err(|error| CommandError(chain(&error)))?;
    // The caller may be inside a runtime of its own, which must not wait for another on the same thread.
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| remove_alone(&settings));
        removal.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn remove_alone(settings: &Settings) -> CommandResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError(format!("failed to start the runtime: {error}")))?;
    runtime.block_on(remove_all(settings))
}

/// Removes processes, the message bus, the host resolver's hook, pins, table, routes and link; a failure of one does not keep the next.
pub(super) async fn remove_all(settings: &Settings) -> CommandResult {
    let mut removed = Vec::new();
    let mut errors = Vec::new();
    let mut note = |part: Result<Vec<String>, String>| match part {
        Ok(lines) => removed.extend(lines),
        Err(error) => errors.push(error),
    };
    note(processes(settings).await);
    note(Ok(message_bus(settings).await));
    note(resolver_hook(settings));
    note(accounting(settings));
    note(callers(settings));
    note(firewall(settings).await);
    note(network(settings).await);
    note(tunnel(settings).await);
    if errors.is_empty() { Ok(removed) } else { Err(CommandError(errors.join("; "))) }
}

async fn processes(settings: &Settings) -> Result<Vec<String>, String> {
    let instance = &settings.process.instance;
    let ended = process::platform::linux::kill_root(instance).await;
    let ended = ended.map_err(|error| format!("failed to end the processes: {error}"))?;
    Ok(ended
        .then(|| "the supervised processes and the log keeper; their definitions and logs stay".to_owned())
        .into_iter()
        .collect())
}

async fn message_bus(settings: &Settings) -> Vec<String> {
    let removed = bus::down(&settings.run_dir).await;
    removed.then(|| "the message bus of an agent that was killed".to_owned()).into_iter().collect()
}

fn resolver_hook(settings: &Settings) -> Result<Vec<String>, String> {
    Ok(match dns::down(&settings.dns).map_err(|error| chain(&error))? {
        Restored::NotOurs => Vec::new(),
        Restored::Restored => vec!["the host resolver's hook; /etc/resolv.conf is as it was".to_owned()],
        Restored::LeftAlone => {
            vec!["the note of a former resolver hook; /etc/resolv.conf was changed since and stays".to_owned()]
        }
    })
}

async fn firewall(settings: &Settings) -> Result<Vec<String>, String> {
    let instance = &settings.firewall.instance;
    let removed = net::firewall::down(instance).await.map_err(|error| chain(&error))?;
    Ok(removed.then(|| "the nftables table".to_owned()).into_iter().collect())
}

fn accounting(settings: &Settings) -> Result<Vec<String>, String> {
    let removed = ebpf::down(&settings.accounting).map_err(|error| chain(&error))?;
    Ok(counted(&[(removed.hooks, "program(s) on the link"), (removed.maps, "pinned map(s) with their counters")]))
}

fn callers(settings: &Settings) -> Result<Vec<String>, String> {
    let (pin_root, instance) = (&settings.callers.pin_root, &settings.callers.instance);
    let (links, maps) = ebpf::callers::down(pin_root, instance).map_err(|error| chain(&error))?;
    Ok(counted(&[(links, "program(s) that record callers"), (maps, "pinned map(s) of callers")]))
}

fn counted(parts: &[(usize, &str)]) -> Vec<String> {
    parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
}

async fn network(settings: &Settings) -> Result<Vec<String>, String> {
    let link = &settings.wireguard.link;
    let removed = net::down(link).await.map_err(|error| chain(&error))?;
    Ok(counted(&[(removed.routes, "route(s)"), (removed.addresses, "address(es)")]))
}

async fn tunnel(settings: &Settings) -> Result<Vec<String>, String> {
    let removed = wireguard::down(&settings.wireguard).await.map_err(|error| chain(&error))?;
    Ok(removed.link.map(|link| format!("link {link}")).into_iter().collect())
}
