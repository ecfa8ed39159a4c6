//! The operator's writes for one server, made for many by a loop that does nothing else: no cache, no plan, no status to
//! compare. It waits where the operator has to: what says that a server is ready is written when its pod is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use mcp_hub_crds::MCPServer;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{AT_ONCE, follow, servers};

/// One write as the audit log has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Write {
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    /// The document that was sent.
    request_object: Value,
}

/// The writes for a server, with what is its own left open.
#[derive(Debug)]
struct Model {
    /// Uid of the server that they were made for.
    uid: String,
    /// Before its pod is ready, and after.
    early: Vec<Write>,
    late: Vec<Write>,
}

impl Model {
    fn read(path: &Path) -> io::Result<Self> {
        let writes: Vec<Write> = serde_json::from_slice(&std::fs::read(path)?)?;
        let is_ready = |write: &Write| write.request_object["status"]["phase"] == "Ready";
        let split = writes.iter().position(is_ready);
        let split = split.ok_or_else(|| io::Error::other("no write says that the model is ready"))?;
        let references = writes.iter().filter_map(|write| {
            write.request_object.pointer("/metadata/ownerReferences/0/uid").and_then(Value::as_str)
        });
        let uid = references.map(str::to_owned).next();
        let uid = uid.ok_or_else(|| io::Error::other("no write names the model's uid"))?;
        let (early, late) = writes.split_at(split);
        Ok(Self { uid, early: early.to_vec(), late: late.to_vec() })
    }

    /// The requests for another server, one after the other.
    async fn write(&self, client: &Client, writes: &[Write], name: &str, uid: &str) -> io::Result<()> {
        let of_server =
            |text: &str| text.replace("model-namespace", "default").replace(&self.uid, uid).replace("model", name);
        for Write { verb, uri, request_object } in writes {
            let (method, content) = match verb.as_str() {
                "patch" => (http::Method::PATCH, "application/apply-patch+yaml"),
                _ => (http::Method::POST, "application/json"),
            };
            let request = http::Request::builder().method(method).uri(of_server(uri));
            let request = request.header(http::header::CONTENT_TYPE, content);
            let request =
                request.body(of_server(&request_object.to_string()).into_bytes()).map_err(io::Error::other)?;
            client.request_text(request).await.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

pub(super) async fn replay(client: &Client, count: usize, writes: &Path) -> io::Result<Value> {
    let model = Model::read(writes)?;
    let servers: Api<MCPServer> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let begun = Instant::now();
    let (tell, ready) = mpsc::unbounded_channel();
    let watching = async {
        let mut seen = std::pin::pin!(follow(pods, "mcphub.io/role=server"));
        let mut told = BTreeSet::new();
        while told.len() < count {
            let Some(pod) = seen.next().await else { break };
            let labels = pod.labels();
            let owner = |label: &str| labels.get(&format!("mcphub.io/owner-{label}")).cloned().unwrap_or_default();
            if is_ready(&pod) && told.insert(owner("uid")) {
                // The other end lives as long as this does.
                tell.send((owner("name"), owner("uid"))).ok();
            }
        }
        drop(tell);
        Ok(())
    };
    let early = async {
        let names = (0..count).map(|number| format!("s{number}"));
        let each = stream::iter(names).map(|name| {
            let (model, servers) = (&model, &servers);
            async move {
                let uid = servers::make(servers, &name).await?;
                model.write(client, &model.early, &name, &uid).await
            }
        });
        each.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await
    };
    let late = async {
        let ready = stream::unfold(ready, |mut ready| async move { Some((ready.recv().await?, ready)) });
        let each = ready.map(|(name, uid): (String, String)| {
            let model = &model;
            async move { model.write(client, &model.late, &name, &uid).await }
        });
        each.buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await
    };
    // A write that is refused ends all: without it no pod would come that is waited for.
    tokio::try_join!(watching, early, late)?;
    let mut verbs: BTreeMap<&str, usize> = BTreeMap::new();
    for write in model.early.iter().chain(&model.late) {
        *verbs.entry(&write.verb).or_default() += 1;
    }
    Ok(json!({"ready_seconds": begun.elapsed().as_secs_f64(), "writes": verbs}))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
