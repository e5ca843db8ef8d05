//! Per-peer figures, read from the device on demand: nothing polls them.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::platform::{Platform, PlatformError};
use super::status::PeerFigures;
use crate::model::{Link, Model};

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum FiguresError {
    #[error("the tunnel device is not up")]
    NoDevice,
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

type Reading = Pin<Box<dyn Future<Output = Result<Vec<PeerFigures>, FiguresError>> + Send>>;

/// Reads figures. Cheap to clone; it does not keep the device alive.
#[derive(Clone)]
pub struct FiguresReader(Arc<dyn Fn() -> Reading + Send + Sync>);

impl fmt::Debug for FiguresReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FiguresReader")
    }
}

impl FiguresReader {
    pub(super) fn new<P: Platform>(
        platform: Weak<P>,
        link: watch::Receiver<Option<Link>>,
        model: watch::Receiver<Arc<Model>>,
    ) -> Self {
        Self(Arc::new(move || {
            let platform = platform.upgrade();
            let link = link.borrow().clone();
            let model = Arc::clone(&model.borrow());
            Box::pin(async move {
                let (platform, link) = platform.zip(link).ok_or(FiguresError::NoDevice)?;
                read(&*platform, &link, &model).await
            })
        }))
    }

    /// The figures of every peer that is both wanted and on the device, in the order of their keys.
    ///
    /// # Errors
    /// There is no device, or it does not answer.
    pub async fn read(&self) -> Result<Vec<PeerFigures>, FiguresError> {
        (self.0)().await
    }
}

async fn read<P: Platform>(platform: &P, link: &Link, model: &Model) -> Result<Vec<PeerFigures>, FiguresError> {
    let device = platform.observe(link).await?;
    let peers = model.peers().filter_map(|peer| {
        let state = device.peers().get(&peer.public_key)?;
        Some(PeerFigures {
            name: peer.name.clone(),
            public_key: peer.public_key,
            endpoint: state.endpoint,
            last_handshake: state.last_handshake,
            rx_bytes: state.rx_bytes,
            tx_bytes: state.tx_bytes,
        })
    });
    Ok(peers.collect())
}
