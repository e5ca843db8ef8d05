//! bench area accounting
