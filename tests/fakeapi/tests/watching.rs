//! Stories of watches, caches that lag behind, and broken connections.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams, WatchParams};
use kube::core::WatchEvent;
use kube::{Api, Client, Error, ResourceExt};
use mcp_hub_fakeapi::{Cut, FakeApi, Fault, Verb, When};
use serde_json::{Value, json};

fn create(fake: &FakeApi, name: &str, tier: &str) -> Value {
    fake.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"tier": tier}}}))
        .unwrap()
}

fn relabel(fake: &FakeApi, name: &str, tier: &str) {
    fake.edit("ConfigMap", "default", name, |map| map["metadata"]["labels"]["tier"] = json!(tier)).unwrap();
}

fn maps(client: Client) -> Api<ConfigMap> {
    Api::default_namespaced(client)
}

/// The next event, as a word and a name; `None` at the end.
async fn next(events: &mut (impl Stream<Item = Result<WatchEvent<ConfigMap>, Error>> + Unpin)) -> Option<String> {
    let event = tokio::time::timeout(Duration::from_secs(300), events.next()).await.expect("an event in time");
    Some(match event? {
        Ok(WatchEvent::Added(map)) => format!("added {}", map.name_any()),
        Ok(WatchEvent::Modified(map)) => format!("modified {}", map.name_any()),
        Ok(WatchEvent::Deleted(map)) => format!("deleted {} {}", map.name_any(), map.labels()["tier"]),
        Ok(WatchEvent::Bookmark(bookmark)) => format!("bookmark {}", bookmark.metadata.resource_version),
        Ok(WatchEvent::Error(status)) => format!("error {}", status.code),
        Err(error) => format!("broken: {error}"),
    })
}

fn nothing<T: std::fmt::Debug>(events: &mut (impl Stream<Item = T> + Unpin)) -> bool {
    futures::FutureExt::now_or_never(events.next()).is_none()
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_what_happened_since_a_version() {
    let fake = FakeApi::new();
    create(&fake, "a", "x");
    let from = fake.revision();
    create(&fake, "b", "x");
    let maps = maps(fake.client("story"));
    let mut events = maps.watch(&WatchParams::default(), &from.to_string()).await.unwrap().boxed();
    assert_eq!(next(&mut events).await.unwrap(), "added b");
    relabel(&fake, "a", "y");
    fake.delete("ConfigMap", "default", "a");
    assert_eq!(next(&mut events).await.unwrap(), "modified a");
    assert_eq!(next(&mut events).await.unwrap(), "deleted a y");
    assert!(nothing(&mut events));
    // Where nothing happens, the server says where it is, and at last ends.
    fake.namespace("elsewhere");
    assert_eq!(next(&mut events).await.unwrap(), format!("bookmark {}", fake.revision()));
    let mut short =
        maps.watch(&WatchParams::default().timeout(10), &fake.revision().to_string()).await.unwrap().boxed();
    assert_eq!(next(&mut short).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_object_enters_and_leaves_a_selection() {
    let fake = FakeApi::new();
    create(&fake, "a", "x");
    let maps = maps(fake.client("story"));
    let selection = WatchParams::default().labels("tier=x");
    let mut events = maps.watch(&selection, "0").await.unwrap().boxed();
    assert_eq!(next(&mut events).await.unwrap(), "added a");
    relabel(&fake, "a", "y");
    // Deleted for this watch, as it was when it was last seen.
    assert_eq!(next(&mut events).await.unwrap(), "deleted a x");
    relabel(&fake, "a", "z");
    relabel(&fake, "a", "x");
    assert_eq!(next(&mut events).await.unwrap(), "added a");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_forgotten_is_gone() {
    let fake = FakeApi::new();
    create(&fake, "a", "x");
    let old = fake.revision() - 1;
    let maps = maps(fake.client("story"));
    let mut open = maps.watch(&WatchParams::default(), &fake.revision().to_string()).await.unwrap().boxed();
    fake.compact();
    let mut events = maps.watch(&WatchParams::default(), &old.to_string()).await.unwrap().boxed();
    assert_eq!(next(&mut events).await.unwrap(), "error 410");
    assert_eq!(next(&mut events).await, None);
    // A watch that is up to date does not notice.
    create(&fake, "b", "x");
    assert_eq!(next(&mut open).await.unwrap(), "added b");
    // One that was held back does.
    fake.hold("ConfigMap");
    create(&fake, "c", "x");
    fake.compact();
    fake.release("ConfigMap");
    assert_eq!(next(&mut open).await.unwrap(), "error 410");
}

#[tokio::test(start_paused = true)]
async fn a_streaming_list_says_when_it_is_complete() {
    let fake = FakeApi::new();
    create(&fake, "a", "x");
    create(&fake, "b", "x");
    let maps = maps(fake.client("story"));
    let mut events = maps.watch(&WatchParams::default().initial_events(), "").await.unwrap().boxed();
    assert_eq!(next(&mut events).await.unwrap(), "added a");
    assert_eq!(next(&mut events).await.unwrap(), "added b");
    let Some(Ok(WatchEvent::Bookmark(bookmark))) = events.next().await else { panic!("a bookmark was expected") };
    assert_eq!(bookmark.metadata.annotations["k8s.io/initial-events-end"], "true");
}

#[tokio::test(start_paused = true)]
async fn metadata_watches_see_the_same_events() {
    let fake = FakeApi::new();
    create(&fake, "a", "x");
    let maps = maps(fake.client("story"));
    let mut events = maps.watch_metadata(&WatchParams::default(), "0").await.unwrap().boxed();
    let Some(WatchEvent::Added(one)) = events.try_next().await.unwrap() else { panic!("an object was expected") };
    assert_eq!((one.name_any(), one.types.unwrap().kind), ("a".to_owned(), "PartialObjectMetadata".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_stands_still_shows_the_past() {
    let fake = FakeApi::new();
    create(&fake, "a", "x");
    let maps = maps(fake.client("story"));
    let mut events = maps.watch(&WatchParams::default(), &fake.revision().to_string()).await.unwrap().boxed();
    fake.hold("ConfigMap");
    create(&fake, "b", "x");
    fake.delete("ConfigMap", "default", "a");
    assert!(nothing(&mut events));
    let names =
        |list: kube::core::ObjectList<ConfigMap>| list.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
    let any = kube::api::ListParams::default().match_any();
    let newest = kube::api::ListParams::default();
    assert_eq!(names(maps.list(&any).await.unwrap()), ["a"]);
    assert_eq!(names(maps.list(&newest).await.unwrap()), ["b"]);
    fake.release("ConfigMap");
    assert_eq!(names(maps.list(&any).await.unwrap()), ["b"]);
    assert_eq!(next(&mut events).await.unwrap(), "added b");
    assert_eq!(next(&mut events).await.unwrap(), "deleted a x");
}

#[tokio::test(start_paused = true)]
async fn a_watch_is_cut() {
    let fake = FakeApi::new();
    let maps = maps(fake.client("story"));
    for (cut, end) in [(Cut::Closed, None), (Cut::Broken, Some(true))] {
        let mut events = maps.watch(&WatchParams::default(), &fake.revision().to_string()).await.unwrap().boxed();
        fake.cut_watches("ConfigMap", cut);
        assert_eq!(next(&mut events).await.map(|event| event.starts_with("broken")), end);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_goes_away_and_comes_back() {
    let fake = FakeApi::new();
    let maps = maps(fake.client("story"));
    let mut events = maps.watch(&WatchParams::default(), &fake.revision().to_string()).await.unwrap().boxed();
    fake.set_down(true);
    assert!(next(&mut events).await.unwrap().starts_with("broken"));
    assert!(matches!(maps.get_opt("a").await.unwrap_err(), Error::Service(_)));
    create(&fake, "a", "x");
    fake.set_down(false);
    assert!(maps.get_opt("a").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn every_fault_comes_to_pass_once_at_its_write() {
    let fake = FakeApi::new();
    let maps = maps(fake.client("story"));
    let put = |name: &'static str| {
        let maps = maps.clone();
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        async move { maps.create(&PostParams::default(), &map).await }
    };
    fake.inject(When::write().nth(2), Fault::RequestLost);
    fake.inject(When::write().nth(3), Fault::ResponseLost);
    put("one").await.unwrap();
    assert!(matches!(put("two").await.unwrap_err(), Error::Service(_)));
    assert_eq!(fake.get("ConfigMap", "default", "two"), None);
    assert!(matches!(put("three").await.unwrap_err(), Error::Service(_)));
    assert!(fake.get("ConfigMap", "default", "three").is_some());
    assert_eq!(fake.pending_faults(), 0);
    let log = fake.log();
    assert_eq!((log[1].status, log[1].revision), (None, None));
    assert_eq!((log[2].status, log[2].revision), (Some(201), Some(fake.revision())));

    for code in [409, 500, 503] {
        fake.inject(When::write().kind("ConfigMap"), Fault::Answer(code));
        let Error::Api(status) = put("four").await.unwrap_err() else { panic!("a status was expected") };
        assert_eq!(status.code, code);
    }
    fake.inject(When::any().user_agent("other"), Fault::Answer(500));
    fake.inject(When::verb(Verb::Create).name("nobody"), Fault::Answer(500));
    put("four").await.unwrap();
    assert_eq!(fake.pending_faults(), 2);
    fake.clear_faults();

    for (fault, done) in [(Fault::Hang, false), (Fault::HangAfter, true)] {
        fake.inject(When::write(), fault);
        assert!(tokio::time::timeout(Duration::from_secs(60), put("five")).await.is_err());
        assert_eq!(fake.get("ConfigMap", "default", "five").is_some(), done);
    }
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_server_says_how_long_to_wait() {
    let fake = FakeApi::new();
    fake.inject(When::any().always(), Fault::TooManyRequests(7));
    let mut service = fake.service("story");
    let request =
        http::Request::get("/api/v1/namespaces/default/configmaps").body(kube::client::Body::empty()).unwrap();
    let answer = tower_service::Service::call(&mut service, request).await.unwrap();
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.headers()["retry-after"], "7");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing() {
    let fake = FakeApi::new();
    let maps = maps(fake.client("story"));
    let revision = fake.revision();
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
    maps.create(&PostParams { dry_run: true, ..PostParams::default() }, &map).await.unwrap();
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    maps.patch("a", &PatchParams::apply("story").dry_run(), &Patch::Apply(&config)).await.unwrap();
    assert_eq!(fake.revision(), revision);
}
