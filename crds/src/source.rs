//! Where a server comes from: `spec.source`.

#![expect(unreachable_pub, reason = "KubeSchema nests a public copy of each struct it derives for")]

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// Exactly one place that the server comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// An OCI image.
    Image(ImageSource),
    /// A package of a language's registry.
    Package(PackageSource),
    /// A program of this machine (local mode only).
    Command(CommandSource),
    /// A server that runs elsewhere.
    Remote(RemoteSource),
}

impl Source {
    /// The key under `spec.source`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::Package(_) => "package",
            Self::Command(_) => "command",
            Self::Remote(_) => "remote",
        }
    }
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// Image reference, such as `ghcr.io/github/github-mcp-server:v1`.
    #[schemars(length(min = 1, max = 512))]
    pub r#ref: String,
    /// Replaces the image's ENTRYPOINT and drops its CMD.
    #[schemars(length(max = 64))]
    pub command: Option<Vec<String>>,
    /// Secret with registry credentials.
    pub pull_secret_ref: Option<LocalSecretRef>,
    /// Run the digest that the reference had when it was resolved (default true).
    pub pin_digest: Option<bool>,
    /// Signature that the image must carry.
    pub verify: Option<ImageVerification>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageVerification {
    /// Certificate identity that must have signed the image.
    #[schemars(length(min = 1, max = 512))]
    pub identity: String,
    /// OIDC issuer of that identity.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalSecretRef {
    /// Name of the secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PackageSource {
    /// Where the package comes from.
    pub registry: PackageRegistry,
    /// Name in the registry, such as `@modelcontextprotocol/server-everything`.
    #[schemars(
        length(min = 1, max = 214),
        regex(pattern = r"^(@[a-z0-9~-][a-z0-9._~-]*/)?[A-Za-z0-9~-][A-Za-z0-9._~-]*$")
    )]
    pub name: String,
    /// Exact version. Without one the newest is taken once and kept until the source changes.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[0-9A-Za-z][0-9A-Za-z.+!-]*$"))]
    pub version: Option<String>,
    /// Program of the package to run, if it brings several.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub executable: Option<String>,
}

impl PackageSource {
    /// The version, unless it is a tag or a range, which mean another one tomorrow.
    pub fn exact_version(&self) -> Option<&str> {
        let version = self.version.as_deref()?;
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let is_exact = match self.registry {
            // Of npm `1.2` is the newest 1.2, and `latest` a tag (semver.org, items 2, 9 and 10).
            PackageRegistry::Npm => {
                let numbers = version.split(['-', '+']).next().unwrap_or_default();
                numbers.split('.').count() == 3 && numbers.split('.').all(is_number)
            }
            PackageRegistry::Pypi => version.starts_with(|first: char| first.is_ascii_digit()),
        };
        is_exact.then_some(version)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PackageRegistry {
    Npm,
    Pypi,
}

impl PackageRegistry {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Pypi => "pypi",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandSource {
    /// Program: an absolute path, a path relative to the manifest (`./bin/server`), or a name looked up in PATH when the
    /// server is resolved.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoteSource {
    /// Streamable HTTP endpoint of the server.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[!-~]+$"))]
    pub url: String,
    /// Sent with every request.
    #[schemars(length(max = 32))]
    pub headers: Option<Vec<Header>>,
    /// How the hub authorises itself, besides headers.
    pub auth: Option<RemoteAuth>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.secretRef)").message("exactly one of `value` and `secretRef` must be set"))]
pub struct Header {
    /// Name of the header.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// Its value, in clear.
    #[schemars(length(max = 8192), regex(pattern = r"^[ -~\t]*$"))]
    pub value: Option<String>,
    /// Its value, from a secret.
    pub secret_ref: Option<SecretKeyRef>,
}

/// One value of a secret. The environment says where secrets live: Secrets of the namespace in a cluster, the daemon's
/// backends on one machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
    /// Key within the secret; `value` for a secret that is one value.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoteAuth {
    /// As an OAuth client.
    pub oauth: OAuthClient,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OAuthClient {
    /// Client id registered with the authorization server; none means a client metadata document.
    #[schemars(length(min = 1, max = 2048))]
    pub client_id: Option<String>,
    /// Secret of a confidential client.
    pub client_secret_ref: Option<SecretKeyRef>,
    /// Scopes asked for.
    #[schemars(length(max = 64))]
    pub scopes: Option<Vec<String>>,
}

/// What resolving a source found. Kept in status until the source changes, so that a later pass needs neither registry
/// nor disk to lower the server.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// Digest of the source this belongs to.
    pub source_digest: String,
    /// Exact version of a package.
    pub version: Option<String>,
    /// Program and first arguments that start the server, absolute.
    pub command: Option<Vec<String>>,
    /// Environment that the program needs besides the server's own.
    pub env: Option<BTreeMap<String, String>>,
    /// Folders that the program reads (interpreter, package), for file-system confinement.
    pub reads: Option<Vec<String>>,
    pub image: Option<ResolvedImage>,
    /// Image in which a cluster installs and runs a package: that of the operator which saw the source first.
    pub runner: Option<String>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedImage {
    /// Digest of the image index.
    pub index: String,
    /// Its id in a container engine of one machine, which is what runs there: `docker:sha256:…`.
    pub id: Option<String>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub user: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_or_a_range_is_no_version() {
        for (registry, versions, exact) in [
            (PackageRegistry::Npm, &["1.2.3", "2026.8.31", "1.0.0-rc.1", "1.0.0+build.7"][..], true),
            (PackageRegistry::Npm, &["latest", "1", "1.2", "1.x.0", "1.2.3.4"], false),
            (PackageRegistry::Pypi, &["1", "1.2", "1!2.0", "2.0rc1"], true),
            (PackageRegistry::Pypi, &["latest"], false),
        ] {
            for version in versions {
                let source = PackageSource {
                    registry,
                    name: "a".to_owned(),
                    version: Some((*version).to_owned()),
                    executable: None,
                };
                assert_eq!(source.exact_version().is_some(), exact, "{version}");
            }
        }
    }
}
