//! A namespace of its own for each story, on the cluster that `MCP_HUB_TEST_KUBECONFIG` names, where an operator runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support fails by panicking")]

mod client;
mod registry;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource, ResourceExt};
use mcp_hub_crds::{MCPHub, MCPServer};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use client::{Session, Trust};
pub use registry::serve_packages;

/// Longest wait for any state. Far longer than the slowest seen, because timing decides no test.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The kubeconfig of the cluster under test.
pub fn kubeconfig() -> PathBuf {
    let path = std::env::var_os("MCP_HUB_TEST_KUBECONFIG");
    PathBuf::from(path.expect("run this through `cargo xtask test --level kubernetes`"))
}

/// Reference of a test image, such as `fixture`.
pub fn image(name: &str) -> String {
    let prefix = std::env::var("MCP_HUB_TEST_IMAGES").unwrap_or_else(|_| "localhost/mcp-hub".to_owned());
    let tag = std::env::var("MCP_HUB_TEST_TAG").unwrap_or_else(|_| "test".to_owned());
    format!("{prefix}/{name}:{tag}")
}

/// A client with the administrator's rights.
pub async fn administrator() -> Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig()).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(config, &options).await.unwrap();
    // Stories look at what is refused, and wait for what is to come by themselves.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// A namespace under the restricted Pod Security level, removed with all that is in it when the value goes.
#[derive(Clone)]
pub struct Place {
    pub client: Client,
    pub name: String,
}

impl Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Removes the namespace, also after a panic.
#[derive(Debug)]
pub struct Lease(String);

impl Drop for Lease {
    fn drop(&mut self) {
        let name = self.0.clone();
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let namespaces: Api<Namespace> = Api::all(administrator().await);
                namespaces.delete(&name, &DeleteParams::background()).await.ok();
            });
        });
        removal.join().ok();
    }
}

impl Place {
    /// A new namespace whose name begins with `story`.
    pub async fn new(story: &str) -> (Self, Lease) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{story}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let client = administrator().await;
        let labels = [("pod-security.kubernetes.io/enforce", "restricted"), ("mcphub.io/test", "true")];
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        (Self { client, name: name.clone() }, Lease(name))
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Objects of a kind known by name only.
    pub fn objects(&self, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        Api::namespaced_with(self.client.clone(), &self.name, &resource)
    }

    /// Applies YAML documents of servers and hubs.
    pub async fn apply(&self, yaml: &str) {
        for document in yaml.split("\n---\n").filter(|document| !document.trim().is_empty()) {
            self.try_apply(document).await.unwrap_or_else(|error| panic!("{error}\n{document}"));
        }
    }

    /// Applies one document; the API server's refusal is the error.
    pub async fn try_apply(&self, yaml: &str) -> Result<(), kube::Error> {
        let object: Value = serde_saphyr::from_str(yaml).unwrap();
        let (name, kind) = (object["metadata"]["name"].as_str().unwrap().to_owned(), object["kind"].as_str().unwrap());
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply("test").force()
        };
        let patch = Patch::Apply(&object);
        match kind {
            "MCPServer" => drop(self.api::<MCPServer>().patch(&name, &params, &patch).await?),
            "MCPHub" => drop(self.api::<MCPHub>().patch(&name, &params, &patch).await?),
            "Secret" => drop(self.api::<k8s_openapi::api::core::v1::Secret>().patch(&name, &params, &patch).await?),
            other => panic!("no {other}"),
        }
        Ok(())
    }

    /// Waits until an object is as wanted; panics with the object as it was last.
    pub async fn until<K>(&self, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = self.api::<K>();
        eventually(what, async || match api.get_opt(name).await.unwrap() {
            Some(object) if wanted(&object) => Ok(object),
            other => Err(format!("{other:#?}")),
        })
        .await
    }

    /// Waits until a server's condition `Ready` has this reason.
    pub async fn until_reason(&self, name: &str, reason: &str) -> MCPServer {
        self.until(name, &format!("{name} to be {reason}"), |server: &MCPServer| ready_reason(server) == Some(reason))
            .await
    }

    /// Waits until a hub's gateways serve `servers` ready servers, all with the newest configuration.
    pub async fn until_served(&self, name: &str, servers: i32) -> MCPHub {
        self.until(name, &format!("hub {name} to serve {servers}"), |hub: &MCPHub| {
            let status = hub.status.as_ref();
            let ready = status.and_then(|status| status.servers.as_ref()).is_some_and(|count| count.ready == servers);
            let is = |type_: &str| {
                let conditions = status.and_then(|status| status.conditions.as_ref());
                conditions.into_iter().flatten().any(|c| c.type_ == type_ && c.status == "True")
            };
            ready && is("Ready") && is("ConfigSynced")
        })
        .await
    }

    /// Pods of a server or hub that are not ending.
    pub async fn pods_of(&self, owner: &str) -> Vec<Pod> {
        let selector = ListParams::default().labels(&format!("mcphub.io/owner-name={owner}"));
        let pods = self.api::<Pod>().list(&selector).await.unwrap().items;
        pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// A session of an MCP client with a hub, or with one server of it.
    pub async fn connect(&self, hub: &str, server: Option<&str>) -> Session {
        Session::open(self, hub, server, None).await
    }

    /// As [`connect`](Self::connect), by TLS.
    pub async fn connect_by_tls(&self, hub: &str, trust: &Trust) -> Session {
        Session::open(self, hub, None, Some(trust.clone())).await
    }

    /// Waits until a hub's gateway shows what is trusted.
    pub async fn until_shown(&self, hub: &str, trust: &Trust) {
        eventually("the certificate to be shown", async || client::shake(self, hub, trust).await).await;
    }
}

/// Waits for a state.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) if begun.elapsed() > PATIENCE => panic!("waited {PATIENCE:?} for {what}; last: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Reason of a server's condition `Ready`.
pub fn ready_reason(server: &MCPServer) -> Option<&str> {
    Some(condition(server, "Ready")?.1)
}

/// `STATUS REASON: MESSAGE` of a hub's condition; empty if there is none.
pub fn hub_condition(hub: &MCPHub, type_: &str) -> String {
    let conditions = hub.status.as_ref().and_then(|status| status.conditions.as_ref());
    let found = conditions.into_iter().flatten().find(|condition| condition.type_ == type_);
    found.map_or_else(String::new, |found| format!("{} {}: {}", found.status, found.reason, found.message))
}

/// Status, reason and message of a server's condition.
pub fn condition<'a>(server: &'a MCPServer, type_: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = server.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((&found.status, &found.reason, &found.message))
}

/// Manifest of a server on the fixture image, with these lines more in its spec.
pub fn fixture(name: &str, args: &[&str], more: &str) -> String {
    let (image, args) = (image("fixture"), serde_json::to_string(args).unwrap());
    format!(
        "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec:\n  source: {{image: {{ref: \
         \"{image}\", command: [/fixture-server]}}}}\n  args: {args}\n{more}"
    )
}

/// Manifest of a hub with this spec.
pub fn hub(name: &str, spec: &str) -> String {
    format!("apiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

/// Names of objects of all kinds that a namespace has of an owner.
pub async fn remains(place: &Place, owner: &str) -> BTreeMap<String, String> {
    let kinds = [
        ("apps", "v1", "Deployment", "deployments"),
        ("", "v1", "Service", "services"),
        ("", "v1", "Pod", "pods"),
        ("", "v1", "Secret", "secrets"),
        ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
        ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        ("networking.k8s.io", "v1", "Ingress", "ingresses"),
    ];
    let selector = ListParams::default().labels(&format!("mcphub.io/owner-name={owner}"));
    let mut found = BTreeMap::new();
    for (group, version, kind, plural) in kinds {
        for object in place.objects(group, version, kind, plural).list(&selector).await.unwrap().items {
            found.insert(format!("{kind} {}", object.name_any()), object.uid().unwrap());
        }
    }
    found
}
