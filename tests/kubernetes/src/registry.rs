//! A registry of packages inside the cluster, with a package of npm and one of PyPI that tell who they are.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{Lease, Place, administrator, eventually, image};

/// The operator under test is told of it at its installation, so its name is known beforehand.
const NAMESPACE: &str = "mcp-hub-test-packages";

/// Serves the registry until the lease goes. One story at a time can have it.
pub async fn serve_packages() -> Lease {
    let place = Place { client: administrator().await, name: NAMESPACE.to_owned() };
    let namespaces: Api<Namespace> = Api::all(place.client.clone());
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted", "mcphub.io/test": "true"});
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels},
    });
    // One that a killed test left may be on its way out.
    eventually("the registry's namespace", async || {
        let applied = namespaces.patch(NAMESPACE, &PatchParams::apply("test"), &Patch::Apply(&namespace)).await;
        match applied {
            Ok(found) if found.metadata.deletion_timestamp.is_none() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let lease = Lease(NAMESPACE.to_owned());
    let files = json!({
        "serve.py": include_str!("registry/serve.py"),
        "server.py": include_str!("registry/server.py"),
        "server.js": include_str!("registry/server.js"),
    });
    let object = |kind: &str, more: Value| {
        let mut object =
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "packages", "labels": {"app": "packages"}}});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Patch::Apply(object)
    };
    let params = PatchParams::apply("test").force();
    place.api::<ConfigMap>().patch("packages", &params, &object("ConfigMap", json!({"data": files}))).await.unwrap();
    let service = json!({"spec": {"selector": {"app": "packages"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    place.api::<Service>().patch("packages", &params, &object("Service", service)).await.unwrap();
    let pod = json!({"spec": {
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "registry",
            "image": image("runner"),
            "command": ["/usr/bin/python3", "/registry/serve.py"],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            "volumeMounts": [{"name": "files", "mountPath": "/registry"}],
        }],
        "volumes": [{"name": "files", "configMap": {"name": "packages"}}],
    }});
    // A namespace has its service account a moment later.
    eventually("the registry's pod", async || {
        let applied = place.api::<Pod>().patch("packages", &params, &object("Pod", pod.clone())).await;
        applied.map(drop).map_err(|error| error.to_string())
    })
    .await;
    place
        .until("packages", "the registry to be ready", |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
        .await;
    lease
}
