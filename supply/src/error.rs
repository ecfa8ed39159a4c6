//! Why a registry's word, or an image of it, could not be had.

use std::time::Duration;

use crate::platform::Platform;

/// A boxed cause; of a network's failure there are many kinds and one remedy.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("no root certificates were found, so no registry can be verified")]
    NoRoots(#[source] Cause),
    /// 401, or 403.
    #[error("{registry} refused access to `{image}` ({status}{})", said_after(said))]
    Unauthorized { image: String, registry: String, status: u16, with_credentials: bool, said: Option<String> },
    #[error("{registry} has no image `{image}`{}", said_after(said))]
    NotFound { image: String, registry: String, said: Option<String> },
    #[error("{registry} takes no more requests for now")]
    RateLimited { registry: String, retry_after: Option<Duration> },
    /// Any other status than success.
    #[error("{registry} answered {status} for `{image}`{}", said_after(said))]
    Status { image: String, registry: String, status: u16, said: Option<String>, retry_after: Option<Duration> },
    #[error("{host} could not be reached")]
    Unreachable {
        host: String,
        #[source]
        source: Cause,
    },
    /// In the middle of a blob.
    #[error("the connection to {host} broke off")]
    Interrupted {
        host: String,
        #[source]
        source: Cause,
    },
    #[error("{registry} did not tell of `{image}` within {patience:?}")]
    TimedOut { image: String, registry: String, patience: Duration },
    #[error("`{image}` is not there for {wanted} (there are: {})", list(available))]
    WrongPlatform { image: String, wanted: Platform, available: Vec<Platform> },
    #[error("{what} of `{image}` is not what its digest says (wanted {wanted}, got {got})")]
    DigestMismatch { what: &'static str, image: String, wanted: String, got: String },
    #[error("the layer {digest} of `{image}` has {got} bytes or more, and is to have {wanted}")]
    WrongSize { image: String, digest: String, wanted: u64, got: u64 },
    #[error("{what} of `{image}` is over the limit of {limit} bytes")]
    TooLarge { what: &'static str, image: String, limit: usize },
    #[error("{what} of `{image}` is no valid document")]
    Malformed {
        what: &'static str,
        image: String,
        #[source]
        source: serde_json::Error,
    },
    /// Something else than an image, or a form of image that nobody makes any more.
    #[error("`{image}` is {found}, which is no image that a container could be made of")]
    NoImage { image: String, found: String },
    #[error("{host} redirects {problem}")]
    Redirect { host: String, problem: &'static str },
    #[error("{registry} wants a login that is not known here: {problem}")]
    Challenge { registry: String, problem: &'static str },
}

fn said_after(said: &Option<String>) -> String {
    said.as_ref().map(|said| format!(": {said}")).unwrap_or_default()
}

fn list(platforms: &[Platform]) -> String {
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

impl RegistryError {
    /// Condition reason and metric label: CamelCase, constant, without names.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoRoots(_) => "NoRootCertificates",
            Self::Unauthorized { .. } => "ImageUnauthorized",
            Self::NotFound { .. } => "ImageNotFound",
            Self::RateLimited { .. } => "RegistryRateLimited",
            Self::Status { .. } => "RegistryError",
            Self::Unreachable { .. } | Self::Interrupted { .. } => "RegistryUnreachable",
            Self::TimedOut { .. } => "RegistryTimeout",
            Self::WrongPlatform { .. } => "ImagePlatformMissing",
            Self::DigestMismatch { .. } | Self::WrongSize { .. } => "ImageDigestMismatch",
            Self::TooLarge { .. } | Self::Malformed { .. } | Self::NoImage { .. } => "ImageInvalid",
            Self::Redirect { .. } | Self::Challenge { .. } => "RegistryUnsupported",
        }
    }

    /// What the user does next.
    pub fn hint(&self) -> String {
        match self {
            Self::NoRoots(_) => "install CA certificates, or name a bundle in SSL_CERT_FILE".to_owned(),
            Self::Unauthorized { with_credentials: false, .. } => {
                "check the name; if the image is private, name a Secret with credentials in `pullSecretRef`".to_owned()
            }
            Self::Unauthorized { with_credentials: true, registry, .. } => {
                format!("check the name, and that the login for {registry} in the pull secret may read it")
            }
            Self::NotFound { .. } => "check name and tag".to_owned(),
            Self::RateLimited { .. } => "it is tried again; a login has a higher limit".to_owned(),
            Self::Status { status: 500.., .. } => "the registry has a problem; it is tried again".to_owned(),
            Self::Status { .. } => "check the reference".to_owned(),
            Self::Unreachable { host, .. } | Self::Interrupted { host, .. } => {
                format!("check that {host} can be reached from here; it is tried again")
            }
            Self::TimedOut { .. } => "the registry is slow; it is tried again".to_owned(),
            Self::WrongPlatform { .. } => "take an image that is made for this platform".to_owned(),
            Self::DigestMismatch { .. } | Self::WrongSize { .. } => {
                "the registry, or somebody on the way to it, changed the image; do not run it".to_owned()
            }
            Self::TooLarge { .. } | Self::Malformed { .. } | Self::NoImage { .. } => {
                "check that the reference is a container image".to_owned()
            }
            Self::Redirect { .. } | Self::Challenge { .. } => {
                "give `command`, so that the image need not be looked at".to_owned()
            }
        }
    }

    /// Whether time may mend it; else only a change of reference, credentials or image does.
    pub fn is_passing(&self) -> bool {
        // A tag may be pushed, and rights given, at any time, but nobody tells.
        let is_elsewhere =
            matches!(self, Self::NotFound { .. } | Self::Unauthorized { .. } | Self::WrongPlatform { .. });
        is_elsewhere || self.is_transient()
    }

    /// Whether the same request may succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::TimedOut { .. }
            | Self::Status { status: 500.., .. } => true,
            Self::NoRoots(_)
            | Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::WrongPlatform { .. }
            | Self::Status { .. }
            | Self::DigestMismatch { .. }
            | Self::WrongSize { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::NoImage { .. }
            | Self::Redirect { .. }
            | Self::Challenge { .. } => false,
        }
    }

    /// How long the registry wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
