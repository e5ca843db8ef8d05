//! The control socket: WireGuard's cross-platform userspace protocol over `<directory>/<interface>.sock`.
//!
//! `request` parses (pure), `apply` changes the device, `listing` describes it, `server` holds the sockets and threads.
//! A request is understood as a whole before anything changes, so a malformed one changes nothing.

pub(crate) mod apply;
pub(crate) mod listing;
pub(crate) mod request;
pub(crate) mod server;
