//! Where an engine is: looked for as long as none was found, and then kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mcp_hub_reconcile::ports::{Enforces, RuntimeInfo};
use tokio::sync::Notify;

use super::DockerConfig;
use super::detect::{EngineKind, NotFound, find};
use super::engine::{Engine, EngineError};
use super::vessel;

/// An engine that is there says so within milliseconds; one that is starting is found at the next look.
const HELLO: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct EnginePlace {
    found: OnceLock<(Engine, RuntimeInfo)>,
    /// While none was found.
    nowhere: RuntimeInfo,
    missing: Mutex<NotFound>,
    wanted: AtomicBool,
    /// Told when it is wanted for the first time.
    want: Notify,
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
            wanted: AtomicBool::new(false),
            want: Notify::new(),
        }
    }

    pub(super) fn engine(&self) -> Result<Engine, NotFound> {
        match self.found.get() {
            Some((engine, _)) => Ok(engine.clone()),
            None => Err(self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// As [`EnginePlace::engine`], for a server that is to run here: from now on the engine is started where it can be.
    pub(super) fn wanted(&self) -> Result<Engine, NotFound> {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.want.notify_one();
        }
        self.engine()
    }

    /// Resolves when it is wanted for the first time.
    ///
    /// # Cancel safety
    /// May be dropped and asked again.
    pub(super) async fn until_wanted(&self) {
        self.want.notified().await;
    }

    /// As [`EnginePlace::engine`], for who cannot go on without.
    pub(super) fn here(&self) -> Result<Engine, EngineError> {
        self.engine().map_err(|missing| EngineError::from(&missing))
    }

    pub(super) fn info(&self) -> &RuntimeInfo {
        self.found.get().map_or(&self.nowhere, |(_, info)| info)
    }

    /// Looks for an engine unless one was found, and starts it where that is ours to do. Gives whether none was, and what
    /// is to be told of that is new.
    pub(super) async fn look(&self, config: &DockerConfig) -> bool {
        let starts = config.kind == EngineKind::Vessel && self.wanted.load(Ordering::Relaxed);
        // An engine is kept; a service that we can start may have ended.
        if self.found.get().is_some() && !starts {
            return false;
        }
        let found = match starts {
            true => vessel::awaken(&config.around, HELLO).await,
            false => find(config.kind, &config.around, HELLO).await,
        };
        match found {
            Ok(engine) => {
                let facts = engine.facts();
                let info = RuntimeInfo {
                    version: facts.version.clone(),
                    enforces: Enforces {
                        memory_limit: facts.memory_limit,
                        cpu_limit: facts.cpu_limit,
                        filesystem: true,
                        egress: config.relays.iter().any(|relay| relay.architecture == facts.architecture),
                        user: true,
                    },
                    bridge: config.bridges.choose(None, &facts.architecture).map(|bridge| bridge.digest.clone()),
                    ..self.nowhere.clone()
                };
                // Only the watcher and the start look, one after the other.
                if self.found.set((engine.clone(), info)).is_ok() {
                    tracing::info!(engine = facts.product, address = facts.address, "container engine found");
                }
                false
            }
            Err(missing) => {
                let mut known = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
                let is_news = *known != missing;
                *known = missing;
                is_news
            }
        }
    }
}
