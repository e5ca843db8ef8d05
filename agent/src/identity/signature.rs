//! Signatures of a node's key over what it keeps on disk: ECDSA P-256 with SHA-256, in hexadecimal.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::foundation::secret::Secret;

fn key(key_pem: &Secret<String>) -> Option<EcdsaKeyPair> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.expose().as_bytes()).ok()?;
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.secret_der()).ok()
}

/// The signature of `message`; empty, which verifies nothing, if the key cannot sign.
pub(super) fn sign(key_pem: &Secret<String>, message: &[u8]) -> String {
    let signed = key(key_pem).and_then(|key| key.sign(&SystemRandom::new(), message).ok());
    signed.map(|signature| signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()).unwrap_or_default()
}

/// Whether the same key signed `message` so.
pub(super) fn verify(key_pem: &Secret<String>, message: &[u8], signature: &str) -> bool {
    let Some(key) = key(key_pem) else { return false };
    let bytes: Option<Vec<u8>> = signature
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref());
    bytes.is_some_and(|bytes| public.verify(message, &bytes).is_ok())
}
