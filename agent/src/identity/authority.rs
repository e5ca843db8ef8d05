//! The certificate authority of a mesh: made by its first node, held by those that may let others in.
//!
//! Keys are ECDSA P-256, which every TLS stack speaks. Invariants: a certificate is issued for the key a request proves
//! to hold, and for the subject *we* name; nothing a request says about names or uses is taken over.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};

use super::certificate::{self, CertificateError, Fingerprint, Lifetime, MeshId, Role, Subject};
use super::request::Request;
use crate::foundation::secret::Secret;

/// The authority outlives the hosts of the mesh.
const LIFETIME: Lifetime = Lifetime::from_days(20 * 365);
/// A clock may be this far behind ours and still accept what we issue.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Why nothing was made or issued.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("failed to make a key")]
    Key(#[source] rcgen::Error),
    #[error("failed to sign a certificate")]
    Sign(#[source] rcgen::Error),
    #[error("the key of the mesh authority is of no use")]
    OwnKey(#[source] rcgen::Error),
    #[error("the certificate of the mesh authority is of no use")]
    OwnCertificate(#[source] CertificateError),
    #[error("the key of the mesh authority does not belong to its certificate")]
    Mismatch,
    #[error("the certificate request is not PKCS #10 in PEM, signed by its own key")]
    Request(#[source] rcgen::Error),
}

/// The authority with its key.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    fingerprint: Fingerprint,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint)
    }
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// No key could be made.
    pub fn create(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Weft mesh authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, LIFETIME, now);
        let certificate = params.self_signed(&key).map_err(AuthorityError::Sign)?;
        let pem = certificate.pem();
        Self::from_pem(&pem, &Secret::new(key.serialize_pem()))
    }

    /// The authority whose certificate and key these are.
    ///
    /// # Errors
    /// They are not in PEM, or do not belong together.
    pub fn from_pem(certificate_pem: &str, key_pem: &Secret<String>) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key_pem.expose()).map_err(AuthorityError::OwnKey)?;
        let der = certificate::from_pem(certificate_pem).map_err(AuthorityError::OwnCertificate)?;
        let fingerprint = certificate::fingerprint(&der).map_err(AuthorityError::OwnCertificate)?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(AuthorityError::OwnKey)?;
        let own = Self { certificate_pem: certificate_pem.to_owned(), issuer, fingerprint };
        if own.key_fingerprint() == own.fingerprint { Ok(own) } else { Err(AuthorityError::Mismatch) }
    }

    fn key_fingerprint(&self) -> Fingerprint {
        use rcgen::PublicKeyData as _;
        Fingerprint::of_spki(&self.issuer.key().subject_public_key_info())
    }

    /// What a token carries, so that a joiner knows this mesh by the first bytes it gets.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Its certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key, for a node that is to issue too.
    pub fn key_pem(&self) -> Secret<String> {
        Secret::new(self.issuer.key().serialize_pem())
    }

    /// A certificate in PEM for the key of `request` and the name of `subject`, valid from about `now`.
    ///
    /// # Errors
    /// The request does not prove its key.
    pub fn issue(
        &self,
        request: &Request,
        subject: &Subject,
        lifetime: Lifetime,
        now: SystemTime,
    ) -> Result<String, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(subject.name.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match subject.role {
            Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Role::Operator => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.subject_alt_names = alternative_names(subject, self.fingerprint.into()).map_err(AuthorityError::Sign)?;
        params.serial_number = Some(SerialNumber::from(serial()?));
        valid(&mut params, lifetime, now);
        let certificate = params.signed_by(request.public_key(), &self.issuer).map_err(AuthorityError::Sign)?;
        Ok(certificate.pem())
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid(params: &mut CertificateParams, lifetime: Lifetime, now: SystemTime) {
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime.duration()).into();
}

fn alternative_names(subject: &Subject, mesh: MeshId) -> Result<Vec<SanType>, rcgen::Error> {
    let mut names = vec![SanType::URI(subject.uri(mesh).try_into()?)];
    for name in subject.dns_names() {
        names.push(SanType::DnsName(name.try_into()?));
    }
    Ok(names)
}

/// 16 random bytes with the top bit clear: a positive number that no two certificates share (RFC 5280 section 4.1.2.2).
fn serial() -> Result<Vec<u8>, AuthorityError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_source| AuthorityError::Key(rcgen::Error::RemoteKeyError))?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(bytes.to_vec())
}
