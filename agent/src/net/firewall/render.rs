//! Our rules in the words of libnftables (libnftables-json(5)), and a table that was listed in those words, both in
//! one form that can be compared.
//!
//! Rules are written as `nft` prints them back: a prefix of one address as the address, two inequalities instead of
//! an anonymous set, whose order is not kept.
#![expect(clippy::wildcard_enum_match_arm, reason = "the enums of the library hold all that nftables knows")]

use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, RT, RTKey, TcpOption,
};
use nftables::schema::{self, NfListObject, NfObject, Nftables};
use nftables::stmt::{Mangle, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::spec::{Place, Rule, Ruleset};
use crate::foundation::id::LinkName;
use ipnet::IpNet;

/// A table in a form that can be compared: chains without handles, with the statements of each rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Normal {
    chains: Vec<schema::Chain<'static>>,
    /// With the name of the chain.
    rules: Vec<(String, Vec<Statement<'static>>)>,
    /// Whether it holds anything but chains and rules, which ours never does.
    has_other_objects: bool,
}

/// What `ruleset` looks like when listed.
pub fn normal(ruleset: &Ruleset) -> Normal {
    let objects: Vec<NfListObject<'static>> = chains(ruleset).chain(rules(ruleset)).collect();
    normal_of(objects.iter())
}

/// What was listed.
pub fn listed(listing: &Nftables<'static>) -> Normal {
    normal_of(listing.objects.iter().filter_map(|object| match object {
        NfObject::ListObject(object) => Some(object),
        NfObject::CmdObject(_) => None,
    }))
}

/// The transaction that makes the table what `ruleset` says, whatever it was.
pub fn replacement(ruleset: &Ruleset) -> Nftables<'static> {
    let mut batch = Batch::new();
    // Adding what may be there already makes the removal of what may not be there succeed.
    batch.add(table(&ruleset.table));
    batch.delete(table(&ruleset.table));
    batch.add(table(&ruleset.table));
    chains(ruleset).for_each(|chain| batch.add(chain));
    rules(ruleset).for_each(|rule| batch.add(rule));
    batch.to_nftables()
}

/// The transaction that removes a table.
pub fn removal(name: &str) -> Nftables<'static> {
    let mut batch = Batch::new();
    batch.delete(table(name));
    batch.to_nftables()
}

/// The names of the `inet` tables in a listing.
pub fn inet_tables<'a>(listing: &'a Nftables<'static>) -> impl Iterator<Item = &'a str> {
    listing.objects.iter().filter_map(|object| match object {
        NfObject::ListObject(NfListObject::Table(table)) if table.family == NfFamily::INet => Some(table.name.as_ref()),
        _ => None,
    })
}

/// The base chains in a listing that drop what no rule of theirs accepts, as `family table chain hook`, ours left out.
pub fn dropping_chains(listing: &Nftables<'static>, own_table: &str) -> Vec<DroppingChain> {
    let chains = listing.objects.iter().filter_map(|object| match object {
        NfObject::ListObject(NfListObject::Chain(chain)) => Some(chain),
        _ => None,
    });
    let foreign = chains.filter(|chain| chain.table != own_table && chain.policy == Some(NfChainPolicy::Drop));
    let dropping = foreign.filter_map(|chain| {
        let place = match chain.hook? {
            NfHook::Input => Place::Input,
            NfHook::Forward => Place::Forward,
            _ => return None,
        };
        let family = match chain.family {
            NfFamily::IP => "ip",
            NfFamily::IP6 => "ip6",
            NfFamily::INet => "inet",
            _ => return None,
        };
        Some(DroppingChain { family, table: chain.table.to_string(), chain: chain.name.to_string(), place })
    });
    dropping.collect()
}

/// A chain of another table that drops what none of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppingChain {
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    /// `Input` or `Forward`.
    pub place: Place,
}

fn normal_of<'a>(objects: impl Iterator<Item = &'a NfListObject<'static>>) -> Normal {
    let mut normal = Normal::default();
    for object in objects {
        match object {
            NfListObject::Table(_) | NfListObject::MetainfoObject(_) => {}
            NfListObject::Chain(chain) => normal.chains.push(schema::Chain { handle: None, ..chain.clone() }),
            NfListObject::Rule(rule) => normal.rules.push((rule.chain.to_string(), rule.expr.to_vec())),
            _ => normal.has_other_objects = true,
        }
    }
    normal
}

fn table(name: &str) -> NfListObject<'static> {
    NfListObject::Table(schema::Table { family: NfFamily::INet, name: name.to_owned().into(), handle: None })
}

fn chains(ruleset: &Ruleset) -> impl Iterator<Item = NfListObject<'static>> {
    ruleset.chains.iter().map(|chain| {
        let (kind, hook, priority) = hook(chain.place);
        NfListObject::Chain(schema::Chain {
            family: NfFamily::INet,
            table: ruleset.table.clone().into(),
            name: chain_name(chain.place).into(),
            newname: None,
            handle: None,
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            dev: None,
            policy: Some(NfChainPolicy::Accept),
        })
    })
}

fn rules(ruleset: &Ruleset) -> impl Iterator<Item = NfListObject<'static>> {
    ruleset.chains.iter().flat_map(|chain| {
        chain.rules.iter().map(|rule| {
            NfListObject::Rule(schema::Rule {
                family: NfFamily::INet,
                table: ruleset.table.clone().into(),
                chain: chain_name(chain.place).into(),
                expr: statements(rule).into(),
                ..schema::Rule::default()
            })
        })
    })
}

fn chain_name(place: Place) -> &'static str {
    match place {
        Place::Input => "input",
        Place::Forward => "forward",
        Place::Clamp => "clamp",
        Place::Masquerade => "masquerade",
    }
}

/// Type, hook and the standard priorities `filter`, `mangle` and `srcnat` of nft(8).
fn hook(place: Place) -> (NfChainType, NfHook, i32) {
    match place {
        Place::Input => (NfChainType::Filter, NfHook::Input, 0),
        Place::Forward => (NfChainType::Filter, NfHook::Forward, 0),
        Place::Clamp => (NfChainType::Filter, NfHook::Forward, -150),
        Place::Masquerade => (NfChainType::NAT, NfHook::Postrouting, 100),
    }
}

fn statements(rule: &Rule) -> Vec<Statement<'static>> {
    match rule {
        Rule::AcceptUdp { port } => {
            let port = Expression::Number(u32::from(*port));
            vec![matches(field("udp", "dport"), Operator::EQ, port), Statement::Accept(None)]
        }
        Rule::AcceptFrom { link } => {
            vec![matches(meta(MetaKey::Iifname), Operator::EQ, text(link)), Statement::Accept(None)]
        }
        Rule::AcceptTo { link } => {
            vec![matches(meta(MetaKey::Oifname), Operator::EQ, text(link)), Statement::Accept(None)]
        }
        Rule::ClampFrom { link } => clamp(MetaKey::Iifname, link),
        Rule::ClampTo { link } => clamp(MetaKey::Oifname, link),
        Rule::Masquerade { source, link } => vec![
            from(source),
            matches(meta(MetaKey::Oifname), Operator::NEQ, text(link)),
            // Over loopback a translated source would not be the one the service listens for.
            matches(meta(MetaKey::Oifname), Operator::NEQ, Expression::String("lo".into())),
            Statement::Masquerade(None),
        ],
    }
}

/// `rt mtu` is the lesser of the way there and the way back, so each direction is right whichever end sends.
fn clamp(side: MetaKey, link: &LinkName) -> Vec<Statement<'static>> {
    let flags = Expression::List(vec![Expression::String("syn".into()), Expression::String("rst".into())]);
    let masked = BinaryOperation::AND(field("tcp", "flags"), flags);
    let size = TcpOption { name: "maxseg".into(), field: Some("size".into()) };
    vec![
        matches(meta(side), Operator::EQ, text(link)),
        matches(Expression::BinaryOperation(Box::new(masked)), Operator::EQ, Expression::String("syn".into())),
        Statement::Mangle(Mangle {
            key: Expression::Named(NamedExpression::TcpOption(size)),
            value: Expression::Named(NamedExpression::RT(RT { key: RTKey::MTU, family: None })),
        }),
    ]
}

fn from(source: &IpNet) -> Statement<'static> {
    let (protocol, version) = if source.addr().is_ipv4() { ("ip", "ipv4") } else { ("ip6", "ipv6") };
    let address = Expression::String(source.network().to_string().into());
    if source.prefix_len() == 0 {
        return matches(meta(MetaKey::Nfproto), Operator::EQ, Expression::String(version.into()));
    }
    let right = if source.prefix_len() == source.max_prefix_len() {
        address
    } else {
        let prefix = Prefix { addr: Box::new(address), len: u32::from(source.prefix_len()) };
        Expression::Named(NamedExpression::Prefix(prefix))
    };
    matches(field(protocol, "saddr"), Operator::EQ, right)
}

fn matches(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn text(link: &LinkName) -> Expression<'static> {
    Expression::String(link.to_string().into())
}
