//! Which image a name stands for.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use mcp_hub_fakeregistry::{Access, INDEX, MANIFEST, Registry};
use mcp_hub_supply::progress::Event;
use mcp_hub_supply::{Credentials, Pinned, Reference, RegistryError};
use serde_json::json;

use crate::{answer, impatient, push_example, tell_nobody};

async fn pin(image: &Reference) -> Result<Pinned, RegistryError> {
    impatient().pin(image, &Credentials::none(), &tell_nobody).await
}

#[tokio::test]
async fn an_index_is_pinned_with_each_platform_and_a_single_image_with_its_own() {
    let registry = Registry::start(Access::Everybody).await;
    let index = push_example(&registry, "mcp/git", "1", 10);
    let pinned = pin(&registry.image("mcp/git:1")).await.unwrap();
    assert_eq!(pinned.digest, index);
    assert_eq!(
        pinned.platforms.keys().collect::<Vec<_>>(),
        ["linux/amd64", "linux/arm64"],
        "provenance is no platform"
    );

    let digest = registry.push("one", Some("1"), "linux/arm64", &json!({}));
    let pinned = pin(&registry.image("one:1")).await.unwrap();
    assert_eq!(pinned.platforms, BTreeMap::from([("linux/arm64".to_owned(), digest.clone())]));
    assert_eq!(pinned.digest, digest);
}

#[tokio::test]
async fn releases_of_windows_are_platforms_of_their_own() {
    let registry = Registry::start(Access::Everybody).await;
    let digest = |byte: &str| format!("sha256:{}", byte.repeat(32));
    let entry = |digest: &str, platform: serde_json::Value| json!({"mediaType": MANIFEST, "digest": digest, "size": 1, "platform": platform});
    let windows = |version: &str| json!({"os": "windows", "architecture": "amd64", "os.version": version});
    let index = json!({"schemaVersion": 2, "manifests": [
        entry(&digest("01"), windows("10.0.17763.1")), entry(&digest("02"), windows("10.0.20348.2")),
        entry(&digest("03"), json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
        entry(&digest("04"), json!({"os": "linux", "architecture": "arm", "variant": "v7"}))]});
    registry.manifest("a", Some("1"), INDEX, &index);
    let pinned = pin(&registry.image("a:1")).await.unwrap();
    let wanted = [
        ("linux/arm/v7", digest("03")),
        ("windows(10.0.17763.1)/amd64", digest("01")),
        ("windows(10.0.20348.2)/amd64", digest("02")),
    ];
    assert_eq!(pinned.platforms, wanted.map(|(platform, digest)| (platform.to_owned(), digest)).into());
}

#[tokio::test]
async fn what_is_for_no_platform_is_pinned_by_nobody() {
    let registry = Registry::start(Access::Everybody).await;
    registry.push_index("a", "1", &["unknown/unknown"]);
    let error = pin(&registry.image("a:1")).await.unwrap_err();
    assert!(error.to_string().contains("an index without an image for any platform"), "{error}");
}

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again_when_it_says_so() {
    let registry = Registry::start(Access::Everybody).await;
    let index = push_example(&registry, "a", "1", 10);
    registry.fault_times("GET /v2/a/manifests", 1, answer(429, &[("retry-after", "1")], ""));
    registry.fault_times("GET /v2/a/manifests", 1, answer(503, &[("retry-after", "1")], ""));
    registry.fault_times("GET /v2/a/manifests", 1, answer(500, &[], ""));
    let waits = Mutex::new(Vec::new());
    let tell = |event: Event<'_>| {
        if let Event::Waits { wait, .. } = event {
            waits.lock().unwrap().push(wait);
        }
    };
    let pinned = impatient().pin(&registry.image("a:1"), &Credentials::none(), &tell).await.unwrap();
    assert_eq!(pinned.digest, index);
    let (second, last) = (Duration::from_secs(1), Duration::from_millis(20));
    assert_eq!(*waits.lock().unwrap(), [second, second, last]);
}
