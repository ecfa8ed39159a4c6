//! One installation of MCP Hub and what is derived from its key.

use std::fmt;

use hmac::{Hmac, Mac};
use mcp_hub_dataplane_api::permit::PermitKey;
use mcp_hub_dataplane_api::secret::SecretString;
use sha2::{Digest, Sha256};

/// Identity and root key of an installation. Every token is derived from the key, so that none has to be stored and all
/// survive a restart.
#[derive(Clone)]
pub struct Installation {
    id: String,
    key: [u8; 32],
}

impl Installation {
    /// `id`: short and unique among installations that share a machine or cluster. `key`: 32 random bytes, kept secret.
    pub fn new(id: impl Into<String>, key: [u8; 32]) -> Self {
        Self { id: id.into(), key }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The token that gateways present to a server's bridge; raising `epoch` rotates it.
    pub fn bridge_token(&self, server_uid: &str, epoch: u64) -> SecretString {
        SecretString::new(hex::encode(self.derive("bridge-token", &format!("{server_uid}/{epoch}"))))
    }

    /// The token that MCP clients present to a hub.
    pub fn hub_token(&self, hub_uid: &str, epoch: u64) -> SecretString {
        SecretString::new(format!("mcphub_{}", hex::encode(self.derive("hub-token", &format!("{hub_uid}/{epoch}")))))
    }

    /// The token by which a hub's gateways ask for servers at rest.
    pub fn wake_token(&self, hub_uid: &str) -> SecretString {
        SecretString::new(hex::encode(self.derive("wake-token", hub_uid)))
    }

    /// Key under which a hub's gateways seal session ids.
    pub fn sealing_key(&self, hub_uid: &str) -> [u8; 32] {
        self.derive("gateway-sealing", hub_uid)
    }

    /// Key that the permits of servers are signed with, for the relay.
    pub fn permit_key(&self) -> PermitKey {
        PermitKey::new(self.derive("relay-permits", ""))
    }

    /// Fingerprint of a secret's value: tells that it changed without telling what it is.
    pub fn fingerprint(&self, value: &str) -> String {
        hex::encode(&self.derive("secret-fingerprint", value)[..16])
    }

    fn derive(&self, purpose: &str, subject: &str) -> [u8; 32] {
        // HMAC-SHA256 takes a key of any length, so the error arm cannot be reached; hashing instead keeps it total.
        match Hmac::<Sha256>::new_from_slice(&self.key) {
            Ok(mut mac) => {
                mac.update(purpose.as_bytes());
                mac.update(&[0]);
                mac.update(subject.as_bytes());
                mac.finalize().into_bytes().into()
            }
            Err(_) => Sha256::digest([&self.key[..], purpose.as_bytes(), &[0], subject.as_bytes()].concat()).into(),
        }
    }
}

impl fmt::Debug for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Installation").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Lower-case hex SHA-256 of a token: what those get who only check it.
pub fn token_sha256(token: &SecretString) -> String {
    hex::encode(Sha256::digest(token.expose_secret()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_by_purpose_subject_epoch_and_key() {
        let a = Installation::new("a", [1; 32]);
        let b = Installation::new("a", [2; 32]);
        let tokens = [
            a.bridge_token("u", 0),
            a.bridge_token("u", 1),
            a.bridge_token("v", 0),
            a.hub_token("u", 0),
            a.wake_token("u"),
            b.bridge_token("u", 0),
        ];
        for (i, one) in tokens.iter().enumerate() {
            assert!(tokens[i + 1..].iter().all(|other| other != one));
        }
        assert_eq!(a.bridge_token("u", 0), a.clone().bridge_token("u", 0));
    }

    #[test]
    fn the_key_is_never_shown() {
        assert_eq!(format!("{:?}", Installation::new("a", [7; 32])), r#"Installation { id: "a", .. }"#);
    }
}
