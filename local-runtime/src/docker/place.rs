//! Where an engine is: looked for as long as none was found, and then kept.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mcp_hub_reconcile::ports::{Enforces, RuntimeInfo};

use super::DockerConfig;
use super::detect::{EngineKind, NotFound, find};
use super::engine::{Engine, EngineError};

/// An engine that is there says so within milliseconds; one that is starting is found at the next look.
const HELLO: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct EnginePlace {
    found: OnceLock<(Engine, RuntimeInfo)>,
    /// While none was found.
    nowhere: RuntimeInfo,
    missing: Mutex<NotFound>,
}

impl EnginePlace {
    pub(super) fn new(kind: EngineKind) -> Self {
        Self {
            found: OnceLock::new(),
            nowhere: RuntimeInfo {
                name: kind.as_str().to_owned(),
                version: String::new(),
                enforces: Enforces::default(),
                collects_garbage: false,
                bridge: None,
            },
            missing: Mutex::new(NotFound { kind, tried: Vec::new() }),
        }
    }

    pub(super) fn engine(&self) -> Result<Engine, NotFound> {
        match self.found.get() {
            Some((engine, _)) => Ok(engine.clone()),
            None => Err(self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// As [`EnginePlace::engine`], for who cannot go on without.
    pub(super) fn here(&self) -> Result<Engine, EngineError> {
        self.engine().map_err(|missing| EngineError::from(&missing))
    }

    pub(super) fn info(&self) -> &RuntimeInfo {
        self.found.get().map_or(&self.nowhere, |(_, info)| info)
    }

    /// Looks for an engine unless one was found.
    pub(super) async fn look(&self, config: &DockerConfig) {
        if self.found.get().is_some() {
            return;
        }
        match find(config.kind, &config.around, HELLO).await {
            Ok(engine) => {
                let facts = engine.facts();
                let info = RuntimeInfo {
                    version: facts.version.clone(),
                    enforces: Enforces {
                        memory_limit: facts.memory_limit,
                        cpu_limit: facts.cpu_limit,
                        filesystem: true,
                        egress: false,
                        user: true,
                    },
                    bridge: config.bridges.choose(None, &facts.architecture).map(|bridge| bridge.digest.clone()),
                    ..self.nowhere.clone()
                };
                tracing::info!(engine = facts.product, address = facts.address, "container engine found");
                // Only the watcher and the start look, one after the other.
                self.found.set((engine, info)).unwrap_or_default();
            }
            Err(missing) => *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing,
        }
    }
}
