//! What the servers of an installation share on an engine: networks, relays, and volumes with the bridge. Made when the first
//! of them needs it, removed when nobody uses it; of volumes with the user's data only the making is ours.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use bollard::errors::Error as ApiError;
use bollard::models::{NetworkCreateRequest, NetworkDisconnectRequest};
use bollard::query_parameters::{RemoveImageOptions, RemoveVolumeOptions};
use serde_json::json;

use super::carry::{self, Bridges};
use super::container::{Container, label};
use super::detect::EngineKind;
use super::engine::{Engine, EngineError, is_conflict};
use super::relay::{self, Relays, Way};

/// Role of an inner network, in its label.
const INNER: &str = "inner";
/// Docker's option of a network: the machine has no address on it.
const INHIBIT: &str = "com.docker.network.bridge.inhibit_ipv4";

#[derive(Debug)]
pub(super) struct Shared {
    kind: EngineKind,
    bridges: Bridges,
    pub(super) relays: Relays,
    /// Volumes with a bridge, whole. Held while anything is made or removed.
    whole: tokio::sync::Mutex<HashSet<String>>,
}

impl Shared {
    pub(super) fn new(kind: EngineKind, bridges: Bridges, relays: Relays) -> Self {
        Self { kind, bridges, relays, whole: tokio::sync::Mutex::default() }
    }

    fn installation(&self) -> &str {
        self.relays.installation().id()
    }

    /// The label of all that is this installation's, whichever engine it is on.
    pub(super) fn mark(&self) -> String {
        format!("{}={}", label::INSTALLATION, self.installation())
    }

    /// Labels of what this runtime made. An engine may be found under two names, as Podman behind Docker's socket, and is
    /// driven as two then; neither touches what the other made.
    pub(super) fn marks(&self) -> Vec<String> {
        vec![self.mark(), format!("{}={}", label::ENGINE, self.kind.as_str())]
    }

    /// Makes sure that all is there that a container needs. Gives the relay's address, where an enclosed one is told it.
    pub(super) async fn provide(
        &self,
        engine: &Engine,
        namespace: &str,
        wanted: &Container,
    ) -> Result<Option<Ipv4Addr>, EngineError> {
        // One at a time: of two that make a network of one name at once, Docker makes two.
        let mut whole = self.whole.lock().await;
        let relay = match wanted.enclosed {
            true => {
                self.inner_network(engine, namespace, &wanted.network).await?;
                relay::fixed_address(engine, &wanted.network).await?
            }
            false => {
                self.network(engine, &wanted.network).await?;
                None
            }
        };
        let installation = self.installation();
        if let Some(volume) = wanted.bridge_volume()
            && !whole.contains(volume)
        {
            self.bridges.bring(engine, installation, volume, &wanted.image).await?;
            whole.insert(volume.to_owned());
        }
        for volume in wanted.data_volumes() {
            carry::open(engine, installation, volume, &wanted.image).await?;
        }
        Ok(relay)
    }

    /// Makes sure that a server's inner network is there, with the namespace's relay on it.
    pub(super) async fn open(&self, engine: &Engine, namespace: &str, way: &Way) -> Result<(), EngineError> {
        let _whole = self.whole.lock().await;
        self.inner_network(engine, namespace, &way.network).await?;
        self.network(engine, &way.relay.network).await?;
        let relay = self.relays.bring(engine, namespace, &way.relay).await?;
        self.relays.join(engine, namespace, &relay, &way.network).await
    }

    /// Removes a server's inner network, which has no server any more.
    pub(super) async fn close(&self, engine: &Engine, namespace: &str, network: &str) -> Result<(), EngineError> {
        let _whole = self.whole.lock().await;
        self.remove_inner_network(engine, namespace, network).await
    }

    async fn remove_inner_network(&self, engine: &Engine, namespace: &str, network: &str) -> Result<(), EngineError> {
        let request = NetworkDisconnectRequest { container: self.relays.name(namespace), force: Some(true) };
        match engine.api.disconnect_network(network, request).await {
            Err(error) if !is_used(&error) => return Err(engine.failed("leave network", network, error)),
            _ => {}
        }
        match engine.api.remove_network(network).await {
            Err(error) if !is_used(&error) => Err(engine.failed("remove network", network, error)),
            _ => Ok(()),
        }
    }

    /// A network of a server and the relay that leads nowhere: not to the machine either, which has no address on it, and not
    /// to whom the engine asks for names.
    async fn inner_network(&self, engine: &Engine, namespace: &str, name: &str) -> Result<(), EngineError> {
        if self.is_there(engine, name, Some(INNER)).await? {
            return Ok(());
        }
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let labels = HashMap::from([
            text(label::INSTALLATION, self.installation()),
            text(label::ENGINE, self.kind.as_str()),
            text(label::ROLE, INNER),
            text(label::NAMESPACE, namespace),
        ]);
        if engine.facts().is_podman {
            let request = json!({
                "name": name, "driver": "bridge", "internal": true, "dns_enabled": false, "labels": labels,
                "options": {"isolate": "true"},
            });
            return engine.make_podman_network(name, &request).await;
        }
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            internal: Some(true),
            options: Some(HashMap::from([text(INHIBIT, "true")])),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        made(engine, name, engine.api.create_network(request).await.map(drop))
    }

    /// The network of a namespace, on which no container reaches another.
    async fn network(&self, engine: &Engine, name: &str) -> Result<(), EngineError> {
        if self.is_there(engine, name, None).await? {
            return Ok(());
        }
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let options = match engine.facts().is_podman {
            true => HashMap::from([text("isolate", "true")]),
            false => HashMap::from([text("com.docker.network.bridge.enable_icc", "false")]),
        };
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            options: Some(options),
            labels: Some(HashMap::from([text(label::INSTALLATION, self.installation())])),
            ..NetworkCreateRequest::default()
        };
        made(engine, name, engine.api.create_network(request).await.map(drop))
    }

    /// Whether our network is there. Somebody else's may let its containers talk to each other, or out.
    async fn is_there(&self, engine: &Engine, name: &str, role: Option<&str>) -> Result<bool, EngineError> {
        let Some(found) = engine.network(name).await? else { return Ok(false) };
        let is_ours = found.label(label::INSTALLATION) == Some(self.installation()) && found.label(label::ROLE) == role;
        let inhibits =
            || found.options.as_ref().and_then(|options| options.get(INHIBIT)).is_some_and(|set| set == "true");
        let is_closed = || found.internal && (engine.facts().is_podman || inhibits());
        match is_ours && (role.is_none() || is_closed()) {
            true => Ok(true),
            false => Err(EngineError::NameTaken { name: name.to_owned() }),
        }
    }

    /// Takes nothing for granted any more: somebody else removes things here.
    pub(super) async fn look_again(&self) {
        self.whole.lock().await.clear();
    }

    /// Removes what nobody uses any more of what servers share: the engine refuses what somebody does. Of inner networks,
    /// on each of which there is a relay, it cannot tell: those in `used` stay.
    pub(super) async fn tidy(&self, engine: &Engine, used: &HashSet<String>) -> Result<(), EngineError> {
        // Nobody is about to use what goes: whoever makes something holds this, and makes it again if it went.
        let mut whole = self.whole.lock().await;
        let ours = [self.mark()];
        carry::remove_helpers(engine, &self.mark()).await?;
        self.tidy_relays(engine, used).await?;
        // Inner ones were looked at above, those of this engine's other name by whoever drives that.
        let networks =
            engine.networks(&ours).await?.into_iter().filter(|found| found.label(label::ROLE) != Some(INNER));
        for network in networks.map(|found| found.name) {
            match engine.api.remove_network(&network).await {
                Err(error) if !is_used(&error) => return Err(engine.failed("remove network", &network, error)),
                _ => {}
            }
        }
        for volume in engine.volumes(&ours).await? {
            match engine.api.remove_volume(&volume, None::<RemoveVolumeOptions>).await {
                Ok(()) => {
                    whole.remove(&volume);
                }
                Err(error) if is_used(&error) => {}
                Err(error) => return Err(engine.failed("remove volume", &volume, error)),
            }
        }
        for image in engine.images(&ours).await? {
            match engine.api.remove_image(&image, None::<RemoveImageOptions>, None).await {
                Err(error) if !is_used(&error) => return Err(engine.failed("remove image", &image, error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A relay goes with the last inner network.
    async fn tidy_relays(&self, engine: &Engine, used: &HashSet<String>) -> Result<(), EngineError> {
        let with_role = |role: &str| {
            let mut labels = self.marks();
            labels.push(format!("{}={role}", label::ROLE));
            labels
        };
        let mut led_through = HashSet::new();
        for network in engine.networks(&with_role(INNER)).await? {
            let namespace = network.label(label::NAMESPACE).unwrap_or_default();
            match used.contains(&network.name) {
                true => {
                    led_through.insert(namespace.to_owned());
                }
                false => self.remove_inner_network(engine, namespace, &network.name).await?,
            }
        }
        for labels in engine.labels(&with_role(relay::ROLE)).await? {
            let namespace = labels.get(label::NAMESPACE).map(String::as_str).unwrap_or_default();
            if !led_through.contains(namespace) {
                engine.discard(&self.relays.name(namespace)).await?;
            }
        }
        Ok(())
    }
}

/// Somebody uses it, or it is gone.
fn is_used(error: &ApiError) -> bool {
    matches!(error, ApiError::DockerResponseServerError { status_code: 403 | 404 | 409 | 500, .. })
}

fn made(engine: &Engine, network: &str, created: Result<(), ApiError>) -> Result<(), EngineError> {
    match created {
        // Another server's came first.
        Err(error) if is_conflict(&error) => Ok(()),
        created => created.map_err(|error| engine.failed("create network", network, error)),
    }
}
