//! Compiles `weft/v1/*.proto` to Rust, with a protobuf compiler that is a crate: nothing has to be installed.

use std::error::Error;

const FILES: [&str; 1] = ["weft/v1/agent.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    // The same messages are the JSON of the HTTP interface. A reader fills what an older agent does not send.
    tonic_prost_build::configure()
        .message_attribute(".weft.v1", "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]")
        .compile_fds(descriptors)?;
    Ok(())
}
