//! What the operator would do: its own planning, run here with the rights of whoever asks.

use std::collections::BTreeMap;
use std::path::Path;

use kube::ResourceExt;
use kube::api::{ListParams, PatchParams};
use mcp_hub_crds::{MCPServer, Resource, manifest};
use mcp_hub_operator::identity::{self, IdentityError};
use mcp_hub_operator::planner::{Children, Planner, PlannerError};
use mcp_hub_operator::relay::RelayError;
use mcp_hub_reconcile::plan::render;

use super::{Cluster, ClusterError, FIELD_MANAGER};
use crate::admin::Planned;
use crate::daemon;
use crate::error::Error;
use crate::output;
use crate::target::{Scope, Target};

pub(super) async fn plan(cluster: &Cluster, file: Option<&Path>, scope: &Scope) -> Result<Vec<Planned>, Error> {
    let mut planned = Vec::new();
    let servers = match file {
        None => cluster.list::<MCPServer>(scope, &ListParams::default()).await?,
        Some(file) => proposed(cluster, file, scope, &mut planned).await?,
    };
    if servers.is_empty() {
        return Ok(planned);
    }
    let operator = cluster.operator().await?;
    if let Some(version) = operator.version.as_ref().filter(|version| *version != env!("CARGO_PKG_VERSION")) {
        let own = env!("CARGO_PKG_VERSION");
        output::say(&format!("warning: the operator is of version {version} and may plan otherwise than mcpctl {own}"));
    }
    let planner = match Planner::new(&cluster.client, operator.clone()).await {
        // Tokens in pods come from its key: a plan without it would be a guess.
        Err(PlannerError::Identity(IdentityError::Api { source, .. })) => {
            let secret = format!("secrets/{}", identity::SECRET);
            return Err(cluster.request("get", &secret, Some(operator.namespace())).failed(*source).into());
        }
        Err(PlannerError::Relay(RelayError::Api { resource, source, .. })) => {
            return Err(cluster.request("get", &resource, Some(operator.namespace())).failed(*source).into());
        }
        planner => planner.map_err(ClusterError::NoPlan)?,
    };
    let mut children: BTreeMap<String, Children> = BTreeMap::new();
    for server in &servers {
        let namespace = server.namespace().unwrap_or_default();
        if !operator.watches(&namespace) {
            let problem = format!("the operator does not look after namespace {namespace}");
            planned.push(refused(namespace, server.name_any(), problem));
            continue;
        }
        if !children.contains_key(&namespace) {
            let found = planner.children(&namespace).await;
            let found = found.map_err(|(kind, error)| cluster.request("list", kind, Some(&namespace)).failed(error))?;
            children.insert(namespace.clone(), found);
        }
        let steps = match children.get(&namespace) {
            Some(children) => planner.steps(server, children).await,
            None => continue,
        };
        planned.push(match steps {
            Ok(steps) => Planned {
                namespace,
                server: server.name_any(),
                steps: render(&steps).lines().map(str::to_owned).collect(),
                problem: None,
            },
            Err(error) => refused(namespace, server.name_any(), error.chain()),
        });
    }
    Ok(planned)
}

/// The servers of manifests as the API server would store them, which it says without doing so. What it refuses is a
/// problem of the plan.
async fn proposed(
    cluster: &Cluster,
    file: &Path,
    scope: &Scope,
    planned: &mut Vec<Planned>,
) -> Result<Vec<MCPServer>, Error> {
    let namespace = match scope {
        Scope::In(namespaces) => namespaces.first().map_or(cluster.namespace(), String::as_str),
        Scope::Usual | Scope::All => cluster.namespace(),
    };
    let documents = manifest::load_into(namespace, file).map_err(|errors| daemon::invalid(&errors))?;
    let params = PatchParams::apply(FIELD_MANAGER).dry_run();
    let mut servers = Vec::new();
    for document in documents {
        match cluster.put(&document.resource, &params).await {
            Ok(Resource::Server(server)) => servers.push(server),
            Ok(Resource::Hub(_)) => {}
            Err(Error::Cluster(error @ (ClusterError::Invalid { .. } | ClusterError::Conflict { .. }))) => {
                let key = document.resource.key();
                planned.push(refused(key.namespace, key.name, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(servers)
}

fn refused(namespace: String, server: String, problem: String) -> Planned {
    Planned { namespace, server, steps: Vec::new(), problem: Some(problem) }
}
