//! Manifests for `kubectl apply`: normalised, with all that must be there before them.

use std::collections::BTreeSet;

use kube::ResourceExt;
use mcp_hub_crds::server::Volume;
use mcp_hub_crds::source::{ImageSource, Source};
use mcp_hub_crds::{MCPHub, MCPServer, Resource};
use mcp_hub_reconcile::accept;

use crate::refusal::{Ledger, Page, Refused};
use crate::{Access, File, Generated, MARK};

/// Name of the file.
const FILE: &str = "mcp-hub.yaml";

/// One file with all resources, hubs last, sorted by namespace and name.
///
/// # Errors
/// [`Refused`]: all that only one machine has, and what no release implements yet.
pub fn write(resources: &[Resource]) -> Result<Generated, Refused> {
    let mut ledger = Ledger::new("kubernetes");
    let mut needs = BTreeSet::new();
    let mut sorted: Vec<&Resource> = resources.iter().collect();
    sorted.sort_by_key(|resource| resource.key());
    for resource in &sorted {
        let mut page = ledger.of(resource.key());
        match resource {
            Resource::Server(server) => of_server(server, &mut page, &mut needs),
            Resource::Hub(hub) => of_hub(hub, &mut page, &mut needs),
        }
    }
    ledger.conclude()?;
    let mut content = format!("{MARK}.\n# Apply it with `kubectl apply -f {FILE}`.\n");
    if !needs.is_empty() {
        content.push_str("# What must be there:\n");
    }
    for need in &needs {
        content.push_str(&format!("# - {need}\n"));
    }
    for resource in sorted {
        content.push_str("---\n");
        content.push_str(&plain(resource).to_yaml());
    }
    let notices = needs.into_iter().map(|need| format!("must be there: {need}")).collect();
    Ok(Generated { files: vec![File { name: FILE, content, access: Access::Everybody }], notices })
}

/// Without what one machine notes on its objects.
fn plain(resource: &Resource) -> Resource {
    let mut resource = resource.clone();
    let metadata = match &mut resource {
        Resource::Server(server) => &mut server.metadata,
        Resource::Hub(hub) => &mut hub.metadata,
    };
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(mcp_hub_reconcile::workload::BASE_DIR_ANNOTATION);
    }
    metadata.annotations = metadata.annotations.take().filter(|annotations| !annotations.is_empty());
    resource
}

fn of_server(server: &MCPServer, page: &mut Page<'_>, needs: &mut BTreeSet<String>) {
    let namespace = server.namespace().unwrap_or_default();
    let spec = &server.spec;
    page.unimplemented(accept::unimplemented_in_server(spec));
    if let Some(runtime) = spec.runtime {
        page.refuse("spec.runtime", format!("a cluster has no runtime {}", runtime.as_str()), Some("leave it out"));
    }
    match &spec.source {
        Source::Command(_) => {
            page.refuse(
                "spec.source.command",
                "a cluster has no programs of its own",
                Some("use an image or a package"),
            );
        }
        Source::Package(package) if package.exact_version().is_none() => page.refuse(
            "spec.source.package.version",
            "a cluster installs a package at each start of a pod, so it needs an exact version",
            Some("name one that the registry has, such as 1.2.3"),
        ),
        Source::Image(ImageSource { pull_secret_ref: Some(secret), .. }) => {
            needs.insert(format!("Secret {namespace}/{} of type kubernetes.io/dockerconfigjson", secret.name));
        }
        Source::Remote(remote) => {
            for secret in remote.headers.iter().flatten().filter_map(|header| header.secret_ref.as_ref()) {
                needs.insert(format!("Secret {namespace}/{} with key {}", secret.name, secret.key));
            }
        }
        Source::Package(_) | Source::Image(_) => {}
    }
    for secret in spec.env.iter().flatten().filter_map(|variable| variable.secret_ref.as_ref()) {
        needs.insert(format!("Secret {namespace}/{} with key {}", secret.name, secret.key));
    }
    for Volume { name, host_path, pvc, config_map, .. } in spec.volumes.iter().flatten() {
        if host_path.is_some() {
            page.refuse(
                format!("spec.volumes[{name}].hostPath"),
                "a server does not see the node's files",
                Some("use pvc, configMap or emptyDir"),
            );
        }
        needs.extend(pvc.iter().map(|claim| format!("PersistentVolumeClaim {namespace}/{claim}")));
        needs.extend(config_map.iter().map(|map| format!("ConfigMap {namespace}/{map}")));
    }
}

fn of_hub(hub: &MCPHub, page: &mut Page<'_>, needs: &mut BTreeSet<String>) {
    let namespace = hub.namespace().unwrap_or_default();
    page.unimplemented(accept::unimplemented_in_hub(&hub.spec));
    let Some(gateway) = &hub.spec.gateway else { return };
    if let Some(tls) = &gateway.tls {
        needs.extend(
            tls.secret_ref.iter().map(|secret| format!("Secret {namespace}/{} of type kubernetes.io/tls", secret.name)),
        );
        needs
            .extend(tls.cert_manager_issuer.iter().map(|issuer| format!("cert-manager's Issuer {namespace}/{issuer}")));
    }
    let of_ingress = gateway.ingress.iter().filter_map(|ingress| ingress.tls_secret_ref.as_ref());
    needs.extend(of_ingress.map(|secret| format!("Secret {namespace}/{} of type kubernetes.io/tls", secret.name)));
}
