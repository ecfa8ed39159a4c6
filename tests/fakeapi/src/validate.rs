//! What the API server refuses: metadata of every kind, the rules of ours, and of the others those that the objects an
//! operator makes can break.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use mcp_hub_crds::validate::{Rule, Rules};
use serde_json::{Value, json};

use crate::failure::Cause;
use crate::kind::Kind;

static RULES: LazyLock<Arc<Rules>> = LazyLock::new(Rules::compiled);

/// All that is wrong with an object that is to be stored. `old` is what is stored now.
pub(crate) fn causes(kind: &Kind, old: Option<&Value>, new: &Value) -> Vec<Cause> {
    let mut found = Vec::new();
    metadata(kind, old, new, &mut found);
    match (kind.group.as_str(), kind.name.as_str()) {
        ("", "Service") => service(old, new, &mut found),
        ("", "Secret") => {
            data(new, &mut found);
            if let Some(old) = old {
                immutable(old, new, "type", &mut found);
            }
            frozen(old, new, &mut found);
        }
        ("", "ConfigMap") => {
            data(new, &mut found);
            frozen(old, new, &mut found);
        }
        ("", "Pod") => {
            pod_spec(&new["spec"], "spec", &mut found);
            if let Some(old) = old {
                pod_update(old, new, &mut found);
            }
        }
        ("apps", "Deployment" | "ReplicaSet") => {
            workload(new, &mut found);
            if let Some(old) = old {
                immutable(old, new, "spec.selector", &mut found);
            }
            replica_counts(&new["status"], &mut found);
        }
        ("policy", "PodDisruptionBudget") => {
            let spec = &new["spec"];
            if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
                if old.is_none() {
                    // Of a new one, what is wrong with the metadata is told later.
                    found.clear();
                }
                found.push(Cause::invalid("spec", "minAvailable and maxUnavailable cannot be both set"));
            }
        }
        ("networking.k8s.io", "Ingress") => ingress(&new["spec"], &mut found),
        _ => {}
    }
    if kind.custom && kind.ours.is_none() {
        let missing = kind.schema.missing(new);
        found.extend(missing.into_iter().map(|field| Cause::required(&field, "Required value")));
    }
    if let Some(ours) = kind.ours {
        let mut written = new.clone();
        // Of metadata those rules know what a person writes; the server's own part was just checked.
        written["metadata"] = json!({"name": new["metadata"]["name"]});
        let broken = RULES.violations(ours, &written);
        let blocks = broken.iter().any(|violation| {
            let blocking = ["enum", "required", "maxLength", "maxItems", "type"];
            matches!(&violation.rule, Rule::Schema(keyword) if blocking.contains(&keyword.as_str()))
        });
        if blocks {
            let message = "Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            found.push(Cause::invalid("<nil>", message));
        }
        found.extend(broken.into_iter().map(|violation| {
            Cause {
                reason: match &violation.rule {
                    Rule::Schema(keyword) if keyword == "required" => "FieldValueRequired",
                    Rule::Schema(keyword) if keyword == "enum" => "FieldValueNotSupported",
                    Rule::Schema(keyword) if keyword == "maxLength" => "FieldValueTooLong",
                    Rule::Schema(keyword) if keyword == "maxItems" => "FieldValueTooMany",
                    Rule::Schema(keyword) if keyword == "type" => "FieldValueTypeInvalid",
                    Rule::Schema(keyword) if keyword == "x-kubernetes-list-map-keys" => "FieldValueDuplicate",
                    Rule::Schema(_) | Rule::Cel(_) | Rule::UnknownField => "FieldValueInvalid",
                }
                .to_owned(),
                message: violation.message.clone(),
                field: match &violation.rule {
                    // The server does not say where.
                    Rule::Schema(keyword) if keyword == "oneOf" => "<nil>".to_owned(),
                    _ => violation.path.to_string(),
                },
            }
        }));
    }
    found
}

fn metadata(kind: &Kind, old: Option<&Value>, new: &Value, found: &mut Vec<Cause>) {
    let metadata = &new["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    if old.is_none() && !is_valid_name(kind, name) {
        found.push(Cause::invalid(
            "metadata.name",
            format!("Invalid value: {name:?}: a lowercase RFC 1123 subdomain or label must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"),
        ));
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        if !is_qualified_name(key) || value.len() > 63 || !(value.is_empty() || is_label_text(value)) {
            found.push(Cause::invalid("metadata.labels", format!("Invalid value: \"{key}={value}\"")));
        }
    }
    let mut size = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        size += key.len() + value.as_str().unwrap_or_default().len();
        if !is_qualified_name(&key.to_lowercase()) {
            found.push(Cause::invalid("metadata.annotations", format!("Invalid value: {key:?}")));
        }
    }
    if size > 256 * 1024 {
        found.push(Cause {
            reason: "FieldValueTooLong".to_owned(),
            message: "Too long: may not be more than 262144 bytes".to_owned(),
            field: "metadata.annotations".to_owned(),
        });
    }
    let mut controllers = 0;
    for (index, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        controllers += usize::from(owner["controller"] == true);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                found.push(Cause::invalid(
                    &format!("metadata.ownerReferences[{index}].{field}"),
                    "Invalid value: \"\": must not be empty",
                ));
            }
        }
    }
    if controllers > 1 {
        found.push(Cause::invalid(
            "metadata.ownerReferences",
            "Invalid value: Only one reference can have Controller set to true",
        ));
    }
    let Some(old) = old else { return };
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let before: BTreeSet<&str> = texts(&old["metadata"]["finalizers"]).collect();
        let added: Vec<&str> = texts(&metadata["finalizers"]).filter(|one| !before.contains(one)).collect();
        if !added.is_empty() {
            found.push(Cause::forbidden(
                "metadata.finalizers",
                format!(
                    "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
            ));
        }
    }
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// A label as in DNS: at most 63 lower-case letters, digits and inner hyphens.
fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 63
        && text.bytes().all(|b| inner(b) || b == b'-')
        && text.bytes().next().is_some_and(inner)
        && text.bytes().last().is_some_and(inner)
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| is_dns_label(part) || (part.len() > 63 && is_dns_label(&part[..63])))
}

fn is_valid_name(kind: &Kind, name: &str) -> bool {
    match (kind.group.as_str(), kind.name.as_str()) {
        ("", "Namespace") => is_dns_label(name),
        ("", "Service") => is_dns_label(name) && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase()),
        _ => is_dns_subdomain(name),
    }
}

/// Letters, digits, and inner `-`, `_` and `.`.
fn is_label_text(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_text(name),
        None => is_label_text(key),
    }
}

fn immutable(old: &Value, new: &Value, field: &str, found: &mut Vec<Cause>) {
    let at = |object: &Value| field.split('.').fold(object.clone(), |value, step| value[step].clone());
    let (before, after) = (at(old), at(new));
    if before != after {
        found.push(Cause::invalid(field, format!("Invalid value: {after}: field is immutable")));
    }
}

/// Once marked immutable, the data of a Secret or ConfigMap stays.
fn frozen(old: Option<&Value>, new: &Value, found: &mut Vec<Cause>) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    for field in ["immutable", "data", "binaryData"] {
        if old[field] != new[field] {
            found.push(Cause::forbidden(field, "Forbidden: field is immutable when `immutable` is set"));
        }
    }
}

fn data(object: &Value, found: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        size += value.as_str().unwrap_or_default().len();
        let valid = !key.is_empty()
            && key.len() <= 253
            && key != "."
            && !key.starts_with("..")
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !valid {
            found.push(Cause::invalid(&format!("data[{key}]"), format!("Invalid value: {key:?}: a valid config key must consist of alphanumeric characters, '-', '_' or '.'")));
        }
    }
    // In base64 for a Secret; the limit is on what it stands for.
    let limit = if object["kind"] == "Secret" { (1 << 20) / 3 * 4 + 4 } else { 1 << 20 };
    if size > limit {
        found.push(Cause {
            reason: "FieldValueTooLong".to_owned(),
            message: "Too long: may not be more than 1048576 bytes".to_owned(),
            field: "data".to_owned(),
        });
    }
}

fn service(old: Option<&Value>, new: &Value, found: &mut Vec<Cause>) {
    let spec = &new["spec"];
    let headless = spec["clusterIP"] == "None";
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    if ports.is_empty() && !headless && spec["type"] != "ExternalName" {
        found.push(Cause::required("spec.ports", "Required value"));
    }
    // This is a cluster of one family; two are for headless services that select nothing.
    let two = spec["ipFamilies"].as_array().is_some_and(|families| families.len() > 1);
    let wanted = [("spec.ipFamilies[1]", two), ("spec.ipFamilyPolicy", spec["ipFamilyPolicy"] == "RequireDualStack")];
    if spec["type"] != "ExternalName" && !(headless && spec["selector"].is_null()) {
        let refused = wanted.into_iter().filter(|(_, is_wanted)| *is_wanted);
        found.extend(refused.map(|(field, _)| Cause::invalid(field, "Invalid value: not configured on this cluster")));
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        if !port_number(&port["port"]) {
            found.push(Cause::invalid(
                &format!("{at}.port"),
                format!("Invalid value: {}: must be between 1 and 65535, inclusive", port["port"]),
            ));
        }
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            found.push(Cause::required(&format!("{at}.name"), "Required value"));
        } else if !name.is_empty() {
            if !is_dns_label(name) {
                found.push(Cause::invalid(&format!("{at}.name"), format!("Invalid value: {name:?}")));
            }
            if !names.insert(name) {
                found.push(Cause {
                    reason: "FieldValueDuplicate".to_owned(),
                    message: format!("Duplicate value: {name:?}"),
                    field: format!("{at}.name"),
                });
            }
        }
    }
    if let Some(old) = old {
        let before = &old["spec"]["clusterIP"];
        if before.is_string() && spec["type"] != "ExternalName" && *before != spec["clusterIP"] {
            found.push(Cause::invalid("spec.clusterIPs[0]", "Invalid value: may not change once set"));
        }
    }
}

fn port_number(value: &Value) -> bool {
    value.as_i64().is_some_and(|port| (1..=65_535).contains(&port))
}

fn workload(object: &Value, found: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let labels = &spec["template"]["metadata"]["labels"];
    let selector = &spec["selector"];
    let empty = |name: &str| match &selector[name] {
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if !selector.is_object() {
        found.push(Cause::required("spec.selector", "Required value"));
    } else if empty("matchLabels") && empty("matchExpressions") {
        found.push(Cause::invalid("spec.selector", "Invalid value: {}: empty selector is invalid for deployment"));
    }
    let matches = selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels[key] == *value);
    if !matches {
        found.push(Cause::invalid(
            "spec.template.metadata.labels",
            format!("Invalid value: {labels}: `selector` does not match template `labels`"),
        ));
    }
    if spec["replicas"].as_i64().is_some_and(|replicas| replicas < 0) {
        found.push(Cause::invalid(
            "spec.replicas",
            format!("Invalid value: {}: must be greater than or equal to 0", spec["replicas"]),
        ));
    }
    let rolling = &spec["strategy"]["rollingUpdate"];
    if spec["strategy"]["type"] == "Recreate" && !rolling.is_null() {
        found.push(Cause::forbidden(
            "spec.strategy.rollingUpdate",
            "Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ));
    }
    let zero = |value: &Value| *value == 0 || *value == "0%";
    if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
        found.push(Cause::invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            "Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ));
    }
    if spec["template"]["spec"]["restartPolicy"].as_str().is_some_and(|policy| policy != "Always") {
        found.push(Cause {
            reason: "FieldValueNotSupported".to_owned(),
            message: format!(
                "Unsupported value: {}: supported values: \"Always\"",
                spec["template"]["spec"]["restartPolicy"]
            ),
            field: "spec.template.spec.restartPolicy".to_owned(),
        });
    }
    pod_spec(&spec["template"]["spec"], "spec.template.spec", found);
}

/// A status never counts more of a part than of the whole.
fn replica_counts(status: &Value, found: &mut Vec<Cause>) {
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    for (part, whole) in [
        ("updatedReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        if count(part) > count(whole) {
            let message = format!("Invalid value: {}: cannot be greater than status.{whole}", count(part));
            found.push(Cause::invalid(&format!("status.{part}"), message));
        }
    }
}

fn pod_spec(spec: &Value, at: &str, found: &mut Vec<Cause>) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let volumes: BTreeSet<String> =
        list(&spec["volumes"]).iter().filter_map(|volume| volume["name"].as_str()).map(str::to_owned).collect();
    for (index, volume) in list(&spec["volumes"]).iter().enumerate() {
        if !is_dns_label(volume["name"].as_str().unwrap_or_default()) {
            found.push(Cause::invalid(
                &format!("{at}.volumes[{index}].name"),
                format!("Invalid value: {}", volume["name"]),
            ));
        }
    }
    if list(&spec["containers"]).is_empty() {
        found.push(Cause::required(&format!("{at}.containers"), "Required value"));
    }
    let mut names = BTreeSet::new();
    for kind in ["initContainers", "containers"] {
        for (index, container) in list(&spec[kind]).iter().enumerate() {
            let at = format!("{at}.{kind}[{index}]");
            let name = container["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                found.push(Cause::required(&format!("{at}.name"), "Required value"));
            } else if !is_dns_label(name) {
                found.push(Cause::invalid(&format!("{at}.name"), format!("Invalid value: {name:?}")));
            }
            if !names.insert(name.to_owned()) {
                found.push(Cause {
                    reason: "FieldValueDuplicate".to_owned(),
                    message: format!("Duplicate value: {name:?}"),
                    field: format!("{at}.name"),
                });
            }
            if container["image"].as_str().is_none_or(str::is_empty) {
                found.push(Cause::required(&format!("{at}.image"), "Required value"));
            }
            for (index, port) in list(&container["ports"]).iter().enumerate() {
                if !port_number(&port["containerPort"]) {
                    found.push(Cause::invalid(
                        &format!("{at}.ports[{index}].containerPort"),
                        format!("Invalid value: {}: must be between 1 and 65535, inclusive", port["containerPort"]),
                    ));
                }
                let name = port["name"].as_str().unwrap_or_default();
                if name.len() > 15 {
                    found.push(Cause::invalid(
                        &format!("{at}.ports[{index}].name"),
                        format!("Invalid value: {name:?}: must be no more than 15 characters"),
                    ));
                }
            }
            for (index, variable) in list(&container["env"]).iter().enumerate() {
                let name = variable["name"].as_str().unwrap_or_default();
                if name.is_empty() || name.contains('=') {
                    found.push(Cause::invalid(&format!("{at}.env[{index}].name"), format!("Invalid value: {name:?}")));
                }
                let literal = variable["value"].as_str().is_some_and(|value| !value.is_empty());
                if literal && !variable["valueFrom"].is_null() {
                    found.push(Cause::invalid(
                        &format!("{at}.env[{index}].valueFrom"),
                        "Invalid value: \"\": may not be specified when `value` is not empty",
                    ));
                }
            }
            for (index, mount) in list(&container["volumeMounts"]).iter().enumerate() {
                let name = mount["name"].as_str().unwrap_or_default();
                if !volumes.contains(name) {
                    found.push(Cause {
                        reason: "FieldValueNotFound".to_owned(),
                        message: format!("Not found: {name:?}"),
                        field: format!("{at}.volumeMounts[{index}].name"),
                    });
                }
            }
            for (resource, limit) in container["resources"]["limits"].as_object().into_iter().flatten() {
                let request = &container["resources"]["requests"][resource];
                if let (Some(limit), Some(request)) = (amount(limit), amount(request))
                    && request > limit
                {
                    found.push(Cause::invalid(
                        &format!("{at}.resources.requests"),
                        format!("Invalid value: must be less than or equal to {resource} limit of {limit}"),
                    ));
                }
            }
        }
    }
}

/// A canonical quantity as a number, to compare by.
fn amount(quantity: &Value) -> Option<f64> {
    let text = quantity.as_str()?;
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * unit)
}

/// Of a pod only images and a few times may change.
fn pod_update(old: &Value, new: &Value, found: &mut Vec<Cause>) {
    let fixed = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container["image"] = Value::Null;
            }
        }
        if let Some(spec) = spec.as_object_mut() {
            for free in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "nodeName"] {
                spec.remove(free);
            }
        }
        spec
    };
    if fixed(old) != fixed(new) {
        found.push(Cause::forbidden(
            "spec",
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to existing tolerations), `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

fn ingress(spec: &Value, found: &mut Vec<Cause>) {
    let rules = spec["rules"].as_array().map_or(&[][..], Vec::as_slice);
    if rules.is_empty() && spec["defaultBackend"].is_null() {
        found.push(Cause::invalid("spec", "Invalid value: []: either `defaultBackend` or `rules` must be specified"));
    }
    for (index, rule) in rules.iter().enumerate() {
        for (path, one) in rule["http"]["paths"].as_array().into_iter().flatten().enumerate() {
            if one["pathType"].is_null() {
                found.push(Cause::required(
                    &format!("spec.rules[{index}].http.paths[{path}].pathType"),
                    "Required value: pathType must be specified",
                ));
            }
        }
    }
}
