//! A hub and the servers that it offers.

use kube::ResourceExt;
use mcp_hub_crds::hub::MCPHubSpec;
use mcp_hub_crds::resource::DEFAULT_NAMESPACE;
use mcp_hub_crds::source::ImageSource;
use mcp_hub_crds::{MCPHub, MCPServer, Resource};
use mcp_hub_reconcile::gateway;

/// What becomes one Compose project or one stack. Servers are sorted; all have uids, which are made of their names, so that
/// the same manifests give the same project.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    pub hub: MCPHub,
    pub servers: Vec<MCPServer>,
    /// `NAMESPACE/NAME` of servers that the hub does not offer.
    pub left_out: Vec<String>,
}

/// Manifests that are no project.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoProject {
    #[error("there are several hubs: {}", .0.join(", "))]
    SeveralHubs(Vec<String>),
    #[error("there is no hub `{name}`")]
    NoHub { name: String, there: Vec<String> },
    #[error("the hub `{hub}` offers none of the servers")]
    NoServers { hub: String },
}

impl NoProject {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::SeveralHubs(_) => Some("a project is one hub: name it with --hub NAME".to_owned()),
            Self::NoHub { there, .. } if there.is_empty() => {
                Some("leave --hub out for one over all servers".to_owned())
            }
            Self::NoHub { there, .. } => Some(format!("there are: {}", there.join(", "))),
            Self::NoServers { .. } => Some("see its spec.servers".to_owned()),
        }
    }
}

impl Project {
    /// The hub of this name, else the only one, else one over all servers of its namespace, as on one machine.
    pub fn of(resources: Vec<Resource>, hub: Option<&str>) -> Result<Self, NoProject> {
        let (mut hubs, mut servers) = (Vec::new(), Vec::new());
        for resource in resources {
            match resource {
                Resource::Server(server) => servers.push(with_uid(server)),
                Resource::Hub(hub) => hubs.push(with_uid(hub)),
            }
        }
        let names: Vec<String> = hubs.iter().map(ResourceExt::name_any).collect();
        let hub = match hub {
            Some(name) => {
                let found = hubs.into_iter().find(|hub| hub.name_any() == name);
                found.ok_or_else(|| NoProject::NoHub { name: name.to_owned(), there: names })?
            }
            None => {
                let mut hubs = hubs.into_iter();
                match (hubs.next(), hubs.next()) {
                    (Some(hub), None) => hub,
                    (Some(_), Some(_)) => return Err(NoProject::SeveralHubs(names)),
                    (None, _) => {
                        let mut hub = MCPHub::new("default", MCPHubSpec::default());
                        hub.metadata.namespace = Some(DEFAULT_NAMESPACE.to_owned());
                        with_uid(hub)
                    }
                }
            }
        };
        let (mut servers, left_out): (Vec<_>, Vec<_>) =
            servers.into_iter().partition(|server| gateway::selects(&hub, server));
        if servers.is_empty() {
            return Err(NoProject::NoServers { hub: hub.name_any() });
        }
        servers.sort_by_key(uid_of);
        let mut left_out: Vec<String> = left_out.iter().map(uid_of).collect();
        left_out.sort();
        Ok(Self { hub, servers, left_out })
    }

    /// The images whose registries are to be asked.
    pub fn images(&self) -> Vec<&ImageSource> {
        let images = self.servers.iter().filter_map(|server| match &server.spec.source {
            mcp_hub_crds::source::Source::Image(image) => Some(image),
            mcp_hub_crds::source::Source::Package(_)
            | mcp_hub_crds::source::Source::Command(_)
            | mcp_hub_crds::source::Source::Remote(_) => None,
        });
        let settled = |image: &ImageSource| {
            image.command.is_some() && (image.pin_digest == Some(false) || image.r#ref.contains('@'))
        };
        let mut images: Vec<_> = images.filter(|image| !settled(image)).collect();
        images.sort_by(|a, b| a.r#ref.cmp(&b.r#ref));
        images.dedup_by(|a, b| a.r#ref == b.r#ref);
        images
    }
}

fn uid_of<K: ResourceExt>(resource: &K) -> String {
    format!("{}/{}", resource.namespace().unwrap_or_default(), resource.name_any())
}

fn with_uid<K: ResourceExt>(mut resource: K) -> K {
    let uid = uid_of(&resource);
    resource.meta_mut().uid = Some(uid);
    resource
}
