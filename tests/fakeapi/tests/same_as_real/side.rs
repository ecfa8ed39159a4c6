//! One of the two servers.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use kube::{Client, Error};
use serde_json::{Value, json};

use crate::commands::{Command, MANAGERS, NAMES};
use crate::comparison::normalise;
use crate::kinds::{KINDS, Kind};

/// One of the two servers, with what is known of its objects.
pub(crate) struct Side {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// The first and the newest version of each object.
    pub(crate) versions: BTreeMap<(usize, usize), (String, String)>,
}

/// What a server said: the object or the refusal, without what differs from server to server.
pub(crate) type Said = Result<Value, Value>;

impl Side {
    pub(crate) async fn new(client: Client, namespace: &str) -> (Self, String) {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let side = Self { client, namespace: namespace.to_owned(), versions: BTreeMap::new() };
        let made = side.send("POST", "/api/v1/namespaces", "application/json", &body).await.unwrap();
        let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        (side, version)
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<Value, Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("user-agent", "person/1")
            .body(body)
            .unwrap();
        match self.client.request::<Value>(request).await {
            Ok(value) => Ok(value),
            Err(Error::Api(status)) => {
                let mut fields: Vec<String> = status
                    .details
                    .iter()
                    .flat_map(|details| &details.causes)
                    .map(|cause| format!("{} {}", cause.reason, cause.field))
                    .collect();
                fields.sort();
                fields.dedup();
                Err(json!({"code": status.code, "reason": status.reason, "causes": fields, "message": status.message}))
            }
            Err(other) => panic!("{method} {path}: {other}"),
        }
    }

    pub(crate) async fn run(&mut self, command: &Command) -> Said {
        let (kind, name) = command.place();
        let of = &KINDS[kind];
        let all = of.path(&self.namespace);
        let one = format!("{all}/{}", NAMES[name]);
        let version = self.versions.get(&(kind, name)).cloned();
        let apply = |path: &str, manager: usize, force: bool| {
            format!("{path}?fieldManager={}&force={force}", MANAGERS[manager])
        };
        const JSON: &str = "application/json";
        const MERGE: &str = "application/merge-patch+json";
        const APPLY: &str = "application/apply-patch+yaml";
        let status = |bits: u16| json!({"apiVersion": of.api, "kind": of.name, "metadata": {"name": NAMES[name]}, "status": (of.report)(bits)});
        let said = match command {
            Command::Create { bits, meta, .. } => {
                self.send("POST", &all, JSON, &of.object(NAMES[name], *bits, *meta)).await
            }
            Command::Apply { bits, meta, manager, force, .. } => {
                self.send("PATCH", &apply(&one, *manager, *force), APPLY, &of.object(NAMES[name], *bits, *meta)).await
            }
            Command::ApplyStatus { bits, manager, force, .. } => {
                self.send("PATCH", &apply(&format!("{one}/status"), *manager, *force), APPLY, &status(*bits)).await
            }
            Command::Update { bits, meta, based_on, .. } => {
                let mut object = of.object(NAMES[name], *bits, *meta);
                if let (Some((first, newest)), 0 | 2) = (&version, based_on) {
                    object["metadata"]["resourceVersion"] = json!(if *based_on == 0 { newest } else { first });
                }
                self.send("PUT", &one, JSON, &object).await
            }
            Command::UpdateStatus { bits, .. } => match self.send("GET", &one, JSON, &Value::Null).await {
                Ok(mut object) => {
                    object["status"] = (of.report)(*bits);
                    object["spec"] = json!({});
                    if !of.name.starts_with("MCP") {
                        object["spec"] = (of.body)(0)["spec"].clone();
                    }
                    self.send("PUT", &format!("{one}/status"), JSON, &object).await
                }
                refused => refused,
            },
            Command::Patch { bits, meta, .. } => {
                self.send("PATCH", &one, MERGE, &of.object(NAMES[name], *bits, *meta)).await
            }
            Command::Finalizers { set, .. } => {
                let list = if *set { json!(["mcphub.io/test"]) } else { Value::Null };
                self.send("PATCH", &one, MERGE, &json!({"metadata": {"finalizers": list}})).await
            }
            Command::Delete { policy, .. } => {
                let body = match policy {
                    0 => json!({}),
                    1 => json!({"propagationPolicy": "Background"}),
                    2 => json!({"propagationPolicy": "Foreground"}),
                    _ => json!({"preconditions": {"resourceVersion": version.as_ref().map(|(first, _)| first)}}),
                };
                self.send("DELETE", &one, JSON, &body).await
            }
            Command::DeleteAll { tier, .. } => {
                let query = if *tier { "?labelSelector=tier%3Dx" } else { "?fieldSelector=metadata.name%3Da" };
                self.send("DELETE", &format!("{all}{query}"), JSON, &json!({})).await
            }
            Command::List { query, .. } => {
                let query = match query {
                    0 => "",
                    1 => "?limit=1",
                    2 => "?labelSelector=tier+in+(x),app",
                    3 => "?labelSelector=!tier&limit=1",
                    _ => "?fieldSelector=metadata.name!%3Da",
                };
                self.send("GET", &format!("{all}{query}"), JSON, &Value::Null).await
            }
        };
        self.seen(kind, name, said)
    }

    /// Remembers versions, and says of them only whether they moved.
    pub(crate) fn seen(&mut self, kind: usize, name: usize, said: Result<Value, Value>) -> Said {
        let mut value = said.map_err(|mut refusal| {
            refusal["message"] = json!("");
            refusal
        })?;
        if value["metadata"]["name"] == NAMES[name] {
            let new = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            let known = self.versions.entry((kind, name)).or_insert_with(|| (new.clone(), String::new()));
            let moved = known.1 != new;
            known.1 = new;
            value["metadata"]["moved"] = json!(moved);
        }
        normalise(&mut value);
        Ok(value)
    }

    /// All events of a kind since a version, as far as they have come.
    pub(crate) async fn events(&self, kind: &Kind, query: &str, since: &str) -> Vec<Value> {
        let path = format!("{}?watch=true&timeoutSeconds=1&resourceVersion={since}{query}", kind.path(&self.namespace));
        let request = Request::get(path).body(kube::client::Body::empty()).unwrap();
        let answer = self.client.send(request).await.unwrap();
        let body = tokio::time::timeout(Duration::from_secs(10), answer.into_body().collect()).await;
        let text = body.expect("the watch to end").unwrap().to_bytes();
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                let mut event: Value = serde_json::from_slice(line).unwrap();
                normalise(&mut event["object"]);
                event
            })
            .collect()
    }
}
