//! A server from a package: an init container of the runner image installs it into the pod, and the server's container
//! starts it from there.

use mcp_hub_crds::source::{PackageRegistry, PackageSource};
use mcp_hub_reconcile::lower::{Degraded, Unsupported};
use serde_json::{Value, json};

use super::egress::Egress;
use super::{no, pod};
use crate::pods::PACKAGE;

/// Volume that holds the package and all that it depends on.
pub(super) const VOLUME: &str = "mcp-hub-package";
const RUNNER: &str = "/mcp-runner";
/// What the scheduler keeps free for an installer. A pod counts as the larger of its installer and its server, for its whole
/// life, so this is less than any server takes; and without it the limit would count.
const CPU: &str = "50m";
const MEMORY: &str = "64Mi";
/// npm and pip take a few hundred MiB for large packages. pip may build what is no wheel, which is whatever its author wrote.
const MEMORY_MAX: &str = "1Gi";

/// How packages are installed, for all servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageSettings {
    /// Registry of npm; none means the public one.
    pub npm_registry: Option<String>,
    /// Index of PyPI (PEP 503); none means the public one.
    pub pypi_index: Option<String>,
    /// Proxy that installers use.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, separated by commas.
    pub no_proxy: Option<String>,
    /// Certificates of authorities, in PEM, that installers trust besides the public ones.
    pub authorities: Option<String>,
}

/// Linux starts no program with a longer variable than twice that.
const MAX_PEM: usize = 64 << 10;

impl PackageSettings {
    /// A URL that may stand in pods.
    ///
    /// # Errors
    /// If it is none, or holds credentials.
    pub fn url(text: &str) -> Result<String, String> {
        let url: http::Uri = text.parse().map_err(|_| "this is no URL".to_owned())?;
        match (url.scheme_str(), url.authority()) {
            (Some("http" | "https"), Some(authority)) if authority.as_str().contains('@') => {
                Err("it holds credentials, which would stand in pods for all to read".to_owned())
            }
            (Some("http" | "https"), Some(_)) => Ok(text.to_owned()),
            _ => Err("it begins with neither http:// nor https://".to_owned()),
        }
    }

    /// Certificates in PEM.
    ///
    /// # Errors
    /// If there is none, or they do not fit into a variable.
    pub fn pem(text: &str) -> Result<String, String> {
        match text {
            _ if !text.contains("-----BEGIN CERTIFICATE-----") => Err("it holds no certificate in PEM".to_owned()),
            _ if text.len() > MAX_PEM => Err(format!("it is longer than {MAX_PEM} bytes")),
            _ => Ok(text.to_owned()),
        }
    }

    /// Variables by which npm, pip and `mcp-runner` know them.
    fn env(&self, registry: PackageRegistry) -> Vec<Value> {
        let Self { npm_registry, pypi_index, proxy, no_proxy, authorities } = self;
        let named = match registry {
            PackageRegistry::Npm => [("npm_config_registry", npm_registry.clone()), ("", None)],
            // pip leaves an index without TLS out unless its host is named; whoever set it meant it.
            PackageRegistry::Pypi => {
                let plain = pypi_index.as_deref().and_then(|index| index.strip_prefix("http://"));
                let host = plain.and_then(|rest| rest.split('/').next()).map(str::to_owned);
                [("PIP_INDEX_URL", pypi_index.clone()), ("PIP_TRUSTED_HOST", host)]
            }
        };
        let shared = [
            ("HTTP_PROXY", proxy.clone()),
            ("HTTPS_PROXY", proxy.clone()),
            ("NO_PROXY", no_proxy.clone()),
            ("MCP_RUNNER_CA", authorities.clone()),
        ];
        let all = named.into_iter().chain(shared);
        all.filter_map(|(name, value)| Some(pod::variable(name, &value?))).collect()
    }
}

/// The version to install: whatever starts a pod again must find the same program.
pub(super) fn version(source: &PackageSource) -> Result<&str, Unsupported> {
    source.exact_version().ok_or_else(|| {
        no(
            "spec.source.package.version",
            "a cluster installs a package at each start of a pod, so it needs an exact version",
            Some("name one that the registry has, such as 1.2.3"),
        )
    })
}

/// The egress list holds for the pod, and so for its installer. It is not widened: what the installer may reach, the
/// server may.
pub(super) fn under_egress_list() -> Degraded {
    Degraded {
        field: "spec.source.package".to_owned(),
        message: "spec.permissions.network.egress holds for the installation, too: it must name the hosts of the \
                  registry, such as registry.npmjs.org:443, or the addresses of the registry (or of the proxy to it) and \
                  of the cluster's DNS"
            .to_owned(),
    }
}

/// What the bridge starts.
pub(super) fn command(folder: &str, args: &[String]) -> (String, Vec<String>) {
    let start = ["start", folder, "--"].map(str::to_owned);
    (RUNNER.to_owned(), start.into_iter().chain(args.iter().cloned()).collect())
}

pub(super) fn init_container(
    source: &PackageSource,
    version: &str,
    image: &str,
    folder: &str,
    settings: &PackageSettings,
    egress: Option<&Egress>,
) -> Value {
    let PackageSource { registry, name, version: _, executable } = source;
    // A name may look like an option.
    let mut args = vec!["install", "--", folder, registry.as_str(), name, version];
    args.extend(executable.as_deref());
    let mut container = json!({
        "name": PACKAGE,
        "image": image,
        "args": args,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": CPU, "memory": MEMORY}, "limits": {"memory": MEMORY_MAX}},
        "securityContext": pod::confined(true),
        "volumeMounts": [{"name": VOLUME, "mountPath": folder}],
    });
    let mut env = settings.env(*registry);
    // The operator's own proxy knows the registry; without one the way out is the server's.
    if let (Some(egress), None) = (egress, &settings.proxy) {
        env.retain(|variable| !egress.env.iter().any(|(name, _)| variable["name"] == *name));
        env.extend(egress.env.iter().map(|(name, value)| pod::variable(name, value)));
    }
    // The API server leaves an empty list out, which would look like a change for ever.
    if !env.is_empty() {
        container["env"] = Value::from(env);
    }
    container
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installers_go_by_the_servers_way_out_unless_they_have_a_proxy_of_their_own() {
        let source = serde_json::from_value(json!({"registry": "npm", "name": "a", "version": "1.0.0"})).unwrap();
        let egress = Egress {
            rules: Vec::new(),
            env: vec![("HTTPS_PROXY", "http://relay".to_owned()), ("NO_PROXY", "::1".to_owned())],
        };
        let own = PackageSettings { proxy: Some("http://p".to_owned()), ..Default::default() };
        let proxy = |settings: &PackageSettings| {
            let container = init_container(&source, "1.0.0", "runner:1", "/package", settings, Some(&egress));
            let env: Vec<Value> = container["env"].as_array().cloned().unwrap_or_default();
            let names: std::collections::BTreeSet<String> =
                env.iter().map(|variable| variable["name"].to_string()).collect();
            assert_eq!(names.len(), env.len(), "a variable that is set twice is refused: {env:?}");
            let found: Vec<_> = env.into_iter().filter(|variable| variable["name"] == "HTTPS_PROXY").collect();
            found.iter().map(|variable| variable["value"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let direct = PackageSettings { no_proxy: Some(".example.com".to_owned()), ..Default::default() };
        assert_eq!(proxy(&direct), ["http://relay"]);
        assert_eq!(proxy(&own), ["http://p"]);
    }

    #[test]
    fn settings_reach_installers_under_their_own_names_and_hold_no_credentials() {
        let index = PackageSettings::url("http://pypi.example.com:8080/simple").unwrap();
        let settings =
            PackageSettings { pypi_index: Some(index), proxy: Some("http://p".to_owned()), ..Default::default() };
        assert_eq!(
            Value::from(settings.env(PackageRegistry::Pypi)),
            json!([
                {"name": "PIP_INDEX_URL", "value": "http://pypi.example.com:8080/simple"},
                {"name": "PIP_TRUSTED_HOST", "value": "pypi.example.com:8080"},
                {"name": "HTTP_PROXY", "value": "http://p"},
                {"name": "HTTPS_PROXY", "value": "http://p"},
            ])
        );
        for refused in ["https://me:secret@npm.example.com", "npm.example.com", "ftp://npm.example.com", ""] {
            assert!(PackageSettings::url(refused).is_err(), "{refused}");
        }
        assert!(PackageSettings::pem("no certificate").is_err());
    }
}
