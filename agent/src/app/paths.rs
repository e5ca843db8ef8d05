//! Shows the mesh what the tunnel device says about its peers, so that it knows who answers.

use std::time::{Duration, Instant, SystemTime};

use crate::foundation::task::{self, Task};
use crate::mesh::{Handle, Sighting};
use crate::wireguard::figures::FiguresReader;
use crate::wireguard::status::PeerFigures;

/// The share of time that looking may take: one part in this many. A device with ten thousand peers is looked at seldom.
const LOOKING_SHARE: u32 = 300;

/// Looks again and again; a node without other members is left asleep.
pub(super) fn start(figures: FiguresReader, mesh: Handle) -> Task {
    task::spawn("paths", async move {
        let mut members = mesh.mesh();
        loop {
            if members.borrow_and_update().members.len() < 2 {
                // What was seen of members that are gone is forgotten.
                mesh.sighted(&[]);
                if members.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let began = Instant::now();
            // Without a device there is nothing to see; the status says why.
            let sightings: Vec<Sighting> = figures.read().await.unwrap_or_default().into_iter().map(sighting).collect();
            let took = began.elapsed();
            let pause = mesh.sighted(&sightings).max(took * LOOKING_SHARE);
            tokio::time::sleep(pause.min(LONGEST)).await;
        }
    })
}

const LONGEST: Duration = Duration::from_secs(60);

fn sighting(peer: PeerFigures) -> Sighting {
    let PeerFigures { name: _, public_key, endpoint, last_handshake, rx_bytes, tx_bytes } = peer;
    let last_handshake = last_handshake.filter(|at| *at > SystemTime::UNIX_EPOCH);
    Sighting { key: public_key, endpoint, last_handshake, rx_bytes, tx_bytes }
}
