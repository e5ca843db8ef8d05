//! systemd-resolved over D-Bus (org.freedesktop.resolve1(5)): our link answers for our domains, and for nothing else.
//!
//! In: the link's index, the servers, the domains. resolved sends a link's queries out of that link, so a server
//! here is one of the node's own mesh addresses, never a loopback one. What is set stays over a restart of
//! resolved, and goes with the link or with [`Resolve::revert`].

use std::net::IpAddr;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    #[cfg(feature = "resolved")]
    #[error("dns.hook: failed to reach the system bus; set dns.hook = \"resolv-conf\" or \"off\" where there is none")]
    Bus(#[source] zbus::Error),
    #[cfg(feature = "resolved")]
    #[error("dns.hook: systemd-resolved refused {method} for link {index}")]
    Call {
        method: &'static str,
        index: u32,
        #[source]
        source: zbus::Error,
    },
    #[cfg(not(feature = "resolved"))]
    #[error("dns.hook: this program was built without systemd-resolved; use \"resolv-conf\" or \"off\"")]
    NotBuilt,
}

/// What a link tells resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkDns {
    pub index: u32,
    pub servers: Vec<IpAddr>,
    /// Routing domains: names below them are asked here, and none of them is searched.
    pub domains: Vec<String>,
}

/// systemd-resolved as we use it.
pub trait Resolve: Send + 'static {
    /// Makes the link answer for its domains.
    fn apply(&mut self, link: &LinkDns) -> impl Future<Output = Result<(), ResolvedError>> + Send;
    /// Forgets everything about the link.
    fn revert(&mut self, index: u32) -> impl Future<Output = Result<(), ResolvedError>> + Send;
}

/// The one of this host, connected when it is first needed.
#[derive(Debug, Default)]
pub struct Resolved {
    #[cfg(feature = "resolved")]
    connection: Option<zbus::Connection>,
}

#[cfg(feature = "resolved")]
mod bus {
    use std::net::IpAddr;

    use super::{LinkDns, Resolve, Resolved, ResolvedError};

    const SERVICE: &str = "org.freedesktop.resolve1";
    const PATH: &str = "/org/freedesktop/resolve1";
    const INTERFACE: &str = "org.freedesktop.resolve1.Manager";
    /// Address families of Linux, as the interface wants them.
    const AF_INET: i32 = 2;
    const AF_INET6: i32 = 10;

    impl Resolve for Resolved {
        async fn apply(&mut self, link: &LinkDns) -> Result<(), ResolvedError> {
            let index = link_index(link.index);
            let servers: Vec<(i32, Vec<u8>)> = link.servers.iter().map(|server| wire_address(*server)).collect();
            let domains: Vec<(&str, bool)> = link.domains.iter().map(|domain| (domain.as_str(), true)).collect();
            self.call("SetLinkDNS", link.index, &(index, servers)).await?;
            self.call("SetLinkDomains", link.index, &(index, domains)).await?;
            self.call("SetLinkDefaultRoute", link.index, &(index, false)).await
        }

        async fn revert(&mut self, index: u32) -> Result<(), ResolvedError> {
            self.call("RevertLink", index, &(link_index(index),)).await
        }
    }

    impl Resolved {
        async fn call<B>(&mut self, method: &'static str, index: u32, body: &B) -> Result<(), ResolvedError>
        where
            B: serde::ser::Serialize + zbus::DynamicType + Sync,
        {
            let connection = match self.connection.take() {
                Some(connection) => connection,
                None => zbus::Connection::system().await.map_err(ResolvedError::Bus)?,
            };
            // Kept only if the call went well: a bus that restarted needs a new connection.
            let result = connection.call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body).await;
            result.map_err(|source| ResolvedError::Call { method, index, source })?;
            self.connection = Some(connection);
            Ok(())
        }
    }

    /// The kernel's indices are positive numbers of 31 bits.
    fn link_index(index: u32) -> i32 {
        i32::try_from(index).unwrap_or(i32::MAX)
    }

    fn wire_address(address: IpAddr) -> (i32, Vec<u8>) {
        match address {
            IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn addresses_are_written_with_their_family() {
            assert_eq!(wire_address("10.80.0.1".parse().expect("an address")), (2, vec![10, 80, 0, 1]));
            let (family, bytes) = wire_address("fd80::1".parse().expect("an address"));
            assert_eq!((family, bytes.len(), bytes[0], bytes[15]), (10, 16, 0xfd, 1));
        }
    }
}

#[cfg(not(feature = "resolved"))]
impl Resolve for Resolved {
    async fn apply(&mut self, _link: &LinkDns) -> Result<(), ResolvedError> {
        Err(ResolvedError::NotBuilt)
    }

    async fn revert(&mut self, _index: u32) -> Result<(), ResolvedError> {
        Err(ResolvedError::NotBuilt)
    }
}
