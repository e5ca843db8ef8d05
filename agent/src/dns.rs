//! Names of the mesh.

pub mod answer;
pub mod config;
pub mod status;
pub mod wire;
pub mod zone;
