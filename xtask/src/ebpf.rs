//! `cargo xtask ebpf`: builds the BPF object.
