//! bench area dns
