//! What the counters say, with the names of the model.

use std::sync::Arc;

use super::maps::MapAccessError;
use super::platform::ReadCounters;
use super::status::{Counters, Figures, PeerCounters};
use crate::model::Model;
use crate::model::key::PublicKey;
use crate::model::ordered::Ordered;

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
    model: Arc<Model>,
    indexes: Ordered<PublicKey, u32>,
}

impl Snapshot {
    /// Made after every change, so it only shares; names are looked up when somebody reads.
    pub(super) fn new(counters: Arc<dyn ReadCounters>, model: Arc<Model>, indexes: Ordered<PublicKey, u32>) -> Self {
        Self { counters, model, indexes }
    }

    /// Reads the counters, those of indexes that were given out and no others.
    pub(super) fn read(&self) -> Result<Figures, MapAccessError> {
        let count = self.indexes.values().max().map_or(1, |highest| highest + 1);
        let counters = self.counters.read(count)?;
        let at = |index: u32| counters.get(index as usize).copied().unwrap_or_default();
        let mut figures = Figures::default();
        for (key, index) in self.indexes.iter() {
            let found = at(*index);
            let (rx, tx) = (Counters::from(found.rx), Counters::from(found.tx));
            match self.model.peer(key) {
                Some(peer) => {
                    figures.peers.push(PeerCounters { name: peer.name.clone(), public_key: *key, rx, tx });
                }
                None => {
                    figures.retired_rx += rx;
                    figures.retired_tx += tx;
                }
            }
        }
        let unattributed = at(weft_ebpf_common::UNATTRIBUTED);
        figures.unattributed_rx = unattributed.rx.into();
        figures.unattributed_tx = unattributed.tx.into();
        Ok(figures)
    }
}
