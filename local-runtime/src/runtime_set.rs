//! The runtimes of one machine as one runtime: each workload goes to the one that fits its source.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use mcp_hub_crds::server::RuntimeChoice;
use mcp_hub_crds::source::Source;
use mcp_hub_reconcile::error::RuntimeError;
use mcp_hub_reconcile::lower::{Lowered, ObjectId, Unsupported};
use mcp_hub_reconcile::observed::Observed;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{
    Console, ExecOutput, LogLine, LogQuery, Progress, Runtime, RuntimeEvent, RuntimeInfo, Step,
};
use mcp_hub_reconcile::workload::{ServerWorkload, Workload};

use crate::docker::{DockerRuntime, EngineKind};
use crate::process::ProcessRuntime;

/// Packages and commands become processes, images containers of an engine, remote servers nothing. `spec.runtime` overrides.
#[derive(Debug)]
pub struct RuntimeSet {
    process: Arc<ProcessRuntime>,
    engines: Vec<(EngineKind, Arc<DockerRuntime>)>,
    /// For images whose spec names no runtime; without, the first engine that answers.
    images: Option<EngineKind>,
}

impl RuntimeSet {
    /// `images`: the engine for images whose spec names no runtime; without, the first of `engines` that answers.
    pub fn new(
        process: Arc<ProcessRuntime>,
        engines: Vec<(EngineKind, Arc<DockerRuntime>)>,
        images: Option<EngineKind>,
    ) -> Self {
        Self { process, engines, images }
    }

    /// Where a server is to run; nothing if it runs elsewhere.
    fn choose(&self, server: &ServerWorkload) -> Result<Option<&dyn Runtime>, Unsupported> {
        let refused = |field: &str, message: String, hint: String| Unsupported {
            runtime: "this machine".to_owned(),
            field: field.to_owned(),
            message,
            hint: Some(hint),
        };
        let kind = match (&server.source, server.runtime) {
            (Source::Remote(_), None) => return Ok(None),
            (Source::Package(_) | Source::Command(_), None) | (_, Some(RuntimeChoice::Process)) => {
                return Ok(Some(&*self.process));
            }
            // Where it is already: its data stay behind when it moves because another engine happens to answer.
            (Source::Image(_), None) if let Some((_, engine)) = self.home_of(server) => return Ok(Some(&**engine)),
            (Source::Image(_), None) => return self.engine_for_images().map(Some),
            (_, Some(RuntimeChoice::Docker)) => EngineKind::Docker,
            (_, Some(RuntimeChoice::Podman)) => EngineKind::Podman,
            (_, Some(RuntimeChoice::Vessel)) => EngineKind::Vessel,
            (_, Some(RuntimeChoice::Swarm)) => {
                let message = "this release does not drive swarm".to_owned();
                return Err(refused("spec.runtime", message, "leave spec.runtime out".to_owned()));
            }
        };
        let engine = self.engines.iter().find(|(known, _)| *known == kind);
        engine.map(|(_, engine)| Some(&**engine as &dyn Runtime)).ok_or_else(|| {
            refused(
                "spec.runtime",
                format!("{} is not driven here", kind.as_str()),
                "leave spec.runtime out".to_owned(),
            )
        })
    }

    /// The engine that the server's image was found on, unless another was chosen for all since.
    fn home_of(&self, server: &ServerWorkload) -> Option<&(EngineKind, Arc<DockerRuntime>)> {
        let id = server.resolved.as_ref()?.image.as_ref()?.id.as_deref()?;
        let kind = id.split_once(':')?.0;
        let chosen = |known: EngineKind| self.images.is_none_or(|images| images == known);
        self.engines.iter().find(|(known, _)| known.as_str() == kind && chosen(*known))
    }

    fn engine_for_images(&self) -> Result<&dyn Runtime, Unsupported> {
        let engine = match self.images {
            // If it is not there, it says so itself.
            Some(chosen) => self.engines.iter().find(|(kind, _)| *kind == chosen),
            None => self.engines.iter().find(|(_, engine)| engine.engine().is_ok()),
        };
        if let Some((_, engine)) = engine {
            return Ok(&**engine);
        }
        let missing: Vec<_> = self.engines.iter().filter_map(|(_, engine)| engine.engine().err()).collect();
        let tried: Vec<String> = missing.iter().map(ToString::to_string).collect();
        Err(Unsupported {
            runtime: "this machine".to_owned(),
            field: "spec.source.image".to_owned(),
            message: format!("images need a container engine: {}", tried.join("; ")),
            hint: missing.first().map(|missing| missing.hint().to_owned()),
        })
    }

    /// The runtime that makes objects of this kind.
    fn maker(&self, id: &ObjectId) -> &dyn Runtime {
        let engine = self.engines.iter().find(|(kind, _)| crate::docker::makes(*kind, id));
        engine.map_or(&*self.process as &dyn Runtime, |(_, engine)| &**engine)
    }

    fn all(&self) -> impl Iterator<Item = &dyn Runtime> {
        let engines = self.engines.iter().map(|(_, engine)| &**engine as &dyn Runtime);
        std::iter::once(&*self.process as &dyn Runtime).chain(engines)
    }
}

#[async_trait]
impl Runtime for RuntimeSet {
    fn info(&self) -> &RuntimeInfo {
        self.process.info()
    }

    fn info_for(&self, server: &ServerWorkload) -> &RuntimeInfo {
        match self.choose(server) {
            Ok(Some(runtime)) => runtime.info(),
            Ok(None) | Err(_) => self.info(),
        }
    }

    fn lower(&self, workload: &Workload) -> Result<Lowered, Unsupported> {
        let Workload::Server(server) = workload else { return self.process.lower(workload) };
        match self.choose(server)? {
            Some(runtime) => runtime.lower(workload),
            None => Ok(Lowered::default()),
        }
    }

    async fn owners(&self) -> Result<Vec<OwnerKey>, RuntimeError> {
        let mut owners = Vec::new();
        for runtime in self.all() {
            match runtime.owners().await {
                Ok(found) => owners.extend(found),
                // What others have left is not to wait for an engine that is away.
                Err(error) => tracing::warn!(runtime = runtime.info().name, %error, "not looked for leftovers"),
            }
        }
        owners.sort();
        owners.dedup();
        Ok(owners)
    }

    async fn observe(&self, owner: &OwnerKey) -> Result<Observed, RuntimeError> {
        let mut all = Observed::default();
        for runtime in self.all() {
            let Observed { objects, prepare, bridge, sleeps, failure, missing_secrets } =
                runtime.observe(owner).await?;
            all.objects.extend(objects);
            all.prepare = all.prepare.or(prepare);
            all.bridge = all.bridge.or(bridge);
            all.sleeps |= sleeps;
            all.failure = all.failure.or(failure);
            all.missing_secrets.extend(missing_secrets);
        }
        Ok(all)
    }

    async fn execute(&self, owner: &OwnerKey, step: &Step) -> Result<Progress, RuntimeError> {
        let maker = match step {
            Step::Prepare(object) => self.maker(&object.id),
            Step::Remove(id) => return self.maker(id).execute(owner, step).await,
            Step::Apply(object) | Step::Replace(object) => {
                let maker = self.maker(&object.id);
                // Where the server ran before it ends first: of one server there are not two.
                for other in self.observe(owner).await?.objects {
                    let has = self.maker(&other.id);
                    if has.info().name != maker.info().name {
                        has.execute(owner, &Step::Remove(other.id.clone())).await?;
                    }
                }
                maker
            }
        };
        maker.execute(owner, step).await
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        stream::select_all(self.all().map(Runtime::events)).boxed()
    }

    fn console(&self) -> &dyn Console {
        self
    }
}

/// The console of whichever runtime has the server.
#[async_trait]
impl Console for RuntimeSet {
    async fn logs(&self, owner: &OwnerKey, query: LogQuery) -> Result<BoxStream<'static, LogLine>, RuntimeError> {
        self.home(owner).await?.console().logs(owner, query).await
    }

    async fn exec(&self, owner: &OwnerKey, argv: &[String]) -> Result<ExecOutput, RuntimeError> {
        self.home(owner).await?.console().exec(owner, argv).await
    }
}

impl RuntimeSet {
    async fn home(&self, owner: &OwnerKey) -> Result<&dyn Runtime, RuntimeError> {
        for (_, engine) in &self.engines {
            if !engine.observe(owner).await?.objects.is_empty() {
                return Ok(&**engine);
            }
        }
        Ok(&*self.process)
    }
}
