//! The tables of the mesh in the store.
//!
//! Who has a vote is what the store's membership says. `raft_address` is where a node's
//! Raft listener answers if it says so; else its endpoint and port do.
//! Times are seconds since 1970, bound by who proposes. A node's addresses stand in its row: they are free again when it goes.

use crate::store::Schema;

/// Every table this room writes, for what watches them.
pub const TABLES: [&str; 4] = [MESH, NODES, REVOKED, BLOCKED];
pub(super) const MESH: &str = "weft_mesh";
pub(super) const NODES: &str = "weft_members";
pub(super) const REVOKED: &str = "weft_revoked";
pub(super) const BLOCKED: &str = "weft_blocked";
pub(super) const TOKENS: &str = "weft_tokens";
pub(super) const ACLS: &str = "weft_acls";

/// What the store makes at the first start.
pub const SCHEMA: Schema = Schema {
    name: "mesh",
    versions: &[
        &[
            "CREATE TABLE weft_mesh (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
            "CREATE TABLE weft_nodes (id TEXT PRIMARY KEY, public_key TEXT NOT NULL UNIQUE, certificate_key TEXT NOT NULL UNIQUE, \
             raft_port INTEGER NOT NULL, grpc_port INTEGER NOT NULL, wireguard_port INTEGER NOT NULL, primary_endpoint TEXT, \
             endpoints TEXT NOT NULL, ipv4 TEXT UNIQUE, ipv6 TEXT NOT NULL UNIQUE, is_voter INTEGER NOT NULL, \
             created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL) STRICT",
            "CREATE TABLE weft_revoked (key TEXT PRIMARY KEY, node TEXT NOT NULL, at INTEGER NOT NULL) STRICT",
            "CREATE TABLE weft_tokens (id TEXT PRIMARY KEY, hash BLOB NOT NULL, created_at INTEGER NOT NULL, \
             expires_at INTEGER NOT NULL, attempts_left INTEGER NOT NULL, used_by TEXT, used_key TEXT) STRICT",
            "CREATE TABLE weft_acls (name TEXT PRIMARY KEY, patterns TEXT NOT NULL, action INTEGER NOT NULL, \
             created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL) STRICT",
        ],
        &[
            "CREATE TABLE weft_members (id TEXT PRIMARY KEY, public_key TEXT NOT NULL UNIQUE, \
             certificate_key TEXT NOT NULL UNIQUE, raft_port INTEGER NOT NULL, grpc_port INTEGER NOT NULL, \
             wireguard_port INTEGER NOT NULL, primary_endpoint TEXT, endpoints TEXT NOT NULL, ipv4 TEXT UNIQUE, \
             ipv6 TEXT NOT NULL UNIQUE, is_founder INTEGER NOT NULL, created_at INTEGER NOT NULL, \
             updated_at INTEGER NOT NULL, seat TEXT NOT NULL, raft_address TEXT) STRICT",
            "INSERT INTO weft_members SELECT id, public_key, certificate_key, raft_port, grpc_port, wireguard_port, \
             primary_endpoint, endpoints, ipv4, ipv6, is_voter, created_at, updated_at, 'auto', NULL FROM weft_nodes",
            "DROP TABLE weft_nodes",
        ],
        &["CREATE TABLE weft_blocked (node TEXT NOT NULL, peer TEXT NOT NULL, reason TEXT NOT NULL, \
           PRIMARY KEY (node, peer)) STRICT"],
    ],
};
