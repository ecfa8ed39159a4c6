//! What a server becomes on the fake runtime: everything of its workload, but a few fields that are refused by name so that
//! refusals can be tested too.

use mcp_hub_crds::server::RuntimeChoice;
use mcp_hub_crds::source::Source;
use serde_json::{Value, json};

use super::FakeRuntime;
use crate::lower::{Change, Degraded, Lowered, Object, ObjectId, Stage, Unsupported};
use crate::workload::{EnvValue, ServerWorkload};

pub(super) fn no(field: &str, message: &str) -> Unsupported {
    Unsupported {
        runtime: FakeRuntime::NAME.to_owned(),
        field: field.to_owned(),
        message: message.to_owned(),
        hint: Some("leave it out".to_owned()),
    }
}

/// Everything of a workload as objects: a network, if it is restricted, and a bridge, which goes at rest. With `drops` it takes what it cannot
/// honour, and leaves it out.
pub(super) fn lower(workload: &ServerWorkload, drops: bool) -> Result<Lowered, Unsupported> {
    // Destructured so that a new field does not compile until it is decided.
    let ServerWorkload {
        owner,
        source,
        source_digest,
        resolved,
        runtime,
        base_dir,
        transport,
        era,
        args,
        working_dir,
        env,
        volumes,
        resources,
        run_as,
        replicas,
        at_rest,
        lifecycle,
        sessions,
        roots,
        health,
        restart,
        timeouts,
        permissions,
        pod_template,
        token_sha256,
        restarted_at,
        expose_to,
        bridge,
    } = workload;
    if matches!(source, Source::Remote(_)) {
        return Ok(Lowered::default());
    }
    match runtime {
        None | Some(RuntimeChoice::Process) => {}
        Some(other) if !drops => return Err(no("spec.runtime", &format!("there is no {}", other.as_str()))),
        Some(_) => {}
    }
    if let Some(volume) = volumes.iter().find(|volume| volume.pvc.is_some()).filter(|_| !drops) {
        return Err(no(&format!("spec.volumes[{}].pvc", volume.name), "there are no claims"));
    }
    let degraded = pod_template.iter().map(|_| Degraded {
        field: "spec.kubernetes.podTemplate".to_owned(),
        message: "applies in clusters only".to_owned(),
    });
    let degraded = degraded.collect();
    if *replicas == 0 {
        return Ok(Lowered { objects: Vec::new(), degraded });
    }
    let Some(resolved) = resolved else {
        let body = json!({"source": document(source), "sourceDigest": source_digest, "baseDir": base_dir});
        let id = ObjectId::new("source", &owner.name);
        return Ok(Lowered { objects: vec![Object::new(id, Stage::Prepare, Change::InPlace, body)], degraded });
    };
    let env: Vec<Value> = env
        .iter()
        .map(|variable| match variable {
            EnvValue::Plain { name, value } => json!({"name": name, "value": value}),
            EnvValue::Secret { name, key, fingerprint } => {
                json!({"name": name, "secret": key.name, "key": key.key, "fingerprint": fingerprint})
            }
        })
        .collect();
    let body = json!({
        "command": resolved.command, "version": resolved.version, "baseDir": base_dir,
        "transport": document(transport), "era": document(era), "args": args, "workingDir": working_dir, "env": env,
        "volumes": document(volumes), "resources": document(resources), "runAs": document(run_as), "replicas": replicas,
        "lifecycle": document(lifecycle), "sessions": document(sessions), "roots": document(roots), "health": document(health),
        "restart": document(restart), "timeouts": document(timeouts), "permissions": document(permissions),
        "token": token_sha256, "restartedAt": restarted_at, "exposeTo": expose_to, "bridge": bridge,
    });
    let mut objects = Vec::new();
    if !at_rest {
        let id = ObjectId::new("bridge", &owner.name);
        objects.push(Object::new(id, Stage::Workload, Change::Recreate, body));
    }
    if let Some(network) = permissions.as_ref().and_then(|permissions| permissions.network.as_ref()) {
        let id = ObjectId::new("network", &owner.name);
        objects.push(Object::new(id, Stage::Network, Change::InPlace, json!({"egress": network.egress})));
    }
    Ok(Lowered { objects, degraded })
}

/// A document of ours as JSON; all of them have text keys and finite numbers.
fn document<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
