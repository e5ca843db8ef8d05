//! The protobuf messages and gRPC services Weft speaks, generated at build time from the `.proto` files of this package;
//! nothing here is written by hand.

/// Weft's own packages.
pub mod weft {
    /// What an agent tells about itself; the source is `weft/v1/agent.proto`.
    pub mod v1 {
        tonic::include_proto!("weft.v1");
    }
}
