//! The TLS configuration of one who is not a member yet and knows the mesh by the fingerprint in its token.
//!
//! Invariant: nothing is sent before the server has shown the authority with that fingerprint, a certificate of that
//! authority for a node, and the proof that it holds the key. An address or a name proves nothing and is not looked at.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::certificate::{self, Fingerprint, Role};
use super::tls::{TlsError, provider};

/// A configuration that believes the mesh of the authority with this fingerprint, and shows nothing of its own.
///
/// # Errors
/// The TLS library refuses the combination, which no input changes.
pub fn client_config(authority: Fingerprint) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    let verifier = Arc::new(Pinned { authority });
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = |reason| Error::InvalidCertificate(reason);
        let is_pinned = |shown: &&CertificateDer<'_>| {
            certificate::fingerprint(shown).is_ok_and(|fingerprint| fingerprint == self.authority)
        };
        let ca = intermediates.iter().find(is_pinned).ok_or_else(|| refused(CertificateError::UnknownIssuer))?;
        let member = certificate::member(Some(std::slice::from_ref(end_entity)));
        let node = member.ok().filter(|member| member.role == Role::Node);
        let node = node.ok_or_else(|| refused(CertificateError::ApplicationVerificationFailure))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_source| refused(CertificateError::UnknownIssuer))?;
        verifier.verify_server_cert(end_entity, intermediates, &certificate::server_name(&node.name), ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
