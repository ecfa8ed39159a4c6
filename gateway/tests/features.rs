//! Features that differ between the eras, and those that do not cross at all.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use http::StatusCode;
use mcp_hub_dataplane_api::Era;
use serde_json::{Value, json};
use support::{Client, Fake, Fault, Hub, config, read, ready, tool, wait_for};

const ENDPOINTS: [(&str, &str); 2] = [("/mcp", "one_"), ("/servers/one/mcp", "")];
const TASKS: &str = "io.modelcontextprotocol/tasks";

async fn started(server: Era, change: impl FnOnce(&mut support::State)) -> (Fake, Hub) {
    let fake = Fake::start(server, "one").await;
    fake.set(change);
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    ready(&hub).await;
    (fake, hub)
}

/// What a client is told that the server offers.
async fn offered(hub: &Hub, path: &str, era: Era) -> Value {
    let mut client = hub.client(path, era);
    match era {
        Era::Legacy => client.initialize(json!({})).await["capabilities"].clone(),
        Era::Modern => client.ask("server/discover", json!({})).await["result"]["capabilities"].clone(),
    }
}

#[tokio::test]
async fn pings_are_answered_by_the_gateway() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = started(server, |_| {}).await;
        for (path, _) in ENDPOINTS {
            assert_eq!(hub.connected(path, Era::Legacy).await.ask("ping", json!({})).await["result"], json!({}));
            let modern = hub.client(path, Era::Modern);
            let refused = modern.send(modern.request(&modern.message(json!(1), "ping", json!({})))).await;
            assert_eq!(refused.status(), StatusCode::NOT_FOUND, "there is none in the modern era");
        }
        assert!(fake.seen("ping").is_empty());
    }
    let (fake, hub) = started(Era::Legacy, |state| {
        state.fault = Fault::Ask;
        state.rounds = vec![vec![json!({"method": "ping"})]];
    })
    .await;
    for era in [Era::Legacy, Era::Modern] {
        let answer = hub.connected("/mcp", era).await.call("one_echo", json!({})).await;
        assert_eq!(answer["result"]["content"][0]["text"], "[{}]");
    }
    assert_eq!(fake.calls().len(), 2);
}

#[tokio::test]
async fn tasks_are_offered_to_nobody_of_the_other_era() {
    let (old, hub) = started(Era::Legacy, |state| {
        state.capabilities["tasks"] = json!({"requests": {"tools": {"call": {}}}});
    })
    .await;
    assert!(offered(&hub, "/servers/one/mcp", Era::Legacy).await["tasks"].is_object(), "equal eras");
    for path in ["/mcp", "/servers/one/mcp"] {
        let offered = offered(&hub, path, Era::Modern).await;
        assert!(offered["tools"].is_object() && offered["tasks"].is_null(), "{offered}");
        let client = hub.client(path, Era::Modern);
        let message = client.message(json!(1), "tasks/get", json!({}));
        assert_eq!(client.send(client.request(&message)).await.status(), StatusCode::NOT_FOUND);
    }
    drop((old, hub));
    let (new, hub) =
        started(Era::Modern, |state| state.capabilities["extensions"] = json!({TASKS: {}, "a/b": {}})).await;
    assert!(offered(&hub, "/servers/one/mcp", Era::Modern).await["extensions"][TASKS].is_object(), "equal eras");
    let mut client = hub.client("/servers/one/mcp", Era::Legacy);
    let told = client.initialize(json!({"tasks": {}, "extensions": {TASKS: {}}})).await["capabilities"].clone();
    assert_eq!(told["extensions"], json!({"a/b": {}}));
    assert_eq!(client.ask("tasks/get", json!({"taskId": "x"})).await["error"]["code"], 1006);
    assert!(client.ask("tools/call", json!({"name": "echo", "task": {"ttl": 1}})).await["result"].is_object());
    let params = new.calls().pop().unwrap().1["params"].clone();
    assert_eq!((params.get("task"), &params["name"]), (None, &json!("echo")));
    let declared = &params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    assert_eq!(declared, &json!({"extensions": {}}), "a modern server makes no task for it");
}

#[tokio::test]
async fn extensions_pass_as_far_as_they_need_no_methods() {
    for (server, client_era) in [(Era::Legacy, Era::Modern), (Era::Modern, Era::Legacy)] {
        let (fake, hub) = started(server, |state| {
            state.capabilities["extensions"] = json!({"a/b": {"x": 1}});
            let mut shown = tool("echo");
            shown["_meta"] = json!({"ui": {"resourceUri": "ui://app"}});
            state.tools = vec![shown];
        })
        .await;
        assert_eq!(offered(&hub, "/servers/one/mcp", client_era).await["extensions"], json!({"a/b": {"x": 1}}));
        let client = hub.connected("/servers/one/mcp", client_era).await;
        let tools = client.ask("tools/list", json!({})).await["result"]["tools"].clone();
        assert_eq!(tools[0]["_meta"]["ui"]["resourceUri"], "ui://app");
        client.ask("tools/call", json!({"name": "echo", "_meta": {"a/b": 1.0}})).await;
        assert_eq!(fake.calls().pop().unwrap().1["params"]["_meta"]["a/b"].to_string(), "1.0");
        let own_method = client.ask("a/b/do", json!({})).await;
        let code = if client_era == Era::Modern { -32601 } else { 1006 };
        assert_eq!(own_method["error"]["code"], code, "{own_method}");
        assert!(fake.seen("a/b/do").is_empty());
    }
}

#[tokio::test]
async fn caching_hints_are_those_of_the_clients_era() {
    let hints = |answer: &Value| (answer["result"]["ttlMs"].clone(), answer["result"]["cacheScope"].clone());
    for (server, client_era, shown) in [
        (Era::Legacy, Era::Modern, (json!(0), json!("private"))),
        (Era::Modern, Era::Modern, (json!(1000), json!("public"))),
        (Era::Modern, Era::Legacy, (Value::Null, Value::Null)),
        (Era::Legacy, Era::Legacy, (Value::Null, Value::Null)),
    ] {
        let (_fake, hub) = started(server, |_| {}).await;
        let client = hub.connected("/servers/one/mcp", client_era).await;
        for (method, params) in [
            ("tools/list", json!({})),
            ("prompts/list", json!({})),
            ("resources/list", json!({})),
            ("resources/templates/list", json!({})),
            ("resources/read", json!({"uri": "test://text"})),
        ] {
            assert_eq!(hints(&client.ask(method, params).await), shown, "{method} {server:?} {client_era:?}");
        }
    }
}

#[tokio::test]
async fn a_merged_list_holds_as_long_and_for_as_many_as_each_of_its_parts() {
    let (long, short) = (Fake::start(Era::Modern, "long").await, Fake::start(Era::Modern, "short").await);
    let old = Fake::start(Era::Legacy, "old").await;
    long.set(|state| state.caching = (900_000, "public"));
    short.set(|state| state.caching = (600_000, "private"));
    for (upstreams, ttl, scope) in [
        (vec![long.upstream("long")], 800_000..=900_000, "public"),
        (vec![long.upstream("long"), short.upstream("short")], 500_000..=600_000, "private"),
        (vec![long.upstream("long"), old.upstream("old")], 0..=0, "private"),
        (vec![], 0..=0, "private"),
    ] {
        let hub = Hub::start(config(upstreams)).await;
        ready(&hub).await;
        let result = hub.client("/mcp", Era::Modern).ask("tools/list", json!({})).await["result"].clone();
        assert!(ttl.contains(&result["ttlMs"].as_u64().unwrap()), "{} {ttl:?}", result["ttlMs"]);
        assert_eq!(result["cacheScope"], scope);
    }
}

#[tokio::test]
async fn errors_have_the_codes_of_the_clients_era() {
    for server in [Era::Legacy, Era::Modern] {
        let (_fake, hub) = started(server, |_| {}).await;
        for (client_era, missing) in [(Era::Legacy, -32002), (Era::Modern, -32602)] {
            let client = hub.connected("/servers/one/mcp", client_era).await;
            let answer = client.ask("resources/read", json!({"uri": "test://missing"})).await;
            assert_eq!(answer["error"]["code"], missing);
            assert_eq!(client.call("missing", json!({})).await["error"]["code"], -32602);
            let other = hub.connected("/mcp", client_era).await;
            assert_eq!(other.ask("resources/read", json!({"uri": "none+a:b"})).await["error"]["code"], missing);
        }
    }
    // What has no counterpart passes as it is.
    let (_fake, hub) = started(Era::Legacy, |state| state.refusal = Some((-32042, "visit first"))).await;
    let answer = hub.client("/mcp", Era::Modern).call("one_echo", json!({})).await;
    assert_eq!(answer["error"]["code"], -32042);
}

async fn posted(client: &Client, body: &Value) -> (StatusCode, Value) {
    let response = client.send(client.request(body)).await;
    let status = response.status();
    let mut answers = read(response).await;
    (status, answers.pop().unwrap())
}

#[tokio::test]
async fn a_batch_is_answered_whole_in_front_of_servers_of_either_era() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = started(server, |state| state.fault = Fault::Stream).await;
        for (path, prefix) in ENDPOINTS {
            let mut client = hub.client(path, Era::Legacy);
            client.version = "2025-03-26".to_owned();
            client.initialize(json!({})).await;
            let call = |id: Value| {
                let params = json!({"name": format!("{prefix}echo"), "_meta": {"progressToken": 1}});
                json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})
            };
            let initialize = json!({"jsonrpc": "2.0", "id": 3, "method": "initialize", "params": {}});
            let told = json!({"jsonrpc": "2.0", "method": "notifications/x"});
            let batch = json!([call(json!(1)), told, call(json!("b")), initialize, {"id": {}}]);
            let (status, answers) = posted(&client, &batch).await;
            let answers = answers.as_array().unwrap();
            let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
            assert_eq!((status, ids), (StatusCode::OK, vec![&json!(1), &json!("b"), &json!(3), &Value::Null]));
            assert!(answers[0]["result"].is_object() && answers[1]["result"].is_object(), "{answers:?}");
            assert_eq!(answers[2]["error"]["code"], -32600, "it opens no session in a batch");
            assert_eq!(answers[3]["error"]["code"], -32600);
            let only_told = client.send(client.request(&json!([told]))).await;
            assert_eq!(only_told.status(), StatusCode::ACCEPTED);
            let long: Vec<Value> = (0..101).map(|_| told.clone()).collect();
            let (status, refusal) = posted(&client, &long.into()).await;
            assert_eq!((status, &refusal["error"]["code"]), (StatusCode::BAD_REQUEST, &json!(-32600)));
        }
        assert_eq!(fake.calls().len(), 4);
        let later = hub.connected("/mcp", Era::Legacy).await;
        let ping = json!([{"jsonrpc": "2.0", "id": 1, "method": "ping"}]);
        assert_eq!(posted(&later, &ping).await.1["error"]["code"], -32600, "2025-11-25 has none");
        let modern = hub.client("/mcp", Era::Modern);
        assert_eq!(posted(&modern, &ping).await.1["error"]["code"], -32600);
    }
}

fn annotated(schema: Value) -> Value {
    let mut tool = tool("echo");
    tool["inputSchema"] = schema;
    tool
}

#[tokio::test]
async fn headers_of_arguments_are_held_against_the_body() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = started(server, |state| {
            let n = json!({"type": "integer", "x-mcp-header": "N"});
            let deep = json!({"type": "object", "properties": {"n": n}});
            let region = json!({"type": "string", "x-mcp-header": "Region"});
            state.tools = vec![annotated(json!({"type": "object", "properties": {"region": region, "deep": deep}}))];
        })
        .await;
        for (path, prefix) in ENDPOINTS {
            let client = hub.client(path, Era::Modern);
            let arguments = json!({"region": "größe", "deep": {"n": 42}, "other": 1});
            let message = client.message(
                json!(1),
                "tools/call",
                json!({"name": format!("{prefix}echo"), "arguments": arguments}),
            );
            for (region, n, fits) in [
                (Some("=?base64?Z3LDtsOfZQ==?="), Some("42"), true),
                (Some("=?base64?Z3LDtsOfZQ==?="), Some("42.0"), true),
                (Some("other"), Some("42"), false),
                (Some("=?base64?!?="), Some("42"), false),
                (None, Some("42"), false),
                (Some("=?base64?Z3LDtsOfZQ==?="), Some("43"), false),
                (Some("=?base64?Z3LDtsOfZQ==?="), None, false),
            ] {
                let before = fake.calls().len();
                let mut request = client.request(&message);
                for (name, value) in [("mcp-param-region", region), ("mcp-param-n", n), ("mcp-param-else", Some("x"))] {
                    if let Some(value) = value {
                        request.headers_mut().insert(name, value.parse().unwrap());
                    }
                }
                let response = client.send(request).await;
                let status = response.status();
                let answer = read(response).await.pop().unwrap();
                if fits {
                    assert_eq!((status, answer["result"].is_object()), (StatusCode::OK, true), "{answer}");
                    let headers = fake.calls().pop().unwrap().0;
                    assert_eq!(headers.contains_key("mcp-param-region"), server == Era::Modern);
                } else {
                    assert_eq!(
                        (status, &answer["error"]["code"]),
                        (StatusCode::BAD_REQUEST, &json!(-32020)),
                        "{answer}"
                    );
                    assert_eq!(fake.calls().len(), before, "{region:?} {n:?}");
                }
            }
            // Nothing to hold against each other.
            let message = client.message(json!(1), "tools/call", json!({"name": format!("{prefix}echo")}));
            assert!(posted(&client, &message).await.1["result"].is_object());
        }
    }
}

#[tokio::test]
async fn a_modern_client_whose_headers_a_server_refuses_is_told_so_and_the_lists_are_fetched_again() {
    let (fake, hub) = started(Era::Modern, |_| {}).await;
    let lists = fake.seen("tools/list").len();
    fake.set(|state| state.wanted_header = Some("mcp-param-zone"));
    let client = hub.client("/mcp", Era::Modern);
    let message = client.message(json!(1), "tools/call", json!({"name": "one_echo"}));
    let (status, answer) = posted(&client, &message).await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::BAD_REQUEST, &json!(-32020)), "it makes the headers");
    assert_eq!(fake.calls().len(), 1, "the same again would be refused again");
    wait_for("the lists", || fake.seen("tools/list").len() > lists).await;
}

#[tokio::test]
async fn tools_with_annotations_that_http_cannot_carry_are_offered_to_nobody() {
    let property = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
    let header = |name: &str, kind: &str| json!({"type": kind, "x-mcp-header": name});
    let twice = json!({"type": "object", "properties": {"a": header("X", "string"), "b": header("x", "string")}});
    let unreachable = property(json!({"type": "array", "items": header("X", "string")}));
    let composed = json!({"type": "object", "oneOf": [property(header("X", "string"))]});
    let invalid = [
        property(header("", "string")),
        property(header("a b", "string")),
        property(header("a\nb", "string")),
        property(header("X", "number")),
        property(header("X", "object")),
        property(json!({"type": "string", "x-mcp-header": 7})),
        twice,
        unreachable,
        composed,
    ];
    let (fake, hub) = started(Era::Modern, |state| {
        let mut tools: Vec<Value> = invalid.into_iter().map(annotated).collect();
        for (n, tool) in tools.iter_mut().enumerate() {
            tool["name"] = format!("bad{n}").into();
        }
        tools.insert(0, annotated(property(header("X", "integer"))));
        // What only looks like an annotation.
        let mut data = annotated(property(json!({"type": "string", "default": {"x-mcp-header": "a b"}})));
        data["name"] = "data".into();
        tools.push(data);
        state.tools = tools;
    })
    .await;
    for era in [Era::Legacy, Era::Modern] {
        assert_eq!(hub.connected("/mcp", era).await.tool_names().await, ["one_echo", "one_data"]);
        let own = hub.connected("/servers/one/mcp", era).await;
        assert_eq!(own.tool_names().await, ["echo"], "the first page");
        let next = own.ask("tools/list", json!({"cursor": "2"})).await;
        assert_eq!(next["result"]["tools"].as_array().unwrap().len(), 1, "{next}");
    }
    assert_eq!(fake.calls().len(), 0);
}
