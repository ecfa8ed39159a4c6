//! Bundles: images for all their platforms in one file, for machines without a network.
//!
//! A bundle is the tar of an OCI image layout: `oci-layout`, `index.json`, which has the images' full names, and a file
//! for each blob. The same images give the same bytes. Other programs read it, too: `skopeo copy oci-archive:FILE:NAME …`.

mod engine;
mod read;
mod write;

use std::io;

pub use engine::Chosen;
pub use read::{Bundle, Bundled};
pub use write::save;

use crate::error::RegistryError;

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_FILE: &str = "index.json";
const BLOBS: &str = "blobs/sha256/";
/// Annotations with an image's name: what containerd and Docker look at, and the specification's own.
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why a bundle was not made, or is none.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("the bundle could not be written")]
    Write(#[source] io::Error),
    #[error("the bundle could not be read")]
    Read(#[source] io::Error),
    #[error("this is no bundle: it is no tar archive")]
    NoTar(#[source] io::Error),
    #[error("this is no bundle: {0}")]
    NoLayout(&'static str),
    #[error("the bundle breaks off in the middle of `{path}`")]
    Truncated { path: String },
    #[error("the bundle is damaged after `{after}`")]
    Damaged {
        after: String,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` in the bundle leads out of it")]
    Path { path: String },
    #[error("`{path}` in the bundle is not what its name says: its content is {got}")]
    Digest { path: String, got: String },
    #[error("the bundle lacks {digest}, a part of `{image}`")]
    Missing { digest: String, image: String },
    #[error("`{path}` in the bundle is {found}")]
    Odd { path: String, found: &'static str },
    #[error("the index of the bundle is no valid document")]
    Index(#[source] serde_json::Error),
    #[error("an image in the bundle has no full name, but `{name}`")]
    Name { name: String },
    /// What is in it is no image, or a registry did not give it or take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl BundleError {
    /// Whether what the file holds is wrong; else it could not be had, written or moved.
    pub fn is_of_the_file(&self) -> bool {
        match self {
            Self::Write(_) | Self::Read(_) | Self::Registry(_) => false,
            Self::NoTar(_)
            | Self::NoLayout(_)
            | Self::Truncated { .. }
            | Self::Damaged { .. }
            | Self::Path { .. }
            | Self::Digest { .. }
            | Self::Missing { .. }
            | Self::Odd { .. }
            | Self::Index(_)
            | Self::Name { .. } => true,
        }
    }

    /// What the user does next; `None` where the cause says it all.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Write(_) | Self::Read(_) => None,
            Self::NoTar(_) | Self::NoLayout(_) | Self::Name { .. } => {
                Some("`mcpctl bundle save` makes bundles; a compressed one is unpacked first")
            }
            Self::Truncated { .. } | Self::Damaged { .. } | Self::Missing { .. } => {
                Some("copy it again, and compare the files' sizes")
            }
            Self::Digest { .. } => Some("the file is damaged or was changed; copy it again from where you trust it"),
            Self::Path { .. } | Self::Odd { .. } | Self::Index(_) => Some("do not trust where this file is from"),
            Self::Registry(_) => None,
        }
    }
}

fn path_of(digest: &str) -> String {
    format!("{BLOBS}{}", digest.strip_prefix("sha256:").unwrap_or(digest))
}
