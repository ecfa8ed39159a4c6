//! Images on their way from one registry to another.

use std::sync::Mutex;
use std::time::Duration;

use mcp_hub_fakeregistry::{Access, Fault, LAYER, MANIFEST, PASSWORD, Registry, USER, digest};
use mcp_hub_supply::progress::Event;
use mcp_hub_supply::{Credentials, Published, Reference, RegistryError};
use serde_json::json;

use crate::{answer, impatient, layer, password, push_example, tell_nobody, told};

/// Larger than what lies in the buffers between two registries.
const LARGE: usize = 6 << 20;

async fn copy(from: &Registry, image: &str, to: &Registry, name: &str) -> Result<Published, RegistryError> {
    impatient().copy(&from.image(image), &to.image(name), &Credentials::none(), &tell_nobody).await
}

async fn two() -> (Registry, Registry) {
    (Registry::start(Access::Everybody).await, Registry::start(Access::Everybody).await)
}

/// A layer of an example by its content.
fn path(method: &str, repository: &str, content: &[u8]) -> &'static str {
    format!("{method} /v2/{repository}/blobs/{}", digest(content)).leak()
}

#[tokio::test]
async fn a_copy_is_the_same_for_every_platform_and_made_once_only() {
    let (from, to) = two().await;
    let index = push_example(&from, "mcp/git", "1", LARGE);
    let image = format!("mcp/git@{index}");
    let published = copy(&from, &image, &to, "mirror/mcp/git:1").await.unwrap();
    assert_eq!(published.spared, 0);
    assert!(published.sent > LARGE as u64 && published.sent < LARGE as u64 + 10_000, "each layer once: {published:?}");
    let pins = |registry: &Registry, name: &str| {
        let image = registry.image(name);
        async move { impatient().pin(&image, &Credentials::none(), &tell_nobody).await.unwrap() }
    };
    assert_eq!(pins(&to, "mirror/mcp/git:1").await, pins(&from, "mcp/git:1").await);
    let sorted = |mut blobs: Vec<String>| {
        blobs.sort();
        blobs
    };
    assert_eq!(sorted(to.blobs("mirror/mcp/git")), sorted(from.blobs("mcp/git")));

    // Again: all is there. And where a layer is missing, that one is sent.
    from.forget_requests();
    let again = copy(&from, &image, &to, "mirror/mcp/git:2").await.unwrap();
    assert_eq!(again, Published { sent: 0, spared: published.sent });
    assert_eq!((to.count("PATCH"), from.count("GET /v2/mcp/git/blobs")), (published_layers(&from), 0));
}

fn published_layers(registry: &Registry) -> usize {
    registry.blobs("mcp/git").len()
}

#[tokio::test]
async fn within_a_registry_layers_are_mounted_and_none_is_sent() {
    let registry = Registry::start(Access::UsersToken).await;
    let index = push_example(&registry, "mcp/git", "1", 1000);
    let (from, to) = (registry.image(&format!("mcp/git@{index}")), registry.image("mirror/git:1"));
    let published = impatient().copy(&from, &to, &password(&registry.host), &tell_nobody).await.unwrap();
    assert_eq!((published.sent, registry.count("PATCH"), registry.count("GET /v2/mcp/git/blobs")), (0, 0, 0));
    assert!(registry.has("mirror/git", "1") && registry.has("mirror/git", &index));
}

#[tokio::test]
async fn a_layer_that_breaks_off_is_read_on_where_it_was() {
    for knows_ranges in [true, false] {
        let (from, to) = two().await;
        if !knows_ranges {
            from.forget_ranges();
        }
        let index = push_example(&from, "a", "1", LARGE);
        let get = path("GET", "a", &layer(0, LARGE));
        from.fault_times(get, 2, Fault::Cut);
        let moved = Mutex::new(0);
        let tell = |event: Event<'_>| match event {
            Event::Moved(bytes) => *moved.lock().unwrap() += bytes,
            Event::Again(bytes) => *moved.lock().unwrap() -= bytes,
            _ => {}
        };
        let (source, target) = (from.image(&format!("a@{index}")), to.image("b:1"));
        let published = impatient().copy(&source, &target, &Credentials::none(), &tell).await.unwrap();
        assert_eq!(from.count(get), 3);
        let halves = [LARGE / 2, LARGE / 2 + LARGE / 4];
        let ranges = halves.map(|from_there| from.count(&format!("bytes={from_there}-")));
        assert_eq!(from.count("bytes="), 2);
        // Of which the second half is read in halves where it is a half.
        assert_eq!(ranges, if knows_ranges { [1, 1] } else { [2, 0] });
        assert_eq!(to.count("PATCH"), published_blobs(&from), "the registry that takes it notices nothing");
        assert_eq!(*moved.lock().unwrap(), published.sent);
        assert!(to.has("b", "1"));
    }
}

fn published_blobs(registry: &Registry) -> usize {
    registry.blobs("a").len()
}

#[tokio::test]
async fn a_layer_that_is_not_taken_is_sent_anew() {
    let (from, to) = two().await;
    let index = push_example(&from, "a", "1", LARGE);
    to.fault_times("PATCH", 2, Fault::Deaf);
    to.fault_times("PUT /v2/b/blobs", 1, answer(500, &[], ""));
    to.fault_times("POST", 1, answer(429, &[("retry-after", "0")], ""));
    to.fault_times("PUT /v2/b/manifests", 1, answer(503, &[], ""));
    let published = copy(&from, &format!("a@{index}"), &to, "b:1").await.unwrap();
    assert!(published.sent > LARGE as u64);
    assert!(to.has("b", "1"));
}

#[tokio::test]
async fn what_is_not_what_it_is_said_to_be_gets_nowhere() {
    for corrupt in [Fault::Corrupt, Fault::Longer(100), Fault::Longer(LARGE + 1)] {
        let (from, to) = two().await;
        let index = push_example(&from, "a", "1", LARGE);
        from.fault(path("GET", "a", &layer(0, LARGE)), corrupt.clone());
        let error = copy(&from, &format!("a@{index}"), &to, "b:1").await.unwrap_err();
        assert_eq!(error.reason(), "ImageDigestMismatch", "{corrupt:?}: {}", told(&error));
        let has_wrong_size = matches!(error, RegistryError::WrongSize { .. });
        assert_eq!(has_wrong_size, matches!(corrupt, Fault::Longer(_)), "{error:?}");
        assert!(!to.has("b", "1") && !to.has("b", &index));
        assert!(!to.blobs("b").contains(&digest(&layer(0, LARGE))));
        assert_eq!(to.count("PUT /v2/b/manifests"), 0);
    }
    // A registry that stores something else is not believed either.
    let (from, to) = two().await;
    let index = push_example(&from, "a", "1", 10);
    let other = digest(b"something else");
    to.fault("PUT /v2/b/manifests/1", answer(201, &[("docker-content-digest", &other)], ""));
    let error = copy(&from, &format!("a@{index}"), &to, "b:1").await.unwrap_err();
    assert!(told(&error).contains(&format!("got {other}")), "{}", told(&error));
}

#[tokio::test]
async fn each_failure_is_told_and_tried_as_often_as_it_makes_sense() {
    const READ: &str = "GET /v2/a/blobs";
    const WRITE: &str = "POST /v2/b/blobs/uploads";
    for (side, request, fault, reason, times, text) in [
        ("from", READ, answer(401, &[], ""), "ImageUnauthorized", 1, "refused access to"),
        ("from", READ, answer(403, &[], ""), "ImageUnauthorized", 1, "(403)"),
        ("from", READ, answer(404, &[], ""), "ImageNotFound", 1, "has no image"),
        ("from", READ, answer(429, &[], ""), "RegistryRateLimited", 6, "takes no more requests"),
        ("from", READ, answer(429, &[("retry-after", "90")], ""), "RegistryRateLimited", 1, "takes no more requests"),
        ("from", READ, answer(500, &[], ""), "RegistryError", 6, "answered 500"),
        ("from", READ, Fault::Cut, "RegistryUnreachable", 6, "connection"),
        ("to", WRITE, answer(401, &[], ""), "ImageUnauthorized", 1, "(401)"),
        (
            "to",
            WRITE,
            answer(403, &[], r#"{"errors":[{"message":"read only"}]}"#),
            "ImageUnauthorized",
            1,
            "(403: read only)",
        ),
        ("to", WRITE, answer(404, &[], ""), "ImageNotFound", 1, "has no image"),
        ("to", WRITE, answer(429, &[], ""), "RegistryRateLimited", 6, "takes no more requests"),
        ("to", WRITE, answer(500, &[], ""), "RegistryError", 6, "answered 500"),
        ("to", WRITE, answer(202, &[], ""), "RegistryUnsupported", 1, "redirects to nowhere"),
        ("to", WRITE, answer(307, &[("location", "/x")], ""), "RegistryUnsupported", 1, "what is to be stored"),
        ("to", "PATCH", Fault::Deaf, "RegistryUnreachable", 6, "connection"),
        ("to", "PATCH", answer(413, &[], ""), "RegistryError", 1, "answered 413"),
        ("to", "PUT /v2/b/blobs", answer(400, &[], ""), "RegistryError", 1, "answered 400"),
        ("to", "PUT /v2/b/manifests", answer(500, &[], ""), "RegistryError", 6, "answered 500"),
    ] {
        let (from, to) = two().await;
        // One blob only, so that the requests can be counted.
        let content = layer(7, 200_000);
        let blob = from.blob("a", content.clone());
        let image = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": blob, "size": content.len()},
            "layers": [{"mediaType": LAYER, "digest": blob, "size": content.len()}]});
        let image = from.manifest("a", None, MANIFEST, &image);
        let faulty = if side == "from" { &from } else { &to };
        faulty.fault(request, fault.clone());
        let error = copy(&from, &format!("a@{image}"), &to, "b:1").await.unwrap_err();
        assert_eq!(error.reason(), reason, "{side} {fault:?}: {error:?}");
        assert!(told(&error).contains(text), "{side} {fault:?}: {}", told(&error));
        // What broke off in the middle is read on from there: the last byte is not reached by halves.
        assert_eq!(faulty.count(request), times, "{side} {fault:?}");
        assert!(!to.has("b", "1"), "an image gets its name last");
    }
}

#[tokio::test]
async fn a_registry_in_which_nothing_moves_is_not_waited_for() {
    let (from, to) = two().await;
    let index = push_example(&from, "a", "1", LARGE);
    from.fault(path("GET", "a", &layer(0, LARGE)), Fault::Never);
    let registries = impatient().patience(Duration::from_millis(200));
    let (source, target): (Reference, Reference) = (from.image(&format!("a@{index}")), to.image("b:1"));
    let error = registries.copy(&source, &target, &Credentials::none(), &tell_nobody).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryTimeout", "{}", told(&error));
}

#[tokio::test]
async fn tokens_are_for_what_is_done_and_renewed_when_they_expire() {
    let (from, to) = (Registry::start(Access::AnyToken).await, Registry::start(Access::UsersToken).await);
    let index = push_example(&from, "a", "1", 1000);
    let credentials = password(&to.host);
    let once = Mutex::new(true);
    let tell = |event: Event<'_>| {
        if let Event::Moved(_) = event
            && std::mem::take(&mut *once.lock().unwrap())
        {
            from.expire_tokens();
            to.expire_tokens();
        }
    };
    impatient().copy(&from.image(&format!("a@{index}")), &to.image("b:1"), &credentials, &tell).await.unwrap();
    assert!(to.has("b", "1"));
    assert!(from.count("/token") >= 1 && to.count("/token") >= 2, "{:#?}", to.requests());

    // A login that may only read.
    let readers = Registry::start(Access::Password).await;
    readers.fault("POST", answer(403, &[], ""));
    let credentials = crate::login(&readers.host, json!({"username": USER, "password": PASSWORD}));
    let copied = impatient().copy(&from.image(&format!("a@{index}")), &readers.image("b:1"), &credentials, &tell).await;
    let error = copied.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { status: 403, with_credentials: true, .. }), "{error:?}");
}

#[tokio::test]
async fn a_store_that_takes_uploads_is_not_told_who_sends_them() {
    for takes_pieces in [false, true] {
        let from = Registry::start(Access::Everybody).await;
        let (to, store) = (Registry::start(Access::UsersToken).await, Registry::start(Access::UsersToken).await);
        let image = from.push("a", None, "linux/amd64", &json!({}));
        let place = format!("http://{}/v2/b/blobs/uploads/1", store.host);
        to.fault("POST", answer(202, &[("location", &place)], ""));
        if takes_pieces {
            store.fault("PATCH", answer(202, &[], ""));
        }
        let (source, target) = (from.image(&format!("a@{image}")), to.image("b:1"));
        let copied = impatient().copy(&source, &target, &password(&to.host), &tell_nobody).await;
        let error = copied.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{error:?}");
        assert_eq!(store.count(if takes_pieces { "PUT" } else { "PATCH" }), if takes_pieces { 1 } else { 2 });
        let requests = store.requests();
        let is_told = requests.iter().any(|request| request.contains("/token") || !request.ends_with(" -"));
        assert!(!is_told, "{requests:#?}");
    }
}

#[tokio::test]
async fn an_image_without_a_tag_is_copied_by_its_digest() {
    let (from, to) = two().await;
    let image = from.push("a", None, "linux/amd64", &json!({}));
    copy(&from, &format!("a@{image}"), &to, &format!("b@{image}")).await.unwrap();
    assert!(to.has("b", &image));
}
