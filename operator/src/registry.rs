//! Images resolved at their registries.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use mcp_hub_crds::source::{ImageSource, ResolvedImage};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_supply::{Credentials, Platform, Reference, Registries};

use crate::images::{ResolveError, ResolveImage};

/// Key of a `kubernetes.io/dockerconfigjson` Secret.
const DOCKER_CONFIG: &str = ".dockerconfigjson";

/// Asks registries, with the credentials of the Secret that a source names.
#[derive(Clone)]
pub struct KubeImages {
    client: Client,
    registries: Registries,
    platform: Platform,
}

impl std::fmt::Debug for KubeImages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeImages").field("platform", &self.platform).finish_non_exhaustive()
    }
}

impl KubeImages {
    /// `platform`: of the cluster's nodes; entrypoints hardly ever differ between platforms.
    pub fn new(client: Client, registries: Registries, platform: Platform) -> Self {
        Self { client, registries, platform }
    }

    async fn credentials(&self, image: &ImageSource, namespace: &str) -> Result<Credentials, ResolveError> {
        let Some(reference) = &image.pull_secret_ref else { return Ok(Credentials::none()) };
        let name = &reference.name;
        let wrong = |message: String| ResolveError {
            message,
            hint: Some(
                "spec.source.image.pullSecretRef names a Secret of type kubernetes.io/dockerconfigjson".to_owned(),
            ),
            // A Secret may come or be put right, of which nothing tells.
            retry: Retry::Backoff,
        };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = api.get_opt(name).await;
        let secret = secret.map_err(|error| wrong(format!("Secret {name} cannot be read: {error}")))?;
        let secret = secret.ok_or_else(|| wrong(format!("there is no Secret {name} in namespace {namespace}")))?;
        let config = secret.data.and_then(|mut data| data.remove(DOCKER_CONFIG));
        let config = config.ok_or_else(|| wrong(format!("Secret {name} has no key {DOCKER_CONFIG}")))?;
        Credentials::from_docker_config(&config.0).map_err(|error| wrong(format!("Secret {name}: {error}")))
    }
}

#[async_trait]
impl ResolveImage for KubeImages {
    async fn resolve(&self, image: &ImageSource, namespace: &str) -> Result<ResolvedImage, ResolveError> {
        let reference: Reference =
            image.r#ref.parse().map_err(|error: mcp_hub_supply::reference::ReferenceError| ResolveError {
                message: error.to_string(),
                hint: Some("correct spec.source.image.ref".to_owned()),
                retry: Retry::OnChange,
            })?;
        let credentials = self.credentials(image, namespace).await?;
        let facts = self.registries.resolve(&reference, &credentials, &self.platform).await;
        let facts = facts.map_err(|error| ResolveError {
            message: error.to_string(),
            hint: Some(format!("{}, or set spec.source.image.command", error.hint())),
            retry: match error.retry_after() {
                Some(time) => Retry::After(time),
                None if error.is_passing() => Retry::Backoff,
                None => Retry::OnChange,
            },
        })?;
        Ok(ResolvedImage {
            index: facts.index_digest,
            id: None,
            entrypoint: facts.entrypoint,
            cmd: facts.cmd,
            user: facts.user,
        })
    }
}
