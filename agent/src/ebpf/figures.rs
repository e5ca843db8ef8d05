//! What the counters say, with the names of the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::maps::MapAccessError;
use super::platform::ReadCounters;
use super::status::{Counters, Figures, PeerCounters};
use crate::foundation::id::NodeId;
use crate::model::Model;
use crate::model::key::PublicKey;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum FiguresError {
    #[error("nothing is counted per peer; `weft doctor` says why")]
    NotCounting,
    #[error(transparent)]
    Read(#[from] MapAccessError),
}

/// Whose index is whose, and where the counters are.
#[derive(Debug)]
pub(super) struct Snapshot {
    counters: Arc<dyn ReadCounters>,
    peers: Vec<(NodeId, PublicKey, u32)>,
    retired: Vec<u32>,
}

impl Snapshot {
    pub(super) fn new(counters: Arc<dyn ReadCounters>, model: &Model, indexes: &BTreeMap<PublicKey, u32>) -> Self {
        let (mut peers, mut retired) = (Vec::new(), Vec::new());
        for (key, index) in indexes {
            match model.peer(key) {
                Some(peer) => peers.push((peer.name.clone(), *key, *index)),
                None => retired.push(*index),
            }
        }
        Self { counters, peers, retired }
    }

    /// Reads the counters, those of indexes that were given out and no others.
    pub(super) fn read(&self) -> Result<Figures, MapAccessError> {
        let given_out = self.peers.iter().map(|(_, _, index)| index).chain(&self.retired);
        let count = given_out.max().map_or(1, |highest| highest + 1);
        let counters = self.counters.read(count)?;
        let at = |index: u32| counters.get(index as usize).copied().unwrap_or_default();
        let mut figures = Figures::default();
        for (name, public_key, index) in &self.peers {
            let found = at(*index);
            let (rx, tx) = (found.rx.into(), found.tx.into());
            figures.peers.push(PeerCounters { name: name.clone(), public_key: *public_key, rx, tx });
        }
        for index in &self.retired {
            figures.retired_rx += Counters::from(at(*index).rx);
            figures.retired_tx += Counters::from(at(*index).tx);
        }
        let unattributed = at(weft_ebpf_common::UNATTRIBUTED);
        figures.unattributed_rx = unattributed.rx.into();
        figures.unattributed_tx = unattributed.tx.into();
        Ok(figures)
    }
}
