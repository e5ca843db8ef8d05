//! Who a node is to the others: the certificate authority of the mesh, the certificate of this node, the tokens that let
//! a new one in.
//!
//! In: the state directory, the node id, the mesh domain. Out: [`Identity`], from which every listener and client of the
//! mesh takes its TLS configuration, and [`certificate::member`], which says whose certificate the other end showed.
//!
//! Invariants: no connection of the mesh is made or taken without a certificate of this mesh's authority, checked for its
//! use, its validity and against what was revoked; the name inside it is the node id and nothing else. Private keys lie in
//! one file of mode 0600 and leave the process only to another node that may issue, over a connection both ends have proven.
//! A renewed certificate is swapped in without ending a session.

pub mod authority;
pub mod certificate;
mod files;
pub mod pinned;
pub mod renewal;
pub mod request;
mod signature;
mod tls;
pub mod token;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::foundation::id::NodeId;
use authority::{Authority, AuthorityError};
use certificate::{CertificateError, Fingerprint, Lifetime, Member, MeshId, Role, Subject};
use files::{Files, FilesError};
use tls::{Credentials, Trust};

pub use tls::TlsError;

/// How long a node's certificate lives; it is renewed at half of it.
pub const NODE_LIFETIME: Lifetime = Lifetime::from_days(90);

/// What a TLS configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Between store members: the certificate of a node is required on both sides.
    Raft,
    /// The contract: a client certificate is asked for and judged per call.
    Grpc,
    /// Virtual hosts and `pm3`: a client certificate is optional.
    Gateway,
    /// Operators' HTTP API: callers prove themselves above TLS.
    Controller,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the certificate in {} is of no use", .path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: CertificateError,
    },
    #[error(
        "{} holds the identity of node {found}, and node.id says {wanted}; set node.id back, or take this node out of the \
         mesh with `weft leave` first", .path.display()
    )]
    OtherNode { path: PathBuf, found: NodeId, wanted: NodeId },
    #[error("the certificate of this node ended at {ended} and this node cannot issue one; join the mesh again")]
    Expired { ended: String },
    #[error("the certificate and its key cannot be used for TLS")]
    Tls(#[from] TlsError),
}

/// This node's standing in its mesh. Cheap to clone; every clone sees a renewal and a move to another mesh.
#[derive(Debug, Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: NodeId,
    domain: String,
    /// `None`: nothing is kept, as in tests.
    files: Option<Files>,
    current: ArcSwap<Current>,
    credentials: Arc<Credentials>,
    trust: Arc<Trust>,
    revoked: watch::Sender<Arc<BTreeSet<Fingerprint>>>,
}

/// What a renewal replaces.
#[derive(Debug)]
struct Current {
    mesh: MeshId,
    authority_key: Fingerprint,
    ca: CertificateDer<'static>,
    authority: Option<Arc<Authority>>,
    certificate: certificate::Facts,
    certificate_der: CertificateDer<'static>,
    material: Material,
}

/// Everything that makes a node a member: what a join hands over and what lies on disk.
#[derive(Debug, Clone)]
pub struct Material {
    pub ca_pem: String,
    /// Only where this node may issue certificates.
    pub ca_key_pem: Option<crate::foundation::secret::Secret<String>>,
    pub certificate_pem: String,
    pub key_pem: crate::foundation::secret::Secret<String>,
}

impl Material {
    /// The signature of the node's key over `message`, in hexadecimal; empty, which verifies nothing, if it cannot sign.
    pub fn sign(&self, message: &[u8]) -> String {
        signature::sign(&self.key_pem, message)
    }
}

impl Identity {
    /// The identity in `directory`, made with an authority of its own if there is none: a node alone is a mesh of one.
    ///
    /// # Errors
    /// Files that cannot be read or written, or that belong to another node.
    pub fn open(directory: &Path, id: &NodeId, domain: &str) -> Result<Self, IdentityError> {
        let files = Files::at(directory);
        let material = match files.read()? {
            Some(material) => material,
            None => {
                let material = first(id, domain, SystemTime::now())?;
                files.write(&material)?;
                material
            }
        };
        Self::from_material(Some(files), id, domain, &material)
    }

    /// An identity issued by `authority` that lies on no disk.
    ///
    /// # Errors
    /// The id cannot stand in a certificate.
    pub fn in_memory(authority: &Authority, id: &NodeId, domain: &str) -> Result<Self, IdentityError> {
        let material = issued(authority, id, domain, SystemTime::now())?;
        Self::from_material(None, id, domain, &material)
    }

    fn from_material(
        files: Option<Files>,
        id: &NodeId,
        domain: &str,
        material: &Material,
    ) -> Result<Self, IdentityError> {
        let material = usable(files.as_ref(), id, domain, material)?;
        let path = files.as_ref().map_or_else(PathBuf::new, |files| files.path().to_owned());
        let current = read_current(id, &path, &material)?;
        let revoked = watch::Sender::new(Arc::new(BTreeSet::new()));
        let credentials = Arc::new(Credentials::new(&material)?);
        let trust = Arc::new(Trust::new(&current.ca, revoked.subscribe())?);
        let inner = Inner {
            id: id.clone(),
            domain: domain.to_owned(),
            files,
            current: ArcSwap::from_pointee(current),
            credentials,
            trust,
            revoked,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This node.
    pub fn id(&self) -> &NodeId {
        &self.inner.id
    }

    /// The mesh it belongs to now.
    pub fn mesh(&self) -> MeshId {
        self.inner.current.load().mesh
    }

    /// The authority's certificate.
    pub fn ca(&self) -> CertificateDer<'static> {
        self.inner.current.load().ca.clone()
    }

    /// The fingerprint of the authority: what tokens carry.
    pub fn fingerprint(&self) -> Fingerprint {
        self.inner.current.load().authority_key
    }

    /// The signature of this node's key over `message`, in hexadecimal; empty, which verifies nothing, if it cannot sign.
    pub fn sign(&self, message: &[u8]) -> String {
        self.inner.current.load().material.sign(message)
    }

    /// Whether this node's key signed `message` so.
    pub fn has_signed(&self, message: &[u8], signature: &str) -> bool {
        signature::verify(&self.inner.current.load().material.key_pem, message, signature)
    }

    /// Leaves the mesh for a new one of this node alone, with an authority of its own.
    ///
    /// # Errors
    /// It could not be made or written; the old identity stays.
    pub fn found_anew(&self) -> Result<(), IdentityError> {
        self.replace(&first(&self.inner.id, &self.inner.domain, SystemTime::now())?)
    }

    /// The authority, where this node may issue certificates.
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.inner.current.load().authority.clone()
    }

    /// The certificate of this node now: whose, which key, until when.
    pub fn certificate(&self) -> certificate::Facts {
        self.inner.current.load().certificate.clone()
    }

    /// The certificate of this node now.
    pub fn certificate_der(&self) -> CertificateDer<'static> {
        self.inner.current.load().certificate_der.clone()
    }

    /// The mesh domain that stands in certificates.
    pub fn domain(&self) -> &str {
        &self.inner.domain
    }

    /// What a server of the mesh listens with. Made once and kept: it follows renewals by itself.
    ///
    /// # Errors
    /// The TLS library refuses the combination, which no input changes.
    pub fn server_config(&self, purpose: Purpose) -> Result<Arc<ServerConfig>, TlsError> {
        tls::server(purpose, &self.inner.credentials, &self.inner.trust)
    }

    /// What a client of the mesh dials with; the name to ask for is [`certificate::server_name`]. Follows renewals.
    ///
    /// # Errors
    /// The TLS library refuses the combination, which no input changes.
    pub fn client_config(&self, purpose: Purpose) -> Result<Arc<ClientConfig>, TlsError> {
        tls::client(purpose, &self.inner.credentials, &self.inner.trust)
    }

    /// Puts other material in the place of this node's, on disk first: a renewal, or the move to another mesh.
    ///
    /// # Errors
    /// It is for another node, or cannot be used or written; the old one stays.
    pub fn replace(&self, material: &Material) -> Result<(), IdentityError> {
        let path = self.inner.files.as_ref().map_or_else(PathBuf::new, |files| files.path().to_owned());
        let current = read_current(&self.inner.id, &path, material)?;
        let certified = tls::certified(material)?;
        let trust = tls::anchors(&current.ca)?;
        if let Some(files) = &self.inner.files {
            files.write(material)?;
        }
        self.inner.trust.replace(trust);
        self.inner.credentials.replace(certified);
        self.inner.current.store(Arc::new(current));
        Ok(())
    }

    /// Issues this node another certificate for the key it has, where it may issue at all; says whether it did.
    ///
    /// # Errors
    /// The certificate could not be issued or written; the old one stays.
    pub fn renew_here(&self, now: SystemTime) -> Result<bool, IdentityError> {
        let Some(authority) = self.authority() else { return Ok(false) };
        let request = self.request()?;
        let subject = self.subject();
        let certificate_pem = authority.issue(&request, &subject, NODE_LIFETIME, now)?;
        self.renew_with(certificate_pem)?;
        Ok(true)
    }

    /// Puts another certificate for the same key in place.
    ///
    /// # Errors
    /// It is for another key or node, or cannot be written; the old one stays.
    pub fn renew_with(&self, certificate_pem: String) -> Result<(), IdentityError> {
        let material = Material { certificate_pem, ..Material::clone(&self.inner.current.load().material) };
        self.replace(&material)
    }

    /// Takes the authority's key, with which this node issues certificates from now on.
    ///
    /// # Errors
    /// It is not the key of this mesh's authority, or cannot be written; nothing changed.
    pub fn take_authority(&self, key_pem: crate::foundation::secret::Secret<String>) -> Result<(), IdentityError> {
        let material = Material { ca_key_pem: Some(key_pem), ..Material::clone(&self.inner.current.load().material) };
        self.replace(&material)
    }

    /// Forgets the authority's key; this node issues nothing any more.
    ///
    /// # Errors
    /// The file cannot be written; nothing changed.
    pub fn give_up_authority(&self) -> Result<(), IdentityError> {
        let material = Material { ca_key_pem: None, ..Material::clone(&self.inner.current.load().material) };
        self.replace(&material)
    }

    /// Whose certificate this is, if a client that shows it would be believed now.
    ///
    /// # Errors
    /// It is of another authority, over, or revoked.
    pub fn client(&self, certificate: &CertificateDer<'_>) -> Result<Member, TlsError> {
        self.inner.trust.client(certificate)
    }

    /// A request for the key this node has.
    ///
    /// # Errors
    /// The key cannot sign, which no input changes.
    pub fn request(&self) -> Result<request::Request, IdentityError> {
        Ok(request::Request::for_key(&self.inner.current.load().material.key_pem)?)
    }

    /// Whom a certificate of this node is for.
    pub fn subject(&self) -> Subject {
        Subject { name: self.inner.id.clone(), role: Role::Node, domain: self.inner.domain.clone() }
    }

    /// Names the keys whose certificates are refused from now on, in place of those before.
    pub fn revoke(&self, keys: BTreeSet<Fingerprint>) {
        self.inner.revoked.send_if_modified(|current| {
            let differs = **current != keys;
            if differs {
                *current = Arc::new(keys);
            }
            differs
        });
    }

    /// The refused keys and their changes: who holds a session of such a key ends it.
    pub fn revocations(&self) -> watch::Receiver<Arc<BTreeSet<Fingerprint>>> {
        self.inner.revoked.subscribe()
    }

    /// Whether the member may still be here.
    pub fn is_admitted(&self, member: &Member) -> bool {
        !self.inner.revoked.borrow().contains(&member.key)
    }
}

/// The material of a node that founds a mesh.
fn first(id: &NodeId, domain: &str, now: SystemTime) -> Result<Material, IdentityError> {
    issued(&Authority::create(now)?, id, domain, now)
}

/// A new key and its certificate, with the authority beside it.
fn issued(authority: &Authority, id: &NodeId, domain: &str, now: SystemTime) -> Result<Material, IdentityError> {
    let (request, key_pem) = request::Request::new()?;
    let subject = Subject { name: id.clone(), role: Role::Node, domain: domain.to_owned() };
    let certificate_pem = authority.issue(&request, &subject, NODE_LIFETIME, now)?;
    Ok(Material {
        ca_pem: authority.certificate_pem().to_owned(),
        ca_key_pem: Some(authority.key_pem()),
        certificate_pem,
        key_pem,
    })
}

/// The material, with a new certificate where the old one has ended and this node may issue itself another.
fn usable(files: Option<&Files>, id: &NodeId, domain: &str, material: &Material) -> Result<Material, IdentityError> {
    let now = SystemTime::now();
    let path = files.map_or_else(PathBuf::new, |files| files.path().to_owned());
    let facts =
        certificate::facts(&material.certificate_pem).map_err(|source| IdentityError::Certificate { path, source })?;
    if facts.not_after > now {
        return Ok(material.clone());
    }
    let Some(key) = &material.ca_key_pem else {
        return Err(IdentityError::Expired { ended: crate::foundation::rfc3339::format(facts.not_after) });
    };
    let authority = Authority::from_pem(&material.ca_pem, key)?;
    let renewed = issued(&authority, id, domain, now)?;
    if let Some(files) = files {
        files.write(&renewed)?;
    }
    Ok(renewed)
}

fn read_current(id: &NodeId, path: &Path, material: &Material) -> Result<Current, IdentityError> {
    let unusable = |source| IdentityError::Certificate { path: path.to_owned(), source };
    let ca = certificate::from_pem(&material.ca_pem).map_err(unusable)?;
    let certificate = certificate::facts(&material.certificate_pem).map_err(unusable)?;
    let certificate_der = certificate::from_pem(&material.certificate_pem).map_err(unusable)?;
    if certificate.member.name != *id {
        let found = certificate.member.name;
        return Err(IdentityError::OtherNode { path: path.to_owned(), found, wanted: id.clone() });
    }
    let authority = match &material.ca_key_pem {
        Some(key) => Some(Arc::new(Authority::from_pem(&material.ca_pem, key)?)),
        None => None,
    };
    let authority_key = certificate::fingerprint(&ca).map_err(unusable)?;
    let (mesh, material) = (authority_key.into(), material.clone());
    Ok(Current { mesh, authority_key, ca, authority, certificate, certificate_der, material })
}

#[cfg(test)]
mod tests;
