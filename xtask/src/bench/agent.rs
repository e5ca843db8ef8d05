//! bench area agent
