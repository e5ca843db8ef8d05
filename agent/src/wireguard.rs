//! The tunnel device: its key, port and peers, kept as the model says, in the kernel or on the embedded device.

pub mod config;
pub mod status;
