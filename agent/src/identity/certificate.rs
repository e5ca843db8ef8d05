//! What stands in a certificate of the mesh, and how it is read back.
//!
//! The subject's common name is the node id or the operator's name; the one URI among the alternative names,
//! `weft://MESH/node/ID` or `weft://MESH/operator/NAME`, is what members are told apart by. The DNS names are for TLS
//! clients that ask for one: `ID.node.weft` always, and `ID`, `ID.DOMAIN`, `ID.pm3`, `pm3` for people and tools.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::foundation::id::{InvalidName, NodeId};

/// The zone of the names TLS asks for; nothing resolves it.
const TLS_ZONE: &str = "node.weft";
const SCHEME: &str = "weft://";

/// Why bytes are no certificate of ours.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("no certificate was shown")]
    Missing,
    #[error("this is not a certificate in PEM")]
    Pem,
    #[error("this is not an X.509 certificate")]
    Form,
    #[error("the certificate names {0} members by URI; one of this mesh names exactly one, like weft://MESH/node/ID")]
    Names(usize),
    #[error("{0:?} in the certificate is not weft://MESH/node/ID or weft://MESH/operator/NAME")]
    Uri(String),
    #[error("the certificate names a member that cannot be one")]
    Member(#[from] InvalidName),
    #[error("the common name {common:?} and the member {member} in the certificate differ")]
    CommonName { common: String, member: NodeId },
}

/// SHA-256 of a public key with its algorithm (SubjectPublicKeyInfo, RFC 5280 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The fingerprint of this SubjectPublicKeyInfo in DER.
    pub(super) fn of_spki(spki: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, spki);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Why text is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct NotAFingerprint;

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;
    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(NotAFingerprint);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_not_ascii| NotAFingerprint)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_not_hex| NotAFingerprint)?;
        }
        Ok(Self(bytes))
    }
}

/// Names a mesh: the first half of its authority's fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshId([u8; 16]);

impl MeshId {
    /// The mesh of the authority with this certificate.
    ///
    /// # Errors
    /// The bytes are no certificate.
    pub fn of(ca: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        Ok(Self::from(fingerprint(ca)?))
    }
}

impl From<Fingerprint> for MeshId {
    fn from(fingerprint: Fingerprint) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&fingerprint.0[..16]);
        Self(bytes)
    }
}

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshId({self})")
    }
}

/// What a member may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An agent.
    Node,
    /// A person or a tool that administers the mesh; runs no agent.
    Operator,
}

impl Role {
    /// Its word in the URI and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }
}

/// Who showed a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: NodeId,
    pub role: Role,
    /// Of the key in the certificate.
    pub key: Fingerprint,
}

/// What is read from a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub member: Member,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Facts {
    /// When a renewal is due: half of the life is over.
    pub fn half_life(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life / 2
    }
}

/// Whom a certificate is to be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub name: NodeId,
    pub role: Role,
    /// The mesh domain, for the names below it.
    pub domain: String,
}

impl Subject {
    /// The URI that tells this member from every other.
    pub(super) fn uri(&self, mesh: MeshId) -> String {
        format!("{SCHEME}{mesh}/{}/{}", self.role.as_str(), self.name)
    }

    /// The names a TLS client may ask for; none where nothing is served.
    pub(super) fn dns_names(&self) -> Vec<String> {
        match self.role {
            Role::Operator => Vec::new(),
            Role::Node => {
                let name = &self.name;
                let mut names = vec![
                    format!("{name}.{TLS_ZONE}"),
                    format!("{name}.{}", self.domain),
                    format!("{name}.pm3"),
                    "pm3".to_owned(),
                ];
                // A name of digits alone is taken for an address (RFC 1123 section 2.1).
                if !name.as_str().bytes().all(|byte| byte.is_ascii_digit()) {
                    names.push(name.to_string());
                }
                names
            }
        }
    }
}

/// A span of validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime(Duration);

impl Lifetime {
    /// So many days of 24 hours.
    pub const fn from_days(days: u32) -> Self {
        Self(Duration::from_secs(days as u64 * 24 * 60 * 60))
    }

    /// Its length.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

/// The name a TLS client asks for to reach exactly this node.
pub fn server_name(id: &NodeId) -> ServerName<'static> {
    let name = format!("{id}.{TLS_ZONE}");
    ServerName::try_from(name).expect("a DNS label below a fixed zone is a DNS name of at most 74 bytes")
}

/// Who the other end is, from the chain it showed, which TLS has verified.
///
/// # Errors
/// No chain, or a certificate that names no member.
pub fn member(chain: Option<&[CertificateDer<'_>]>) -> Result<Member, CertificateError> {
    let leaf = chain.and_then(<[_]>::first).ok_or(CertificateError::Missing)?;
    Ok(read(leaf)?.member)
}

/// The fingerprint of the key in a certificate.
///
/// # Errors
/// The bytes are no certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Result<Fingerprint, CertificateError> {
    let parsed = parse(certificate)?;
    Ok(Fingerprint::of_spki(parsed.public_key().raw))
}

/// The first certificate in `pem`.
///
/// # Errors
/// There is none.
pub fn from_pem(pem: &str) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_source| CertificateError::Pem)
}

/// What stands in the first certificate of `pem`.
///
/// # Errors
/// It is none of ours.
pub fn facts(pem: &str) -> Result<Facts, CertificateError> {
    read(&from_pem(pem)?)
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    X509Certificate::from_der(certificate).map(|(_rest, parsed)| parsed).map_err(|_source| CertificateError::Form)
}

fn read(certificate: &CertificateDer<'_>) -> Result<Facts, CertificateError> {
    let parsed = parse(certificate)?;
    let (name, role) = named(&parsed)?;
    let common = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if common != name.as_str() {
        return Err(CertificateError::CommonName { common: common.to_owned(), member: name });
    }
    let member = Member { name, role, key: Fingerprint::of_spki(parsed.public_key().raw) };
    let validity = parsed.validity();
    Ok(Facts { member, not_before: at(validity.not_before), not_after: at(validity.not_after) })
}

fn named(parsed: &X509Certificate<'_>) -> Result<(NodeId, Role), CertificateError> {
    let names = parsed.subject_alternative_name().map_err(|_source| CertificateError::Form)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { return Err(CertificateError::Names(uris.len())) };
    parse_uri(uri)
}

fn parse_uri(uri: &str) -> Result<(NodeId, Role), CertificateError> {
    let refuse = || CertificateError::Uri(uri.to_owned());
    let parts: Vec<&str> = uri.strip_prefix(SCHEME).ok_or_else(refuse)?.split('/').collect();
    let [_mesh, kind, name] = parts[..] else { return Err(refuse()) };
    let role = match kind {
        "node" => Role::Node,
        "operator" => Role::Operator,
        _ => return Err(refuse()),
    };
    Ok((name.parse()?, role))
}

fn at(time: x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
