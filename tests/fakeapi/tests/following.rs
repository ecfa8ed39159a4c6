//! A reflector over the fake is never wrong for long: whatever happens to objects, history and connections, it comes to
//! hold what the server holds.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};
use kube_runtime::reflector::store;
use kube_runtime::watcher::{Config, DefaultBackoff};
use kube_runtime::{WatchStreamExt, reflector, watcher};
use mcp_hub_fakeapi::{Cut, FakeApi, Fault, Verb, When};
use proptest::prelude::*;
use serde_json::json;

#[derive(Debug, Clone)]
enum Event {
    Put {
        name: u8,
        value: u8,
        selected: bool,
    },
    Delete {
        name: u8,
    },
    Compact,
    Cut {
        broken: bool,
    },
    Hold,
    Release,
    Fail {
        code: u16,
        watch: bool,
    },
    /// Seconds.
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0..4_u8, any::<u8>(), any::<bool>()).prop_map(|(name, value, selected)| Event::Put { name, value, selected }),
        3 => (0..4_u8).prop_map(|name| Event::Delete { name }),
        1 => Just(Event::Compact),
        2 => any::<bool>().prop_map(|broken| Event::Cut { broken }),
        1 => Just(Event::Hold),
        1 => Just(Event::Release),
        1 => (prop_oneof![Just(429), Just(500), Just(503), Just(410)], any::<bool>())
            .prop_map(|(code, watch)| Event::Fail { code, watch }),
        4 => prop_oneof![Just(0), Just(1), Just(70), Just(400)].prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 1..40)
}

fn happen(fake: &FakeApi, event: &Event) {
    match event {
        Event::Put { name, value, selected } => {
            let name = format!("m{name}");
            let (labels, data) = (json!({"selected": selected.to_string()}), json!({"value": value.to_string()}));
            let made = fake.create(&json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "labels": labels}, "data": data}));
            if made.is_err() {
                fake.edit("ConfigMap", "default", &name, |map| {
                    map["metadata"]["labels"] = labels;
                    map["data"] = data;
                })
                .unwrap();
            }
        }
        Event::Delete { name } => {
            fake.delete("ConfigMap", "default", &format!("m{name}"));
        }
        Event::Compact => fake.compact(),
        Event::Cut { broken } => fake.cut_watches("ConfigMap", if *broken { Cut::Broken } else { Cut::Closed }),
        Event::Hold => fake.hold("ConfigMap"),
        Event::Release => fake.release("ConfigMap"),
        Event::Fail { code, watch } => {
            let verb = if *watch { Verb::Watch } else { Verb::List };
            fake.inject(When::verb(verb), Fault::Answer(*code));
        }
        Event::Pass(_) => {}
    }
}

/// Name and version of what is selected.
type Seen = BTreeMap<String, String>;

fn stored(fake: &FakeApi) -> Seen {
    fake.list("ConfigMap")
        .iter()
        .filter(|map| map["metadata"]["labels"]["selected"] == "true")
        .map(|map| {
            let text = |field: &str| map["metadata"][field].as_str().unwrap().to_owned();
            (text("name"), text("resourceVersion"))
        })
        .collect()
}

async fn story(events: Vec<Event>, config: Config) {
    let fake = FakeApi::new();
    let maps: Api<ConfigMap> = Api::default_namespaced(fake.client("follower"));
    let (reader, writer) = store::<ConfigMap>();
    let stream = reflector(writer, watcher(maps, config.labels("selected=true"))).backoff(DefaultBackoff::default());
    let follower = tokio::spawn(stream.for_each(|_| std::future::ready(())));
    for event in &events {
        happen(&fake, event);
        match event {
            Event::Pass(seconds) => tokio::time::sleep(Duration::from_secs(*seconds)).await,
            _ => tokio::task::yield_now().await,
        }
    }
    fake.release("ConfigMap");
    fake.clear_faults();
    // Within the longest that a watch lasts and a client waits, on a clock that costs nothing.
    let seen =
        || -> Seen { reader.state().iter().map(|map| (map.name_any(), map.resource_version().unwrap())).collect() };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
    while seen() != stored(&fake) {
        if tokio::time::Instant::now() > deadline {
            panic!("the follower holds {:?}, the server {:?}", seen(), stored(&fake));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    follower.abort();
}

fn run(events: Vec<Event>, config: Config) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(story(events, config));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_follower_comes_to_hold_what_the_server_holds(events in events()) {
        run(events, Config::default());
    }

    #[test]
    fn so_does_one_that_reads_the_cache(events in events()) {
        run(events, Config::default().any_semantic());
    }

    #[test]
    fn so_does_one_that_lists_by_watching(events in events()) {
        run(events, Config::default().streaming_lists());
    }
}
