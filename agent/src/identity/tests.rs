//! Whole handshakes over memory pipes: who is let in, and what the other end then knows.

use std::time::Duration;

use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DOMAIN: &str = "weft.internal";

fn id(name: &str) -> NodeId {
    name.parse().expect("a node id")
}

fn authority() -> Authority {
    Authority::create(SystemTime::now()).expect("an authority")
}

fn node(authority: &Authority, name: &str) -> Identity {
    Identity::in_memory(authority, &id(name), DOMAIN).expect("an identity")
}

/// What each end says about the other after a handshake and one byte each way.
async fn meet(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: rustls_pki_types::ServerName<'static>,
) -> Result<(Option<Member>, Member), String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serving = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await.map_err(|error| error.to_string())?;
        stream.write_all(b"x").await.map_err(|error| error.to_string())?;
        stream.read_u8().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(certificate::member(stream.get_ref().1.peer_certificates()).ok())
    };
    let calling = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await.map_err(|error| error.to_string())?;
        stream.read_u8().await.map_err(|error| error.to_string())?;
        stream.write_all(b"x").await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())?;
        certificate::member(stream.get_ref().1.peer_certificates()).map_err(|error| error.to_string())
    };
    let (seen, found) = tokio::join!(serving, calling);
    match (seen, found) {
        (Ok(seen), Ok(found)) => Ok((seen, found)),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

async fn raft(client: &Identity, server: &Identity) -> Result<(Option<Member>, Member), String> {
    let client_config = client.client_config(Purpose::Raft).expect("a configuration");
    let server_config = server.server_config(Purpose::Raft).expect("a configuration");
    meet(client_config, server_config, certificate::server_name(server.id())).await
}

#[tokio::test]
async fn two_nodes_of_a_mesh_know_each_other() {
    let mesh = authority();
    let (alpha, beta) = (node(&mesh, "alpha"), node(&mesh, "beta"));
    let (seen, found) = raft(&alpha, &beta).await.expect("a session");
    assert_eq!(seen.map(|member| (member.name, member.role)), Some((id("alpha"), Role::Node)));
    assert_eq!((found.name, found.key), (id("beta"), beta.certificate().member.key));
}

#[tokio::test]
async fn a_node_of_another_mesh_is_refused_both_ways() {
    let (one, two) = (authority(), authority());
    let (alpha, stranger) = (node(&one, "alpha"), node(&two, "beta"));
    raft(&alpha, &stranger).await.expect_err("the server is a stranger");
    raft(&stranger, &alpha).await.expect_err("the client is a stranger");
}

#[tokio::test]
async fn a_node_does_not_pass_for_another_one() {
    let mesh = authority();
    let (alpha, beta) = (node(&mesh, "alpha"), node(&mesh, "beta"));
    let client = alpha.client_config(Purpose::Raft).expect("a configuration");
    let server = beta.server_config(Purpose::Raft).expect("a configuration");
    meet(client, server, certificate::server_name(&id("gamma"))).await.expect_err("beta is not gamma");
}

#[tokio::test]
async fn a_revoked_key_is_refused_as_client_and_as_server() {
    let mesh = authority();
    let (alpha, beta) = (node(&mesh, "alpha"), node(&mesh, "beta"));
    let revoked = BTreeSet::from([beta.certificate().member.key]);
    alpha.revoke(revoked);
    assert!(!alpha.is_admitted(&beta.certificate().member));
    raft(&beta, &alpha).await.expect_err("beta is revoked");
    raft(&alpha, &beta).await.expect_err("beta is revoked");
}

#[tokio::test]
async fn the_contract_admits_a_caller_without_a_certificate_as_nobody() {
    let mesh = authority();
    let alpha = node(&mesh, "alpha");
    let client = pinned::client_config(mesh.fingerprint()).expect("a configuration");
    let server = alpha.server_config(Purpose::Grpc).expect("a configuration");
    let name = rustls_pki_types::ServerName::try_from("192.0.2.1").expect("a name");
    let (seen, found) = meet(client, server, name).await.expect("a session");
    assert_eq!((seen, found.name), (None, id("alpha")));
}

#[tokio::test]
async fn a_pinned_client_refuses_another_authority_and_an_operator_as_server() {
    let (mesh, other) = (authority(), authority());
    let alpha = node(&mesh, "alpha");
    let client = pinned::client_config(other.fingerprint()).expect("a configuration");
    let name = rustls_pki_types::ServerName::try_from("192.0.2.1").expect("a name");
    let server = alpha.server_config(Purpose::Grpc).expect("a configuration");
    meet(client, server, name).await.expect_err("another authority");
}

#[tokio::test]
async fn raft_refuses_a_client_without_a_certificate() {
    let mesh = authority();
    let alpha = node(&mesh, "alpha");
    let client = pinned::client_config(mesh.fingerprint()).expect("a configuration");
    let server = alpha.server_config(Purpose::Raft).expect("a configuration");
    meet(client, server, certificate::server_name(&id("alpha"))).await.expect_err("a certificate is required");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let mesh = authority();
    let alpha = node(&mesh, "alpha");
    let long_ago = SystemTime::now() - NODE_LIFETIME.duration() - Duration::from_secs(7200);
    let mut material = issued(&mesh, &id("beta"), DOMAIN, long_ago).expect("issued");
    material.ca_key_pem = None;
    let credentials = Arc::new(Credentials::new(&material).expect("credentials"));
    let client = tls::client(Purpose::Raft, &credentials, &alpha.inner.trust).expect("a configuration");
    let server = alpha.server_config(Purpose::Raft).expect("a configuration");
    let error = meet(client, server, certificate::server_name(&id("alpha"))).await.expect_err("expired");
    assert!(error.to_lowercase().contains("expired"), "{error}");
}

#[tokio::test]
async fn a_renewal_keeps_the_key_and_the_configurations() {
    let mesh = authority();
    let (alpha, beta) = (node(&mesh, "alpha"), node(&mesh, "beta"));
    let before = beta.certificate();
    let server = beta.server_config(Purpose::Raft).expect("a configuration");
    assert!(beta.renew_here(SystemTime::now() + Duration::from_secs(60)).expect("renewed"));
    let after = beta.certificate();
    assert_eq!(after.member, before.member);
    assert!(after.not_after > before.not_after);
    let client = alpha.client_config(Purpose::Raft).expect("a configuration");
    meet(client, server, certificate::server_name(beta.id())).await.expect("the old configuration shows the new one");
}

#[test]
fn an_identity_is_made_once_and_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("identity");
    let first = Identity::open(&path, &id("alpha"), DOMAIN).expect("made");
    let second = Identity::open(&path, &id("alpha"), DOMAIN).expect("read");
    assert_eq!((first.mesh(), first.certificate()), (second.mesh(), second.certificate()));
    assert!(second.authority().is_some());
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path.join("identity.pem")).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn an_identity_of_another_node_or_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("identity");
    Identity::open(&path, &id("alpha"), DOMAIN).expect("made");
    let error = Identity::open(&path, &id("beta"), DOMAIN).expect_err("another node").to_string();
    assert!(error.contains("alpha") && error.contains("beta") && error.contains("weft leave"), "{error}");
    let file = path.join("identity.pem");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("changed");
    let error = Identity::open(&path, &id("alpha"), DOMAIN).expect_err("open to others").to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::write(&file, "nothing").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("changed");
    let error = Identity::open(&path, &id("alpha"), DOMAIN).expect_err("no identity").to_string();
    assert!(error.contains("identity.pem"), "{error}");
}

#[test]
fn a_request_gives_a_key_and_nothing_else() {
    let mesh = authority();
    let (request, _key) = request::Request::new().expect("a request");
    let subject = Subject { name: id("ops"), role: Role::Operator, domain: DOMAIN.to_owned() };
    let pem = mesh.issue(&request, &subject, Lifetime::from_days(1), SystemTime::now()).expect("issued");
    let facts = certificate::facts(&pem).expect("ours");
    assert_eq!((facts.member.role, facts.member.key), (Role::Operator, request.fingerprint()));
    let mut broken = request.pem().to_owned();
    let middle = broken.len() / 2;
    let other = if broken.as_bytes()[middle] == b'A' { "B" } else { "A" };
    broken.replace_range(middle..=middle, other);
    request::Request::parse(&broken).expect_err("the signature does not fit");
}
