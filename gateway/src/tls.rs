//! TLS of the listener for clients. The certificate is a folder that somebody replaces, as a kubelet does a mounted Secret.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A client that has not shaken hands by then is not going to.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// First byte of a handshake record (RFC 8446, section 5.1); no HTTP request begins so.
const HANDSHAKE: u8 = 22;

/// The certificate that new connections are shown; clones are one.
#[derive(Debug, Clone)]
pub struct Certificate {
    folder: PathBuf,
    shown: Arc<ArcSwap<Shown>>,
}

#[derive(Debug)]
struct Shown {
    /// Of the files' bytes.
    digest: [u8; 32],
    config: Arc<ServerConfig>,
}

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("could not read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no PEM: {source}", path = .path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{folder} holds no certificate with its key: {source}", folder = .folder.display())]
    Pair { folder: PathBuf, source: rustls::Error },
}

/// What a client speaks.
pub(crate) enum Secured {
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
}

impl Certificate {
    /// With what `tls.crt` and `tls.key` in the folder hold now.
    ///
    /// # Errors
    /// If that is no chain with its key.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, CertificateError> {
        let folder = folder.into();
        let files = Files::read(&folder)?;
        Ok(Self { shown: Arc::new(ArcSwap::from_pointee(files.shown(&folder)?)), folder })
    }

    /// Shows new connections what the folder holds by now; those that are open stay as they are. Tells whether it is
    /// something else than before.
    ///
    /// # Errors
    /// If that is no chain with its key, such as when half of it was replaced. What was shown stands.
    pub fn renew(&self) -> Result<bool, CertificateError> {
        let files = Files::read(&self.folder)?;
        let changed = files.digest() != self.shown.load().digest;
        if changed {
            self.shown.store(Arc::new(files.shown(&self.folder)?));
        }
        Ok(changed)
    }

    /// Shakes hands. Who comes by loopback, as everybody does who comes by a port that an API server forwards, may do
    /// without TLS: that way is secured already, and knows no name that a certificate could be for.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<Secured> {
        let shake = async {
            let mut first = [0];
            if stream.peer_addr()?.ip().to_canonical().is_loopback()
                && stream.peek(&mut first).await? == 1
                && first[0] != HANDSHAKE
            {
                return Ok(Secured::Plain(stream));
            }
            let acceptor = TlsAcceptor::from(self.shown.load().config.clone());
            Ok(Secured::Tls(Box::new(acceptor.accept(stream).await?)))
        };
        timeout(HANDSHAKE_TIMEOUT, shake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

struct Files {
    chain: Vec<u8>,
    key: Vec<u8>,
}

const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";

impl Files {
    fn read(folder: &Path) -> Result<Self, CertificateError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| CertificateError::Read { path, source })
        };
        Ok(Self { chain: read(CHAIN)?, key: read(KEY)? })
    }

    fn digest(&self) -> [u8; 32] {
        // Neither ends where the other begins.
        let lengths = (self.chain.len() as u64).to_le_bytes();
        Sha256::new().chain_update(lengths).chain_update(&self.chain).chain_update(&self.key).finalize().into()
    }

    fn shown(&self, folder: &Path) -> Result<Shown, CertificateError> {
        let pem = |name: &str, source| CertificateError::Pem { path: folder.join(name), source };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.chain).collect();
        let chain = chain.map_err(|source| pem(CHAIN, source))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| pem(KEY, source))?;
        let unpaired = |source| CertificateError::Pair { folder: folder.to_owned(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unpaired)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unpaired)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Shown { digest: self.digest(), config: Arc::new(config) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, chain: &str, key: &str) {
        std::fs::write(folder.join(CHAIN), chain).unwrap();
        std::fs::write(folder.join(KEY), key).unwrap();
    }

    #[test]
    fn what_is_no_pair_is_refused_by_name_and_the_last_good_one_stands() {
        let folder = tempfile::tempdir().unwrap();
        let made = || rcgen::generate_simple_self_signed(["hub.test".to_owned()]).unwrap();
        let (one, two) = (made(), made());
        let refused = |certificate: &Certificate| certificate.renew().unwrap_err().to_string();
        assert!(Certificate::open(folder.path()).unwrap_err().to_string().contains("could not read"));
        write(folder.path(), &one.cert.pem(), &one.signing_key.serialize_pem());
        let certificate = Certificate::open(folder.path()).unwrap();
        let shown = certificate.shown.load().digest;
        assert!(!certificate.renew().unwrap());

        write(folder.path(), &two.cert.pem(), &one.signing_key.serialize_pem());
        assert!(refused(&certificate).contains("holds no certificate with its key"));
        write(folder.path(), &two.cert.pem(), "no key");
        assert!(refused(&certificate).contains("tls.key is no PEM"));
        assert_eq!(certificate.shown.load().digest, shown);
        write(folder.path(), &two.cert.pem(), &two.signing_key.serialize_pem());
        assert!(certificate.renew().unwrap());
        assert_ne!(certificate.shown.load().digest, shown);
    }
}
