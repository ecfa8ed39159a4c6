//! CA certificates for images made from scratch, in which there are none.
//!
//! They are Mozilla's, of the version that `Cargo.lock` names, in the file where programs look for the system's. Whoever
//! needs others mounts a bundle over it, or names one in `SSL_CERT_FILE`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

/// Where Debian, and so most of the world, has them.
pub(crate) const PATH: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Bytes that fill a line of PEM (RFC 7468, section 2).
const LINE: usize = 48;

pub(crate) fn bundle() -> String {
    let mut bundle = String::new();
    for certificate in TLS_SERVER_ROOT_CERTS {
        bundle.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in certificate.chunks(LINE) {
            bundle.push_str(&BASE64_STANDARD.encode(line));
            bundle.push('\n');
        }
        bundle.push_str("-----END CERTIFICATE-----\n");
    }
    bundle
}
