//! Weft's agent, in reading order.
//!
//! | room | what it owns |
//! |---|---|
//! | [`foundation`] | errors, names, secrets, tasks, start and stop, the reconcile loop, logs, the metrics registry |
//! | [`sys`] | plumbing to the operating system, with the only `unsafe` of this crate |
//! | [`model`] | pure data: this node and its peers, and what is derived from them |
//! | [`wireguard`] | the tunnel device: keys, peers, endpoints; kernel or embedded |
//! | [`net`] | addresses, MTU and routes of the link; our nftables table |
//! | [`ebpf`] | the BPF programs, their pins, the per-peer accounting |
//! | [`dns`] | names of the mesh, forwarding, the host resolver hook |
//! | [`doctor`] | what this host offers of what Weft can use |
//! | [`api`] | the only place that knows HTTP, gRPC and JSON |
//! | [`config`] | `weft.toml`, composed of what each domain owns |
//! | [`app`] | the composition root |
//! | [`cli`] | the command line |
//!
//! Each may use what stands before it; the domains (`wireguard`, `net`, `ebpf`, `dns`) never import each other. What one
//! tells another travels as a `watch` of a `model` type, wired in [`app`].

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod dns;
pub mod doctor;
pub mod ebpf;
pub mod foundation;
pub mod model;
pub mod net;
pub mod sys;
pub mod wireguard;
