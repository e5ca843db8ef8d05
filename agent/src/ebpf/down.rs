//! Takes everything of one instance away: what it attached, and every pin with its counters. Works without an agent.

use super::Settings;
use super::pins::{PinError, Pins};
use super::platform::PlatformError;
use super::platform::linux::remove_layout;

/// What was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Programs taken off a hook.
    pub hooks: usize,
    /// Maps unpinned.
    pub maps: usize,
}

/// Why something of ours is still there.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    #[error("failed to find the pins of the accounting")]
    Find(#[source] PinError),
    #[error("failed to remove the accounting of layout {layout}")]
    Remove {
        layout: u32,
        #[source]
        source: Box<PlatformError>,
    },
}

/// Detaches and unpins exactly what the instance attached and pinned, of every layout.
///
/// # Errors
/// The first thing that could not be removed; running it again goes on from there.
pub fn down(settings: &Settings) -> Result<Removed, DownError> {
    let pins = Pins::new(&settings.pin_root, &settings.instance);
    let mut removed = Removed::default();
    for layout in pins.layouts().map_err(DownError::Find)? {
        let gone =
            remove_layout(&pins, layout).map_err(|source| DownError::Remove { layout, source: Box::new(source) })?;
        removed.hooks += gone.hooks;
        removed.maps += gone.pins;
    }
    pins.remove_empty();
    Ok(removed)
}
