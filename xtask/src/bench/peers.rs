//! bench area peers
