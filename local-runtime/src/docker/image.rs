//! What an image of an engine starts; one that the engine has not is pulled.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bollard::auth::DockerCredentials;
use mcp_hub_crds::source::{ImageSource, LocalSecretRef, Resolved, ResolvedImage, SecretKeyRef, Source};
use mcp_hub_reconcile::error::{Retry, RuntimeError};
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_supply::reference::ReferenceError;
use mcp_hub_supply::{Credentials, DockerConfig, Reference};
use serde_json::Value;

use super::detect::EngineKind;
use super::engine::{Engine, EngineError};
use super::ledger::Ledger;
use super::look::FoundImage;
use super::place::EnginePlace;
use super::pull;
use crate::prepare::{Order, Resolve};
use crate::secret_source::SecretSource;

#[derive(Debug)]
pub(super) struct Images {
    pub(super) kind: EngineKind,
    pub(super) place: Arc<EnginePlace>,
    pub(super) logins: Logins,
    pub(super) ledger: Ledger,
}

/// How registries are told who pulls.
#[derive(Debug, Clone)]
pub(super) struct Logins {
    /// Docker's `config.json` of this user.
    pub(super) docker_config: PathBuf,
    pub(super) secrets: Arc<dyn SecretSource>,
}

/// Key of a pull secret, as Kubernetes has it.
const PULL_SECRET: &str = ".dockerconfigjson";

impl Logins {
    /// The login for an image: the pull secret's if one is named, else the user's own.
    async fn of(
        &self,
        reference: &Reference,
        pull_secret: Option<&LocalSecretRef>,
        namespace: &str,
    ) -> Result<Option<DockerCredentials>, Failure> {
        let broken = |reason, message: String, hint: &str| Failure {
            reason,
            message,
            hint: Some(hint.to_owned()),
            retry: Retry::Backoff,
        };
        let credentials = match pull_secret {
            Some(secret) => {
                let key = SecretKeyRef { name: secret.name.clone(), key: PULL_SECRET.to_owned() };
                let hint = "`mcpctl secret set NAME .dockerconfigjson < ~/.docker/config.json` keeps it";
                let value = self.secrets.value(namespace, &key).await;
                let value = value.map_err(|message| broken("SecretBackendFailed", message, hint))?;
                let missing =
                    || broken("SecretMissing", format!("secret `{}` has no key `{PULL_SECRET}`", key.name), hint);
                let value = value.ok_or_else(missing)?;
                let credentials = Credentials::from_docker_config(value.expose_secret().as_bytes());
                let odd = |error| broken("ImagePullFailed", format!("secret `{}`: {error}", key.name), hint);
                credentials.map_err(odd)?
            }
            None => {
                let credentials = match DockerConfig::read(&self.docker_config) {
                    Ok(config) => config.logins([reference]).await,
                    Err(error) => Err(error),
                };
                credentials.map_err(|error| broken("ImagePullFailed", error.to_string(), &error.hint()))?
            }
        };
        Ok(pull::login(&credentials, reference))
    }
}

#[async_trait]
impl Resolve for Images {
    fn progress(&self, source: &Source) -> String {
        match source {
            Source::Image(image) => format!("looking for image {}, pulling it if it is not there", image.r#ref),
            _ => String::new(),
        }
    }

    async fn resolve(&self, order: Order) -> Result<Resolved, Failure> {
        let Source::Image(image) = &order.source else {
            return Err(Failure {
                reason: "Unsupported",
                message: format!("a source of kind {} is not resolved here", order.source.kind()),
                hint: None,
                retry: Retry::OnChange,
            });
        };
        let engine = self.place.here().map_err(failure)?;
        Ok(Resolved {
            source_digest: order.source_digest,
            version: None,
            command: None,
            env: None,
            reads: None,
            image: Some(self.find(&engine, image, &order.owner.namespace).await?),
            runner: None,
        })
    }
}

impl Images {
    async fn find(&self, engine: &Engine, image: &ImageSource, namespace: &str) -> Result<ResolvedImage, Failure> {
        let reference: Reference = image.r#ref.parse().map_err(|error: ReferenceError| Failure {
            reason: "ImageInvalid",
            message: error.to_string(),
            hint: None,
            retry: Retry::OnChange,
        })?;
        // As the user wrote it: an engine knows its own images also by names that no registry has.
        let mut found = engine.image(&image.r#ref).await.map_err(failure)?;
        if found.is_none() {
            let login = self.logins.of(&reference, image.pull_secret_ref.as_ref(), namespace).await?;
            let before = engine.image_ids().await.map_err(failure)?;
            engine.pull(&reference, login, |_| {}).await.map_err(failure)?;
            found = engine.image(&image.r#ref).await.map_err(failure)?;
            if let Some(found) = &found {
                note(&self.ledger, engine, &before, &full_id(found.id.clone()), &reference);
            }
        }
        let gone = || failure(engine.pull_refused(&reference, "it is not there after it was pulled"));
        let found = found.ok_or_else(gone)?;
        facts(self.kind, engine, image, &reference, found)
    }
}

/// Notes an image that was pulled; one that was there before, by its id, is not ours. A pull succeeded all the same if it
/// cannot be noted: the image is not tidied away then.
fn note(ledger: &Ledger, engine: &Engine, before: &HashSet<String>, id: &str, name: &Reference) {
    let noted = match before.contains(id) {
        true => ledger.note_again(engine, id, &name.to_string()),
        false => ledger.note(engine, id, &name.to_string()),
    };
    if let Err(error) = noted {
        tracing::warn!(image = %name, %error, "it was not noted that this image was brought");
    }
}

/// Fetches an image that was there when it was resolved, by what a lowered body says of it.
pub(super) async fn fetch_again(
    engine: &Engine,
    owner: &OwnerKey,
    image: &Value,
    container_image: &str,
    logins: &Logins,
    ledger: &Ledger,
) -> Result<(), EngineError> {
    let text = |field: &str| image[field].as_str().unwrap_or_default();
    let (name, index, id) = (text("ref"), text("index"), text("id"));
    let by_tag = !container_image.starts_with("sha256:");
    let gone = |problem: String| EngineError::ImageGone { image: name.to_owned(), problem };
    if index == id && !by_tag {
        return Err(gone("it is of no registry".to_owned()));
    }
    let reference: Reference = name.parse().map_err(|error: ReferenceError| gone(error.to_string()))?;
    let pinned = match by_tag {
        true => reference.clone(),
        false => reference.at(index).parse().map_err(|error: ReferenceError| gone(error.to_string()))?,
    };
    let pull_secret = image["pullSecret"].as_str().map(|name| LocalSecretRef { name: name.to_owned() });
    let login = logins.of(&pinned, pull_secret.as_ref(), &owner.namespace).await;
    let login = login.map_err(|failure| gone(failure.message))?;
    let before = engine.image_ids().await?;
    engine.pull(&pinned, login, |_| {}).await.map_err(|error| gone(error.to_string()))?;
    let found = engine.image(&pinned.to_string()).await?;
    let found = full_id(found.ok_or_else(|| gone("it is not there after it was pulled".to_owned()))?.id);
    note(ledger, engine, &before, &found, &reference);
    match found {
        // By its tag, whatever that means now is what was asked for.
        found if by_tag || found == id => Ok(()),
        found => Err(gone(format!("what the registry gave for {index} is {found} here, and not {id}"))),
    }
}

fn facts(
    kind: EngineKind,
    engine: &Engine,
    image: &ImageSource,
    reference: &Reference,
    found: FoundImage,
) -> Result<ResolvedImage, Failure> {
    let wrong =
        |reason, message: String, hint: String| Failure { reason, message, hint: Some(hint), retry: Retry::OnChange };
    engine.check_platform(reference, &found).map_err(failure)?;
    let digests = found.repo_digests.unwrap_or_default();
    let digest = digests.iter().find_map(|name| {
        let known: Reference = name.parse().ok()?;
        (known.registry() == reference.registry() && known.repository() == reference.repository())
            .then(|| known.digest().map(str::to_owned))?
    });
    if digest.is_none() && image.pin_digest == Some(true) {
        return Err(wrong(
            "ImageUnpinned",
            format!("image {} has no digest of a registry: it was built or loaded here", image.r#ref),
            "push it and pull it, or leave pinDigest out".to_owned(),
        ));
    }
    let id = full_id(found.id);
    let config = found.config.unwrap_or_default();
    Ok(ResolvedImage {
        index: digest.unwrap_or_else(|| id.clone()),
        // With whose it is: on another engine the same image may have another one, or not be there.
        id: Some(format!("{}:{id}", kind.as_str())),
        entrypoint: config.entrypoint.filter(|words| !words.is_empty()),
        cmd: config.cmd.filter(|words| !words.is_empty()),
        user: Some(config.user).filter(|user| !user.is_empty()),
    })
}

/// Podman leaves the algorithm out.
pub(super) fn full_id(id: String) -> String {
    if id.starts_with("sha256:") { id } else { format!("sha256:{id}") }
}

fn failure(error: EngineError) -> Failure {
    let RuntimeError { reason, message, hint, retry, source } = error.into();
    let message = source.map(|source| format!("{message}: {source}")).unwrap_or(message);
    Failure { reason, message, hint, retry }
}
