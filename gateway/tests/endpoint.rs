//! What a gateway lets in, what it lists, and what it tells.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use http::StatusCode;
use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::{NamingMode, ToolRules};
use serde_json::{Value, json};
use support::{Client, Fake, Hub, Reader, config, one_server, read, ready, tool};

async fn with_headers(
    client: &Client,
    message: &Value,
    headers: &[(&'static str, &str)],
) -> http::Response<hyper::body::Incoming> {
    let mut request = client.request(message);
    for (name, value) in headers {
        match *value {
            "" => request.headers_mut().remove(*name),
            value => request.headers_mut().insert(*name, value.parse().unwrap()),
        };
    }
    client.send(request).await
}

#[tokio::test]
async fn a_wrong_token_host_or_origin_is_refused_before_anything() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let mut configured = config(vec![fake.upstream("one")]);
    configured.allowed_origins = vec!["https://app.example".to_owned()];
    configured.allowed_hosts = vec!["hub.example".to_owned()];
    let hub = Hub::start(configured).await;
    ready(&hub).await;
    let client = hub.client("/mcp", Era::Legacy);
    let ping = client.message(json!(1), "ping", json!({}));
    for (headers, status) in [
        (&[][..], StatusCode::OK),
        (&[("authorization", "")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Bearer wrong")], StatusCode::UNAUTHORIZED),
        (&[("origin", "https://evil.example")], StatusCode::FORBIDDEN),
        (&[("origin", "null")], StatusCode::FORBIDDEN),
        (&[("origin", "https://app.example")], StatusCode::OK),
        (&[("origin", "http://localhost:3000")], StatusCode::OK),
        (&[("host", "evil.example")], StatusCode::FORBIDDEN),
        (&[("host", "127.0.0.1.evil.example")], StatusCode::FORBIDDEN),
        (&[("host", "hub.example:8443")], StatusCode::OK),
        (&[("mcp-session-id", "forged")], StatusCode::NOT_FOUND),
        (&[("mcp-protocol-version", "1999-01-01")], StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(with_headers(&client, &ping, headers).await.status(), status, "{headers:?}");
    }
    let get = |path: &str, token: bool| {
        let mut request = http::Request::get(format!("http://{}{path}", hub.address));
        if token {
            request = request.header("authorization", format!("Bearer {}", support::TOKEN));
        }
        client.send(request.body(Default::default()).unwrap())
    };
    assert_eq!(get("/healthz", false).await.status(), StatusCode::OK);
    assert_eq!(get("/readyz", false).await.status(), StatusCode::OK);
    assert_eq!(get("/metrics", false).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(get("/other", true).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get("/servers/none/mcp", true).await.status(), StatusCode::NOT_FOUND);
    let metrics = http_body_util::BodyExt::collect(get("/metrics", true).await.into_body()).await.unwrap().to_bytes();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("mcp_hub_gateway_refused_total{reason=\"token\"} 3"), "{metrics}");
    assert!(metrics.contains("mcp_hub_gateway_servers_ready 1"), "{metrics}");
}

#[tokio::test]
async fn what_is_no_message_or_too_large_is_refused() {
    let hub = Hub::start(config(vec![])).await;
    let client = hub.client("/mcp", Era::Legacy);
    for (body, status, code) in [
        ("{", 400, -32700),
        ("{}", 400, -32600),
        ("[]", 400, -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, 400, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"no/such"}"#, 200, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"info"}}"#, 200, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"one+a:b"}}"#, 200, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"none"}}"#, 200, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#, 200, -32602),
    ] {
        let mut request = client.request(&json!({}));
        *request.body_mut() = body.into();
        let response = client.send(request).await;
        assert_eq!(response.status(), status, "{body}");
        assert_eq!(read(response).await[0]["error"]["code"], code, "{body}");
    }
    let large = client.message(json!(1), "tools/call", json!({"name": "x".repeat(1 << 20)}));
    let response = client.send(client.request(&large)).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(read(response).await[0]["error"]["code"], 1007);
    // 2025-03-26 has batches.
    let mut old = hub.client("/mcp", Era::Legacy);
    old.version = "2025-03-26".to_owned();
    old.initialize(json!({})).await;
    let batch = json!([{"jsonrpc": "2.0", "id": 1, "method": "ping"}, {"jsonrpc": "2.0", "method": "notifications/x"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}]);
    let answers = read(old.send(old.request(&batch)).await).await.pop().unwrap();
    assert_eq!(
        answers,
        json!([{"jsonrpc": "2.0", "id": 1, "result": {}}, {"jsonrpc": "2.0", "id": 2, "result": {"tools": []}}])
    );
}

#[tokio::test]
async fn modern_headers_are_held_against_the_body() {
    let (_fake, hub) = one_server(Era::Legacy).await;
    let client = hub.client("/mcp", Era::Modern);
    let call = client.message(json!(1), "tools/call", json!({"name": "one_echo"}));
    for (headers, status, code) in [
        (&[][..], 200, None),
        (&[("mcp-name", "=?base64?b25lX2VjaG8=?=")], 200, None),
        (&[("mcp-name", "one_zeta")], 400, Some(-32020)),
        (&[("mcp-name", "")], 400, Some(-32020)),
        (&[("mcp-method", "tools/list")], 400, Some(-32020)),
        (&[("mcp-method", "")], 400, Some(-32020)),
        (&[("mcp-protocol-version", "")], 400, Some(-32020)),
        (&[("mcp-protocol-version", "2027-01-01")], 400, Some(-32020)),
        (&[("mcp-protocol-version", "2025-11-25")], 400, Some(-32020)),
    ] {
        let response = with_headers(&client, &call, headers).await;
        assert_eq!(response.status(), status, "{headers:?}");
        assert_eq!(read(response).await[0]["error"]["code"].as_i64(), code, "{headers:?}");
    }
    let mut future = call.clone();
    future["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2027-01-01".into();
    let response = with_headers(&client, &future, &[("mcp-protocol-version", "2027-01-01")]).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let refusal = read(response).await.pop().unwrap();
    assert_eq!(refusal["error"]["code"], -32022);
    assert_eq!(refusal["error"]["data"]["supported"][0], "2026-07-28");
    for method in ["no/such", "ping", "initialize", "resources/subscribe"] {
        let message = client.message(json!(1), method, json!({}));
        let response = client.send(client.request(&message)).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{method}");
        assert_eq!(read(response).await[0]["error"]["code"], -32601);
    }
}

#[tokio::test]
async fn colliding_names_of_a_bare_hub_are_left_out_and_reported() {
    let (one, two) = (Fake::start(Era::Legacy, "one").await, Fake::start(Era::Modern, "two").await);
    two.set(|state| state.tools = vec![tool("echo"), tool("other")]);
    let mut configured = config(vec![one.upstream("one"), two.upstream("two")]);
    configured.naming.mode = NamingMode::Bare;
    let hub = Hub::start(configured).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    assert_eq!(client.tool_names().await, ["zeta", "alpha", "other"]);
    assert_eq!(hub.gateway.status().collisions["echo"], ["one", "two"]);
    assert_eq!(client.call("echo", json!({})).await["error"]["code"], -32602);
    assert!(client.call("other", json!({})).await["result"].is_object());
}

#[tokio::test]
async fn long_names_are_cut_stably_and_still_reach_their_tools() {
    let fake = Fake::start(Era::Modern, "one").await;
    let long = |end: &str| format!("{}{end}", "a_tool_with_a_very_long_name_".repeat(4));
    fake.set(|state| state.tools = vec![tool(&long("x")), tool(&long("y")), tool("größe")]);
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    let names = client.tool_names().await;
    assert!(names[..2].iter().all(|name| name.len() == 48) && names[0] != names[1], "{names:?}");
    for (name, own) in [(&names[0], long("x")), (&names[1], long("y"))] {
        client.call(name, json!({})).await;
        let (headers, body) = fake.calls().pop().unwrap();
        assert_eq!((headers["mcp-name"].to_str().unwrap(), body["params"]["name"].as_str().unwrap()), (&*own, &*own));
    }
}

#[tokio::test]
async fn rules_hold_on_both_endpoints() {
    for era in [Era::Legacy, Era::Modern] {
        let fake = Fake::start(era, "one").await;
        let mut upstream = fake.upstream("one");
        upstream.tools = ToolRules {
            allow: vec!["echo".to_owned(), "z*".to_owned(), "alpha".to_owned()],
            deny: vec!["alpha".to_owned()],
            rename: [("echo".to_owned(), "say".to_owned())].into(),
        };
        let hub = Hub::start(config(vec![upstream])).await;
        ready(&hub).await;
        for (path, prefix) in [("/mcp", "one_"), ("/servers/one/mcp", "")] {
            let client = hub.connected(path, era).await;
            let mut names = client.tool_names().await;
            // On its own endpoint a server's pages stay pages.
            if !prefix.is_empty() {
                assert_eq!(names, [format!("{prefix}say"), format!("{prefix}zeta")]);
            } else {
                let page = client.ask("tools/list", json!({"cursor": "2"})).await;
                names.push(page["result"]["tools"][0]["name"].as_str().unwrap().to_owned());
                assert_eq!(names, ["say", "zeta"]);
                assert_eq!(page["result"]["tools"].as_array().unwrap().len(), 1);
            }
            let before = fake.calls().len();
            assert!(client.call(&format!("{prefix}say"), json!({})).await["result"].is_object());
            assert_eq!(fake.calls().last().unwrap().1["params"]["name"], "echo");
            for hidden in ["echo", "alpha", "none"] {
                let answer = client.call(&format!("{prefix}{hidden}"), json!({})).await;
                assert_eq!(answer["error"]["code"], -32602, "{hidden} {answer}");
            }
            assert_eq!(fake.calls().len(), before + 1);
        }
    }
}

#[tokio::test]
async fn a_changed_list_reaches_streams_of_both_eras_on_both_endpoints() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = one_server(server).await;
        let mut streams = Vec::new();
        for path in ["/mcp", "/servers/one/mcp"] {
            streams.push((Era::Legacy, hub.connected(path, Era::Legacy).await.stream().await));
            let client = hub.client(path, Era::Modern);
            let wanted = json!({"notifications": {"toolsListChanged": true}});
            let message = client.message(json!("listening"), "subscriptions/listen", wanted);
            let mut stream = Reader::of(client.send(client.request(&message)).await);
            let acknowledged = stream.next().await;
            assert_eq!(acknowledged["method"], "notifications/subscriptions/acknowledged");
            assert_eq!(acknowledged["params"]["notifications"], json!({"toolsListChanged": true}));
            streams.push((Era::Modern, stream));
        }
        fake.set(|state| state.tools.push(tool("new")));
        // The watch's own stream may still be opening.
        let telling = tokio::spawn({
            let fake = fake.clone();
            async move {
                loop {
                    fake.tell("notifications/tools/list_changed");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        });
        for (era, stream) in &mut streams {
            let message = stream.next().await;
            assert_eq!(message["method"], "notifications/tools/list_changed", "{message}");
            let id = &message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"];
            assert_eq!(id, &if *era == Era::Modern { json!("listening") } else { Value::Null });
        }
        telling.abort();
        assert!(hub.connected("/mcp", Era::Legacy).await.tool_names().await.contains(&"one_new".to_owned()));
    }
}

#[tokio::test]
async fn a_large_result_passes_whole_and_requests_without_a_session_are_served() {
    for server in [Era::Legacy, Era::Modern] {
        let fake = Fake::start(server, "one").await;
        fake.set(|state| state.large = 5 << 20);
        let hub = Hub::start(config(vec![fake.upstream("one")])).await;
        ready(&hub).await;
        for era in [Era::Legacy, Era::Modern] {
            for (path, name) in [("/mcp", "one_echo"), ("/servers/one/mcp", "echo")] {
                let answer = hub.client(path, era).call(name, json!({})).await;
                assert_eq!(answer["result"]["content"][0]["text"].as_str().unwrap().len(), 5 << 20);
            }
        }
    }
}

#[tokio::test]
async fn a_large_answer_comes_under_the_clients_own_id_wherever_the_server_writes_it() {
    let (fake, hub) = one_server(Era::Legacy).await;
    let client = hub.connected("/servers/one/mcp", Era::Legacy).await;
    let refused: &'static str = Box::leak("no".repeat(50_000).into_boxed_str());
    for id in [json!(7), json!("a\"long\"id".repeat(20))] {
        let ask = || async {
            let call = client.message(id.clone(), "tools/call", json!({"name": "echo", "arguments": {"n": 1}}));
            let mut answers = client.messages(&call).await;
            assert_eq!((answers.len(), &answers[0]["id"]), (1, &id));
            answers.remove(0)
        };
        fake.set(|state| state.large = 0);
        let small = ask().await;
        for id_last in [false, true] {
            fake.set(|state| (state.large, state.id_last) = (100_000, id_last));
            let mut large = ask().await;
            let text = large["result"]["content"][0]["text"].take();
            assert_eq!(text.as_str().map(str::len), Some(100_000));
            large["result"]["content"][0]["text"] = small["result"]["content"][0]["text"].clone();
            assert_eq!(large, small, "nothing else changed");
        }
        fake.set(|state| state.refusal = Some((-32000, refused)));
        assert_eq!(ask().await["error"], json!({"code": -32000, "message": refused}));
        fake.set(|state| state.refusal = None);
    }
}

#[tokio::test]
async fn arguments_that_a_modern_servers_schema_wants_in_headers_are_put_there_for_legacy_clients() {
    let fake = Fake::start(Era::Modern, "one").await;
    let annotated = |header: &str| {
        let mut tool = tool("echo");
        tool["inputSchema"]["properties"]["a"] = json!({"type": "string", "x-mcp-header": header});
        tool
    };
    fake.set(|state| state.tools = vec![annotated("Region")]);
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    client.call("one_echo", json!({"a": "größe"})).await;
    assert_eq!(fake.calls()[0].0["mcp-param-region"], "=?base64?Z3LDtsOfZQ==?=");
    // The schema changes unnoticed: the refused call is made again with what the new one says.
    fake.set(|state| {
        state.tools = vec![annotated("Zone")];
        state.wanted_header = Some("mcp-param-zone");
    });
    assert!(client.call("one_echo", json!({"a": "b"})).await["result"].is_object());
    assert_eq!(fake.calls().len(), 3);
    assert_eq!(fake.calls()[2].0["mcp-param-zone"], "b");
}

#[tokio::test]
async fn the_text_of_a_result_over_the_limit_is_cut_visibly_and_a_smaller_one_passes_whole() {
    for server in [Era::Legacy, Era::Modern] {
        let fake = Fake::start(server, "one").await;
        let mut configured = config(vec![fake.upstream("one")]);
        configured.limits.result_bytes = Some(100_000);
        let hub = Hub::start(configured).await;
        ready(&hub).await;
        for era in [Era::Legacy, Era::Modern] {
            for (path, name) in [("/mcp", "one_echo"), ("/servers/one/mcp", "echo")] {
                let client = hub.client(path, era);
                fake.set(|state| state.large = 99_000);
                let whole = client.call(name, json!({})).await;
                assert_eq!(whole["result"]["content"][0]["text"].as_str().unwrap().len(), 99_000);
                fake.set(|state| state.large = 200_000);
                let cut = client.call(name, json!({})).await;
                let text = cut["result"]["content"][0]["text"].as_str().unwrap();
                assert!((99_000..100_200).contains(&text.len()), "{}", text.len());
                assert!(text.ends_with("of 200000 bytes of this text; spec.limits.resultBytes of the hub]"));
                assert_eq!(cut["result"]["n"].to_string(), "1.0", "the rest is as it was");
                assert_eq!(cut["result"].get("resultType").is_some(), era == Era::Modern);
            }
        }
    }
}

#[tokio::test]
async fn a_merged_list_of_many_is_given_in_pages_whose_cursors_are_of_use_nowhere_else() {
    let fake = Fake::start(Era::Modern, "one").await;
    let all: Vec<String> = (0..2500).map(|n| format!("tool{n}")).collect();
    fake.set(|state| state.tools = all.iter().map(|name| tool(name)).collect());
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    ready(&hub).await;
    for era in [Era::Legacy, Era::Modern] {
        let client = hub.connected("/mcp", era).await;
        let mut names = Vec::new();
        let mut cursor = Value::Null;
        let mut first = Value::Null;
        for size in [1000, 1000, 500] {
            let params = if cursor.is_null() { json!({}) } else { json!({"cursor": cursor}) };
            let result = client.ask("tools/list", params).await["result"].clone();
            let page = result["tools"].as_array().unwrap();
            assert_eq!(page.len(), size);
            names.extend(page.iter().map(|tool| tool["name"].as_str().unwrap()["one_".len()..].to_owned()));
            cursor = result["nextCursor"].clone();
            if first.is_null() {
                first = cursor.clone();
            }
        }
        assert!(names == all && cursor.is_null());
        for (list, cursor) in
            [("tools/list", json!("forged")), ("prompts/list", first.clone()), ("tools/list", json!(7))]
        {
            assert_eq!(client.ask(list, json!({"cursor": cursor})).await["error"]["code"], -32602);
        }
        assert!(client.call("one_tool2400", json!({})).await["result"].is_object());
    }
}
