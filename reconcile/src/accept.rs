//! Fields of the schema that no release implements yet. They are refused by name, never ignored.

use mcp_hub_crds::hub::{AuthMode, DisclosureMode};
use mcp_hub_crds::server::Roots;
use mcp_hub_crds::source::Source;
use mcp_hub_crds::{MCPHubSpec, MCPServerSpec};

/// Paths of the fields that are set and not built yet, in the order of the schema.
pub fn unimplemented_in_server(spec: &MCPServerSpec) -> Vec<&'static str> {
    let remote = matches!(&spec.source, Source::Remote(_));
    let remote_auth = matches!(&spec.source, Source::Remote(remote) if remote.auth.is_some());
    let verify = matches!(&spec.source, Source::Image(image) if image.verify.is_some());
    let http = spec.health.as_ref().is_some_and(|health| health.http.is_some());
    let exec = spec.health.as_ref().is_some_and(|health| health.exec.is_some());
    let lock = spec.tools.as_ref().is_some_and(|tools| tools.lock.is_some());
    named(&[
        ("spec.source.image.verify", verify),
        ("spec.source.remote.auth", remote_auth),
        ("spec.sessions.max", remote && spec.sessions.as_ref().is_some_and(|sessions| sessions.max.is_some())),
        ("spec.roots", remote && spec.roots == Some(Roots::Forward)),
        ("spec.health", remote && spec.health.is_some()),
        ("spec.restart", remote && spec.restart.is_some()),
        ("spec.timeouts.start", remote && spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.start.is_some())),
        ("spec.kubernetes", remote && spec.kubernetes.is_some()),
        ("spec.health.http", http),
        ("spec.health.exec", exec),
        ("spec.tools.lock", lock),
    ])
}

/// As [`unimplemented_in_server`], for a hub.
pub fn unimplemented_in_hub(spec: &MCPHubSpec) -> Vec<&'static str> {
    let limits = spec.limits.as_ref();
    named(&[
        ("spec.auth.oidc", spec.auth.as_ref().is_some_and(|a| a.mode == Some(AuthMode::Oidc) || a.oidc.is_some())),
        ("spec.policy", spec.policy.as_ref().is_some_and(|policy| !policy.rules.is_empty())),
        ("spec.limits.perPrincipalRps", limits.is_some_and(|l| l.per_principal_rps.is_some())),
        ("spec.disclosure.mode", spec.disclosure.as_ref().is_some_and(|d| d.mode == Some(DisclosureMode::Search))),
        ("spec.openapi.enabled", spec.openapi.as_ref().is_some_and(|o| o.enabled == Some(true))),
        ("spec.audit", spec.audit.is_some()),
    ])
}

fn named(fields: &[(&'static str, bool)]) -> Vec<&'static str> {
    fields.iter().filter(|(_, set)| *set).map(|(path, _)| *path).collect()
}
