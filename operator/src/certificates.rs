//! The certificates of hubs: Secrets that users or cert-manager write. They are read by name and looked at again and again,
//! because they are not ours to watch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::SinkEvent;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::broadcast;

/// What came or went is told within this time.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Keys of a Secret of type `kubernetes.io/tls`.
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Which certificates hubs use, and what of them was seen. Clones are the same.
#[derive(Clone)]
pub(crate) struct Certificates {
    client: Client,
    seen: Arc<Mutex<BTreeMap<OwnerKey, Seen>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    secret: String,
    /// Its uid and version; `None` while it is not there.
    version: Option<(String, String)>,
}

impl Certificates {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, seen: Arc::default() }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<OwnerKey, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a Secret has what a hub's gateways need, `Err` with what is wrong; from now on changes of it are told.
    ///
    /// # Errors
    /// That it could not be read.
    pub(crate) async fn check(&self, hub: &OwnerKey, name: &str) -> Result<Result<(), Failure>, kube::Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &hub.namespace);
        let found = api.get_opt(name).await?;
        let version = found.as_ref().map(version);
        self.seen().insert(hub.clone(), Seen { secret: name.to_owned(), version });
        Ok(match found {
            None => Err(wrong("SecretMissing", format!("there is no Secret {name} with the certificate"))),
            Some(secret) => usable(&secret).map_err(|problem| {
                wrong("CertificateInvalid", format!("Secret {name} holds no certificate: {problem}"))
            }),
        })
    }

    /// The hub uses none any more.
    pub(crate) fn forget(&self, hub: &OwnerKey) {
        self.seen().remove(hub);
    }

    /// Tells for ever of hubs whose certificate came, went or changed. A hub of which `is_left` knows nothing is gone.
    pub(crate) async fn follow(self, is_left: impl Fn(&OwnerKey) -> bool, events: broadcast::Sender<SinkEvent>) {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            self.seen().retain(|hub, _| is_left(hub));
            let all = self.seen().clone();
            for (hub, known) in all {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), &hub.namespace);
                // A failure is the next pass's to report.
                let Ok(found) = api.get_metadata_opt(&known.secret).await else { continue };
                let version = found.as_ref().map(version);
                if version != known.version {
                    // Told once, whether the hub's pass gets as far as the certificate or not.
                    if let Some(seen) = self.seen().get_mut(&hub) {
                        seen.version = version;
                    }
                    // Nobody listening is no loss: who listens later looks at everything.
                    events.send(SinkEvent::Hub(hub)).ok();
                }
            }
        }
    }
}

fn version(secret: &impl ResourceExt) -> (String, String) {
    (secret.uid().unwrap_or_default(), secret.resource_version().unwrap_or_default())
}

fn wrong(reason: &'static str, message: String) -> Failure {
    let hint = "it is to be of type kubernetes.io/tls, with the chain in tls.crt and its key in tls.key, both PEM";
    // Looked for again, and an event tells.
    Failure { reason, message, hint: Some(hint.to_owned()), retry: Retry::OnChange }
}

/// Whether gateways can serve with it: a chain, and the key that belongs to it.
fn usable(secret: &Secret) -> Result<(), String> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).ok_or_else(|| format!("it has no {key}"));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&data(CHAIN)?.0).collect();
    let chain = chain.map_err(|error| format!("{CHAIN}: {error}"))?;
    if chain.is_empty() {
        return Err(format!("{CHAIN} has none"));
    }
    let key = PrivateKeyDer::from_pem_slice(&data(KEY)?.0).map_err(|error| format!("{KEY}: {error}"))?;
    let pair = CertifiedKey::from_der(chain, key, &ring::default_provider());
    pair.map(drop).map_err(|error| format!("{KEY} is not of {CHAIN}: {error}"))
}
