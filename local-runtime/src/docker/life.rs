//! A server's container from its making to its end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bollard::query_parameters::{CreateContainerOptions, StopContainerOptions};
use mcp_hub_reconcile::error::{Retry, RuntimeError};
use mcp_hub_reconcile::lower::Object;
use mcp_hub_reconcile::observed::Failure;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::RuntimeEvent;

use super::container::{Container, has_ended, is_running};
use super::engine::{Engine, EngineError, is_absent, is_conflict};
use super::look::Found;
use super::{DockerRuntime, carry, console, container, container_of, digest_of, image, names};
use crate::secret_source::{self, Secrets};

/// A bridge listens and answers within a moment of its start; even on a busy machine that takes far less.
const BRIDGE_START: Duration = Duration::from_secs(30);
/// A bridge that is about to listen gives no event.
const LOOK: Duration = Duration::from_millis(10);
/// The server's processes have five seconds of it; what is left then is killed by the engine.
const GRACE_SECONDS: i32 = 10;
/// What others remove while a container is made is made again, this often.
const ATTEMPTS: usize = 3;
/// Exit code of what was ended by SIGKILL.
const KILLED: i64 = 128 + 9;

impl DockerRuntime {
    /// Applies the object, unless it failed so often that it is too early.
    pub(super) async fn bring(
        &self,
        engine: &Engine,
        owner: &OwnerKey,
        object: &Object,
        anew: bool,
    ) -> Result<(), RuntimeError> {
        let found = self.inspect(engine, owner).await?;
        if let Some(found) = found.as_ref().filter(|found| has_ended(found)) {
            // Noted once, by removing what tells of it.
            let Failure { reason, message, hint, retry } = ended(found);
            self.pacing.failed(owner, &object.digest, &RuntimeError { reason, message, hint, retry, source: None });
            engine.discard(&names::container(owner)).await?;
        }
        self.pacing.check(owner, &object.digest)?;
        let brought = async {
            let secrets = secret_source::values(&*self.secrets, owner, &object.body).await?;
            if anew {
                self.end(engine, owner).await?;
            }
            self.apply(engine, owner, object, &secrets).await
        };
        match brought.await {
            Ok(()) => {
                self.pacing.started(owner);
                Ok(())
            }
            Err(error) => {
                let error = RuntimeError::from(error);
                self.pacing.failed(owner, &object.digest, &error);
                Err(error)
            }
        }
    }

    async fn apply(
        &self,
        engine: &Engine,
        owner: &OwnerKey,
        object: &Object,
        secrets: &Secrets,
    ) -> Result<(), EngineError> {
        let wanted = container_of(&object.id.to_string(), &object.body)?;
        let found = self.inspect(engine, owner).await?;
        let runs_it = found
            .as_ref()
            .is_some_and(|found| digest_of(found) == Some(object.digest.as_str()) && wanted.now(found) == wanted);
        if !runs_it {
            if found.is_some() {
                self.end(engine, owner).await?;
            }
            self.known().insert(owner.clone());
            self.create(engine, owner, object, &wanted).await?;
        }
        let address = self.answering(engine, owner, &wanted).await?;
        if !secrets.is_empty() {
            let pushed = self.control(owner, address).push_secrets(secrets).await;
            pushed.map_err(|_| EngineError::Mute { owner: owner.to_string() })?;
        }
        self.follow(engine, owner, address, wanted.enclosed);
        self.tell(RuntimeEvent::Changed(owner.clone()));
        Ok(())
    }

    /// Makes and starts the container, with the network and the bridge that it needs.
    async fn create(
        &self,
        engine: &Engine,
        owner: &OwnerKey,
        object: &Object,
        wanted: &Container,
    ) -> Result<(), EngineError> {
        // Closed never: the semaphore lives as long as this.
        let _turn = self.turns.acquire().await;
        let name = names::container(owner);
        for attempt in 1.. {
            let error = match self.try_create(engine, owner, object, wanted, &name).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match &error {
                _ if attempt == ATTEMPTS => return Err(error),
                // Somebody tidied up: it is fetched again, by its digest.
                error if error.says("no such image") => {
                    let (image, ledger) = (&object.body["image"], &self.config.ledger);
                    image::fetch_again(engine, owner, image, &wanted.image, &self.logins, ledger).await?;
                }
                // The last other server of the network or of this bridge went a moment ago, and took it along.
                error if ["network", "volume", carry::PROGRAM].iter().any(|what| error.says(what)) => {
                    self.shared.look_again().await;
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    async fn try_create(
        &self,
        engine: &Engine,
        owner: &OwnerKey,
        object: &Object,
        wanted: &Container,
        name: &str,
    ) -> Result<(), EngineError> {
        let relay = self.shared.provide(engine, &owner.namespace, wanted).await?;
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        match engine
            .api
            .create_container(Some(options), wanted.request(container::labels(self.config.kind, owner, object), relay))
            .await
        {
            Ok(_) => {}
            Err(error) if is_conflict(&error) => return Err(EngineError::NameTaken { name: name.to_owned() }),
            Err(error) => return Err(engine.failed("create", name, error)),
        }
        let started = engine.api.start_container(name, None).await;
        if let Err(error) = started {
            // One that never ran is not worth to be kept. What stands in the way of that is no reason to hide this.
            engine.discard(name).await.unwrap_or_default();
            return Err(engine.failed("start", name, error));
        }
        Ok(())
    }

    /// Where the bridge answers. Returns as soon as it does.
    async fn answering(
        &self,
        engine: &Engine,
        owner: &OwnerKey,
        wanted: &Container,
    ) -> Result<SocketAddr, EngineError> {
        let started = Instant::now();
        loop {
            let found = self.inspect(engine, owner).await?;
            let found = found.ok_or_else(|| EngineError::NotRunning { owner: owner.to_string() })?;
            if !is_running(&found) {
                let name = names::container(owner);
                let output = console::last_lines(engine, &name).await;
                // What it had to say was read; left there it would be taken for one that ran.
                engine.discard(&name).await?;
                return Err(EngineError::Ended { owner: owner.to_string(), output });
            }
            let relay = self.relay_of(engine, owner, wanted).await?;
            if let Some(address) = self.address(owner, &found, wanted, relay.as_ref())? {
                let control = self.control(owner, address);
                // The engine is asked again only if the bridge is slow.
                for _ in 0..20 {
                    if control.status().await.is_ok() {
                        return Ok(address);
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
            if started.elapsed() > BRIDGE_START {
                return Err(EngineError::Mute { owner: owner.to_string() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the owner's container and removes it.
    pub(super) async fn end(&self, engine: &Engine, owner: &OwnerKey) -> Result<(), EngineError> {
        let name = names::container(owner);
        if self.inspect(engine, owner).await?.is_none() {
            return Ok(());
        }
        let options = StopContainerOptions { t: Some(GRACE_SECONDS), ..Default::default() };
        match engine.api.stop_container(&name, Some(options)).await {
            Err(error) if !is_absent(&error) && !is_conflict(&error) => {
                // A paused one cannot be stopped, and one that hangs may not be: what follows is by force.
                tracing::debug!(container = name, %error, "not stopped");
            }
            _ => {}
        }
        engine.discard(&name).await
    }
}

/// Why a container does not run.
pub(super) fn ended(found: &Found) -> Failure {
    let more = "raise spec.resources.limits.memory";
    let (reason, message, hint) = match &found.state {
        state if state.paused => ("ContainerPaused", "the container was paused".to_owned(), None),
        state if state.oom_killed => ("OutOfMemory", "the container was ended for its memory".to_owned(), Some(more)),
        // An engine may tell of the end before it tells of the reason.
        state if state.exit_code == KILLED && found.host_config.memory.is_some_and(|limit| limit > 0) => {
            let message = "the container was killed, which is also what happens to one whose memory runs out";
            ("ContainerEnded", message.to_owned(), Some(more))
        }
        state => ("ContainerEnded", format!("the container ended with code {}", state.exit_code), None),
    };
    Failure { reason, message, hint: hint.map(str::to_owned), retry: Retry::Backoff }
}
