//! Compiles the `.proto` files to Rust, with a protobuf compiler that is a crate: nothing has to be installed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 16] = [
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
    "weft/store/v1/store.proto",
    "weft/v1/agent.proto",
    "weft/v1/certificates.proto",
    "weft/v1/mesh.proto",
    "weft/v1/metrics.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // What the agent tells about itself is the JSON of the HTTP interface too. A reader fills what an older agent does not send.
    let shown = descriptors.file.iter().filter(|file| file.name() == "weft/v1/agent.proto");
    let names: Vec<String> =
        shown.flat_map(|file| &file.message_type).map(|message| message.name().to_owned()).collect();
    // The command line shows the figures of a node as JSON.
    let figures = descriptors.file.iter().filter(|file| file.name() == "v1/node_metrics.proto");
    let figures: Vec<String> =
        figures.flat_map(|file| &file.message_type).map(|message| message.name().to_owned()).collect();
    let mut builder = tonic_prost_build::configure();
    for name in names {
        let derive = "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]";
        builder = builder.message_attribute(format!(".weft.v1.{name}"), derive);
    }
    for name in figures {
        builder = builder.message_attribute(format!(".v1.{name}"), "#[derive(serde::Serialize)]");
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
