//! The configuration of the server, as text. Pure.
//!
//! Invariant: what stands in it comes from parsed types (names, addresses, hexadecimal digits), so nothing needs quoting beyond
//! the quotes.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use super::config::Config;
use super::schema::Credentials;
use crate::foundation::secret::Secret;
use crate::model::Model;

/// The user that clients of this host are.
pub(super) const USER: &str = "weft";

/// This node's secrets, made anew at every start.
pub(super) struct Own {
    /// For clients of this host.
    pub(super) password: Secret<String>,
    /// For the servers of the other nodes.
    pub(super) route_password: Secret<String>,
}

/// What a server is told.
pub(super) struct Spec {
    /// What a running server cannot change.
    fixed: Secret<String>,
    cluster: Option<Cluster>,
    /// For clients of this host, with the password.
    pub(super) client_url: Secret<String>,
}

struct Cluster {
    head: Secret<String>,
    /// The name of the other node, and where its server is, with the password for it.
    routes: Vec<(String, Secret<String>)>,
}

/// What must be done so that a server that was told `self` does what another spec says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// It reads its configuration again.
    Reload,
    Restart,
}

impl Spec {
    /// For the server of this node among `others`; those that are no peers have no route.
    pub(super) fn of(config: &Config, model: &Model, own: &Own, others: &[Credentials]) -> Self {
        let node = &model.node.id;
        let (listen, monitor, password) = (config.listen, config.monitor, own.password.expose());
        let fixed = format!(
            "server_name: \"{node}\"\nlisten: \"{listen}\"\nhttp: \"{monitor}\"\nlogtime: false\n\
             max_payload: 2097152\nauthorization {{ user: \"{USER}\", password: \"{password}\" }}\n"
        );
        let client_url = format!("nats://{USER}:{password}@{listen}");
        Self {
            fixed: Secret::new(fixed),
            cluster: Cluster::of(config, model, own, others),
            client_url: Secret::new(client_url),
        }
    }

    /// The names of the nodes that it has routes to.
    pub(super) fn routes(&self) -> Vec<String> {
        self.cluster.iter().flat_map(|cluster| &cluster.routes).map(|(node, _)| node.clone()).collect()
    }

    pub(super) fn change_to(&self, other: &Self) -> Change {
        let head = |spec: &Self| spec.cluster.as_ref().map(|cluster| cluster.head.expose().clone());
        if self.fixed.expose() != other.fixed.expose() || head(self) != head(other) {
            return Change::Restart;
        }
        let routes = |spec: &Self| -> Vec<String> {
            spec.cluster.iter().flat_map(|cluster| &cluster.routes).map(|(_, url)| url.expose().clone()).collect()
        };
        if routes(self) == routes(other) { Change::Nothing } else { Change::Reload }
    }

    /// The whole file.
    pub(super) fn render(&self, pid_file: &Path) -> Secret<String> {
        let mut text = format!("{}pid_file: {:?}\n", self.fixed.expose(), pid_file.display().to_string());
        if let Some(cluster) = &self.cluster {
            text.push_str(cluster.head.expose());
            for (_, url) in &cluster.routes {
                writeln!(text, "    \"{}\"", url.expose()).expect("writing to a String cannot fail");
            }
            text.push_str("  ]\n}\n");
        }
        Secret::new(text)
    }
}

impl Cluster {
    /// `None`: this node has no address in the mesh yet.
    fn of(config: &Config, model: &Model, own: &Own, others: &[Credentials]) -> Option<Self> {
        let node = &model.node.id;
        let port = config.cluster_port;
        let address = SocketAddr::new(model.node.addresses.first()?.addr(), port);
        let password = own.route_password.expose();
        let head = format!(
            "cluster {{\n  name: \"weft\"\n  listen: \"{address}\"\n  no_advertise: true\n  \
             authorization {{ user: \"{node}\", password: \"{password}\", timeout: 5 }}\n  routes: [\n"
        );
        let mut routes: Vec<(String, Secret<String>)> = Vec::new();
        for (name, password) in others {
            let Some(peer) = model.peers().find(|peer| peer.name.as_str() == name) else { continue };
            let own_address = peer.allowed_ips.iter().find(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
            let Some(own_address) = own_address else { continue };
            let place = SocketAddr::new(own_address.addr(), port);
            let url = format!("nats-route://{name}:{}@{place}", password.expose());
            routes.push((name.clone(), Secret::new(url)));
        }
        Some(Self { head: Secret::new(head), routes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Node;
    use crate::model::key::PublicKey;
    use crate::model::peer::Peer;

    fn model(peers: &[(&str, u8)]) -> Model {
        let key = |number| PublicKey::from_bytes([number; 32]);
        let node = Node {
            id: "alpha".parse().expect("a name"),
            addresses: vec!["10.80.0.1/24".parse().expect("a prefix")],
            public_key: key(1),
        };
        let peer = |(name, number): &(&str, u8)| Peer {
            name: name.parse().expect("a name"),
            public_key: key(*number),
            preshared_key: None,
            endpoint: None,
            allowed_ips: vec![format!("10.80.0.{number}/32").parse().expect("a prefix")],
            persistent_keepalive: None,
        };
        Model::new(node, "weft.internal".to_owned(), peers.iter().map(peer).collect()).expect("a model")
    }

    fn spec(peers: &[(&str, u8)], others: &[(&str, &str)]) -> Spec {
        let secret = |text: &str| Secret::new(text.to_owned());
        let own = Own { password: secret("aa"), route_password: secret("bb") };
        let others: Vec<Credentials> =
            others.iter().map(|(name, password)| ((*name).to_owned(), secret(password))).collect();
        Spec::of(&Config::default(), &model(peers), &own, &others)
    }

    #[test]
    fn a_server_listens_on_loopback_and_has_routes_over_the_mesh() {
        let text = spec(&[("beta", 2), ("gamma", 3)], &[("beta", "cc"), ("stranger", "dd")]);
        let text = text.render(Path::new("/run/weft/bus/pid"));
        assert_eq!(
            text.expose(),
            "server_name: \"alpha\"\nlisten: \"127.0.0.1:4222\"\nhttp: \"127.0.0.1:8222\"\nlogtime: false\n\
             max_payload: 2097152\nauthorization { user: \"weft\", password: \"aa\" }\npid_file: \"/run/weft/bus/pid\"\n\
             cluster {\n  name: \"weft\"\n  listen: \"10.80.0.1:6222\"\n  no_advertise: true\n  \
             authorization { user: \"alpha\", password: \"bb\", timeout: 5 }\n  routes: [\n    \
             \"nats-route://beta:cc@10.80.0.2:6222\"\n  ]\n}\n"
        );
    }

    #[test]
    fn routes_change_a_running_server_and_anything_else_starts_another() {
        let alone = spec(&[("beta", 2)], &[]);
        assert_eq!(alone.change_to(&spec(&[("gamma", 3)], &[])), Change::Nothing);
        let joined = spec(&[("beta", 2)], &[("beta", "cc")]);
        assert_eq!(alone.change_to(&joined), Change::Reload);
        assert_eq!(joined.change_to(&spec(&[("beta", 2)], &[("beta", "ee")])), Change::Reload);
        let moved = Config { cluster_port: 7222, ..Config::default() };
        let secret = |text: &str| Secret::new(text.to_owned());
        let own = Own { password: secret("aa"), route_password: secret("bb") };
        assert_eq!(alone.change_to(&Spec::of(&moved, &model(&[]), &own, &[])), Change::Restart);
    }
}
