//! An MCP client that reaches a gateway through the API server, as `kubectl port-forward` does.

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, ResourceExt};
use rmcp::model::{CallToolRequestParams, CallToolResult, ClientConfig};
use rmcp::service::RunningService;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{RoleClient, ServiceExt};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::Place;

/// A session; the way to the gateway ends with it.
#[derive(Debug)]
pub struct Session {
    service: RunningService<RoleClient, ClientConfig>,
    _way: Way,
}

#[derive(Debug)]
struct Way(JoinHandle<()>);

impl Drop for Way {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    pub(crate) async fn open(place: &Place, hub: &str, server: Option<&str>) -> Self {
        let secret: Secret = place.api::<Secret>().get(&format!("mcp-hub-{hub}-token")).await.unwrap();
        let token = String::from_utf8(secret.data.unwrap()["token"].0.clone()).unwrap();
        let (port, way) = forward(place, hub).await;
        let path = server.map_or_else(|| "/mcp".to_owned(), |server| format!("/servers/{server}/mcp"));
        let config =
            StreamableHttpClientTransportConfig::with_uri(format!("http://127.0.0.1:{port}{path}")).auth_header(token);
        let service = ClientConfig::default().serve(StreamableHttpClientTransport::from_config(config)).await.unwrap();
        Self { service, _way: way }
    }

    /// Names of the tools, in the hub's order.
    pub async fn tools(&self) -> Vec<String> {
        self.service.list_all_tools().await.unwrap().into_iter().map(|tool| tool.name.to_string()).collect()
    }

    /// The tools as soon as all of these are listed: a gateway lists what it has learned of its servers by then.
    pub async fn until_listed(&self, wanted: &[&str]) -> Vec<String> {
        crate::eventually("the tools to be listed", async || {
            let tools = self.tools().await;
            match wanted.iter().find(|tool| !tools.iter().any(|listed| listed == *tool)) {
                None => Ok(tools),
                Some(missing) => Err(format!("{missing} is not in {tools:?}")),
            }
        })
        .await
    }

    /// Calls a tool; the text of its answer, an error as the protocol gives it.
    pub async fn call(&self, tool: &str, arguments: Value) -> Result<String, String> {
        let mut params = CallToolRequestParams::new(tool.to_owned());
        params.arguments = arguments.as_object().cloned();
        let result = self.service.call_tool(params).await.map_err(|error| error.to_string())?;
        let text = text(&result);
        if result.is_error == Some(true) { Err(text) } else { Ok(text) }
    }
}

fn text(result: &CallToolResult) -> String {
    let json = serde_json::to_value(&result.content).unwrap();
    json.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect()
}

/// A port of this machine that leads to any ready pod of a hub's gateway, another one when that is gone.
async fn forward(place: &Place, hub: &str) -> (u16, Way) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (place, hub) = (place.clone(), hub.to_owned());
    let way = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (place, hub) = (place.clone(), hub.clone());
            tokio::spawn(async move {
                let pods = place.pods_of(&hub).await;
                let Some(pod) = pods.iter().find(|pod| is_ready(pod)) else { return };
                let api: Api<Pod> = place.api();
                let Ok(mut forwarded) = api.portforward(&pod.name_any(), &[8080]).await else { return };
                if let Some(mut far) = forwarded.take_stream(8080) {
                    // Either end may close.
                    tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
                }
            });
        }
    });
    (port, Way(way))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
