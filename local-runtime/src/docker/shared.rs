//! What the servers of an installation share on an engine: networks, and volumes with the bridge. Made when the first of them
//! needs it, removed when nobody uses it; of volumes with the user's data only the making is ours.

use std::collections::{HashMap, HashSet};

use bollard::errors::Error as ApiError;
use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::RemoveVolumeOptions;

use super::carry::{self, Bridges};
use super::container::{Container, label};
use super::engine::{Engine, EngineError, is_conflict};

#[derive(Debug)]
pub(super) struct Shared {
    installation: String,
    bridges: Bridges,
    /// Volumes with a bridge, whole. Held while anything is made or removed.
    whole: tokio::sync::Mutex<HashSet<String>>,
}

impl Shared {
    pub(super) fn new(installation: String, bridges: Bridges) -> Self {
        Self { installation, bridges, whole: tokio::sync::Mutex::default() }
    }

    /// The label of all that is this installation's, whichever engine it is on.
    pub(super) fn mark(&self) -> String {
        format!("{}={}", label::INSTALLATION, self.installation)
    }

    /// Makes sure that all is there that a container needs.
    pub(super) async fn provide(&self, engine: &Engine, wanted: &Container) -> Result<(), EngineError> {
        // One at a time: of two that make a network of one name at once, Docker makes two.
        let mut whole = self.whole.lock().await;
        self.network(engine, &wanted.network).await?;
        let installation = &self.installation;
        if let Some(volume) = wanted.bridge_volume()
            && !whole.contains(volume)
        {
            self.bridges.bring(engine, installation, volume, &wanted.image).await?;
            whole.insert(volume.to_owned());
        }
        for volume in wanted.data_volumes() {
            carry::open(engine, installation, volume, &wanted.image).await?;
        }
        Ok(())
    }

    /// The network of a namespace, on which no container reaches another.
    async fn network(&self, engine: &Engine, name: &str) -> Result<(), EngineError> {
        if let Some(found) = engine.network(name).await? {
            let is_ours = found.labels.is_some_and(|labels| labels.contains_key(label::INSTALLATION));
            // Somebody else's may let its containers talk to each other.
            return if is_ours { Ok(()) } else { Err(EngineError::NameTaken { name: name.to_owned() }) };
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
            labels: Some(HashMap::from([text(label::INSTALLATION, &self.installation)])),
            ..NetworkCreateRequest::default()
        };
        match engine.api.create_network(request).await {
            Ok(_) => Ok(()),
            // Another server's came first.
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(engine.failed("create network", name, error)),
        }
    }

    /// Takes nothing for granted any more: somebody else removes things here.
    pub(super) async fn look_again(&self) {
        self.whole.lock().await.clear();
    }

    /// Removes what nobody uses any more of what servers share: the engine refuses what somebody does.
    pub(super) async fn tidy(&self, engine: &Engine) -> Result<(), EngineError> {
        // Nobody is about to use what goes: whoever makes something holds this, and makes it again if it went.
        let mut whole = self.whole.lock().await;
        let ours = [self.mark()];
        let used = |error: &ApiError| {
            matches!(error, ApiError::DockerResponseServerError { status_code: 403 | 404 | 409 | 500, .. })
        };
        carry::remove_helpers(engine, &self.mark()).await?;
        for network in engine.networks(&ours).await? {
            match engine.api.remove_network(&network).await {
                Err(error) if !used(&error) => return Err(engine.failed("remove network", &network, error)),
                _ => {}
            }
        }
        for volume in engine.volumes(&ours).await? {
            match engine.api.remove_volume(&volume, None::<RemoveVolumeOptions>).await {
                Ok(()) => {
                    whole.remove(&volume);
                }
                Err(error) if used(&error) => {}
                Err(error) => return Err(engine.failed("remove volume", &volume, error)),
            }
        }
        Ok(())
    }
}
