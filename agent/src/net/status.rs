//! What the `net` reconcilers tell the outside.

/// The state after the newest pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// MTU of the link now.
    pub mtu: Option<u32>,
    /// Addresses and routes that are ours and in place.
    pub addresses: usize,
    pub routes: usize,
    /// Steps the last pass applied; 0 when everything was as wanted.
    pub applied_steps: usize,
    /// What failed in the last pass, each a full sentence that names the object and the fix.
    pub errors: Vec<String>,
    /// What an operator should know though nothing is wrong.
    pub notices: Vec<String>,
}

/// The firewall after the newest pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallStatus {
    /// Our table, when there is one.
    pub table: Option<String>,
    /// Rules in it.
    pub rules: usize,
    /// Transactions the last pass made; 0 when everything was as wanted.
    pub applied_steps: usize,
    /// What failed or keeps the rules from working, each a full sentence that names the object and the fix.
    pub errors: Vec<String>,
    /// What an operator should know though nothing is wrong: chains of others that may drop what we accept.
    pub notices: Vec<String>,
}
