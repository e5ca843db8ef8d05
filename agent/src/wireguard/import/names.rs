//! Names for peers, which a wg-quick file does not have: from its comments as people and tools write them, else from
//! the endpoint's host name, else from the key. The same file always gives the same names.

use std::collections::BTreeSet;

use super::read::Peer;
use crate::foundation::id::NodeId;
use crate::model::peer::Endpoint;

/// What tools put before a name: `Name = x` and `friendly_name = x` (exporters), `Client x` and `Client: x (id)`
/// (installers, wg-easy), `BEGIN_PEER x` (wireguard-install). Compared in lower case.
const MARKS: &[&str] = &["friendly_name", "begin_peer", "client", "name"];
/// More words than this are a remark, not a name.
const MOST_WORDS: usize = 3;

/// A name that a comment gives with a mark.
pub(super) fn from_marked(comment: &str) -> Option<String> {
    let text = comment.trim_start_matches('#').trim();
    let lower = text.to_ascii_lowercase();
    let mark = MARKS.iter().find(|mark| lower.starts_with(**mark))?;
    let rest = text.get(mark.len()..)?;
    if !rest.starts_with([' ', '\t', '=', ':']) {
        return None;
    }
    let name = rest.trim_start_matches([' ', '\t', '=', ':']).split('(').next()?;
    label(name)
}

/// A name that a comment next to the header of a peer gives, with or without a mark.
pub(super) fn from_comment(comment: &str) -> Option<String> {
    let plain = || {
        let text = comment.trim_start_matches('#').trim();
        // A key that was commented out, or a sentence.
        let is_name = !text.contains('=') && text.split_whitespace().count() <= MOST_WORDS;
        label(text).filter(|_| is_name)
    };
    from_marked(comment).or_else(plain)
}

/// A unique name for every peer, in their order.
pub(super) fn name_all(peers: &[Peer]) -> Vec<NodeId> {
    let mut taken = BTreeSet::new();
    let wanted = peers.iter().map(|peer| name(peer, &mut taken));
    wanted.collect()
}

fn name(peer: &Peer, taken: &mut BTreeSet<NodeId>) -> NodeId {
    let host = || match peer.endpoint.as_ref()? {
        Endpoint::Name { host, .. } => label(host),
        Endpoint::Address(_) => None,
    };
    let base = peer.comment_name.clone().or_else(host).unwrap_or_else(|| from_key(peer));
    let numbered = (2..).map(|number| {
        let suffix = format!("-{number}");
        let length = base.len().min(63 - suffix.len());
        format!("{}{suffix}", base[..length].trim_end_matches('-'))
    });
    let free = std::iter::once(base.clone())
        .chain(numbered)
        .filter_map(|name| name.parse::<NodeId>().ok())
        .find(|name| taken.insert(name.clone()));
    free.expect("a label with a number is a label, and there are more numbers than peers")
}

fn from_key(peer: &Peer) -> String {
    let key: String = peer.public_key.to_string().chars().take(8).collect();
    let label: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '0' }).collect();
    format!("peer-{label}")
}

/// `text` as a DNS label; `None` if nothing remains of it.
fn label(text: &str) -> Option<String> {
    let mut label = String::new();
    for c in text.trim().chars() {
        if c.is_ascii_alphanumeric() {
            label.push(c.to_ascii_lowercase());
        } else if !label.ends_with('-') {
            label.push('-');
        }
    }
    label.truncate(63);
    let label = label.trim_matches('-');
    (!label.is_empty()).then(|| label.to_owned())
}
