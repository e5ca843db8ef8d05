//! The embedded userspace WireGuard device: TUN and UDP batching around gotatun's noise core.
//!
//! Owns one TUN interface, one UDP socket and one control socket per [`Device`], and the threads between them. In: IP
//! packets from the TUN, WireGuard messages from UDP, requests of the userspace protocol. Out: the reverse. Handshakes, sessions and
//! replay protection are gotatun's (`noise`); this crate adds no cryptography.
//!
//! ```text
//! wg-out      TUN ─▶ segment ─▶ routes ─▶ noise ─▶ runs of messages ─▶ UDP
//! wg-in       UDP ─▶ noise ─▶ routes (is the source the peer's?) ─▶ coalesce ─▶ TUN
//! wg-timers   peers that are awake ─▶ noise ─▶ UDP;  link events ─▶ MTU
//! wg-control  <if>.sock ─▶ request ─▶ apply | listing
//! ```
//!
//! What makes it fast is the number of system calls: frames of up to 64 KiB from and to the TUN (`IFF_VNET_HDR`), runs of up to 64
//! messages from and to UDP (`UDP_SEGMENT`, `UDP_GRO`). Where the kernel lacks one of these the device says so in [`Features`]
//! and goes on one by one. Packets of a flow never change their order.
//!
//! A thread that fails or panics ends the device, which [`Device::failure`] tells; it never hangs.

mod checksum;
mod coalesce;
mod device;
mod inbound;
mod outbound;
mod packet;
mod peer;
mod routes;
mod segment;
mod shared;
mod socket;
mod sys;
mod timers;
mod tun;
mod uapi;
mod vnet;

pub use device::{CreateError, Device, Features, Options};
