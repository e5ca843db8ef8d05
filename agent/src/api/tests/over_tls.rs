//! The gateway by TLS: whom a client's certificate makes internal, and whom not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::over_gateway::gateway_of;
use super::*;
use crate::api::gateway::Gateway;
use crate::api::gateway::config::Config;
use crate::identity::authority::Authority;
use crate::identity::{Identity, Purpose};
use crate::pm3::caller::Standing;

pub(super) fn node(authority: &Authority, name: &str) -> Identity {
    Identity::in_memory(authority, &name.parse().expect("a name"), "weft.internal").expect("an identity")
}

fn mesh() -> (Identity, Identity) {
    let authority = Authority::create(SystemTime::now()).expect("an authority");
    (node(&authority, "alpha"), node(&authority, "beta"))
}

async fn gateway(fixture: &Fixture, identity: &Identity, standing: Standing) -> (Gateway, SocketAddr) {
    let tls_listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let config = Config { listen: Vec::new(), tls_listen, listen_on_mesh: false, ..Config::default() };
    gateway_of(fixture, standing, config, Some(identity.clone())).await
}

/// What a client with this configuration gets that names `name`.
async fn connect(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    name: &str,
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(config).connect(name, stream).await
}

async fn ping(address: SocketAddr, config: Arc<rustls::ClientConfig>, name: &str) -> String {
    let request = b"GET /ping HTTP/1.1\r\nHost: pm3\r\nConnection: close\r\n\r\n";
    match connect(address, config, name).await {
        Ok(stream) => exchange(stream, request).await,
        Err(error) => format!("no handshake: {error}"),
    }
}

/// Shows no certificate.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// As `identity`'s, without HTTP/2 and with or without its certificate.
fn client(identity: &Identity, shows_certificate: bool) -> Arc<rustls::ClientConfig> {
    let config = identity.client_config(Purpose::Gateway).expect("a configuration");
    let mut config = rustls::ClientConfig::clone(&config);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if !shows_certificate {
        config.client_auth_cert_resolver = Arc::new(Nothing);
    }
    Arc::new(config)
}

#[tokio::test]
async fn a_member_that_asks_for_pm3_is_internal_wherever_it_comes_from() {
    let (fixture, (alpha, beta)) = (Fixture::new(), mesh());
    let (_gateway, address) = gateway(&fixture, &alpha, Standing::External).await;
    let answer = ping(address, client(&beta, true), "pm3").await;
    assert_eq!(parts(&answer), (200, "\"alpha\"\n"));
    let answer = ping(address, client(&beta, true), "alpha").await;
    assert_eq!(parts(&answer).0, 403, "another name: {answer}");
    let answer = ping(address, client(&beta, false), "pm3").await;
    assert_eq!(parts(&answer).0, 403, "without a certificate: {answer}");
    let (_gateway, inside) = gateway(&fixture, &alpha, Standing::Internal).await;
    let answer = ping(inside, client(&beta, false), "alpha").await;
    assert_eq!(parts(&answer).0, 200, "the kernel vouches for it: {answer}");
}

#[tokio::test]
async fn a_certificate_of_another_mesh_is_refused() {
    let (fixture, (alpha, beta)) = (Fixture::new(), mesh());
    let (_other, foreign) = mesh();
    let (_gateway, address) = gateway(&fixture, &alpha, Standing::External).await;
    // It believes alpha's authority and shows a certificate of its own.
    let mut config = rustls::ClientConfig::clone(&client(&beta, true));
    config.client_auth_cert_resolver = Arc::clone(&client(&foreign, true).client_auth_cert_resolver);
    let answer = ping(address, Arc::new(config), "pm3").await;
    assert!(!answer.contains("alpha"), "{answer}");
}

#[tokio::test]
async fn a_member_that_is_taken_out_is_refused_at_once() {
    let (fixture, (alpha, beta)) = (Fixture::new(), mesh());
    let (_gateway, address) = gateway(&fixture, &alpha, Standing::External).await;
    let mut open = connect(address, client(&beta, true), "pm3").await.expect("agreed");
    let request = b"GET /ping HTTP/1.1\r\nHost: pm3\r\n\r\n";
    let mut seen = Vec::new();
    open.write_all(request).await.expect("sent");
    while !seen.ends_with(b"\"alpha\"\n") {
        assert!(open.read_buf(&mut seen).await.expect("open") > 0, "{}", String::from_utf8_lossy(&seen));
    }
    alpha.revoke(BTreeSet::from([beta.certificate().member.key]));
    assert_eq!(exchange(open, request).await, "", "its open connection is closed");
    let answer = ping(address, client(&beta, true), "pm3").await;
    assert!(!answer.contains("alpha"), "{answer}");
}

#[tokio::test]
async fn plain_text_and_half_a_handshake_hold_nothing_up() {
    let (fixture, (alpha, beta)) = (Fixture::new(), mesh());
    let (_gateway, address) = gateway(&fixture, &alpha, Standing::Internal).await;
    let plain = TcpStream::connect(address).await.expect("connected");
    let answer = exchange(plain, b"GET /ping HTTP/1.1\r\nHost: pm3\r\n\r\n").await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    let mut half = TcpStream::connect(address).await.expect("connected");
    half.write_all(b"\x16\x03\x01\x02").await.expect("sent");
    assert_eq!(parts(&ping(address, client(&beta, true), "pm3").await).0, 200);
    drop(half);
}
