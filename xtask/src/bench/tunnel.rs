//! bench area tunnel
