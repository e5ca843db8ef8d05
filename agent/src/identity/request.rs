//! Certificate requests: a public key with the proof that its private half is held (PKCS #10, RFC 2986).

use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PublicKey, PublicKeyData as _};

use super::authority::AuthorityError;
use super::certificate::Fingerprint;
use crate::foundation::secret::Secret;

/// A request whose proof has been checked.
#[derive(Debug, Clone)]
pub struct Request {
    pem: String,
    params: CertificateSigningRequestParams,
}

impl Request {
    /// A request for a new key, and the private key in PEM.
    ///
    /// # Errors
    /// No key could be made.
    pub fn new() -> Result<(Self, Secret<String>), AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Key)?;
        Ok((Self::signed_by(&key)?, Secret::new(key.serialize_pem())))
    }

    /// A request for the key in `key_pem`.
    ///
    /// # Errors
    /// The text is no private key.
    pub fn for_key(key_pem: &Secret<String>) -> Result<Self, AuthorityError> {
        Self::signed_by(&KeyPair::from_pem(key_pem.expose()).map_err(AuthorityError::Key)?)
    }

    fn signed_by(key: &KeyPair) -> Result<Self, AuthorityError> {
        let signed = CertificateParams::default().serialize_request(key).map_err(AuthorityError::Sign)?;
        Self::parse(&signed.pem().map_err(AuthorityError::Sign)?)
    }

    /// The request in `pem`.
    ///
    /// # Errors
    /// It is none, or the signature is not of the key in it.
    pub fn parse(pem: &str) -> Result<Self, AuthorityError> {
        let params = CertificateSigningRequestParams::from_pem(pem).map_err(AuthorityError::Request)?;
        Ok(Self { pem: pem.to_owned(), params })
    }

    /// The request as it is sent.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key it asks a certificate for.
    pub(super) fn public_key(&self) -> &PublicKey {
        &self.params.public_key
    }

    /// The fingerprint of that key.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_spki(&self.params.public_key.subject_public_key_info())
    }
}
