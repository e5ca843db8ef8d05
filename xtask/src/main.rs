//! `cargo xtask`: everything a developer or CI does with this repository.

mod bench;
mod ebpf;

fn main() {}
