//! How an operator drives the gateways of a hub: the paths of their control listeners, and the keys that both sides derive
//! from the hub's sealing key.
//!
//! A configuration holds secrets and is pushed over the pod network, so it goes sealed (XChaCha20-Poly1305), with the time
//! and the hub that it is for: nobody there can read, change, redirect or repeat it. What only tells of the gateway is
//! asked for with a token.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::document::{self, NotAConfig};
use crate::gateway::GatewayConfig;
use crate::secret::SecretString;

/// `PUT`: a sealed configuration; answered with [`crate::gateway::InForce`].
pub const CONFIG: &str = "/config";
/// `GET`: [`crate::gateway::ReplicaStatus`], asked for with the token.
pub const STATUS: &str = "/status";
/// `GET`: the same as newline-delimited JSON, a line now, whenever its meaning changes, and every 15 s; with the token.
pub const EVENTS: &str = "/events";
/// `GET`, followed by a server's uid: [`crate::gateway::Definitions`], 404 if none are known; with the token.
pub const DEFINITIONS: &str = "/definitions/";

/// Largest push in bytes; a Secret holds a quarter of it.
pub const PUSH_MAX: usize = 4 << 20;
/// Age in milliseconds at which a push is refused, and by which it may lie in the future: clocks of a cluster differ.
pub const FRESH_FOR_MS: u64 = 60_000;

const NONCE: usize = 24;

/// What is derived from a hub's sealing key for its control listeners.
#[derive(Clone)]
pub struct ControlKeys {
    push: [u8; 32],
    forward: [u8; 32],
    token: SecretString,
}

impl std::fmt::Debug for ControlKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlKeys(***)")
    }
}

/// A push that was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Push {
    /// Milliseconds since the epoch at which it was sealed.
    pub at_ms: u64,
    pub config: GatewayConfig,
}

/// A configuration that could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum NotSealed {
    #[error("the system gives no random numbers")]
    Random,
    #[error("the configuration cannot be written")]
    Document(#[from] NotAConfig),
    #[error("the configuration is over {PUSH_MAX} bytes when it is sealed: let the hub select fewer servers")]
    TooLarge,
}

/// A push that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotOpened {
    #[error("the push was not sealed for this hub, or was changed on its way")]
    Forged,
    #[error("the push cannot be read")]
    Document(#[from] NotAConfig),
    #[error("the push is {}", stale(*.age_ms))]
    Stale {
        /// Negative for one from the future.
        age_ms: i64,
    },
}

fn stale(age_ms: i64) -> String {
    let seconds = age_ms.unsigned_abs() / 1000;
    let mend = "seal it anew, or mend the clocks";
    if age_ms < 0 { format!("from {seconds} s in the future: {mend}") } else { format!("{seconds} s old: {mend}") }
}

impl ControlKeys {
    /// `sealing_key`: what all gateways of one hub seal with.
    pub fn of(sealing_key: &[u8; 32]) -> Self {
        Self {
            push: derive(sealing_key, "mcp-hub gateway push"),
            forward: derive(sealing_key, "mcp-hub gateway forward"),
            token: SecretString::new(hex::encode(derive(sealing_key, "mcp-hub gateway control token"))),
        }
    }

    /// For `Authorization: Bearer`.
    pub fn token(&self) -> &SecretString {
        &self.token
    }

    /// Key with which gateways of one hub speak to each other.
    pub fn forward_key(&self) -> [u8; 32] {
        self.forward
    }

    /// The body of a push, good for a minute.
    pub fn seal(&self, config: &GatewayConfig, at_ms: u64) -> Result<Vec<u8>, NotSealed> {
        let hub = &config.hub.uid;
        let push = Push { at_ms, config: config.clone() };
        let json = serde_json::to_vec(&push).map_err(NotAConfig::Json)?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| NotSealed::Random)?;
        let payload = Payload { msg: &document::zip(&json)?, aad: &bound_to(hub) };
        // The cipher refuses only what is longer than any memory.
        let sealed = self.cipher().encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| NotSealed::TooLarge)?;
        let body = [&nonce[..], &sealed].concat();
        if body.len() > PUSH_MAX { Err(NotSealed::TooLarge) } else { Ok(body) }
    }

    /// The push in this body, if it was sealed for this hub and not long ago.
    pub fn open(&self, hub: &str, body: &[u8], now_ms: u64) -> Result<Push, NotOpened> {
        let (nonce, sealed) = body.split_at_checked(NONCE).ok_or(NotOpened::Forged)?;
        let payload = Payload { msg: sealed, aad: &bound_to(hub) };
        let zipped = self.cipher().decrypt(XNonce::from_slice(nonce), payload).map_err(|_| NotOpened::Forged)?;
        let push: Push = serde_json::from_slice(&document::unzip(&zipped)?).map_err(NotAConfig::Json)?;
        // The document inside is what counts, whatever it was bound to.
        if push.config.hub.uid != hub {
            return Err(NotOpened::Forged);
        }
        if now_ms.abs_diff(push.at_ms) > FRESH_FOR_MS {
            let age = i128::from(now_ms) - i128::from(push.at_ms);
            let age_ms = i64::try_from(age).unwrap_or(if age < 0 { i64::MIN } else { i64::MAX });
            return Err(NotOpened::Stale { age_ms });
        }
        Ok(push)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.push.into())
    }
}

fn bound_to(hub: &str) -> Vec<u8> {
    [b"mcp-hub gateway configuration\0", hub.as_bytes()].concat()
}

fn derive(key: &[u8; 32], purpose: &str) -> [u8; 32] {
    // HMAC-SHA256 takes a key of any length, so the error arm cannot be reached; hashing instead keeps it total.
    match <Hmac<Sha256> as Mac>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(purpose.as_bytes());
            mac.finalize().into_bytes().into()
        }
        Err(_) => Sha256::digest([&key[..], purpose.as_bytes()].concat()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::config;

    const NOW: u64 = 1_800_000_000_000;

    fn keys() -> ControlKeys {
        ControlKeys::of(&[7; 32])
    }

    #[test]
    fn a_push_opens_with_the_same_key_for_its_own_hub() {
        let config = config();
        let body = keys().seal(&config, NOW).unwrap();
        assert_eq!(keys().open("hub", &body, NOW + 1).unwrap(), Push { at_ms: NOW, config });
        assert!(matches!(ControlKeys::of(&[8; 32]).open("hub", &body, NOW), Err(NotOpened::Forged)));
        assert!(matches!(keys().open("other", &body, NOW), Err(NotOpened::Forged)));
    }

    #[test]
    fn what_was_changed_on_its_way_does_not_open() {
        let body = keys().seal(&config(), NOW).unwrap();
        for place in [0, NONCE, body.len() - 1] {
            let mut changed = body.clone();
            changed[place] ^= 1;
            assert!(matches!(keys().open("hub", &changed, NOW), Err(NotOpened::Forged)), "{place}");
        }
        assert!(matches!(keys().open("hub", &body[..10], NOW), Err(NotOpened::Forged)));
    }

    #[test]
    fn an_old_push_and_one_from_the_future_are_refused() {
        let body = keys().seal(&config(), NOW).unwrap();
        for now in [NOW - FRESH_FOR_MS, NOW, NOW + FRESH_FOR_MS] {
            assert!(keys().open("hub", &body, now).is_ok(), "{now}");
        }
        let late = keys().open("hub", &body, NOW + FRESH_FOR_MS + 1).unwrap_err();
        assert_eq!(late.to_string(), "the push is 60 s old: seal it anew, or mend the clocks");
        let early = keys().open("hub", &body, NOW - 90_000).unwrap_err();
        assert_eq!(early.to_string(), "the push is from 90 s in the future: seal it anew, or mend the clocks");
    }

    #[test]
    fn no_secret_of_a_configuration_is_readable_in_a_push_nor_a_key_in_debug() {
        let body = keys().seal(&config(), NOW).unwrap();
        assert!(!body.windows(6).any(|part| part == b"secret"));
        assert_eq!(format!("{:?}", keys()), "ControlKeys(***)");
    }

    #[test]
    fn each_purpose_has_its_own_key() {
        let keys = keys();
        let token = keys.token().expose_secret();
        assert_eq!(token.len(), 64);
        assert!(keys.push != keys.forward && token != hex::encode(keys.push) && token != hex::encode(keys.forward));
    }
}
