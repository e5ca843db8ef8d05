//! Points the host's own resolver at us, where `dns.hook` asks for it; off by default.
//!
//! In: where we answer, the link and the model. Out: [`State`]. `auto` is systemd-resolved if the host's lookups
//! truly go through it, else the file. A stop takes the hook away again, because a host must not ask a server that
//! is gone; what an unclean stop left is repaired by the next start, whatever `dns.hook` says then.

pub mod resolv_conf;
pub mod resolved;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::resolv_conf::{ResolvConf, ResolvConfError, Restored};
use self::resolved::{LinkDns, Resolve};
use super::config::HookChoice;
use super::status::Status;
use super::upstream::host::{self, HostFiles};
use crate::foundation::error;
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::{self, Task};
use crate::model::{Link, Model};
use crate::sys::file;

/// How soon it is noticed that another program took the hook away.
const RESYNC: Duration = Duration::from_secs(10);
/// Files cannot name a port (resolv.conf(5)).
const PORT: u16 = 53;

/// How the host's resolver points at us now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    pub hook: Option<String>,
    pub error: Option<String>,
}

/// What the hook looks at.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) model: watch::Receiver<Arc<Model>>,
    pub(super) link: watch::Receiver<Option<Link>>,
    pub(super) server: watch::Receiver<Arc<Status>>,
}

/// Keeps the hook as wanted until the stop, then takes it away.
pub(super) fn start(hook: Hook<impl Resolve>, inputs: Inputs, state: watch::Sender<State>, stop: Stop) -> Task {
    task::spawn("dns-hook", run(hook, inputs, state, stop))
}

// Not a `Reconciler`: it has a last act.
async fn run(mut hook: Hook<impl Resolve>, mut inputs: Inputs, state: watch::Sender<State>, mut stop: Stop) {
    hook.repair();
    loop {
        let now = hook.pass(&mut inputs).await;
        state.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        let stopping = tokio::select! {
            () = stop.requested() => true,
            result = inputs.model.changed() => result.is_err(),
            result = inputs.link.changed() => result.is_err(),
            result = inputs.server.changed() => result.is_err(),
            () = tokio::time::sleep(RESYNC) => false,
        };
        if stopping {
            hook.take_away().await;
            return;
        }
    }
}

/// Takes the hook away for good, as `weft down` does. What goes with the link goes with the link.
///
/// # Errors
/// The file could not be put back.
pub fn down(files: HostFiles) -> Result<Restored, ResolvConfError> {
    // The link goes, and with it what resolved knows of it.
    std::fs::remove_file(&files.told).ok();
    ResolvConf::new(files.resolv_conf, files.backup).restore()
}

/// Which way is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Active {
    None,
    File,
    Resolved(LinkDns),
    /// A run that did not end well told resolved about this link, and resolved may still know it.
    Left(u32),
}

/// The hook and what it did.
#[derive(Debug)]
pub(super) struct Hook<R> {
    choice: HookChoice,
    files: HostFiles,
    file: ResolvConf,
    resolved: R,
    active: Active,
}

impl<R: Resolve> Hook<R> {
    pub(super) fn new(choice: HookChoice, files: HostFiles, resolved: R) -> Self {
        let file = ResolvConf::new(files.resolv_conf.clone(), files.backup.clone());
        Self { choice, files, file, resolved, active: Active::None }
    }

    /// What the run before left.
    fn repair(&mut self) {
        if let Some(index) = told(&self.files.told) {
            self.active = Active::Left(index);
        }
        match self.file.restore() {
            Ok(Restored::NotOurs) => {}
            Ok(Restored::Restored) => tracing::info!("put back the resolv.conf that an unclean stop had left"),
            Ok(Restored::LeftAlone) => tracing::info!("resolv.conf was changed since an unclean stop: left as it is"),
            Err(failure) => tracing::warn!(error = error::chain(&failure), "repairing resolv.conf"),
        }
    }

    async fn pass(&mut self, inputs: &mut Inputs) -> State {
        let by_resolved = match self.choice {
            HookChoice::Off => {
                self.take_away_left().await;
                return State::default();
            }
            HookChoice::Resolved => true,
            HookChoice::ResolvConf => false,
            HookChoice::Auto => self.resolved_owns_lookups(),
        };
        let result = if by_resolved {
            self.by_resolved(inputs).await
        } else {
            self.take_away_left().await;
            self.by_file(inputs)
        };
        match result {
            Ok(hook) => State { hook, error: None },
            Err(error) => State { hook: None, error: Some(error) },
        }
    }

    /// The file names nothing but resolved's own stub. Once we wrote the file, it is ours to keep.
    fn resolved_owns_lookups(&self) -> bool {
        if matches!(self.active, Active::File) {
            return false;
        }
        let text = std::fs::read_to_string(&self.files.resolv_conf).unwrap_or_default();
        let servers = host::nameservers(&text);
        !servers.is_empty() && servers.iter().all(host::is_resolved_stub)
    }

    fn by_file(&mut self, inputs: &mut Inputs) -> Result<Option<String>, String> {
        let listening = inputs.server.borrow_and_update().listening.clone();
        let Some(address) = reachable_from_host(&listening) else {
            return Err("dns.hook: nothing answers on port 53 of this host; see dns.listen".to_owned());
        };
        self.file.apply(address).map_err(|failure| error::chain(&failure))?;
        self.active = Active::File;
        Ok(Some(format!("{} names {address}", self.files.resolv_conf.display())))
    }

    async fn by_resolved(&mut self, inputs: &mut Inputs) -> Result<Option<String>, String> {
        let model = Arc::clone(&inputs.model.borrow_and_update());
        let listening = inputs.server.borrow_and_update().listening.clone();
        let Some(link) = inputs.link.borrow_and_update().clone() else { return Ok(None) };
        let own = model.node.addresses.iter().map(ipnet::IpNet::addr);
        let servers: Vec<IpAddr> = own.filter(|own| answers_on(&listening, *own)).collect();
        let Some(first) = servers.first().copied() else {
            let needs = "dns.hook: systemd-resolved needs a server on a mesh address; set dns.listen_on_mesh = true";
            return Err(needs.to_owned());
        };
        let domains = vec![model.domain.clone(), "pm3".to_owned()];
        let wanted = Active::Resolved(LinkDns { index: link.index, servers, domains });
        if let Active::Resolved(link_dns) = &wanted
            && self.active != wanted
        {
            // Before the call: a kill between the two leaves a note too many, never one too few.
            self.note(link_dns.index)?;
            self.resolved.apply(link_dns).await.map_err(|failure| error::chain(&failure))?;
            self.active = wanted;
        }
        Ok(Some(format!("systemd-resolved asks {first} for ~{} on {}", model.domain, link.name)))
    }

    async fn take_away(&mut self) {
        let result = match std::mem::replace(&mut self.active, Active::None) {
            Active::None => Ok(()),
            Active::File => self.file.restore().map(|_| ()).map_err(|failure| error::chain(&failure)),
            Active::Resolved(LinkDns { index, .. }) | Active::Left(index) => self.revert(index).await,
        };
        if let Err(error) = result {
            tracing::warn!(error, "taking the resolver hook away");
        }
    }

    /// Takes away what an earlier run told resolved, where this run does not use resolved.
    async fn take_away_left(&mut self) {
        if matches!(self.active, Active::Left(_)) {
            self.take_away().await;
        }
    }

    async fn revert(&mut self, index: u32) -> Result<(), String> {
        self.resolved.revert(index).await.map_err(|failure| error::chain(&failure))?;
        std::fs::remove_file(&self.files.told)
            .map_err(|failure| format!("failed to remove {}: {failure}", self.files.told.display()))
    }

    fn note(&self, index: u32) -> Result<(), String> {
        let text = format!("{index} {}", boot_id());
        file::write_atomic(&self.files.told, text.as_bytes(), 0o600).map_err(|failure| error::chain(&failure))
    }
}

/// The link in a note of this boot; another boot's numbers are those of other links.
fn told(note: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(note).ok()?;
    let (index, boot) = text.trim().split_once(' ')?;
    index.parse().ok().filter(|_| boot == boot_id())
}

/// What tells one boot from the next (random(4)).
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn answers_on(listening: &[SocketAddr], address: IpAddr) -> bool {
    listening.iter().any(|socket| {
        let wildcard = socket.ip().is_unspecified() && socket.is_ipv4() == address.is_ipv4();
        socket.port() == PORT && (socket.ip() == address || wildcard)
    })
}

/// The address that programs of this host should ask: loopback first.
fn reachable_from_host(listening: &[SocketAddr]) -> Option<IpAddr> {
    let mut candidates: Vec<IpAddr> =
        listening.iter().filter(|socket| socket.port() == PORT).map(|socket| or_loopback(socket.ip())).collect();
    candidates.sort_by_key(|address| !address.is_loopback());
    candidates.first().copied()
}

fn or_loopback(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests;
