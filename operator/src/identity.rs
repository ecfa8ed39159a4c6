//! The installation's id and key, kept in a Secret of the operator's namespace.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use mcp_hub_reconcile::installation::Installation;

use crate::labels;

/// Name of the Secret.
pub const SECRET: &str = "mcp-hub-installation";
const ID: &str = "id";
const KEY: &str = "key";

/// The installation could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("could not {action} Secret {SECRET} in namespace {namespace}")]
    Api {
        action: &'static str,
        namespace: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error(
        "Secret {SECRET} in namespace {namespace} holds no `id` and `key` of 64 hexadecimal digits; remove it, and all tokens change"
    )]
    Malformed { namespace: String },
    #[error("the system gives no random numbers")]
    Random,
}

impl IdentityError {
    /// Whether the same try may succeed later: the API server is away, or not itself.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => status.code == 429 || status.code >= 500,
                _ => true,
            },
            Self::Malformed { .. } | Self::Random => false,
        }
    }
}

/// Reads the installation; the first operator makes it. Of two that start together one makes it and both read the same.
pub async fn installation(client: &Client, namespace: &str) -> Result<Installation, IdentityError> {
    if let Some(installation) = existing(client, namespace).await? {
        return Ok(installation);
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut random = [0; 36];
    getrandom::fill(&mut random).map_err(|_| IdentityError::Random)?;
    let (id, key) = (hex::encode(&random[..4]), hex::encode(&random[4..]));
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            labels: Some(BTreeMap::from([(labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            (ID.to_owned(), ByteString(id.into_bytes())),
            (KEY.to_owned(), ByteString(key.into_bytes())),
        ])),
        // A changed key would change every token at once.
        immutable: Some(true),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(made) => read(&made, namespace),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            read(&api.get(SECRET).await.map_err(failed("read", namespace))?, namespace)
        }
        Err(error) => Err(failed("create", namespace)(error)),
    }
}

/// Reads the installation, if an operator has made it.
pub async fn existing(client: &Client, namespace: &str) -> Result<Option<Installation>, IdentityError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api.get_opt(SECRET).await.map_err(failed("read", namespace))?;
    secret.map(|secret| read(&secret, namespace)).transpose()
}

fn failed(action: &'static str, namespace: &str) -> impl FnOnce(kube::Error) -> IdentityError {
    let namespace = namespace.to_owned();
    move |source| IdentityError::Api { action, namespace, source: Box::new(source) }
}

fn read(secret: &Secret, namespace: &str) -> Result<Installation, IdentityError> {
    let text = |name: &str| String::from_utf8(secret.data.as_ref()?.get(name)?.0.clone()).ok();
    let key = text(KEY).and_then(|key| hex::decode(key.trim()).ok()).and_then(|key| key.try_into().ok());
    match (text(ID).filter(|id| !id.is_empty()), key) {
        (Some(id), Some(key)) => Ok(Installation::new(id, key)),
        _ => Err(IdentityError::Malformed { namespace: namespace.to_owned() }),
    }
}
