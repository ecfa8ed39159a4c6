//! The way to a hub: its token from its Secret, its gateway by a port that the API server forwards.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{self, Secret};
use kube::{Api, ResourceExt};
use mcp_hub_crds::MCPHub;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_operator::{CLIENTS_PORT, GATEWAY, Pod, TOKEN_KEY, URL_KEY, labels, token_secret};

use super::{Cluster, resource_of};
use crate::admin::{HubEndpoint, Name};
use crate::error::{Error, Exit};
use crate::summary::no_endpoint;
use crate::target::{Connection, Door};

pub(super) async fn endpoint(cluster: &Cluster, name: &Name) -> Result<HubEndpoint, Error> {
    let hub: MCPHub = cluster.find("hub", name).await?;
    let api: Api<Secret> = cluster.api(Some(&name.namespace));
    let secret = token_secret(&name.name);
    let request = cluster.request("get", &format!("{}/{secret}", resource_of::<Secret>()), Some(&name.namespace));
    let found = cluster.ask(request, api.get_opt(&secret)).await?;
    // One of a namesake that was deleted opens nothing any more.
    let own = found.filter(|secret| secret.labels().get(labels::OWNER_UID) == hub.metadata.uid.as_ref());
    let text = |key: &str| String::from_utf8(own.as_ref()?.data.as_ref()?.get(key)?.0.clone()).ok();
    match (text(URL_KEY), text(TOKEN_KEY)) {
        (Some(url), Some(token)) => Ok(HubEndpoint { url, token: Some(SecretString::new(token)) }),
        _ => Err(no_endpoint(&hub)),
    }
}

/// Connections to one of a hub's gateways, each through a port forwarded for it alone.
#[derive(Debug)]
pub(super) struct GatewayDoor {
    cluster: Cluster,
    hub: Name,
    uid: String,
}

impl GatewayDoor {
    pub(super) fn new(cluster: Cluster, hub: Name, uid: String) -> Self {
        Self { cluster, hub, uid }
    }
}

#[async_trait]
impl Door for GatewayDoor {
    async fn open(&self, _: &str) -> Result<Box<dyn Connection>, Error> {
        let Name { namespace, name } = &self.hub;
        // Asked anew for each connection: pods come and go.
        let pods = self.cluster.pods_of(namespace, &self.uid).await?;
        let Some((pod, port)) = pods.iter().find_map(serving) else {
            return Err(Error::Refused {
                exit: Exit::Failed,
                message: format!("none of the {} gateways of hub `{name}` is ready", pods.len()),
                hint: Some("`mcpctl get hubs` says why".to_owned()),
            });
        };
        let api: Api<v1::Pod> = self.cluster.api(Some(namespace));
        let request = self.cluster.request("create", "pods/portforward", Some(namespace));
        let mut forwarded = self.cluster.ask(request, api.portforward(&pod, &[port])).await?;
        let stream = forwarded.take_stream(port).ok_or_else(|| Error::Endpoint {
            url: format!("port {port} of pod {pod}"),
            problem: "it is not forwarded".to_owned(),
        })?;
        Ok(Box::new(stream))
    }
}

/// Name of a pod that takes calls, and its port for them.
fn serving(pod: &Pod) -> Option<(String, u16)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    let containers = &pod.spec.as_ref()?.containers;
    let ports = containers.iter().find(|container| container.name == GATEWAY)?.ports.as_ref()?;
    let port = ports.iter().find(|port| port.name.as_deref() == Some(CLIENTS_PORT))?.container_port;
    Some((pod.name_any(), u16::try_from(port).ok()?))
}
