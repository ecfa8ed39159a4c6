//! Every list, call, read and get, from clients of either era to servers of either era, on both endpoints.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use mcp_hub_dataplane_api::Era;
use serde_json::{Value, json};
use support::{Fake, Fault, Hub, config, one_server, ready};

/// Whether a result has what its era wants, and nothing of the other's.
fn fits(era: Era, is_list: bool, answer: &Value) {
    let result = &answer["result"];
    assert!(result.is_object(), "{answer}");
    assert_eq!(result.get("resultType"), (era == Era::Modern).then_some(&json!("complete")), "{answer}");
    assert_eq!(result.get("ttlMs").is_some(), era == Era::Modern && is_list, "{answer}");
    assert_eq!(result.get("cacheScope").is_some(), era == Era::Modern && is_list, "{answer}");
}

#[tokio::test]
async fn every_list_call_read_and_get_crosses_in_each_direction() {
    for server in [Era::Legacy, Era::Modern] {
        let (_fake, hub) = one_server(server).await;
        for client_era in [Era::Legacy, Era::Modern] {
            for (path, prefix, scheme) in [("/mcp", "one_", "one+"), ("/servers/one/mcp", "", "")] {
                let client = hub.connected(path, client_era).await;
                for (method, key, first) in [
                    ("tools/list", "tools", json!(format!("{prefix}echo"))),
                    ("prompts/list", "prompts", json!(format!("{prefix}greet"))),
                    ("resources/list", "resources", json!(format!("{scheme}test://text"))),
                    ("resources/templates/list", "resourceTemplates", json!(format!("{scheme}test://{{id}}"))),
                ] {
                    let answer = client.ask(method, json!({})).await;
                    fits(client_era, true, &answer);
                    let item = &answer["result"][key][0];
                    let shown = item.get("uri").or(item.get("uriTemplate")).unwrap_or(&item["name"]);
                    assert_eq!(shown, &first, "{client_era:?} {server:?} {answer}");
                    if key == "tools" {
                        assert_eq!(item["x-unknown"].to_string(), "1.0", "unknown members and notation survive");
                    }
                }
                let answer = client.call(&format!("{prefix}echo"), json!({"z": 1.0, "a": "b"})).await;
                fits(client_era, false, &answer);
                let text = answer["result"]["content"][0]["text"].as_str().unwrap();
                assert_eq!(text, r#"{"server":"one","tool":"echo","arguments":{"z":1.0,"a":"b"}}"#);
                let answer = client
                    .ask("prompts/get", json!({"name": format!("{prefix}greet"), "arguments": {"who": "x"}}))
                    .await;
                fits(client_era, false, &answer);
                assert_eq!(answer["result"]["messages"][0]["content"]["text"], "x");
                let answer = client.ask("resources/read", json!({"uri": format!("{scheme}test://text")})).await;
                fits(client_era, true, &answer);
                assert_eq!(answer["result"]["contents"][0]["uri"], format!("{scheme}test://text"));
                let answer = client.ask("resources/read", json!({"uri": format!("{scheme}test://missing")})).await;
                assert_eq!(answer["error"]["code"], if client_era == Era::Legacy { -32002 } else { -32602 });
                let reference = json!({"type": "ref/prompt", "name": format!("{prefix}greet")});
                let answer = client
                    .ask("completion/complete", json!({"ref": reference, "argument": {"name": "who", "value": ""}}))
                    .await;
                fits(client_era, false, &answer);
                assert_eq!(answer["result"]["completion"]["values"][0], "greet");
            }
        }
    }
}

#[tokio::test]
async fn progress_reaches_its_call_under_the_clients_own_token() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = one_server(server).await;
        fake.set(|state| state.fault = Fault::Stream);
        for era in [Era::Legacy, Era::Modern] {
            let client = hub.connected("/mcp", era).await;
            let params = json!({"name": "one_echo", "_meta": {"progressToken": "mine", "x/y": 1}});
            let messages = client.messages(&client.message(json!(7), "tools/call", params)).await;
            assert_eq!(messages.len(), 2, "{messages:?}");
            assert_eq!(messages[0]["params"]["progressToken"], "mine");
            assert_eq!(messages[1]["id"], 7);
            fits(era, false, &messages[1]);
            assert_eq!(fake.calls().last().unwrap().1["params"]["_meta"]["x/y"], 1, "other metadata is passed on");
        }
    }
}

#[tokio::test]
async fn an_id_written_last_is_found() {
    let fake = Fake::start(Era::Legacy, "one").await;
    fake.set(|state| state.id_last = true);
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    let raw =
        r#"{"method":"tools/call","params":{"arguments":{"id":3},"name":"one_echo"},"jsonrpc":"2.0","id":"last"}"#;
    let mut request = client.request(&json!({}));
    *request.body_mut() = raw.into();
    let answer = support::read(client.send(request).await).await.pop().unwrap();
    assert_eq!(answer["id"], "last");
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains(r#"{"id":3}"#));
}

#[tokio::test]
async fn each_client_is_answered_in_its_version_and_told_the_same_capabilities() {
    let (old, new) = (Fake::start(Era::Legacy, "old").await, Fake::start(Era::Modern, "new").await);
    let hub = Hub::start(config(vec![new.upstream("new"), old.upstream("old")])).await;
    ready(&hub).await;
    for version in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut client = hub.client("/mcp", Era::Legacy);
        client.version = version.to_owned();
        let result = client.initialize(json!({})).await;
        assert_eq!(result["protocolVersion"], version);
        assert_eq!(result["capabilities"]["tools"], json!({"listChanged": true}));
        assert_eq!(result["instructions"], "## new\nUse new.\n\n## old\nUse old.");
    }
    let mut client = hub.client("/mcp", Era::Legacy);
    client.version = "1999-01-01".to_owned();
    assert_eq!(client.initialize(json!({})).await["protocolVersion"], "2025-11-25");
    for path in ["/mcp", "/servers/old/mcp", "/servers/new/mcp"] {
        let discovered = hub.client(path, Era::Modern).ask("server/discover", json!({})).await;
        assert!(discovered["result"]["supportedVersions"].as_array().unwrap().contains(&json!("2026-07-28")));
        fits(Era::Modern, true, &discovered);
        let capabilities = &discovered["result"]["capabilities"];
        assert!(capabilities["tools"].is_object() && capabilities["logging"].is_object(), "{capabilities}");
        assert_eq!(capabilities["resources"]["subscribe"], true);
    }
    let own = hub.client("/servers/new/mcp", Era::Legacy).initialize(json!({})).await;
    assert_eq!(own["serverInfo"]["name"], "new");
}
