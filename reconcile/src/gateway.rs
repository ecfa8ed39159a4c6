//! The configuration of a hub's gateway: a pure function of the hub, its servers and their status.

use std::collections::BTreeMap;

use kube::ResourceExt;
use mcp_hub_crds::hub::{AuthMode, NamingMode};
use mcp_hub_crds::server::{EraChoice, TransportType};
use mcp_hub_crds::source::{SecretKeyRef, Source};
use mcp_hub_crds::status::condition;
use mcp_hub_crds::{MCPHub, MCPServer};
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{
    ClientAuth, GatewayConfig, GatewayLimits, HubRef, Naming, NamingMode as WireNaming, Target, ToolRules, Transport,
    Upstream, UpstreamEra, Wake,
};
use mcp_hub_dataplane_api::secret::SecretString;

use crate::accept;
use crate::exposure::{self, Exposure};
use crate::installation::{Installation, token_sha256};
use crate::ports::Addresses;
use crate::rest;
use crate::status::reason;
use crate::workload::{call_timeout_ms, is_stopped, session_mode};

const DEFAULT_SEPARATOR: &str = "_";
/// Claude Code puts `mcp__hub__` before a name and some clients refuse names over 60 characters.
const DEFAULT_NAME_LENGTH: i32 = 48;
const DEFAULT_MESSAGE_BYTES: i64 = 4 << 20;
const DEFAULT_CONCURRENT_CALLS: i32 = 512;
const DEFAULT_STALE_MS: u64 = 10 * 60 * 1000;

/// Whether the hub offers the server: it lies in a namespace the hub looks into and is selected there. A server of
/// another namespace must also be exposed to the hub's.
pub fn selects(hub: &MCPHub, server: &MCPServer) -> bool {
    let (home, from) = (hub.namespace().unwrap_or_default(), server.namespace().unwrap_or_default());
    let Some(selection) = &hub.spec.servers else {
        return from == home;
    };
    let in_reach = match &selection.namespaces {
        None => from == home,
        Some(namespaces) => namespaces.contains(&from),
    };
    let exposed = from == home || server.spec.expose_to.as_ref().is_some_and(|to| to.contains(&home));
    let by_name = selection.include.as_ref().is_some_and(|names| names.contains(&server.name_any()));
    let by_label = selection.selector.as_ref().is_some_and(|selector| {
        selector.match_labels.iter().flatten().all(|(key, value)| server.labels().get(key) == Some(value))
    });
    let everything = selection.include.is_none() && selection.selector.is_none();
    in_reach && exposed && (by_name || by_label || everything)
}

/// Secrets that the gateway needs to reach the server.
pub fn header_secrets(server: &MCPServer) -> Vec<&SecretKeyRef> {
    match &server.spec.source {
        Source::Remote(remote) => remote.headers.iter().flatten().filter_map(|h| h.secret_ref.as_ref()).collect(),
        Source::Image(_) | Source::Package(_) | Source::Command(_) => Vec::new(),
    }
}

/// `servers` are those the hub selects; `secrets` holds those of [`header_secrets`] that exist, by namespace.
pub fn compose(
    hub: &MCPHub,
    servers: &[impl AsRef<MCPServer>],
    secrets: &BTreeMap<(String, SecretKeyRef), SecretString>,
    addresses: &Addresses,
    installation: &Installation,
) -> GatewayConfig {
    let home = hub.namespace().unwrap_or_default();
    let hub_uid = hub.uid().unwrap_or_default();
    let mut upstreams: Vec<Upstream> = servers
        .iter()
        .map(|server| {
            let server = server.as_ref();
            // One name in two namespaces: the foreign one says where it is from, whoever else is there or not, so that
            // a name never changes when a namesake comes.
            let name = match server.namespace().unwrap_or_default() {
                namespace if namespace == home => server.name_any(),
                namespace => format!("{namespace}.{}", server.name_any()),
            };
            upstream(name, server, secrets, installation)
        })
        .collect();
    upstreams.sort_by(|a, b| a.name.cmp(&b.name));

    let naming = hub.spec.naming.as_ref();
    let limits = hub.spec.limits.as_ref();
    let gateway = hub.spec.gateway.as_ref();
    let mut config = GatewayConfig {
        version: String::new(),
        sequence: 0,
        hub: HubRef { namespace: home, name: hub.name_any(), uid: hub_uid.clone() },
        upstreams,
        naming: Naming {
            mode: match naming.and_then(|n| n.mode) {
                None | Some(NamingMode::Prefix) => WireNaming::Prefix,
                Some(NamingMode::Bare) => WireNaming::Bare,
            },
            separator: naming.and_then(|n| n.separator.clone()).unwrap_or_else(|| DEFAULT_SEPARATOR.to_owned()),
            max_length: unsigned(naming.and_then(|n| n.max_length).unwrap_or(DEFAULT_NAME_LENGTH)),
        },
        auth: match hub.spec.auth.as_ref().and_then(|a| a.mode) {
            // OIDC is refused before a configuration is composed; falling back to bearer keeps the door shut.
            None | Some(AuthMode::Bearer | AuthMode::Oidc) => {
                ClientAuth::Bearer { tokens_sha256: vec![token_sha256(&installation.hub_token(&hub_uid, 0))] }
            }
            Some(AuthMode::None) => ClientAuth::None,
        },
        limits: GatewayLimits {
            message_bytes: limits
                .and_then(|l| l.message_bytes)
                .and_then(|bytes| u64::try_from(bytes).ok())
                .unwrap_or(DEFAULT_MESSAGE_BYTES.unsigned_abs()),
            result_bytes: limits.and_then(|l| l.result_bytes).and_then(|bytes| u64::try_from(bytes).ok()),
            concurrent_calls: unsigned(limits.and_then(|l| l.concurrent_calls).unwrap_or(DEFAULT_CONCURRENT_CALLS)),
            stale_for_ms: limits.and_then(|l| l.stale_for).map_or(DEFAULT_STALE_MS, |d| d.as_millis()),
        },
        allowed_hosts: addresses
            .hosts
            .iter()
            .cloned()
            .chain(gateway.and_then(Exposure::of).map(|exposure| exposure.host().to_owned()))
            .chain(gateway.and_then(|g| g.allowed_hosts.clone()).unwrap_or_default())
            .collect(),
        allowed_origins: gateway
            .and_then(exposure::origin)
            .into_iter()
            .chain(gateway.and_then(|g| g.allowed_origins.clone()).unwrap_or_default())
            .collect(),
        wake: addresses.wake.clone().map(|url| Wake { url, token: installation.wake_token(&hub_uid) }),
    };
    // Keyed, because the version is shown and the configuration holds secrets.
    config.version = installation.fingerprint(&serde_json::to_string(&config).unwrap_or_default());
    config
}

fn upstream(
    name: String,
    server: &MCPServer,
    secrets: &BTreeMap<(String, SecretKeyRef), SecretString>,
    installation: &Installation,
) -> Upstream {
    let uid = server.uid().unwrap_or_default();
    let tools = server.spec.tools.as_ref();
    let (target, era, transport) = match &server.spec.source {
        Source::Remote(remote) => {
            let namespace = server.namespace().unwrap_or_default();
            let mut headers = BTreeMap::new();
            let mut missing = Vec::new();
            for header in remote.headers.iter().flatten() {
                let value = match &header.secret_ref {
                    Some(key) => secrets.get(&(namespace.clone(), key.clone())).cloned(),
                    None => Some(SecretString::new(header.value.clone().unwrap_or_default())),
                };
                match value {
                    Some(value) => {
                        headers.insert(header.name.clone(), value);
                    }
                    None => missing.push(header.name.as_str()),
                }
            }
            let unimplemented = accept::unimplemented_in_server(&server.spec);
            let target = if !unimplemented.is_empty() {
                // What the spec asks for in vain may be what keeps the server safe to call.
                Target::Unavailable {
                    reason: reason::NOT_IMPLEMENTED.to_owned(),
                    message: format!("not implemented yet: {}", unimplemented.join(", ")),
                    hint: None,
                }
            } else if !missing.is_empty() {
                Target::Unavailable {
                    reason: reason::SECRET_MISSING.to_owned(),
                    message: format!("no value for header {}", missing.join(", ")),
                    hint: None,
                }
            } else if is_stopped(server) {
                Target::Unavailable {
                    reason: reason::PAUSED.to_owned(),
                    message: "the server is paused".to_owned(),
                    hint: None,
                }
            } else {
                Target::Available { url: remote.url.clone(), headers }
            };
            let said = server.spec.transport.as_ref();
            let era = match said.and_then(|transport| transport.era) {
                None | Some(EraChoice::Auto) => UpstreamEra::Probe,
                Some(EraChoice::Modern) => UpstreamEra::Known(Era::Modern),
                Some(EraChoice::Legacy) => UpstreamEra::Known(Era::Legacy),
            };
            let transport = match said.and_then(|transport| transport.r#type) {
                Some(TransportType::StreamableHttp) => Transport::StreamableHttp,
                Some(TransportType::Sse) => Transport::HttpSse,
                // The schema refuses stdio for a remote server.
                None | Some(TransportType::Stdio) => Transport::Probe,
            };
            (target, era, transport)
        }
        Source::Image(_) | Source::Package(_) | Source::Command(_) => {
            let (target, era) = bridged(server, &uid, installation);
            (target, era, Transport::StreamableHttp)
        }
    };
    Upstream {
        name,
        uid,
        target,
        era,
        transport,
        sessions: session_mode(server.spec.sessions.as_ref().and_then(|s| s.mode)),
        tools: ToolRules {
            allow: tools.and_then(|t| t.allow.clone()).unwrap_or_default(),
            deny: tools.and_then(|t| t.deny.clone()).unwrap_or_default(),
            rename: tools.and_then(|t| t.rename.clone()).unwrap_or_default(),
        },
        call_timeout_ms: call_timeout_ms(server),
        definitions: None,
    }
}

/// A server behind a bridge can be called as soon as a handshake has told its era, and also while its bridge starts it
/// anew: the bridge holds such a call or answers it. While nothing of it runs the gateway holds it.
fn bridged(server: &MCPServer, uid: &str, installation: &Installation) -> (Target, UpstreamEra) {
    let status = server.status.as_ref();
    let ready = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == condition::READY));
    let era = status.and_then(|s| s.server.as_ref()).and_then(|s| s.era.as_deref());
    let era = match era {
        Some("modern") => Some(Era::Modern),
        Some("legacy") => Some(Era::Legacy),
        _ => None,
    };
    if rest::holds_calls(server) {
        return (Target::Asleep, UpstreamEra::Known(era.unwrap_or(Era::Legacy)));
    }
    let endpoint = status.and_then(|s| s.endpoint.as_ref());
    let callable = ready.is_some_and(|c| {
        [reason::READY, reason::ASLEEP, reason::STARTING, reason::BACKOFF].contains(&c.reason.as_str())
    });
    match (endpoint, era, callable) {
        (Some(url), Some(era), true) => {
            let token = installation.bridge_token(uid, 0);
            let bearer = SecretString::new(format!("Bearer {}", token.expose_secret()));
            let headers = BTreeMap::from([("authorization".to_owned(), bearer)]);
            (Target::Available { url: url.clone(), headers }, UpstreamEra::Known(era))
        }
        _ => (
            Target::Unavailable {
                reason: ready.map_or_else(|| reason::PENDING.to_owned(), |c| c.reason.clone()),
                message: ready.map_or_else(|| "the server has not started yet".to_owned(), |c| c.message.clone()),
                hint: None,
            },
            UpstreamEra::Known(era.unwrap_or(Era::Legacy)),
        ),
    }
}

/// The schema holds these fields at one or more.
fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(1)
}
