//! What clients keep for us, sealed: it costs no memory here, nobody can make or change one, and one that was made for
//! somebody else does not open.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

pub(crate) const NONCE: usize = 24;

#[derive(Clone)]
pub(crate) struct Seal(XChaCha20Poly1305);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Something sealed that was opened; no two have the same nonce.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) nonce: [u8; NONCE],
    pub(crate) text: String,
}

impl Seal {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(&key.into()))
    }

    /// Opens only with the same `bound_to`. `None` if there are no random numbers.
    pub(crate) fn close(&self, text: &str, bound_to: &[u8]) -> Option<String> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let payload = Payload { msg: text.as_bytes(), aad: bound_to };
        let sealed = self.0.encrypt(XNonce::from_slice(&nonce), payload).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat()))
    }

    pub(crate) fn open(&self, sealed: &str, bound_to: &[u8]) -> Option<Opened> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE)?;
        let payload = Payload { msg: sealed, aad: bound_to };
        let text = String::from_utf8(self.0.decrypt(XNonce::from_slice(nonce), payload).ok()?).ok()?;
        Some(Opened { nonce: nonce.try_into().ok()?, text })
    }
}
