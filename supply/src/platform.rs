//! Platforms that images are made for (OCI image specification, "Image Index").

use std::fmt;

use serde::{Deserialize, Serialize};

/// Shown as `linux/arm64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// The platform of this machine.
    pub fn own() -> Self {
        Self::linux(match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        })
    }

    /// Whether an image for `self` is one for `wanted`. Without a wish for a variant every one will do.
    pub(crate) fn fits(&self, wanted: &Self) -> bool {
        self.os == wanted.os
            && self.architecture == wanted.architecture
            && (wanted.variant.is_none() || self.variant() == wanted.variant())
    }

    /// `v8` is the only arm64 there is, and is left out as often as not.
    fn variant(&self) -> Option<&str> {
        self.variant.as_deref().filter(|variant| !(self.architecture == "arm64" && *variant == "v8"))
    }

    /// Signatures and provenance stand in an index under a platform that is none.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_counts_when_it_is_asked_for_and_arm64_has_one_only() {
        let of = |text: &str| {
            let mut parts = text.split('/').map(str::to_owned);
            Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
        };
        for (image, wanted, fits) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v6", "linux/arm", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("windows/amd64", "linux/amd64", false),
            ("linux/arm64", "linux/amd64", false),
        ] {
            assert_eq!(of(image).fits(&of(wanted)), fits, "{image} for {wanted}");
            assert_eq!(of(image).to_string(), image);
        }
    }
}
