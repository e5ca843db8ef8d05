//! The integration tests: one binary, a module a domain. They need root; see `integration_tests::gate`.

mod accounting;
mod agent;
mod callers;
mod contract;
mod dns;
mod harness;
mod mesh;
mod net;
mod pm3;
mod store;
mod process;
mod tunnel;
mod web;
mod wireguard;
