//! What a registry says of an image (OCI distribution specification).

mod challenge;
mod reading;
mod session;
mod token;
pub(crate) mod uploads;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sha2::{Digest, Sha256};

use crate::credentials::Credentials;
use crate::documents::{self, Document, ImageConfig};
use crate::error::{Cause, RegistryError};
use crate::platform::Platform;
use crate::progress::Tell;
use crate::reference::Reference;
use crate::retry::{self, Attempts};
pub(crate) use session::Session;

/// A registry that takes longer to accept a connection is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The questions about one image come within a moment.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for all requests about one image.
const PATIENCE: Duration = Duration::from_secs(30);
/// Before what failed is tried a second time; where it is.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Largest manifest or index that registries have to take (distribution specification, "Pushing Manifests").
pub(crate) const MANIFEST_MAX: usize = 4 << 20;
/// Largest configuration: it holds the history of the image's building, which is text.
const CONFIG_MAX: usize = 8 << 20;

type Body = UnsyncBoxBody<Bytes, Cause>;
type Http = Client<HttpsConnector<HttpConnector>, Body>;

/// A client for any number of registries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registries {
    http: Http,
    plain: BTreeSet<String>,
    patience: Duration,
    first_wait: Duration,
}

/// What an image is and what it starts, without its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Digest of what the reference names: the index of an image for several platforms, else the manifest.
    pub index_digest: String,
    /// Digest of the platform's own manifest.
    pub manifest_digest: String,
    pub platform: Platform,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// As the image has it: a name or a number, with or without a group.
    pub user: Option<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    pub working_dir: Option<String>,
}

impl Registries {
    /// # Errors
    /// [`RegistryError::NoRoots`] on a machine without CA certificates.
    pub fn new() -> Result<Self, RegistryError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| RegistryError::NoRoots(error.into()))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(https);
        Ok(Self { http, plain: BTreeSet::new(), patience: PATIENCE, first_wait: FIRST_WAIT })
    }

    /// Speaks plain HTTP, and not TLS, with these registries (`HOST` or `HOST:PORT`) too, as it does with those of this
    /// machine.
    #[must_use]
    pub fn plain_http(self, registries: impl IntoIterator<Item = String>) -> Self {
        Self { plain: registries.into_iter().collect(), ..self }
    }

    /// Longest time for all requests about one image (30 s), and where an image is moved, for one request or a while in
    /// which nothing moves.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where things are tried again: what is waited before the second attempt (0.5 s). It doubles with each.
    #[must_use]
    pub fn first_wait(self, first_wait: Duration) -> Self {
        Self { first_wait, ..self }
    }

    /// `scope`: of the token, where more than reading is asked for.
    pub(crate) fn session<'a>(
        &'a self,
        image: &'a Reference,
        credentials: &'a Credentials,
        scope: Option<String>,
    ) -> Session<'a> {
        let is_plain = image.is_loopback() || self.plain.contains(image.registry());
        Session::new((&self.http, self.patience), image, is_plain, credentials.login(image), scope)
    }

    /// Digests of an image and of its manifests for each platform. What time may mend is tried again.
    ///
    /// # Errors
    /// [`RegistryError`] says which.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn pin(
        &self,
        image: &Reference,
        credentials: &Credentials,
        tell: Tell<'_>,
    ) -> Result<Pinned, RegistryError> {
        let session = self.session(image, credentials, None);
        retry::insist(self.first_wait, tell, || pin(&session, image)).await
    }

    pub(crate) fn attempts(&self) -> Attempts {
        Attempts::new(self.first_wait)
    }

    pub(crate) fn wait(&self) -> Duration {
        self.first_wait
    }

    /// Asks the image's registry what the image is. Every document is checked against its digest.
    ///
    /// # Errors
    /// [`RegistryError`] says which; nothing is tried a second time.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn resolve(
        &self,
        image: &Reference,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<ImageFacts, RegistryError> {
        let session = self.session(image, credentials, None);
        match tokio::time::timeout(self.patience, facts(&session, image, platform)).await {
            Ok(facts) => facts,
            Err(_) => Err(RegistryError::TimedOut {
                image: image.to_string(),
                registry: image.registry().to_owned(),
                patience: self.patience,
            }),
        }
    }
}

/// Digests of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Of what the reference names: the index of an image for several platforms, else the manifest.
    pub digest: String,
    /// Of the manifest for each platform, by the platform's name.
    pub platforms: BTreeMap<String, String>,
}

async fn pin(session: &Session<'_>, image: &Reference) -> Result<Pinned, RegistryError> {
    let top = session.manifest(image.version(), image.digest(), MANIFEST_MAX).await?;
    let digest = digest_of(&top);
    let platforms = match documents::parse(&top, image)? {
        Document::Index(index) => index.locked(image)?,
        Document::Manifest(manifest) => {
            let body = session.blob(manifest.config_digest(image)?, CONFIG_MAX).await?;
            let platform = ImageConfig::parse(&body, image)?.platform;
            BTreeMap::from([(platform.to_string(), digest.clone())])
        }
    };
    Ok(Pinned { digest, platforms })
}

async fn facts(session: &Session<'_>, image: &Reference, platform: &Platform) -> Result<ImageFacts, RegistryError> {
    let top = session.manifest(image.version(), image.digest(), MANIFEST_MAX).await?;
    let index_digest = digest_of(&top);
    let (manifest, manifest_digest) = match documents::parse(&top, image)? {
        Document::Manifest(manifest) => (manifest, index_digest.clone()),
        Document::Index(index) => {
            let chosen = index.choose(platform).ok_or_else(|| wrong_platform(image, platform, index.platforms()))?;
            let body = session.manifest(&chosen.digest, Some(&chosen.digest), MANIFEST_MAX).await?;
            (documents::parse(&body, image)?.manifest(image)?, chosen.digest.clone())
        }
    };
    let config_digest = manifest.config_digest(image)?;
    let body = session.blob(config_digest, CONFIG_MAX).await?;
    let config = ImageConfig::parse(&body, image)?;
    if !config.platform.fits(platform) {
        return Err(wrong_platform(image, platform, vec![config.platform]));
    }
    let ImageConfig { platform, config } = config;
    Ok(ImageFacts {
        index_digest,
        manifest_digest,
        platform,
        entrypoint: config.entrypoint.filter(|words| !words.is_empty()),
        cmd: config.cmd.filter(|words| !words.is_empty()),
        user: config.user.filter(|user| !user.is_empty()),
        env: config.env.unwrap_or_default(),
        working_dir: config.working_dir.filter(|path| !path.is_empty()),
    })
}

fn wrong_platform(image: &Reference, wanted: &Platform, available: Vec<Platform>) -> RegistryError {
    RegistryError::WrongPlatform { image: image.to_string(), wanted: wanted.clone(), available }
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A body that is there as a whole.
fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
