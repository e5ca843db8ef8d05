//! Plumbing to the operating system: the only room with `unsafe`.
//!
//! A module here wraps a few kernel interfaces and knows no domain word.

pub mod bpf;
pub mod cgroup;
pub mod datagram;
pub mod file;
pub mod inotify;
pub mod interfaces;
pub mod listeners;
pub mod memory;
pub mod netns;
pub mod nftables;
pub mod peer;
pub mod pidfd;
pub mod probe;
pub mod rtnetlink;
pub mod sock_diag;
pub mod spawn;
pub mod tc;
pub mod tcp_owner;
pub mod terminal;
