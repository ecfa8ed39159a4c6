//! What the API server fills in for the kinds that it has built in.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// Fills in what is missing.
pub(crate) fn apply(kind: &Kind, object: &mut Value) {
    match (kind.group.as_str(), kind.name.as_str()) {
        ("", "Namespace") => namespace(object),
        ("", "Secret") => set(object, "type", "Opaque"),
        ("", "Service") => service(object),
        ("", "Pod") => {
            pod_spec(&mut object["spec"]);
            set(&mut object["spec"], "enableServiceLinks", true);
            for list in ["containers", "initContainers"] {
                for container in items(&mut object["spec"][list]) {
                    requests_from_limits(&mut container["resources"]);
                }
            }
            set(object, "status", json!({}));
        }
        ("apps", "Deployment") => {
            let spec = &mut object["spec"];
            set(spec, "replicas", 1);
            set(spec, "revisionHistoryLimit", 10);
            set(spec, "progressDeadlineSeconds", 600);
            ensure_object(&mut spec["strategy"]);
            let strategy = &mut spec["strategy"];
            set(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                ensure_object(&mut strategy["rollingUpdate"]);
                set(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
                set(&mut strategy["rollingUpdate"], "maxSurge", "25%");
            }
            pod_template(&mut spec["template"]);
            set(object, "status", json!({}));
            for condition in object["status"].get_mut("conditions").into_iter().flat_map(items) {
                // Times that are not known are shown all the same.
                set(condition, "lastUpdateTime", Value::Null);
                set(condition, "lastTransitionTime", Value::Null);
            }
        }
        ("apps", "ReplicaSet") => {
            set(&mut object["spec"], "replicas", 1);
            pod_template(&mut object["spec"]["template"]);
            set(object, "status", json!({"replicas": 0}));
        }
        ("networking.k8s.io", "NetworkPolicy") => network_policy(object),
        ("networking.k8s.io", "Ingress") => load_balancer(object),
        ("policy", "PodDisruptionBudget") => {
            for count in ["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"] {
                ensure_object(&mut object["status"]);
                set(&mut object["status"], count, 0);
            }
        }
        _ => {}
    }
}

fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(members) = object.as_object_mut() {
        members.entry(name).or_insert_with(|| value.into());
    }
}

/// Makes an object of what is not there, and leaves alone what is.
fn ensure_object(value: &mut Value) {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
}

/// The items of a list, none if it is not there.
fn items(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_array_mut().into_iter().flatten()
}

fn namespace(object: &mut Value) {
    let name = object["metadata"]["name"].clone();
    ensure_object(&mut object["metadata"]["labels"]);
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
    set(object, "spec", json!({"finalizers": ["kubernetes"]}));
    ensure_object(&mut object["status"]);
    set(&mut object["status"], "phase", "Active");
}

fn service(object: &mut Value) {
    set(object, "spec", json!({}));
    let spec = &mut object["spec"];
    set(spec, "sessionAffinity", "None");
    set(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10_800}}));
    } else if let Some(members) = spec.as_object_mut() {
        members.remove("sessionAffinityConfig");
    }
    for port in items(&mut spec["ports"]) {
        set(port, "protocol", "TCP");
        let own = port["port"].clone();
        set(port, "targetPort", own);
    }
    let external = spec["type"] == "NodePort" || spec["type"] == "LoadBalancer";
    if external {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if external || spec["type"] == "ClusterIP" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    load_balancer(object);
}

fn load_balancer(object: &mut Value) {
    ensure_object(&mut object["status"]);
    set(&mut object["status"], "loadBalancer", json!({}));
}

fn network_policy(object: &mut Value) {
    set(object, "spec", json!({"podSelector": {}}));
    let spec = &mut object["spec"];
    set(spec, "podSelector", json!({}));
    let egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    for direction in ["ingress", "egress"] {
        for rule in spec.get_mut(direction).into_iter().flat_map(items) {
            for port in rule.get_mut("ports").into_iter().flat_map(items) {
                set(port, "protocol", "TCP");
            }
        }
    }
}

fn pod_template(template: &mut Value) {
    set(template, "metadata", json!({}));
    pod_spec(&mut template["spec"]);
}

fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "restartPolicy", "Always");
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", json!({}));
    // The old name of the field goes with the new one, whichever was given.
    let account =
        [&spec["serviceAccountName"], &spec["serviceAccount"]].into_iter().find(|name| name.is_string()).cloned();
    if let Some(account) = account {
        spec["serviceAccountName"] = account.clone();
        spec["serviceAccount"] = account;
    } else if let Some(members) = spec.as_object_mut() {
        members.remove("serviceAccount");
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).into_iter().flat_map(items) {
            self::container(container);
        }
    }
    for volume in spec.get_mut("volumes").into_iter().flat_map(items) {
        self::volume(volume);
    }
}

fn container(container: &mut Value) {
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    let policy = if is_latest(container["image"].as_str().unwrap_or_default()) { "Always" } else { "IfNotPresent" };
    set(container, "imagePullPolicy", policy);
    for port in container.get_mut("ports").into_iter().flat_map(items) {
        set(port, "protocol", "TCP");
    }
    for variable in container.get_mut("env").into_iter().flat_map(items) {
        if let Some(field) = variable.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")) {
            set(field, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            http_action(probe);
            if let Some(grpc) = probe.get_mut("grpc") {
                set(grpc, "service", "");
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(hook)) {
            http_action(hook);
        }
    }
}

fn http_action(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        set(get, "path", "/");
        set(get, "scheme", "HTTP");
    }
}

/// Whether an image is named without a tag or digest, or by the tag `latest`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn volume(volume: &mut Value) {
    let Some(members) = volume.as_object_mut() else { return };
    if members.keys().all(|name| name == "name") {
        members.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "projected", "downwardAPI"] {
        if let Some(source) = members.get_mut(source) {
            set(source, "defaultMode", 420);
        }
    }
    if let Some(path) = members.get_mut("hostPath") {
        set(path, "type", "");
    }
    let downward = members.get_mut("downwardAPI").and_then(|source| source.get_mut("items"));
    for item in downward.into_iter().flat_map(items) {
        if let Some(field) = item.get_mut("fieldRef") {
            set(field, "apiVersion", "v1");
        }
    }
    let sources = members.get_mut("projected").and_then(|projected| projected.get_mut("sources"));
    for source in sources.into_iter().flat_map(items) {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            set(token, "expirationSeconds", 3_600);
        }
        let downward = source.get_mut("downwardAPI").and_then(|source| source.get_mut("items"));
        for item in downward.into_iter().flat_map(items) {
            if let Some(field) = item.get_mut("fieldRef") {
                set(field, "apiVersion", "v1");
            }
        }
    }
}

/// A pod asks for what it is limited to; a template does not say so yet.
fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    ensure_object(&mut resources["requests"]);
    for (name, limit) in limits {
        set(&mut resources["requests"], &name, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::is_latest;

    #[test]
    fn only_what_may_change_is_always_pulled() {
        for (image, latest) in [
            ("busybox", true),
            ("busybox:latest", true),
            ("localhost:5000/busybox", true),
            ("busybox:1", false),
            ("localhost:5000/busybox:1", false),
            ("busybox@sha256:00", false),
            ("busybox:latest@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
