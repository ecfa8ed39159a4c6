//! The relay of this installation: where it is, and the key of its permits.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Patch, PatchParams};
use kube::core::ObjectMeta;
use kube::{Api, Client};
use mcp_hub_dataplane_api::permit::PermitKey;
use mcp_hub_reconcile::installation::Installation;

use crate::children::FIELD_MANAGER;
use crate::labels;

/// Name of the Secret that the relay's pods mount.
pub const SECRET: &str = "mcp-hub-relay-key";
/// Its key, a file in those pods.
const KEY: &str = "key";

/// How often it is looked at: it is made anew by people, and rarely.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// An allow-list proxy, for servers with host names in their egress list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Of its Service: servers without DNS reach it by that.
    pub address: SocketAddr,
    /// Port of its pods, which is what a NetworkPolicy knows.
    pub pod_port: IntOrString,
    pub key: PermitKey,
}

/// There is no relay to be used.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("could not {action} {resource} in namespace {namespace}")]
    Api {
        action: &'static str,
        /// As in `services/NAME`.
        resource: String,
        namespace: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("Service {service} in namespace {namespace}, the relay's, {lack}")]
    NoAddress { service: String, namespace: String, lack: &'static str },
}

impl RelayError {
    /// Whether the same try may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => status.code == 429 || status.code >= 500,
                _ => true,
            },
            // It may be made, or get its address, in a moment.
            Self::NoAddress { .. } => true,
        }
    }
}

/// Where the relay behind a Service is; from now on it has the key.
pub async fn ready(
    client: &Client,
    namespace: &str,
    service: &str,
    installation: &Installation,
) -> Result<Relay, RelayError> {
    let relay = find(client, namespace, service, installation).await?;
    publish(client, namespace, &relay.key).await?;
    Ok(relay)
}

/// Sees to it that the relay has its key, until it is somewhere else than `known`.
pub async fn until_moved(client: &Client, namespace: &str, service: &str, installation: &Installation, known: &Relay) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        match ready(client, namespace, service, installation).await {
            Ok(found) if found != *known => return,
            Ok(_) => {}
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(error = %error, source, "the relay cannot be looked after");
            }
        }
    }
}

/// Where the relay behind a Service is.
pub async fn find(
    client: &Client,
    namespace: &str,
    service: &str,
    installation: &Installation,
) -> Result<Relay, RelayError> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(service).await.map_err(failed("read", format!("services/{service}"), namespace))?;
    let lacks = |lack| RelayError::NoAddress { service: service.to_owned(), namespace: namespace.to_owned(), lack };
    let spec = found.ok_or_else(|| lacks("is not there"))?.spec.ok_or_else(|| lacks("is empty"))?;
    let address = spec.cluster_ip.as_deref().and_then(|address| address.parse::<IpAddr>().ok());
    let address = address.ok_or_else(|| lacks("has no address of its own"))?;
    let port = spec.ports.into_iter().flatten().next().ok_or_else(|| lacks("has no port"))?;
    let number = u16::try_from(port.port).map_err(|_| lacks("has no port"))?;
    Ok(Relay {
        address: SocketAddr::new(address, number),
        pod_port: port.target_port.unwrap_or(IntOrString::Int(port.port)),
        key: installation.permit_key(),
    })
}

/// Puts the key where the relay's pods read it, unless it is there.
async fn publish(client: &Client, namespace: &str, key: &PermitKey) -> Result<(), RelayError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let resource = || format!("secrets/{SECRET}");
    let known = api.get_opt(SECRET).await.map_err(failed("read", resource(), namespace))?;
    let data = BTreeMap::from([(KEY.to_owned(), ByteString(key.to_hex().expose_secret().as_bytes().to_vec()))]);
    if known.is_some_and(|secret| secret.data.as_ref() == Some(&data)) {
        return Ok(());
    }
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            labels: Some(BTreeMap::from([(labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(SECRET, &params, &Patch::Apply(&secret)).await.map_err(failed("write", resource(), namespace))?;
    Ok(())
}

fn failed(action: &'static str, resource: String, namespace: &str) -> impl FnOnce(kube::Error) -> RelayError {
    let namespace = namespace.to_owned();
    move |source| RelayError::Api { action, resource, namespace, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use mcp_hub_fakeapi::{FakeApi, Verb};
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_relay_is_where_its_service_says_and_has_the_key_of_its_installation() {
        let (fake, installation) = (FakeApi::new(), Installation::new("i", [1; 32]));
        let client = fake.client("test");
        let find = async || find(&client, "default", "relay", &installation).await;
        let missing = find().await.unwrap_err();
        assert_eq!(missing.to_string(), "Service relay in namespace default, the relay's, is not there");
        assert!(missing.is_passing());
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "relay", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 3128, "targetPort": "proxy", "protocol": "TCP"}]},
        });
        fake.create(&service).unwrap();
        let relay = find().await.unwrap();
        assert_eq!(relay.address, "10.96.0.7:3128".parse().unwrap());
        assert_eq!(relay.pod_port, IntOrString::String("proxy".to_owned()));
        assert_eq!(relay.key, installation.permit_key());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_lost_is_back_within_a_minute_and_a_relay_that_moves_is_noticed() {
        let (fake, installation) = (FakeApi::new(), Installation::new("i", [1; 32]));
        let client = fake.client("test");
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "relay", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 3128, "targetPort": "proxy", "protocol": "TCP"}]},
        });
        fake.create(&service).unwrap();
        let known = ready(&client, "default", "relay", &installation).await.unwrap();
        let moved = until_moved(&client, "default", "relay", &installation, &known);
        tokio::pin!(moved);
        let minute = Duration::from_secs(61);
        assert!(fake.delete("Secret", "default", SECRET));
        tokio::time::timeout(minute, &mut moved).await.unwrap_err();
        assert!(fake.get("Secret", "default", SECRET).is_some());
        // Gone is not elsewhere: who would be told of no address would lose the one that may be back in a moment.
        assert!(fake.delete("Service", "default", "relay"));
        tokio::time::timeout(minute, &mut moved).await.unwrap_err();
        let mut elsewhere = service;
        elsewhere["spec"]["clusterIP"] = json!("10.96.0.8");
        fake.create(&elsewhere).unwrap();
        tokio::time::timeout(minute, &mut moved).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_there_is_not_written_again_and_a_wrong_one_is_mended() {
        let fake = FakeApi::new();
        let client = fake.client("test");
        let key = PermitKey::new([3; 32]);
        let writes = || fake.log().iter().filter(|entry| entry.verb != Verb::Get).count();
        publish(&client, "default", &key).await.unwrap();
        publish(&client, "default", &key).await.unwrap();
        assert_eq!(writes(), 1);
        publish(&client, "default", &PermitKey::new([4; 32])).await.unwrap();
        assert_eq!(writes(), 2);
    }
}
