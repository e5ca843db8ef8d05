//! Weft's agent, in reading order.
//!
//! | room | what it owns |
//! |---|---|
//! | [`foundation`] | errors, names, secrets, tasks, start and stop, the reconcile loop, logs, the metrics registry |
//! | [`sys`] | plumbing to the operating system, with the only `unsafe` of this crate |
//! | [`model`] | pure data: this node and its peers, and what is derived from them |
//! | [`identity`] | the mesh authority, this node's certificate, join tokens, TLS |
//! | [`store`] | the replicated SQL database: Raft log, SQLite state machine |
//! | [`wireguard`] | the tunnel device: keys, peers, endpoints; kernel or embedded |
//! | [`net`] | addresses, MTU and routes of the link; our nftables table |
//! | [`ebpf`] | the BPF programs, their pins, the per-peer accounting |
//! | [`dns`] | names of the mesh, forwarding, the host resolver hook |
//! | [`mesh`] | members, joining and leaving, addresses, Raft ACLs; the model that the rest follows |
//! | [`process`] | supervised processes and what they write |
//! | [`bus`] | the message bus: `nats-server` below the agent, or somebody's NATS elsewhere |
//! | [`doctor`] | what this host offers of what Weft can use |
//! | [`pm3`] | the methods of the pm3 API, whatever carries the call |
//! | [`api`] | the only place that knows HTTP, gRPC and JSON |
//! | [`config`] | `weft.toml`, composed of what each domain owns |
//! | [`app`] | the composition root |
//! | [`cli`] | the command line |
//!
//! Each may use what stands before it; the domains (`wireguard`, `net`, `ebpf`, `dns`, `process`) never import each other. What one
//! tells another travels as a `watch` of a `model` type, wired in [`app`]. `cargo xtask tidy` holds the table. The tasks and
//! their channels are listed in [`app`].
//!
//! Two things lie outside this crate on purpose. `weft-tunnel`, the embedded WireGuard device, is optimised in every
//! profile and has an `unsafe` room of its own: its hot path is per packet. `weft-ebpf-common` is shared with the BPF
//! programs, which are built for another target.
//!
//! What holds everywhere: the data plane comes up from local state; what is there is adopted, never made anew; a pass that
//! finds nothing different writes nothing; a part that fails says so in its status and leaves the others running.

pub mod foundation;
pub mod sys;
pub mod model;
pub mod identity;
pub mod store;
pub mod wireguard;
pub mod net;
pub mod ebpf;
pub mod dns;
pub mod mesh;
pub mod process;
pub mod bus;
pub mod doctor;
pub mod pm3;
pub mod api;
pub mod config;
pub mod app;
pub mod cli;
