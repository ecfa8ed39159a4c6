//! `MCPHub`: one endpoint over a selection of servers.

#![expect(unreachable_pub, reason = "KubeSchema nests a public copy of each struct it derives for")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use crate::Duration;
use crate::source::LocalSecretRef;

/// Which servers, under which names, for whom, within which limits.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, CustomResource, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "mcphub.io",
    version = "v1alpha1",
    kind = "MCPHub",
    plural = "mcphubs",
    singular = "mcphub",
    shortname = "mcph",
    category = "mcp",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "MCPHubStatus",
    doc = "One MCP endpoint over a selection of servers.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("a name has at most 40 lower-case letters, digits and inner hyphens"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Servers", type_ = "string", json_path = ".status.servers.summary"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MCPHubSpec {
    /// Servers offered; none given means all of the namespace.
    pub servers: Option<ServerSelection>,
    /// How tools are named.
    pub naming: Option<Naming>,
    /// Where and how the endpoint is served.
    pub gateway: Option<Gateway>,
    /// Who may connect.
    pub auth: Option<Auth>,
    /// Who may call what.
    pub policy: Option<Policy>,
    /// Bounds on messages and calls.
    pub limits: Option<Limits>,
    /// What a client sees of many tools.
    pub disclosure: Option<Disclosure>,
    /// The tools as an OpenAPI service.
    pub openapi: Option<OpenApi>,
    /// Where calls are recorded.
    pub audit: Option<Audit>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerSelection {
    /// Servers whose labels match.
    pub selector: Option<LabelSelector>,
    /// Servers by name, besides the selected ones.
    #[schemars(length(max = 1000), inner(length(max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    pub include: Option<Vec<String>>,
    /// Namespaces looked into (default: the hub's own).
    #[schemars(length(max = 64), inner(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    pub namespaces: Option<Vec<String>>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that a server must have.
    #[schemars(extend("additionalProperties" = {"type": "string", "maxLength": 63, "pattern": r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}))]
    pub match_labels: Option<BTreeMap<String, String>>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Naming {
    /// Default Prefix.
    pub mode: Option<NamingMode>,
    /// Between server and tool (default `_`).
    #[schemars(length(min = 1, max = 4), regex(pattern = r"^[A-Za-z0-9_.-]+$"))]
    pub separator: Option<String>,
    /// Longest tool name (default 48).
    #[schemars(range(min = 24, max = 128))]
    pub max_length: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NamingMode {
    /// Always `SERVER` + separator + tool.
    Prefix,
    /// Never prefixed; tools that several servers offer are left out, with a condition.
    Bare,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.ingress) && has(self.httpRoute))").message("at most one of `ingress` and `httpRoute` may be set"))]
pub struct Gateway {
    /// Copies of the gateway (cluster only, default 2).
    #[schemars(range(min = 1, max = 100))]
    pub replicas: Option<i32>,
    /// Port listened on (default: 8080 in a cluster, 7337 on one machine).
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Certificate that the gateways show (cluster only).
    pub tls: Option<Tls>,
    /// An Ingress made for the endpoint (cluster only).
    pub ingress: Option<Ingress>,
    /// An HTTPRoute made for the endpoint (cluster only).
    pub http_route: Option<HttpRoute>,
    /// `Host` values accepted besides loopback names and those of ingress and route.
    #[schemars(length(max = 64), inner(length(max = 512), regex(pattern = r"^[!-~]+$")))]
    pub allowed_hosts: Option<Vec<String>>,
    /// `Origin` values accepted besides loopback ones.
    #[schemars(length(max = 64), inner(length(max = 512), regex(pattern = r"^[!-~]+$")))]
    pub allowed_origins: Option<Vec<String>>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.secretRef) != has(self.certManagerIssuer)").message("exactly one of `secretRef` and `certManagerIssuer` must be set"))]
pub struct Tls {
    /// Secret of type kubernetes.io/tls.
    pub secret_ref: Option<LocalSecretRef>,
    /// Name of a cert-manager Issuer of the namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub cert_manager_issuer: Option<String>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// Host name of the endpoint.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub host: String,
    /// Ingress class (default: that of the cluster).
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub class_name: Option<String>,
    /// Secret with the certificate that is shown for the host (default: that of `gateway.tls`; with neither, no TLS).
    pub tls_secret_ref: Option<LocalSecretRef>,
    /// Annotations of the Ingress, for its controller.
    pub annotations: Option<BTreeMap<String, String>>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// Host name of the endpoint.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub host: String,
    /// Name of the Gateway (gateway.networking.k8s.io) the route attaches to.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub gateway: String,
    /// Namespace of that Gateway (default: the hub's own).
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub gateway_namespace: Option<String>,
    /// Annotations of the HTTPRoute, for its controller.
    pub annotations: Option<BTreeMap<String, String>>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.mode) && self.mode == 'oidc') == has(self.oidc)").message("mode: oidc and the section `oidc` belong together"))]
pub struct Auth {
    /// Default bearer.
    pub mode: Option<AuthMode>,
    /// The issuer whose tokens are accepted, with mode oidc.
    pub oidc: Option<Oidc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    Bearer,
    Oidc,
    /// On loopback only.
    None,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Oidc {
    /// URL of the issuer, as in its tokens.
    #[schemars(length(min = 1, max = 2048))]
    pub issuer: String,
    /// Audiences of which a token must name one.
    #[schemars(length(min = 1, max = 16))]
    pub audiences: Vec<String>,
    /// Scopes that a token must have.
    #[schemars(length(max = 64))]
    pub required_scopes: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Evaluated in order; the first that matches decides, none allows.
    #[schemars(length(max = 256))]
    pub rules: Vec<PolicyRule>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Name of the rule, for the audit log and for refusals.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// CEL over principal, server, tool and arguments.
    #[schemars(length(min = 1, max = 4096))]
    pub when: String,
    /// What happens to a call that matches.
    pub action: PolicyAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyAction {
    Allow,
    Deny,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Largest request in bytes (default 4 MiB).
    #[schemars(range(min = 1024, max = 1073741824))]
    pub message_bytes: Option<i64>,
    /// Largest result in bytes (default: as large as the server's).
    #[schemars(range(min = 1024, max = 1073741824))]
    pub result_bytes: Option<i64>,
    /// Calls in flight (default 512).
    #[schemars(range(min = 1, max = 100000))]
    pub concurrent_calls: Option<i32>,
    /// Requests a second of one principal (default unlimited).
    #[schemars(range(min = 1, max = 100000))]
    pub per_principal_rps: Option<i32>,
    /// How long an unavailable server's tools stay listed (default 10m).
    pub stale_for: Option<Duration>,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disclosure {
    /// Default all.
    pub mode: Option<DisclosureMode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DisclosureMode {
    /// Every tool is listed.
    All,
    /// A search tool and a call tool are listed instead.
    Search,
}

#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpenApi {
    /// Default false.
    pub enabled: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// File or stdout.
    pub sink: AuditSink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuditSink {
    File,
    Stdout,
}

#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MCPHubStatus {
    /// Generation of the spec that this status speaks of.
    pub observed_generation: Option<i64>,
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Option<Vec<Condition>>,
    /// Where clients reach the hub.
    pub endpoint: Option<String>,
    pub servers: Option<ServerCount>,
    pub gateway: Option<GatewayState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerCount {
    pub ready: i32,
    pub total: i32,
    /// `ready/total`, for the printed column.
    pub summary: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayState {
    pub replicas: i32,
    /// Replicas that serve the newest configuration.
    pub synced: i32,
    /// Version of that configuration.
    pub version: String,
}
