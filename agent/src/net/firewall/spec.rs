//! The rules that `[firewall]` asks for: a pure function of the settings.

use ipnet::IpNet;

use crate::foundation::id::{InstanceName, LinkName};
use crate::net::config::FirewallSettings;

/// A table with all its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub table: String,
    pub chains: Vec<Chain>,
}

impl Ruleset {
    /// The number of rules.
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }
}

/// A base chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub place: Place,
    pub rules: Vec<Rule>,
}

/// Where packets meet a chain; also names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// To this host, where filters stand.
    Input,
    /// Through this host, where filters stand.
    Forward,
    /// Through this host, before filters, where packets are altered.
    Clamp,
    /// Before leaving a link, where sources are translated.
    Masquerade,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    AcceptUdp {
        port: u16,
    },
    AcceptFrom {
        link: LinkName,
    },
    AcceptTo {
        link: LinkName,
    },
    /// The segment size a TCP connection offers is cut to what fits the way there and back.
    ClampFrom {
        link: LinkName,
    },
    ClampTo {
        link: LinkName,
    },
    /// What comes from `source` and leaves by another link than `link` gets that link's address.
    Masquerade {
        source: IpNet,
        link: LinkName,
    },
}

/// Why the rules cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("firewall.open_port needs a fixed port; set wireguard.listen_port")]
    NoPort,
}

/// The rules asked for; `None` if there are none.
///
/// # Errors
/// A rule that needs something that is not set.
pub fn ruleset(settings: &FirewallSettings) -> Result<Option<Ruleset>, Unfit> {
    let FirewallSettings { instance, link, listen_port, asked } = settings;
    let mut chains = Vec::new();
    let link = || link.clone();
    if asked.open_port {
        if *listen_port == 0 {
            return Err(Unfit::NoPort);
        }
        chains.push(Chain { place: Place::Input, rules: vec![Rule::AcceptUdp { port: *listen_port }] });
    }
    if asked.forward {
        let rules = vec![Rule::AcceptFrom { link: link() }, Rule::AcceptTo { link: link() }];
        chains.push(Chain { place: Place::Forward, rules });
        let rules = vec![Rule::ClampFrom { link: link() }, Rule::ClampTo { link: link() }];
        chains.push(Chain { place: Place::Clamp, rules });
    }
    if !asked.masquerade.is_empty() {
        let rules = asked.masquerade.iter().map(|source| Rule::Masquerade { source: *source, link: link() }).collect();
        chains.push(Chain { place: Place::Masquerade, rules });
    }
    Ok((!chains.is_empty()).then(|| Ruleset { table: table_name(instance), chains }))
}

/// The name of an instance's table. Hyphens, which nft takes only in quotes, become underscores, which an instance
/// name never holds.
pub fn table_name(instance: &InstanceName) -> String {
    format!("weft_{}", instance.as_str().replace('-', "_"))
}
