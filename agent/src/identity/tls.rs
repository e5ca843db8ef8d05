//! The TLS configurations of the mesh, over credentials and a trust anchor that can be swapped while sessions live.
//!
//! Invariants: Raft and the contract speak TLS 1.3 only; a chain is checked by the TLS library against the authority of
//! this mesh alone, and then against the revoked keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::sync::watch;

use super::certificate::{self, Fingerprint};
use super::{Material, Purpose};

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the private key is not in PEM")]
    Key,
    #[error("a certificate is not in PEM")]
    Certificate,
    #[error("the TLS library refuses the key or the certificate")]
    Refused(#[from] rustls::Error),
    #[error("the certificate of the mesh authority cannot be a trust anchor")]
    Anchor(#[source] rustls::client::VerifierBuilderError),
}

/// The library's cryptography, shared by every configuration.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// The chain of a node and its key. The authority goes along, so that one who knows only its fingerprint can check.
pub(super) fn certified(material: &Material) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = [&material.certificate_pem, &material.ca_pem]
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_source| TlsError::Certificate));
    let chain = chain.into_iter().collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(material.key_pem.expose().as_bytes()).map_err(|_source| TlsError::Key)?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

/// What this node shows.
#[derive(Debug)]
pub(super) struct Credentials(ArcSwap<CertifiedKey>);

impl Credentials {
    pub(super) fn new(material: &Material) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::new(certified(material)?)))
    }

    pub(super) fn replace(&self, certified: Arc<CertifiedKey>) {
        self.0.store(certified);
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl rustls::client::ResolvesClientCert for Credentials {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The library's verifiers over one authority.
#[derive(Debug)]
pub(super) struct Anchors {
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

pub(super) fn anchors(ca: &CertificateDer<'static>) -> Result<Anchors, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let roots = Arc::new(roots);
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
    let clients = clients.allow_unauthenticated().build().map_err(TlsError::Anchor)?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(TlsError::Anchor)?;
    Ok(Anchors { clients, servers })
}

/// Whom this node believes.
#[derive(Debug)]
pub(super) struct Trust {
    anchors: ArcSwap<Anchors>,
    revoked: watch::Receiver<Arc<BTreeSet<Fingerprint>>>,
}

impl Trust {
    pub(super) fn new(
        ca: &CertificateDer<'static>,
        revoked: watch::Receiver<Arc<BTreeSet<Fingerprint>>>,
    ) -> Result<Self, TlsError> {
        Ok(Self { anchors: ArcSwap::from_pointee(anchors(ca)?), revoked })
    }

    pub(super) fn replace(&self, anchors: Anchors) {
        self.anchors.store(Arc::new(anchors));
    }

    /// Whose certificate this is, judged as in a handshake but for the proof of its key.
    pub(super) fn client(&self, certificate: &CertificateDer<'_>) -> Result<certificate::Member, TlsError> {
        self.anchors.load().clients.verify_client_cert(certificate, &[], UnixTime::now())?;
        self.refuse_revoked(certificate)?;
        certificate::member(Some(std::slice::from_ref(certificate))).map_err(|_not_ours| TlsError::Certificate)
    }

    fn refuse_revoked(&self, end_entity: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let refused = |reason| Err(rustls::Error::InvalidCertificate(reason));
        match certificate::member(Some(std::slice::from_ref(end_entity))) {
            Err(_not_ours) => refused(CertificateError::ApplicationVerificationFailure),
            Ok(member) if self.revoked.borrow().contains(&member.key) => refused(CertificateError::Revoked),
            Ok(_member) => Ok(()),
        }
    }
}

/// [`Trust`] towards clients, who must or may show a certificate.
#[derive(Debug)]
struct Clients {
    trust: Arc<Trust>,
    is_mandatory: bool,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    // None: a client sends the certificate it has, also one of another mesh, and learns what is wrong with it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.trust.anchors.load().clients.verify_client_cert(end_entity, intermediates, now)?;
        self.trust.refuse_revoked(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.anchors.load().clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.anchors.load().clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.anchors.load().clients.supported_verify_schemes()
    }
}

/// [`Trust`] towards servers.
impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let anchors = self.anchors.load();
        let verified = anchors.servers.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        self.refuse_revoked(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.anchors.load().servers.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.anchors.load().servers.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.anchors.load().servers.supported_verify_schemes()
    }
}

static TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn versions(purpose: Purpose) -> &'static [&'static rustls::SupportedProtocolVersion] {
    match purpose {
        Purpose::Raft | Purpose::Grpc => TLS13,
        Purpose::Gateway | Purpose::Controller => rustls::ALL_VERSIONS,
    }
}

fn protocols(purpose: Purpose) -> Vec<Vec<u8>> {
    let names: &[&[u8]] = match purpose {
        Purpose::Raft => &[b"weft-raft/1"],
        Purpose::Grpc => &[b"h2"],
        Purpose::Gateway | Purpose::Controller => &[b"h2", b"http/1.1"],
    };
    names.iter().map(|name| name.to_vec()).collect()
}

pub(super) fn server(
    purpose: Purpose,
    credentials: &Arc<Credentials>,
    trust: &Arc<Trust>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions(purpose))?;
    let clients = |is_mandatory| Arc::new(Clients { trust: Arc::clone(trust), is_mandatory });
    let builder = match purpose {
        Purpose::Raft => builder.with_client_cert_verifier(clients(true)),
        Purpose::Grpc | Purpose::Gateway => builder.with_client_cert_verifier(clients(false)),
        Purpose::Controller => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::<Credentials>::clone(credentials));
    config.alpn_protocols = protocols(purpose);
    // A resumed session would not be checked against what was revoked meanwhile.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

pub(super) fn client(
    purpose: Purpose,
    credentials: &Arc<Credentials>,
    trust: &Arc<Trust>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions(purpose))?;
    let verified = builder.dangerous().with_custom_certificate_verifier(Arc::<Trust>::clone(trust));
    let mut config = verified.with_client_cert_resolver(Arc::<Credentials>::clone(credentials));
    config.alpn_protocols = protocols(purpose);
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}
