//! What of a hub an engine can honour.

use mcp_hub_crds::hub::{AuthMode, Gateway, MCPHubSpec};
use mcp_hub_crds::{MCPHub, Resource};
use mcp_hub_reconcile::accept;

use super::Engine;
use crate::refusal::Ledger;

/// As on one machine.
const DEFAULT_PORT: i32 = 7337;

/// The port under which clients reach the hub, once all else of it is looked at.
pub(super) fn published(engine: Engine, hub: &MCPHub, ledger: &mut Ledger, notices: &mut Vec<String>) -> i32 {
    let mut page = ledger.of(Resource::Hub(hub.clone()).key());
    page.unimplemented(accept::unimplemented_in_hub(&hub.spec));
    // Destructured so that a new field does not compile until it is decided.
    let MCPHubSpec {
        // Read where the project was made.
        servers: _,
        // What the gateway itself does.
        naming: _,
        limits: _,
        gateway,
        auth,
        // Not implemented, wherever they are set to something.
        policy: _,
        disclosure: _,
        openapi: _,
        audit: _,
    } = &hub.spec;
    if auth.as_ref().and_then(|auth| auth.mode) == Some(AuthMode::None) {
        page.refuse(
            "spec.auth.mode",
            "the gateway shares networks with servers, which could use it without a token",
            Some("leave it out: bearer is the default"),
        );
    }
    let Some(Gateway { replicas, port, tls, ingress, http_route, allowed_hosts: _, allowed_origins: _ }) = gateway
    else {
        return DEFAULT_PORT;
    };
    for (field, is_set) in [
        ("spec.gateway.tls", tls.is_some()),
        ("spec.gateway.ingress", ingress.is_some()),
        ("spec.gateway.httpRoute", http_route.is_some()),
    ] {
        if is_set {
            page.refuse(field, "it is a cluster's", Some("leave it out, and put a proxy with TLS in front"));
        }
    }
    if replicas.is_some_and(|replicas| replicas > 1) {
        notices.push(format!("spec.gateway.replicas applies in clusters only: {} has one gateway", engine.name()));
    }
    port.unwrap_or(DEFAULT_PORT)
}
