//! What a server shows an allow-list proxy: its egress list, signed.
//!
//! A permit travels as the proxy's Basic credentials: the server's name as user, [`Permit::password`] as password. So the
//! proxy keeps nothing of any server and has only the key. A permit opens no more than a pod without a list has anyway; it
//! is shown nowhere all the same.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::egress::EgressTarget;
use crate::secret::SecretString;

/// Largest list in bytes of its entries' canonical text: as credentials in a request it is nearly twice as long.
pub const LIST_MAX: usize = 8 << 10;

/// Bound into the signature. Another format gets another purpose, so that neither is taken for the other.
const PURPOSE: &[u8] = b"mcp-hub egress permit 1\0";
const MAC: usize = 32;

/// The key that permits are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct PermitKey([u8; 32]);

impl std::fmt::Debug for PermitKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PermitKey(***)")
    }
}

/// What one server may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// `NAMESPACE.NAME`, without a colon.
    pub server: String,
    pub targets: Vec<EgressTarget>,
}

/// A list that no permit holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list has {bytes} bytes, and at most {LIST_MAX} with a host name in it")]
pub struct TooLong {
    bytes: usize,
}

/// Credentials that are no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAPermit {
    #[error("there are no Basic credentials")]
    Missing,
    #[error("the credentials are no permit of this installation")]
    Forged,
}

impl PermitKey {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The key as a file holds it: 64 hexadecimal digits.
    pub fn to_hex(&self) -> SecretString {
        SecretString::new(hex::encode(self.0))
    }

    /// The key in such a file's text.
    pub fn from_hex(text: &str) -> Option<Self> {
        Some(Self(hex::decode(text.trim()).ok()?.try_into().ok()?))
    }

    fn mac(&self, server: &str, list: &str) -> Option<Hmac<Sha256>> {
        // It takes keys of any length, so that there always is one.
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.0).ok()?;
        mac.update(PURPOSE);
        mac.update(server.as_bytes());
        // No server's name has it.
        mac.update(&[0]);
        mac.update(list.as_bytes());
        Some(mac)
    }
}

impl Permit {
    /// The password that stands for it, of letters, digits, `-` and `_`: the same for the same permit and key.
    pub fn password(&self, key: &PermitKey) -> Result<SecretString, TooLong> {
        let targets: Vec<String> = self.targets.iter().map(ToString::to_string).collect();
        let list = targets.join(",");
        if list.len() > LIST_MAX {
            return Err(TooLong { bytes: list.len() });
        }
        let mut bytes =
            key.mac(&self.server, &list).map(|mac| mac.finalize().into_bytes().to_vec()).unwrap_or_default();
        bytes.extend_from_slice(list.as_bytes());
        Ok(SecretString::new(BASE64_URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The value of the `Proxy-Authorization` header that shows it, as [`Permit::read`] takes it.
    ///
    /// # Errors
    /// As [`Permit::password`].
    pub fn header(&self, key: &PermitKey) -> Result<SecretString, TooLong> {
        let credentials = format!("{}:{}", self.server, self.password(key)?.expose_secret());
        Ok(SecretString::new(format!("Basic {}", BASE64_STANDARD.encode(credentials))))
    }

    /// The permit in the value of a `Proxy-Authorization` header. The signature is compared in constant time.
    pub fn read(header: &[u8], key: &PermitKey) -> Result<Self, NotAPermit> {
        let credentials = basic(header).ok_or(NotAPermit::Missing)?;
        let (server, password) = credentials.split_once(':').ok_or(NotAPermit::Missing)?;
        Self::open(server, password, key).ok_or(NotAPermit::Forged)
    }

    fn open(server: &str, password: &str, key: &PermitKey) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(password).ok()?;
        let (mac, list) = bytes.split_at_checked(MAC)?;
        let list = std::str::from_utf8(list).ok()?;
        key.mac(server, list)?.verify_slice(mac).ok()?;
        let targets = list.split(',').filter(|entry| !entry.is_empty()).map(str::parse).collect::<Result<_, _>>();
        Some(Self { server: server.to_owned(), targets: targets.ok()? })
    }
}

/// `USER:PASSWORD` of Basic credentials.
fn basic(header: &[u8]) -> Option<String> {
    let (scheme, rest) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    let encoded = scheme.eq_ignore_ascii_case("basic").then(|| rest.trim())?;
    String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> PermitKey {
        PermitKey::new([7; 32])
    }

    fn permit() -> Permit {
        let targets = ["api.github.com:443", "*.example.com:443", "10.0.0.0/8:5432", "[2001:db8::1]:80"];
        Permit { server: "team.github".to_owned(), targets: targets.map(|text| text.parse().unwrap()).into() }
    }

    fn header(user: &str, password: &str) -> Vec<u8> {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))).into_bytes()
    }

    fn signed() -> String {
        permit().password(&key()).unwrap().expose_secret().to_owned()
    }

    #[test]
    fn a_permit_is_read_as_it_was_signed() {
        assert_eq!(Permit::read(&header("team.github", &signed()), &key()), Ok(permit()));
        assert_eq!(Permit::read(permit().header(&key()).unwrap().expose_secret().as_bytes(), &key()), Ok(permit()));
        let empty = Permit { server: "a.b".to_owned(), targets: Vec::new() };
        let password = empty.password(&key()).unwrap();
        assert_eq!(Permit::read(&header("a.b", password.expose_secret()), &key()), Ok(empty));
    }

    #[test]
    fn it_needs_no_escape_in_a_url_and_is_the_same_each_time() {
        assert_eq!(signed(), signed());
        assert!(signed().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
    }

    #[test]
    fn another_server_list_or_key_makes_it_worthless() {
        let forged = Err(NotAPermit::Forged);
        assert_eq!(Permit::read(&header("team.other", &signed()), &key()), forged);
        assert_eq!(Permit::read(&header("team.github", &signed()), &PermitKey::new([8; 32])), forged);
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(signed()).unwrap();
        bytes.extend_from_slice(b",evil.example.net:443");
        let longer = BASE64_URL_SAFE_NO_PAD.encode(&bytes);
        assert_eq!(Permit::read(&header("team.github", &longer), &key()), forged);
        // What ends the name cannot move.
        let moved = BASE64_URL_SAFE_NO_PAD.encode(&bytes[..MAC]);
        assert_eq!(Permit::read(&header("team.github\0api.github.com:443", &moved), &key()), forged);
    }

    #[test]
    fn what_is_no_basic_credential_is_missing() {
        for header in [&b""[..], b"Bearer abc", b"Basic", b"Basic ???", b"Basic YQ==", b"\xff"] {
            assert_eq!(Permit::read(header, &key()), Err(NotAPermit::Missing), "{header:?}");
        }
        let lower = String::from_utf8(header("team.github", &signed())).unwrap().replace("Basic", "basic");
        assert!(Permit::read(lower.as_bytes(), &key()).is_ok());
    }

    #[test]
    fn a_list_that_fits_into_no_request_is_refused() {
        let long = format!("{}.example.com:443", "a".repeat(60)).parse().unwrap();
        let permit = Permit { server: "a.b".to_owned(), targets: vec![long; 200] };
        let refusal = permit.password(&key()).unwrap_err().to_string();
        assert_eq!(refusal, "the list has 15399 bytes, and at most 8192 with a host name in it");
    }

    #[test]
    fn neither_key_nor_password_is_shown() {
        assert_eq!(format!("{:?} {:?}", key(), permit().password(&key())), "PermitKey(***) Ok(***)");
        assert_eq!(PermitKey::from_hex(&format!("{}\n", key().to_hex().expose_secret())), Some(key()));
        assert_eq!(PermitKey::from_hex("07"), None);
    }

    proptest! {
        #[test]
        fn nobody_makes_one_without_the_key(bytes: Vec<u8>, user in "[a-z.:]{0,20}") {
            prop_assert!(Permit::read(&bytes, &key()).is_err());
            let password = BASE64_URL_SAFE_NO_PAD.encode(&bytes);
            prop_assert!(Permit::read(&header(&user, &password), &key()).is_err());
        }
    }
}
