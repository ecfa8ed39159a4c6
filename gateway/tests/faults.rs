//! Servers that restart, break off, hang or are away, and what their clients see of it.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use http::StatusCode;
use mcp_hub_dataplane_api::gateway::{Target, UpstreamEra, UpstreamStatus};
use mcp_hub_dataplane_api::{Era, SessionMode};
use serde_json::json;
use support::{Fake, Fault, Hub, config, one_server, ready, wait_for};

#[tokio::test]
async fn a_client_session_outlives_the_gateway() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    let mut client = hub.connected("/mcp", Era::Legacy).await;
    drop(hub);
    let hub = Hub::start(config(vec![fake.upstream("one")])).await;
    client.url = format!("http://{}/mcp", hub.address);
    assert!(client.call("one_echo", json!({})).await["result"].is_object());
    let other = Hub::with_key([8; 32], config(vec![fake.upstream("one")])).await;
    client.url = format!("http://{}/mcp", other.address);
    let message = client.message(json!(1), "tools/list", json!({}));
    assert_eq!(client.send(client.request(&message)).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_restarted_server_is_initialized_again_under_the_live_session_and_the_call_is_made_once() {
    let (fake, hub) = one_server(Era::Legacy).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    assert!(client.call("one_echo", json!({"n": 1})).await["result"].is_object());
    // All at once, so that they find the session gone together.
    fake.set(|state| state.sessions.clear());
    let calls = (0..20).map(|n| {
        let client = client.clone();
        async move { client.messages(&client.message(json!(n), "tools/call", json!({"name": "one_echo"}))).await }
    });
    for (n, answer) in futures::future::join_all(calls).await.into_iter().enumerate() {
        assert_eq!((&answer[0]["id"], answer[0]["result"].is_object()), (&json!(n), true), "{answer:?}");
    }
    assert_eq!(fake.calls().len(), 21, "each call reached the server once");
    assert_eq!(fake.get(|state| state.opened), 2, "one session was opened for all of them");
}

#[tokio::test]
async fn a_call_waits_for_a_bridge_that_is_being_replaced() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let upstream = fake.upstream("one");
    let hub = Hub::start(config(vec![upstream.clone()])).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    let address = fake.stop().await;
    let calling = tokio::spawn({
        let client = client.clone();
        async move { client.call("one_echo", json!({})).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let fake = Fake::at(Era::Legacy, "one", address).await;
    assert!(calling.await.unwrap()["result"]["isError"].is_null());
    assert_eq!(fake.calls().len(), 1);
    // The same with another address, which a new configuration brings.
    fake.stop().await;
    let calling = tokio::spawn(async move { client.call("one_echo", json!({})).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let moved = Fake::start(Era::Legacy, "one").await;
    hub.gateway.apply(config(vec![moved.upstream("one")]));
    assert!(calling.await.unwrap()["result"]["isError"].is_null());
    assert_eq!(moved.calls().len(), 1);
}

#[tokio::test]
async fn a_call_that_broke_off_is_not_made_again() {
    for server in [Era::Legacy, Era::Modern] {
        for fault in [Fault::DropUnanswered, Fault::DropMidStream] {
            let (fake, hub) = one_server(server).await;
            fake.set(|state| state.fault = fault);
            for era in [Era::Legacy, Era::Modern] {
                let client = hub.connected("/mcp", era).await;
                let answer = client.call("one_echo", json!({})).await;
                assert_eq!(answer["error"]["code"], 1001, "{answer}");
            }
            assert_eq!(fake.calls().len(), 2);
        }
    }
}

#[tokio::test]
async fn a_server_that_is_away_keeps_its_definitions_for_a_while_and_says_why() {
    let (one, two) = (Fake::start(Era::Legacy, "one").await, Fake::start(Era::Legacy, "two").await);
    let mut configured = config(vec![one.upstream("one"), two.upstream("two")]);
    let hub = Hub::start(configured.clone()).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    assert_eq!(client.tool_names().await.len(), 6);
    configured.upstreams[0].target = Target::Unavailable {
        reason: "Paused".to_owned(),
        message: "it is paused".to_owned(),
        hint: Some("set paused: false".to_owned()),
    };
    hub.gateway.apply(configured.clone());
    assert_eq!(client.tool_names().await.len(), 6);
    for era in [Era::Legacy, Era::Modern] {
        let client = hub.connected("/mcp", era).await;
        let answer = client.call("one_echo", json!({})).await;
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        let text = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert!(
            text.contains("it is paused") && text.contains("Paused") && text.contains("set paused: false"),
            "{text}"
        );
        let answer = client.ask("prompts/get", json!({"name": "one_greet"})).await;
        assert_eq!((&answer["error"]["code"], &answer["error"]["data"]["reason"]), (&json!(1002), &json!("Paused")));
        assert!(client.call("two_echo", json!({})).await["result"]["isError"].is_null(), "others are unharmed");
    }
    let own = hub.client("/servers/one/mcp", Era::Modern);
    assert_eq!(own.tool_names().await, ["echo", "zeta", "alpha"]);
    // With another patience they are given up, and clients are told.
    let mut stream = client.stream().await;
    configured.limits.stale_for_ms = 1;
    hub.gateway.apply(configured);
    let methods =
        [stream.next().await, stream.next().await, stream.next().await].map(|message| message["method"].clone());
    assert!(methods.contains(&json!("notifications/tools/list_changed")), "{methods:?}");
    let mut left = client.tool_names().await;
    for _ in 0..200 {
        if left.len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        left = client.tool_names().await;
    }
    assert_eq!(left, ["two_echo", "two_zeta", "two_alpha"]);
}

#[tokio::test]
async fn a_dead_server_delays_nobodys_lists() {
    let alive = Fake::start(Era::Legacy, "alive").await;
    let mut silent = alive.upstream("silent");
    // Takes connections and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    silent.target = Target::Available {
        url: format!("http://{}/mcp", listener.local_addr().unwrap()),
        headers: Default::default(),
    };
    let (asking, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let taking = tokio::spawn(async move { while asking.send(listener.accept().await.unwrap()).is_ok() {} });
    let hub = Hub::start(config(vec![alive.upstream("alive"), silent])).await;
    let client = hub.connected("/mcp", Era::Legacy).await;
    // Only the very first answer after the start waits for servers, and not for ever.
    assert_eq!(client.tool_names().await.len(), 3);
    let mut open = Vec::new();
    while let Ok(connection) = asked.try_recv() {
        open.push(connection);
    }
    let before = open.len();
    for _ in 0..20 {
        assert_eq!(client.tool_names().await.len(), 3);
    }
    while let Ok(connection) = asked.try_recv() {
        open.push(connection);
    }
    // The gateway itself tries again, but no list does.
    assert!(open.len() - before < 20, "{} connections for 20 lists", open.len() - before);
    taking.abort();
}

#[tokio::test]
async fn a_remote_server_is_probed_and_one_that_wants_oauth_says_so_until_it_does_not() {
    for era in [Era::Legacy, Era::Modern] {
        let fake = Fake::start(era, "far").await;
        fake.set(|state| state.unauthorized = true);
        let mut remote = fake.upstream("far");
        remote.era = UpstreamEra::Probe;
        let hub = Hub::start(config(vec![remote.clone()])).await;
        wait_for("the refusal", || {
            matches!(hub.gateway.upstream("uid-far"), Some(UpstreamStatus::AuthRequired { message }) if message.contains("OAuth"))
        })
        .await;
        let client = hub.connected("/mcp", Era::Legacy).await;
        assert_eq!(client.call("far_echo", json!({})).await["result"]["isError"], true);
        fake.set(|state| state.unauthorized = false);
        // A call, or a new configuration, makes it try again at once.
        remote.call_timeout_ms += 1;
        hub.gateway.apply(config(vec![remote]));
        ready(&hub).await;
        let Some(UpstreamStatus::Ready { handshake }) = hub.gateway.upstream("uid-far") else { panic!("not ready") };
        assert_eq!((handshake.era, handshake.server_name.as_str()), (era, "far"));
        let tools = handshake.tools.unwrap();
        assert_eq!((tools.count, tools.digest.len()), (3, 64));
        assert!(client.call("far_echo", json!({})).await["result"]["isError"].is_null());
    }
}

#[tokio::test]
async fn a_call_has_its_time_and_a_legacy_server_is_told_when_it_is_up() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let mut upstream = fake.upstream("one");
    upstream.call_timeout_ms = 300;
    let hub = Hub::start(config(vec![upstream])).await;
    ready(&hub).await;
    fake.set(|state| state.fault = Fault::Hang);
    let answer = hub.connected("/mcp", Era::Legacy).await.call("one_echo", json!({})).await;
    assert_eq!(answer["error"]["code"], 1003, "{answer}");
    wait_for("its cancellation", || fake.seen("notifications/cancelled").len() == 1).await;
}

#[tokio::test]
async fn calls_beyond_the_limit_wait_their_turn_and_not_for_ever() {
    let (held, brief, patient) = (
        Fake::start(Era::Modern, "held").await,
        Fake::start(Era::Modern, "brief").await,
        Fake::start(Era::Modern, "patient").await,
    );
    let mut short = brief.upstream("brief");
    short.call_timeout_ms = 300;
    let mut configured = config(vec![held.upstream("held"), short, patient.upstream("patient")]);
    configured.limits.concurrent_calls = 1;
    let hub = Hub::start(configured).await;
    ready(&hub).await;
    let client = hub.connected("/mcp", Era::Modern).await;
    let call = |tool: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.call(tool, json!({})).await })
    };
    held.set(|state| state.fault = Fault::Hang);
    let holding = call("held_echo");
    wait_for("the first call", || held.calls().len() == 1).await;
    // Its time is up while another has the only place, however slow this machine is.
    let refused = call("brief_echo").await.unwrap();
    assert_eq!(refused["error"]["code"], 1005, "{refused}");
    assert_eq!(brief.calls().len(), 0);
    let waiting = call("patient_echo");
    holding.abort();
    let second = waiting.await.unwrap();
    assert!(second["result"].is_object(), "{second}");
    // A call that takes its whole time gives its place back, too.
    brief.set(|state| state.fault = Fault::Hang);
    assert_eq!(call("brief_echo").await.unwrap()["error"]["code"], 1003);
    assert!(call("patient_echo").await.unwrap()["result"].is_object(), "the place is free again");
}

#[tokio::test]
async fn a_modern_client_that_goes_away_cancels_at_servers_of_either_era() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = one_server(server).await;
        fake.set(|state| state.fault = Fault::Hang);
        let client = hub.connected("/mcp", Era::Modern).await;
        let calling = tokio::spawn(async move { client.call("one_echo", json!({})).await });
        wait_for("the call", || fake.calls().len() == 1).await;
        calling.abort();
        match server {
            Era::Modern => wait_for("the end of its connection", || fake.get(|state| state.abandoned) == 1).await,
            Era::Legacy => {
                wait_for("its cancellation", || fake.seen("notifications/cancelled").len() == 1).await;
                let cancelled = &fake.seen("notifications/cancelled")[0]["params"]["requestId"];
                assert_eq!(cancelled, &fake.calls()[0].1["id"]);
            }
        }
    }
}

#[tokio::test]
async fn a_legacy_client_cancels_by_a_notification_and_not_by_going_away() {
    for server in [Era::Legacy, Era::Modern] {
        let (fake, hub) = one_server(server).await;
        fake.set(|state| state.fault = Fault::Hang);
        let client = hub.connected("/mcp", Era::Legacy).await;
        let gone = tokio::spawn({
            let client = client.clone();
            async move { client.ask("tools/call", json!({"name": "one_echo"})).await }
        });
        wait_for("the call", || fake.calls().len() == 1).await;
        gone.abort();
        let message = client.message(json!("later"), "tools/call", json!({"name": "one_echo"}));
        let calling = tokio::spawn({
            let client = client.clone();
            async move { client.send(client.request(&message)).await }
        });
        wait_for("the second call", || fake.calls().len() == 2).await;
        if server == Era::Modern {
            assert_eq!(fake.get(|state| state.abandoned), 0, "the first call goes on");
        }
        assert!(fake.seen("notifications/cancelled").is_empty());
        let params = json!({"requestId": "later", "reason": "enough"});
        client.notify(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})).await;
        match server {
            Era::Modern => wait_for("the end of its connection", || fake.get(|state| state.abandoned) == 1).await,
            Era::Legacy => {
                wait_for("its cancellation", || fake.seen("notifications/cancelled").len() == 1).await;
                let cancelled = &fake.seen("notifications/cancelled")[0]["params"]["requestId"];
                assert_eq!(cancelled, &fake.calls()[1].1["id"]);
            }
        }
        let before = std::time::Instant::now();
        assert!(support::read(calling.await.unwrap()).await.is_empty(), "what was cancelled is not answered");
        assert!(before.elapsed() < Duration::from_secs(10), "nobody waits for it either");
    }
}

#[tokio::test]
async fn each_client_has_a_session_of_its_own_where_the_server_wants_that_and_ends_it() {
    let fake = Fake::start(Era::Legacy, "one").await;
    let mut upstream = fake.upstream("one");
    upstream.sessions = SessionMode::PerClient;
    let hub = Hub::start(config(vec![upstream])).await;
    ready(&hub).await;
    let (alice, bob) = (hub.connected("/mcp", Era::Legacy).await, hub.connected("/mcp", Era::Legacy).await);
    for client in [&alice, &bob, &alice] {
        assert!(client.call("one_echo", json!({})).await["result"].is_object());
    }
    let used: Vec<_> = fake.calls().iter().map(|(headers, _)| headers["mcp-session-id"].clone()).collect();
    assert!(used[0] == used[2] && used[0] != used[1], "{used:?}");
    let before = fake.get(|state| state.deleted);
    let mut request = alice.request(&json!({}));
    *request.method_mut() = http::Method::DELETE;
    assert_eq!(alice.send(request).await.status(), StatusCode::NO_CONTENT);
    wait_for("the end of the session", || fake.get(|state| state.deleted) == before + 1).await;
    let message = alice.message(json!(1), "tools/list", json!({}));
    assert_eq!(alice.send(alice.request(&message)).await.status(), StatusCode::NOT_FOUND);
}
