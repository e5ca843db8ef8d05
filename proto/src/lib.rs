//! The protobuf messages and gRPC services Weft speaks, generated at build time from the `.proto` files of this package;
//! nothing here is written by hand.

// The messages of the Admin service: their file has no package.
tonic::include_proto!("_");

/// Every file with what it imports, for server reflection: an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The webmesh contract; the sources are `v1/*.proto`.
pub mod v1 {
    tonic::include_proto!("v1");
}

/// Weft's own packages.
pub mod weft {
    /// The replicated database; the source is `weft/store/v1/store.proto`.
    pub mod store {
        /// Its first version.
        pub mod v1 {
            tonic::include_proto!("weft.store.v1");
        }
    }
    /// What an agent tells about itself, and our additions to the contract; the sources are `weft/v1/*.proto`.
    pub mod v1 {
        tonic::include_proto!("weft.v1");
    }
}
