//! Registries that refuse, fail or lie, through an engine's pull.

use mcp_hub_engine_tests::{IMAGES, Scene, given, until_ready};
use mcp_hub_fakeregistry::{Access, Fault, PASSWORD, Registry, USER};
use mcp_hub_reconcile::error::Retry;
use mcp_hub_supply::bundle::Bundle;
use mcp_hub_supply::{Credentials, Reference, Registries};
use mcp_hub_test_cluster::EngineKind;
use serde_json::json;

use crate::refusal;

/// Puts an image of ours there.
pub(crate) async fn publish(registry: &Registry, name: &str, credentials: &Credentials) -> (Reference, Bundle) {
    let image = registry.image(&format!("team/{name}:1"));
    let bundle = Bundle::open(&given(IMAGES).join(format!("{name}.tar"))).await.unwrap();
    let registries = Registries::new().unwrap();
    bundle.publish(&bundle.images()[0], &image, &registries, credentials, &|_| {}).await.unwrap();
    (image, bundle)
}

fn refuses(status: u16, code: &str, message: &str) -> Fault {
    let body = json!({"errors": [{"code": code, "message": message}]}).to_string();
    Fault::Answer { status, headers: Vec::new(), body }
}

#[tokio::test]
async fn a_registry_that_fails_says_how_and_what_to_do() {
    let scene = Scene::up(EngineKind::Docker).await;
    // In the engine's network, where it is local and so may be asked in clear.
    let registry = Registry::start(Access::Everybody).await;
    let (image, _) = publish(&registry, "fixture", &Credentials::default()).await;
    let (manifests, blobs) = ("/manifests/", "GET /v2/team/fixture/blobs/");
    // With a word of the message, and of the hint.
    let cases = [
        ("unknown", manifests, refuses(401, "UNAUTHORIZED", "who are you"), "who are you", "docker login"),
        ("forbidden", manifests, refuses(403, "DENIED", "not for you"), "not for you", "docker login"),
        ("often", manifests, refuses(429, "TOOMANYREQUESTS", "slow down"), "slow down", "registry"),
        ("broken", manifests, refuses(500, "UNKNOWN", "out of order"), "500", "registry"),
        ("reset", blobs, Fault::Cut, "EOF", "registry"),
        ("altered", blobs, Fault::Corrupt, "digest", "registry"),
    ];
    for (name, part, fault, message, hint) in cases {
        registry.fault(part, fault);
        let failure = refusal(&scene, name, json!({"ref": image.to_string()})).await;
        assert_eq!((failure.reason, failure.retry), ("ImagePullFailed", Retry::Backoff), "{name}: {failure:?}");
        assert!(failure.message.contains(&image.to_string()), "{name}: {failure:?}");
        assert!(failure.message.contains(message), "{name}: {failure:?}");
        assert!(failure.hint.as_deref().unwrap_or_default().contains(hint), "{name}: {failure:?}");
        registry.mend();
    }
    // Once it works, so does the pull.
    let runtime = scene.runtime().await;
    let server = scene.server("mended", json!({"source": {"image": {"ref": image.to_string()}}, "args": ["stdio"]}));
    let workload = scene.resolved(&*runtime, &server).await;
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;
}

#[tokio::test]
async fn a_private_image_is_pulled_with_the_secret_that_is_named_and_not_without() {
    let scene = Scene::up(EngineKind::Docker).await;
    // In the engine's network, where it is local and so may be asked in clear.
    let registry = Registry::start(Access::UsersToken).await;
    let logins = json!({"auths": {&registry.host: {"username": USER, "password": PASSWORD}}}).to_string();
    let credentials = Credentials::from_docker_config(logins.as_bytes()).unwrap();
    let (image, bundle) = publish(&registry, "units", &credentials).await;

    let source = |name: &str| json!({"ref": image.to_string(), "pullSecretRef": {"name": name}});
    let failure = refusal(&scene, "without", json!({"ref": image.to_string()})).await;
    assert_eq!(failure.reason, "ImagePullFailed");
    assert!(failure.hint.unwrap().contains("pullSecretRef"), "{}", failure.message);
    let failure = refusal(&scene, "missing", source("nobodys")).await;
    assert_eq!(failure.reason, "SecretMissing");

    scene.secrets.set("team", ".dockerconfigjson", &logins);
    let runtime = scene.runtime().await;
    let server = scene.server("private", json!({"source": {"image": source("team")}, "replicas": 1}));
    let workload = scene.resolved(&*runtime, &server).await;
    let found = workload.resolved.clone().unwrap().image.unwrap();
    assert_eq!(found.index, bundle.images()[0].digest(), "the digest that the registry knows it by");
    scene.apply(&*runtime, &workload).await;
    until_ready(&runtime, &workload.owner).await;
    let shown = scene.containers(Some("mcphub.io/name=private".to_owned())).await;
    let shown = scene.api.inspect_container(shown[0].split(' ').next().unwrap(), None).await.unwrap();
    assert!(!serde_json::to_string(&shown).unwrap().contains(PASSWORD));
}
