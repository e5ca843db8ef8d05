//! Compiles the `.proto` files to Rust, with a protobuf compiler that is a crate: nothing has to be installed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 12] = [
    "v1/admin.proto",
    "v1/admin_messages.proto",
    "v1/mesh.proto",
    "v1/mesh_messages.proto",
    "v1/node.proto",
    "v1/node_messages.proto",
    "v1/node_metrics.proto",
    "v1/node_raft.proto",
    "v1/peer_discovery.proto",
    "v1/webrtc.proto",
    "v1/webrtc_messages.proto",
    "weft/v1/agent.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // The same messages are the JSON of the HTTP interface. A reader fills what an older agent does not send.
    tonic_prost_build::configure()
        .message_attribute(".weft.v1", "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]")
        .compile_fds(descriptors)?;
    Ok(())
}
