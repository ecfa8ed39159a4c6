//! What registries say, and how they fail.

use std::time::{Duration, Instant};

use mcp_hub_fakeregistry::{Access, Fault, INDEX, MANIFEST, PASSWORD, Registry, USER};
use mcp_hub_supply::{Credentials, ImageFacts, Platform, Reference, Registries, RegistryError};
use serde_json::json;

use crate::{amd64, answer, login, password, told};

async fn resolve(image: &Reference) -> Result<ImageFacts, RegistryError> {
    resolve_with(image, &Credentials::none()).await
}

async fn resolve_with(image: &Reference, credentials: &Credentials) -> Result<ImageFacts, RegistryError> {
    Registries::new().unwrap().resolve(image, credentials, &amd64()).await
}

#[tokio::test]
async fn an_image_is_told_with_all_that_it_starts() {
    let registry = Registry::start(Access::Everybody).await;
    let digest = registry.push(
        "mcp/git",
        Some("1.2"),
        "linux/amd64",
        &json!({"Entrypoint": ["/server", "--stdio"], "Cmd": ["run"], "User": "65532:65532", "Env": ["A=b"],
                "WorkingDir": "/data"}),
    );
    let facts = resolve(&registry.image("mcp/git:1.2")).await.unwrap();
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    assert_eq!(
        facts,
        ImageFacts {
            index_digest: digest.clone(),
            manifest_digest: digest.clone(),
            platform: amd64(),
            entrypoint: words(&["/server", "--stdio"]),
            cmd: words(&["run"]),
            user: Some("65532:65532".to_owned()),
            env: vec!["A=b".to_owned()],
            working_dir: Some("/data".to_owned()),
        }
    );
    // By its digest it is the same, and an empty list is none.
    let by_digest = registry.image(&format!("mcp/git@{digest}"));
    assert_eq!(resolve(&by_digest).await.unwrap(), facts);
    registry.push("bare", Some("latest"), "linux/amd64", &json!({"Entrypoint": [], "Cmd": null, "User": ""}));
    let bare = resolve(&registry.image("bare")).await.unwrap();
    assert_eq!((bare.entrypoint, bare.cmd, bare.user), (None, None, None));
}

#[tokio::test]
async fn of_an_index_the_platforms_own_image_is_taken() {
    let registry = Registry::start(Access::Everybody).await;
    let index = registry.push_index("a", "1", &["unknown/unknown", "linux/arm64", "linux/amd64", "windows/amd64"]);
    let registries = Registries::new().unwrap();
    let image = registry.image("a:1");
    for platform in ["amd64", "arm64"] {
        let facts = registries.resolve(&image, &Credentials::none(), &Platform::linux(platform)).await.unwrap();
        assert_eq!(facts.index_digest, index);
        assert_ne!(facts.manifest_digest, index);
        assert_eq!(facts.entrypoint.unwrap(), [format!("linux/{platform}")]);
    }
    let error = registries.resolve(&image, &Credentials::none(), &Platform::linux("s390x")).await.unwrap_err();
    assert_eq!(
        told(&error),
        format!("`{image}` is not there for linux/s390x (there are: linux/arm64, linux/amd64, windows/amd64)")
    );
    // An image without an index is of one platform as well.
    registry.push("b", Some("1"), "linux/arm64", &json!({}));
    let error = resolve(&registry.image("b:1")).await.unwrap_err();
    assert!(told(&error).ends_with("for linux/amd64 (there are: linux/arm64)"), "{error}");
}

#[tokio::test]
async fn a_registry_is_told_who_asks_in_the_way_it_wants_and_only_then() {
    for (access, entry, wanted) in [
        (Access::Everybody, json!({"username": USER, "password": PASSWORD}), vec!["-", "-", "-"]),
        (Access::Password, json!({"username": USER, "password": PASSWORD}), vec!["-", "Basic", "Basic", "Basic"]),
        (
            Access::UsersToken,
            json!({"username": USER, "password": PASSWORD}),
            vec!["-", "Basic", "Bearer", "Bearer", "Bearer"],
        ),
        (Access::UsersToken, json!({"identitytoken": PASSWORD}), vec!["-", "-", "Bearer", "Bearer", "Bearer"]),
    ] {
        let registry = Registry::start(access).await;
        registry.push_index("a/b", "1", &["linux/amd64"]);
        let image = registry.image("a/b:1");
        let credentials = login(&registry.host, entry.clone());
        resolve_with(&image, &credentials).await.unwrap_or_else(|error| panic!("{access:?} {entry}: {}", told(&error)));
        let requests = registry.requests();
        let schemes: Vec<_> = requests.iter().map(|request| request.rsplit(' ').next().unwrap()).collect();
        assert_eq!(schemes, wanted, "{requests:#?}");
        if access != Access::Everybody {
            // Another host's login is not tried.
            let elsewhere = login("127.0.0.1:1", entry);
            let error = resolve_with(&image, &elsewhere).await.unwrap_err();
            assert!(matches!(error, RegistryError::Unauthorized { with_credentials: false, .. }), "{error:?}");
        }
    }
    let registry = Registry::start(Access::AnyToken).await;
    registry.push("a/b", Some("1"), "linux/amd64", &json!({}));
    resolve(&registry.image("a/b:1")).await.unwrap();
    assert_eq!(registry.requests()[1], "GET /token -");
}

#[tokio::test]
async fn a_refusal_says_whether_there_was_a_login_and_never_which() {
    let registry = Registry::start(Access::UsersToken).await;
    registry.push("a", Some("1"), "linux/amd64", &json!({}));
    let image = registry.image("a:1");
    let none = resolve(&image).await.unwrap_err();
    assert_eq!(
        told(&none),
        format!("{} refused access to `{image}` (401: incorrect username or password)", registry.host)
    );
    assert!(none.hint().contains("pullSecretRef"), "{}", none.hint());
    let wrong = login(&registry.host, json!({"username": USER, "password": "hunter3"}));
    let wrong = resolve_with(&image, &wrong).await.unwrap_err();
    assert!(wrong.hint().contains("the pull secret may read it"), "{}", wrong.hint());
    assert!(!format!("{} {wrong:?}", told(&wrong)).contains("hunter"), "{wrong:?}");
    assert_eq!((wrong.reason(), none.reason()), ("ImageUnauthorized", "ImageUnauthorized"));
}

#[tokio::test]
async fn each_failure_has_a_name_of_its_own() {
    let registry = Registry::start(Access::Everybody).await;
    let image = registry.image("a:1");
    let error = resolve(&image).await.unwrap_err();
    assert_eq!(told(&error), format!("{} has no image `{image}`: manifest unknown", registry.host));
    registry.push("a", Some("1"), "linux/amd64", &json!({}));

    for (path, fault, reason, text) in [
        ("manifests", answer(403, &[], ""), "ImageUnauthorized", "refused access to"),
        ("manifests", answer(401, &[], ""), "ImageUnauthorized", "(401)"),
        (
            "manifests",
            answer(429, &[("retry-after", "90")], "slow down"),
            "RegistryRateLimited",
            "takes no more requests",
        ),
        ("manifests", answer(500, &[], "<html>oops"), "RegistryError", "answered 500 for"),
        ("blobs", answer(503, &[], r#"{"errors":[{"message":"down"}]}"#), "RegistryError", "answered 503 for"),
        ("manifests", answer(200, &[], "{"), "ImageInvalid", "the manifest of"),
        ("manifests", answer(200, &[], "{}"), "ImageInvalid", "a manifest without a configuration"),
        ("manifests", answer(200, &[], r#"{"manifests":[],"layers":[]}"#), "ImageInvalid", "index and manifest in one"),
        ("manifests", answer(302, &[], ""), "RegistryUnsupported", "redirects to nowhere"),
        ("manifests", answer(302, &[("location", "/v2/a/manifests/2")], ""), "RegistryUnsupported", "again and again"),
        ("manifests", answer(302, &[("location", "file:///x")], ""), "RegistryUnsupported", "to something else"),
        (
            "manifests",
            answer(401, &[("www-authenticate", r#"Bearer realm="ftp://x""#)], ""),
            "RegistryUnsupported",
            "its token server",
        ),
        ("manifests", Fault::Corrupt, "ImageDigestMismatch", "the manifest of"),
        ("blobs", Fault::Corrupt, "ImageDigestMismatch", "the configuration of"),
        ("manifests", Fault::Longer((4 << 20) + 1), "ImageInvalid", "over the limit of 4194304 bytes"),
        ("blobs", Fault::Longer((8 << 20) + 1), "ImageInvalid", "over the limit of 8388608 bytes"),
        ("blobs", Fault::Cut, "RegistryUnreachable", "could not be reached"),
    ] {
        registry.fault(path, fault.clone());
        let error = resolve(&image).await.expect_err(&format!("{fault:?}"));
        assert_eq!(error.reason(), reason, "{fault:?}: {error:?}");
        assert!(told(&error).contains(text), "{fault:?}: {}", told(&error));
        assert!(!error.hint().is_empty());
        assert_eq!(error.retry_after(), (reason == "RegistryRateLimited").then_some(Duration::from_secs(90)));
        registry.mend();
    }
    resolve(&image).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_silent_or_away_is_not_waited_for_long() {
    let registry = Registry::start(Access::Everybody).await;
    registry.push("a", Some("1"), "linux/amd64", &json!({}));
    registry.fault("blobs", Fault::Never);
    let registries = Registries::new().unwrap().patience(Duration::from_millis(300));
    let started = Instant::now();
    let image = registry.image("a:1");
    let error = registries.resolve(&image, &Credentials::none(), &amd64()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(told(&error), format!("{} did not tell of `{image}` within 300ms", registry.host));
    assert!(error.is_passing());

    let nobody = format!("127.0.0.1:{}", mcp_hub_test_port::free_port().unwrap());
    let error = resolve(&format!("{nobody}/a:1").parse().unwrap()).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryUnreachable");
    assert!(told(&error).starts_with(&format!("{nobody} could not be reached: ")), "{}", told(&error));
    assert!(error.is_passing());
}

#[tokio::test]
async fn a_blob_from_a_store_is_fetched_without_the_registrys_login() {
    let registry = Registry::start(Access::Password).await;
    registry.push("a", Some("1"), "linux/amd64", &json!({"Cmd": ["x"]}));
    let store = Registry::start(Access::Everybody).await;
    // The same bytes, so the same digest.
    store.push("a", Some("1"), "linux/amd64", &json!({"Cmd": ["x"]}));
    let digest = store.blobs("a").pop().unwrap();
    registry.fault(
        "blobs",
        Fault::Answer {
            status: 307,
            headers: vec![("location", format!("http://{}/v2/a/blobs/{digest}", store.host))],
            body: String::new(),
        },
    );
    let facts = resolve_with(&registry.image("a:1"), &password(&registry.host)).await.unwrap();
    assert_eq!(facts.cmd.unwrap(), ["x"]);
    assert_eq!(store.requests(), [format!("GET /v2/a/blobs/{digest} -")]);
}

#[tokio::test]
async fn a_store_that_asks_who_asks_is_not_told() {
    for entry in [json!({"username": USER, "password": PASSWORD}), json!({"identitytoken": PASSWORD})] {
        let registry = Registry::start(Access::UsersToken).await;
        registry.push("a", Some("1"), "linux/amd64", &json!({}));
        // It names a token server, too: itself.
        let store = Registry::start(Access::UsersToken).await;
        let place = format!("http://{}/v2/a/blobs/x", store.host);
        registry.fault("blobs", answer(307, &[("location", &place)], ""));
        let error = resolve_with(&registry.image("a:1"), &login(&registry.host, entry)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{error:?}");
        assert_eq!(store.requests(), ["GET /v2/a/blobs/x -"]);
    }
}

#[tokio::test]
async fn an_image_is_what_a_container_can_be_made_of() {
    let registry = Registry::start(Access::Everybody).await;
    let chart = registry.blob("chart", "{}");
    registry.manifest(
        "chart",
        Some("1"),
        MANIFEST,
        &json!({"schemaVersion": 2, "layers": [],
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": chart, "size": 2}}),
    );
    let error = resolve(&registry.image("chart:1")).await.unwrap_err();
    assert!(told(&error).contains("an artifact of type application/vnd.cncf.helm.config.v1+json"), "{}", told(&error));

    let inner = registry.push_index("nested", "inner", &["linux/amd64"]);
    registry.manifest(
        "nested",
        Some("1"),
        INDEX,
        &json!({"schemaVersion": 2, "manifests": [
        {"mediaType": INDEX, "digest": inner, "platform": {"os": "linux", "architecture": "amd64"}}]}),
    );
    let error = resolve(&registry.image("nested:1")).await.unwrap_err();
    assert!(told(&error).contains("an index of indexes"), "{}", told(&error));

    registry.manifest(
        "odd",
        Some("1"),
        INDEX,
        &json!({"schemaVersion": 2, "manifests": [
        {"mediaType": MANIFEST, "digest": "sha256:../../etc", "platform": {"os": "linux", "architecture": "amd64"}}]}),
    );
    assert_eq!(resolve(&registry.image("odd:1")).await.unwrap_err().reason(), "ImagePlatformMissing");
}

#[tokio::test]
async fn plain_http_is_for_this_machine_or_for_whom_it_was_said() {
    // A name that leads here but is not known to be here.
    let registry = Registry::start(Access::Everybody).await;
    registry.push("a", Some("1"), "linux/amd64", &json!({}));
    let port = registry.host.rsplit(':').next().unwrap();
    let name = format!("0.0.0.0:{port}");
    let image: Reference = format!("{name}/a:1").parse().unwrap();
    let error = resolve(&image).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryUnreachable", "{}", told(&error));
    let registries = Registries::new().unwrap().plain_http([name]);
    registries.resolve(&image, &Credentials::none(), &amd64()).await.unwrap();
}
