//! What the integration tests, the demo and the benches share: network namespaces, processes and whole agents, each
//! behind a guard that takes away on drop what it brought.
//!
//! | module | what it owns |
//! |---|---|
//! | [`gate`] | whether a test may run here: root, tools |
//! | [`wait`] | the one place that waits |
//! | [`netns`] | a network namespace and the links between two |
//! | [`process`] | a process with its log |
//! | [`scenario`] | hosts on one underlay network |
//! | [`agent`] | the real `weft` binary on such a host |
//! | [`key`] | WireGuard keys from `wg` |
//!
//! Invariants: names carry the process id and a counter, so that runs beside each other do not meet; only processes
//! started here are ended; what a killed run left behind is swept by the next one.

#[path = "lib/agent.rs"]
pub mod agent;
#[path = "lib/gate.rs"]
pub mod gate;
#[path = "lib/key.rs"]
pub mod key;
#[path = "lib/netns.rs"]
pub mod netns;
#[path = "lib/process.rs"]
pub mod process;
#[path = "lib/scenario.rs"]
pub mod scenario;
#[path = "lib/wait.rs"]
pub mod wait;
