//! Names of the mesh.

pub mod config;
pub mod status;
