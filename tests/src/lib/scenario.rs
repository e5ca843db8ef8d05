//! Hosts on one underlay network: a bridge in a namespace of its own, one veth to each host.

use anyhow::Result;

use crate::netns::{NetNs, veth};

/// The underlay link on every host.
pub const UNDERLAY_LINK: &str = "eth0";

/// Hosts that reach each other at [`Scenario::address`].
#[derive(Debug)]
pub struct Scenario {
    hosts: Vec<NetNs>,
    switch: NetNs,
}

impl Scenario {
    /// `hosts` namespaces (at most 250) on one network.
    ///
    /// # Errors
    /// Not root, or the kernel refused.
    pub fn new(hosts: usize) -> Result<Self> {
        let switch = NetNs::new()?;
        switch.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
        switch.run(&["ip", "link", "set", "br0", "up"])?;
        let mut scenario = Self { hosts: Vec::new(), switch };
        for number in 0..hosts {
            let host = NetNs::new()?;
            scenario.connect(number, &host)?;
            scenario.hosts.push(host);
        }
        Ok(scenario)
    }

    /// Host `number`, counted from 0.
    pub fn host(&self, number: usize) -> &NetNs {
        &self.hosts[number]
    }

    /// The hosts in order.
    pub fn hosts(&self) -> &[NetNs] {
        &self.hosts
    }

    /// The namespace that holds the bridge.
    pub fn switch(&self) -> &NetNs {
        &self.switch
    }

    /// The underlay address of host `number` (RFC 5737, TEST-NET-1).
    pub fn address(number: usize) -> String {
        format!("192.0.2.{}", number + 1)
    }

    /// The underlay IPv6 address of host `number` (RFC 3849).
    pub fn address6(number: usize) -> String {
        format!("2001:db8::{:x}", number + 1)
    }

    fn connect(&self, number: usize, host: &NetNs) -> Result<()> {
        let port = format!("port{number}");
        let addresses = [format!("{}/24", Self::address(number)), format!("{}/64", Self::address6(number))];
        veth((host, UNDERLAY_LINK, &[&addresses[0], &addresses[1]]), (&self.switch, &port, &[]))?;
        self.switch.run(&["ip", "link", "set", &port, "master", "br0"])?;
        Ok(())
    }
}
