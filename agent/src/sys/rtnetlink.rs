//! Connections to rtnetlink and the change monitor.
