//! The pass that keeps our table as wanted.
//!
//! Where nothing is asked, a table that was left over is looked for at the start and when the settings change, and
//! nothing is run otherwise.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::plan::{Standing, plan};
use super::platform::{NftError, Platform};
use super::render::DroppingChain;
use super::spec::{self, Place, Ruleset};
use crate::foundation::error::chain;
use crate::foundation::id::LinkName;
use crate::foundation::metrics::Metrics;
use crate::foundation::reconcile::{Cause, Pass, Reconciler};
use crate::net::config::{FirewallConfig, FirewallSettings};
use crate::net::status::FirewallStatus;

/// Keeps one table as wanted.
#[derive(Debug)]
pub struct FirewallReconciler<P> {
    platform: P,
    settings: watch::Receiver<Arc<FirewallSettings>>,
    relaying: watch::Receiver<bool>,
    /// Whether forwarding was switched on for the link.
    carries: bool,
    figures: Figures,
}

#[derive(Debug, Clone, Default)]
struct Figures {
    rules: Gauge,
    passes: Counter<u64, AtomicU64>,
    failed_passes: Counter<u64, AtomicU64>,
    changes: Counter<u64, AtomicU64>,
}

impl Figures {
    fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            registry.register("firewall_rules", "Rules in our nftables table", this.rules.clone());
            registry.register("firewall_passes", "Times our nftables table was looked at", this.passes.clone());
            let failed = "Looks at our nftables table after which something remained to be done";
            registry.register("firewall_failed_passes", failed, this.failed_passes.clone());
            registry.register("firewall_changes", "Transactions made on our nftables table", this.changes.clone());
        });
        this
    }

    fn record(&self, status: &FirewallStatus, failed: bool) {
        self.rules.set(i64::try_from(status.rules).unwrap_or(i64::MAX));
        self.passes.inc();
        self.failed_passes.inc_by(u64::from(failed));
        self.changes.inc_by(u64::try_from(status.applied_steps).unwrap_or(u64::MAX));
    }
}

impl<P: Platform> FirewallReconciler<P> {
    pub(super) fn new(
        platform: P,
        settings: watch::Receiver<Arc<FirewallSettings>>,
        relaying: watch::Receiver<bool>,
        metrics: &Metrics,
    ) -> Self {
        Self { platform, settings, relaying, carries: false, figures: Figures::register(metrics) }
    }

    async fn remove(&mut self, table: &str, cause: Cause) -> Result<FirewallStatus, NftError> {
        if cause == Cause::Resync {
            return Ok(FirewallStatus::default());
        }
        let standing = match self.platform.standing(table, None).await {
            Err(NftError::Missing(_)) => Standing::Absent,
            other => other?,
        };
        let change = plan(None, standing);
        if let Some(change) = &change {
            self.platform.apply(table, change).await?;
            tracing::info!(table, "nftables table removed");
        }
        Ok(FirewallStatus { applied_steps: usize::from(change.is_some()), ..FirewallStatus::default() })
    }

    async fn keep(&mut self, ruleset: &Ruleset) -> Result<FirewallStatus, NftError> {
        let standing = self.platform.standing(&ruleset.table, Some(ruleset)).await?;
        let change = plan(Some(ruleset), standing);
        if let Some(change) = &change {
            self.platform.apply(&ruleset.table, change).await?;
            tracing::info!(table = ruleset.table, rules = ruleset.rules(), "nftables table replaced");
        }
        let dropping = self.platform.dropping_chains(&ruleset.table).await;
        let mut status = FirewallStatus {
            table: Some(format!("inet {}", ruleset.table)),
            rules: ruleset.rules(),
            applied_steps: usize::from(change.is_some()),
            errors: Vec::new(),
            notices: dropping.iter().filter_map(|chain| notice(ruleset, chain)).collect(),
        };
        self.check_forwarding(ruleset, &mut status);
        Ok(status)
    }

    fn check_forwarding(&mut self, ruleset: &Ruleset, status: &mut FirewallStatus) {
        let forwards = ruleset.chains.iter().any(|chain| match chain.place {
            Place::Forward | Place::Clamp | Place::Masquerade => true,
            Place::Input => false,
        });
        let forwarding = self.platform.forwarding();
        if forwards && !self.carries && !forwarding.ipv4 {
            status.errors.push(not_forwarding("IPv4", "net.ipv4.ip_forward"));
        }
        if forwards && !self.carries && !forwarding.ipv6 {
            status.notices.push(not_forwarding("IPv6", "net.ipv6.conf.all.forwarding"));
        }
    }

    /// Has the tunnel's link forward while the mesh sends packets of others through this node; says what is in the way.
    fn carry(&mut self, link: &LinkName, relaying: bool) -> Vec<String> {
        if !relaying {
            if self.carries {
                self.platform.forward_as_host(link);
                tracing::info!(%link, "this node is no relay any more");
            }
            self.carries = false;
            return Vec::new();
        }
        let done = self.platform.forward_on(link);
        if !self.carries {
            tracing::info!(%link, "this node is a relay: forwarding is on for the tunnel's link");
        }
        self.carries = true;
        let missing = |family: &str, fix: &str| {
            format!("this node carries packets between members, but {link} does not forward {family}: {fix}")
        };
        let ipv4 = (!done.ipv4).then(|| missing("IPv4", "set net.ipv4.ip_forward to 1"));
        let ipv6 = (!done.ipv6).then(|| {
            missing("IPv6", "this kernel is older than 6.17; set net.ipv6.conf.all.forwarding to 1 if members need it")
        });
        ipv4.into_iter().chain(ipv6).collect()
    }

    async fn reconcile(&mut self, cause: Cause) -> (FirewallStatus, bool) {
        let mut settings = FirewallSettings::clone(&self.settings.borrow_and_update());
        let relaying = *self.relaying.borrow_and_update();
        let for_others_only = relaying && settings.asked == FirewallConfig::default();
        settings.asked.forward |= relaying;
        let mut notices = self.carry(&settings.link, relaying);
        let table = spec::table_name(&settings.instance);
        let result = match spec::ruleset(&settings) {
            Ok(None) => self.remove(&table, cause).await,
            Ok(Some(ruleset)) => self.keep(&ruleset).await,
            Err(unfit) => return (FirewallStatus { errors: vec![chain(&unfit)], ..FirewallStatus::default() }, false),
        };
        match result {
            Ok(mut status) => {
                status.notices.append(&mut notices);
                (status, false)
            }
            Err(NftError::Missing(_)) if for_others_only => {
                notices.push(
                    "this node carries packets between members; where the host's packet filter drops what is forwarded, \
                     install the package nftables"
                        .to_owned(),
                );
                (FirewallStatus { notices, ..FirewallStatus::default() }, false)
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(table, error, "firewall not as wanted");
                (FirewallStatus { errors: vec![error], ..FirewallStatus::default() }, true)
            }
        }
    }
}

impl<P: Platform> Reconciler for FirewallReconciler<P> {
    type Status = Arc<FirewallStatus>;
    const NAME: &'static str = "firewall";

    async fn pass(&mut self, cause: Cause) -> Pass<Arc<FirewallStatus>> {
        let (status, failed) = self.reconcile(cause).await;
        self.figures.record(&status, failed);
        Pass { status: Arc::new(status), failed }
    }
}

fn not_forwarding(family: &str, sysctl: &str) -> String {
    format!("{family} packets are not forwarded: {sysctl} is 0; set it to 1 in /etc/sysctl.d and run `sysctl --system`")
}

fn notice(ruleset: &Ruleset, dropping: &DroppingChain) -> Option<String> {
    let ours = ruleset.chains.iter().find(|chain| chain.place == dropping.place)?;
    let DroppingChain { family, table, chain, .. } = dropping;
    let what = match ours.place {
        Place::Input => "UDP to the tunnel's port",
        Place::Forward | Place::Clamp | Place::Masquerade => "packets forwarded from and to the tunnel",
    };
    Some(format!(
        "chain {chain} of table {family} {table} drops what it does not accept, and an accept in {} does not change \
         that; if {what} get lost, accept them there too",
        ruleset.table
    ))
}
