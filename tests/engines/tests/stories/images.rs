//! Images that come to an engine by a lock file.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bollard::query_parameters::{CreateImageOptions, RemoveImageOptions, TagImageOptions};
use futures::StreamExt;
use mcp_hub_e2e::{Hub, text};
use mcp_hub_engine_tests::{FIXTURE, IMAGES, Scene, UNITS, given};
use mcp_hub_fakeregistry::{Access, Distribution, Fault, INDEX, MANIFEST, Registry};
use mcp_hub_supply::bundle::Bundle;
use mcp_hub_supply::{Credentials, Registries};
use mcp_hub_test_cluster::{EngineKind, REGISTRIES, Tap, Verdict};
use serde_json::{Value, json};

use super::CONVERSION;

const OWN: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Puts the example server's image into a registry, as `REPOSITORY:1` for this machine and another; gives its digest, and
/// that for this machine.
async fn push(registry: &Registry, repository: &str) -> [String; 2] {
    let bundle = Bundle::open(&given(IMAGES).join("units.tar")).await.unwrap();
    let image = &bundle.images()[0];
    let to = registry.image(&format!("{repository}:own"));
    bundle.publish(image, &to, &Registries::new().unwrap(), &Credentials::none(), &|_| {}).await.unwrap();
    let other = registry.push(repository, None, "linux/riscv64", &json!({}));
    let entries = [(image.digest(), OWN), (&other, "riscv64")].map(|(digest, architecture)| {
        let size = registry.document(repository, digest).len();
        let platform = json!({"os": "linux", "architecture": architecture});
        json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform})
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    [registry.manifest(repository, Some("1"), INDEX, &index), image.digest().to_owned()]
}

fn server(image: &str) -> String {
    let spec = json!({"source": {"image": {"ref": image, "pinDigest": true}}});
    json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": "units"}, "spec": spec})
        .to_string()
}

/// A path in the hub's folder.
fn at(hub: &Hub, name: &str) -> String {
    hub.home().join(name).to_string_lossy().into_owned()
}

/// Stderr of a command that must succeed.
fn said(hub: &Hub, args: &[&str]) -> String {
    let output = hub.mcpctl(args);
    assert!(output.status.success(), "mcpctl {args:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

/// Locked, published, pulled by the lock file that this wrote, and started when no registry is there any more.
async fn what_was_pulled_by_its_lock_starts_without_a_registry(kind: EngineKind) {
    let scene = Scene::empty(kind).await;
    let origin = Registry::start(Access::Everybody).await;
    let mirror = Distribution::at(REGISTRIES[0]).await;
    let digests = push(&origin, "mcp/units").await;
    let mut hub = scene.hub(&scene.engine.address());
    std::fs::create_dir(hub.home().join("docker")).unwrap();
    std::fs::write(hub.home().join("docker/config.json"), Distribution::logins(&[&mirror])).unwrap();
    hub.set_env("DOCKER_CONFIG", &at(&hub, "docker"));
    std::fs::write(hub.home().join("origin.yaml"), server(&origin.image("mcp/units:1").to_string())).unwrap();
    let (manifest, lock, published) = (at(&hub, "origin.yaml"), at(&hub, "origin.lock"), at(&hub, "published.lock"));

    hub.ok(&["lock-images", "-f", &manifest, "--lock-file", &lock]);
    let registry = format!("{}/team", mirror.host);
    let publish = ["publish-images", "--registry", &registry, "--lock-file", &lock, "--write-lock", &published];
    hub.ok(&publish);
    drop(origin);
    let pull = ["pull-images", "--lock-file", &published];
    let name = format!("{registry}/mcp/units:1");
    assert!(said(&hub, &pull).contains(&format!("{name} pulled: {}", digests[0])));
    drop(mirror);
    assert!(said(&hub, &pull).contains(&format!("{name} is there already")), "it is not asked for again");

    hub.write("servers.yaml", &server(&name));
    hub.start();
    let units = hub.wait_reason("units", "Ready");
    // Of the two that the registry knew it by, Podman tells the other.
    let index = units["status"]["resolved"]["image"]["index"].as_str().unwrap();
    assert!(digests.iter().any(|digest| digest == index), "{index} of {digests:?}");
    assert_eq!(hub.ok(&CONVERSION).trim(), "26.2 mi = 42.1648128 km");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_docker_what_was_pulled_by_its_lock_starts_without_a_registry() {
    what_was_pulled_by_its_lock_starts_without_a_registry(EngineKind::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_podman_what_was_pulled_by_its_lock_starts_without_a_registry() {
    what_was_pulled_by_its_lock_starts_without_a_registry(EngineKind::Podman).await;
}

/// A lock file with these images: name, digest, platforms.
fn write_lock(hub: &Hub, images: &[(&str, &str, Value)]) -> PathBuf {
    let entry = |(name, digest, platforms): &(&str, &str, Value)| {
        let entry =
            json!({"tag": name, "digest": digest, "platforms": platforms, "last_updated": "2026-11-26T05:00:00Z"});
        ((*name).to_owned(), entry)
    };
    let images: serde_json::Map<_, _> = images.iter().map(entry).collect();
    let path = hub.home().join("images.lock.json");
    std::fs::write(&path, json!({"version": "2.0", "images": images}).to_string()).unwrap();
    path
}

async fn what_is_not_what_was_locked_is_refused_and_the_rest_is_pulled(kind: EngineKind) {
    let scene = Scene::empty(kind).await;
    let registry = Registry::at(REGISTRIES[1], Access::Everybody).await;
    let hub = scene.hub(&scene.engine.address());
    let mut images = Vec::new();
    let [good, _] = push(&registry, "good").await;
    images.push((registry.image("good:1").to_string(), good, json!({})));
    for repository in ["manifest", "blob"] {
        // Each another one: what an engine has is not asked for.
        let config =
            json!({"os": "linux", "architecture": OWN, "config": {"User": repository}, "rootfs": {}}).to_string();
        let digest = registry.push_parts(repository, Some("1"), config, &[]);
        images.push((registry.image(&format!("{repository}:1")).to_string(), digest, json!({})));
    }
    let only = registry.push("other", Some("1"), "linux/riscv64", &json!({}));
    images.push((registry.image("other:1").to_string(), only.clone(), json!({})));
    images.push((registry.image("other:told").to_string(), only.clone(), json!({"linux/riscv64": only})));
    // Something else for the digest; and a registry that is not well at first.
    registry.fault("GET /v2/manifest/manifests", Fault::Corrupt);
    registry.fault("GET /v2/blob/blobs", Fault::Corrupt);
    registry.fault_times(
        "GET /v2/good/manifests",
        1,
        Fault::Answer { status: 503, headers: Vec::new(), body: String::new() },
    );

    let images: Vec<_> =
        images.iter().map(|(name, digest, platforms)| (&**name, &**digest, platforms.clone())).collect();
    let lock = write_lock(&hub, &images);
    let said = hub.fails(1, &["pull-images", "--lock-file", lock.to_str().unwrap()]);
    assert!(said.contains("4 of 5 images could not be pulled"), "{said}");
    assert!(said.contains(&format!("{} pulled", images[0].0)), "{said}");
    for (name, digest, _) in &images[1..] {
        assert!(said.contains(&format!("error: {name}")), "{said}");
        for name in [(*name).to_owned(), format!("{}@{digest}", name.rsplit_once(':').unwrap().0)] {
            assert!(scene.api.inspect_image(&name).await.is_err(), "{name} is there: {said}");
        }
    }
    assert!(said.contains("other:told is for linux/riscv64, and the engine runs"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_docker_what_is_not_what_was_locked_is_refused_and_the_rest_is_pulled() {
    what_is_not_what_was_locked_is_refused_and_the_rest_is_pulled(EngineKind::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_podman_what_is_not_what_was_locked_is_refused_and_the_rest_is_pulled() {
    what_is_not_what_was_locked_is_refused_and_the_rest_is_pulled(EngineKind::Podman).await;
}

/// An image whose layer is compressed, as those of nearly all images are. Nothing in it can start.
fn push_compressed(registry: &Registry, folder: &Path) -> String {
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).current_dir(folder).status().unwrap().success(), "{program} {args:?}");
    };
    std::fs::write(folder.join("file"), "content").unwrap();
    run("tar", &["-cf", "layer.tar", "file"]);
    run("gzip", &["-k", "layer.tar"]);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let rootfs = json!({"type": "layers", "diff_ids": [mcp_hub_fakeregistry::digest(&read("layer.tar"))]});
    let config = json!({"os": "linux", "architecture": OWN, "config": {}, "rootfs": rootfs}).to_string();
    registry.push_parts("compressed", Some("1"), config, &[&read("layer.tar.gz")])
}

async fn a_bundle_is_loaded_for_the_engines_platform_and_starts(kind: EngineKind) {
    let scene = Scene::empty(kind).await;
    let registry = Registry::start(Access::Everybody).await;
    let mut hub = scene.hub(&scene.engine.address());
    let [units, own] = push(&registry, "mcp/units").await;
    let compressed = push_compressed(&registry, scene.folder.path());
    let other = registry.push("other", Some("1"), "linux/riscv64", &json!({}));
    let names = ["mcp/units:1", "compressed:1", "other:1"].map(|name| registry.image(name).to_string());
    let digests = [units, compressed, other];
    let images: Vec<_> = names.iter().zip(&digests).map(|(name, digest)| (&**name, &**digest, json!({}))).collect();
    let (lock, bundle) = (write_lock(&hub, &images), at(&hub, "bundle.tar"));
    hub.ok(&["bundle", "save", &bundle, "--lock-file", lock.to_str().unwrap()]);
    drop(registry);

    // One that changed on its way is refused as a whole.
    let mut bytes = std::fs::read(&bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let changed = at(&hub, "changed.tar");
    std::fs::write(&changed, bytes).unwrap();
    let runtime = scene.kind().as_str();
    hub.fails(6, &["bundle", "load", &changed, "--runtime", runtime]);
    assert!(scene.api.inspect_image(&names[1]).await.is_err());

    let load = ["bundle", "load", &bundle, "--runtime", runtime];
    let said = hub.fails(1, &load);
    assert!(said.contains(&format!("{} loaded", names[0])) && said.contains(&format!("{} loaded", names[1])), "{said}");
    let wrong = format!("error: {}: `{}` is not there for linux/{OWN}", names[2], names[2]);
    assert!(said.contains(&wrong) && said.contains("1 of 3 images could not be loaded"), "{said}");
    assert!(scene.api.inspect_image(&names[2]).await.is_err(), "{said}");
    let said = hub.fails(1, &load);
    assert!(said.contains(&format!("{} is there already", names[0])), "{said}");

    hub.write("servers.yaml", &server(&names[0]));
    hub.start();
    if kind == EngineKind::Docker {
        // It knows no digest of what it did not pull itself.
        hub.wait_reason("units", "ImageUnpinned");
        hub.write("servers.yaml", &server(&names[0]).replace("true", "false"));
    }
    let ready = hub.wait_reason("units", "Ready");
    if kind == EngineKind::Podman {
        assert_eq!(ready["status"]["resolved"]["image"]["index"], *own, "the manifest's, as a registry has it");
    }
    assert_eq!(hub.ok(&CONVERSION).trim(), "26.2 mi = 42.1648128 km");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_docker_a_bundle_is_loaded_for_the_engines_platform_and_starts() {
    a_bundle_is_loaded_for_the_engines_platform_and_starts(EngineKind::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_podman_a_bundle_is_loaded_for_the_engines_platform_and_starts() {
    a_bundle_is_loaded_for_the_engines_platform_and_starts(EngineKind::Podman).await;
}

/// Names an image while somebody else's request waits.
fn name_behind_the_tap(socket: &Path, image: &str, name: &str) {
    let (repository, tag) = name.rsplit_once(':').unwrap();
    let mut stream = UnixStream::connect(socket).unwrap();
    let path = format!("/v1.41/images/{image}/tag?repo={repository}&tag={tag}");
    write!(stream, "POST {path} HTTP/1.0\r\nHost: engine\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 201 "), "{answer}");
}

/// An engine says yes to what it is given, and the name stands for what it did before, or for yet another image. Nobody gave us
/// either of them to remove.
async fn an_image_that_keeps_its_name_is_kept_when_another_was_loaded(kind: EngineKind) {
    let scene = Scene::empty(kind).await;
    let registry = Registry::start(Access::Everybody).await;
    let digest = push_compressed(&registry, scene.folder.path());
    let name = registry.image("compressed:1").to_string();
    let (repository, tag) = name.rsplit_once(':').unwrap();
    scene.load("units").await;
    let theirs = scene.api.inspect_image(UNITS).await.unwrap().id.unwrap();
    let again = TagImageOptions { repo: Some(repository.to_owned()), tag: Some(tag.to_owned()) };
    scene.api.tag_image(UNITS, Some(again)).await.unwrap();
    scene.api.remove_image(UNITS, None::<RemoveImageOptions>, None).await.unwrap();

    scene.load("fixture").await;

    // Between the load and the look at what came of it the name is given to their image, and the next time to another.
    let (socket, loads, named) = (scene.engine.socket(), AtomicUsize::new(0), name.clone());
    let (looks, images) = (format!("GET /images/{name}/json"), [theirs.clone(), FIXTURE.to_owned()]);
    let tap = Tap::before(&scene.engine, move |line| {
        let before = loads.fetch_add(usize::from(line.starts_with("POST /images/load")), Ordering::Relaxed);
        if line == looks && before > 0 {
            name_behind_the_tap(&socket, &images[before - 1], &named);
        }
        Verdict::Pass
    })
    .unwrap();
    let hub = scene.hub(&tap.address());
    let (lock, bundle) = (write_lock(&hub, &[(&name, &digest, json!({}))]), at(&hub, "bundle.tar"));
    hub.ok(&["bundle", "save", &bundle, "--lock-file", lock.to_str().unwrap()]);
    for _ in 0..2 {
        let said = hub.fails(1, &["bundle", "load", &bundle, "--runtime", scene.kind().as_str()]);
        assert!(said.contains(&format!("stored {name} as something else")), "{said}");
        assert_eq!(scene.api.inspect_image(&name).await.unwrap().id.as_ref(), Some(&theirs), "{said}");
    }
    assert!(scene.api.inspect_image(FIXTURE).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_docker_an_image_that_keeps_its_name_is_kept_when_another_was_loaded() {
    an_image_that_keeps_its_name_is_kept_when_another_was_loaded(EngineKind::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_podman_an_image_that_keeps_its_name_is_kept_when_another_was_loaded() {
    an_image_that_keeps_its_name_is_kept_when_another_was_loaded(EngineKind::Podman).await;
}

/// It is neither removed nor said to be, and not forgotten.
async fn an_image_that_gets_another_name_while_it_is_tidied_away_stays(kind: EngineKind) {
    let scene = Scene::empty(kind).await;
    let registry = Registry::at(REGISTRIES[1], Access::Everybody).await;
    let digest = push_compressed(&registry, scene.folder.path());
    let name = registry.image("compressed:1").to_string();
    let (socket, image, named) = (scene.engine.socket(), name.clone(), AtomicBool::new(false));
    let tap = Tap::before(&scene.engine, move |line| {
        if line.starts_with("DELETE /images/") && !named.fetch_or(true, Ordering::Relaxed) {
            name_behind_the_tap(&socket, &image, "localhost/mine:1");
        }
        Verdict::Pass
    })
    .unwrap();
    let hub = scene.hub(&tap.address());
    let lock = write_lock(&hub, &[(&name, &digest, json!({}))]);
    said(&hub, &["pull-images", "--lock-file", lock.to_str().unwrap()]);
    let none = at(&hub, "none.lock");
    for _ in 0..2 {
        let said = said(&hub, &["gc", "--lock-file", &none, "--older-than", "0s", "--yes"]);
        assert!(said.contains("stays: somebody gave it another name") && said.contains("nothing to remove"), "{said}");
    }
    assert!(scene.api.inspect_image("localhost/mine:1").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_docker_an_image_that_gets_another_name_while_it_is_tidied_away_stays() {
    an_image_that_gets_another_name_while_it_is_tidied_away_stays(EngineKind::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_podman_an_image_that_gets_another_name_while_it_is_tidied_away_stays() {
    an_image_that_gets_another_name_while_it_is_tidied_away_stays(EngineKind::Podman).await;
}

/// What we brought goes when nothing needs it any more; what others brought stays, whatever it is called.
async fn only_what_we_brought_and_nobody_needs_is_tidied_away(kind: EngineKind) {
    let scene = Scene::empty(kind).await;
    let registry = Registry::at(REGISTRIES[1], Access::Everybody).await;
    let mut hub = scene.hub(&scene.engine.address());
    let [_, units] = push(&registry, "mcp/units").await;
    let ours = push_compressed(&registry, scene.folder.path());
    let config = json!({"os": "linux", "architecture": OWN, "config": {"User": "theirs"}, "rootfs": {}}).to_string();
    let theirs = registry.push_parts("theirs", Some("1"), config.clone(), &[]);
    // The same in another repository, which they have not pulled.
    registry.push_parts("copy", Some("1"), config, &[]);
    let [units_name, ours_name, their_name, copy_name] =
        ["mcp/units:own", "compressed:1", "theirs:1", "copy:1"].map(|name| registry.image(name).to_string());
    let options = CreateImageOptions { from_image: Some(their_name.clone()), ..Default::default() };
    let mut pulled = scene.api.create_image(Some(options), None, None);
    while let Some(step) = pulled.next().await {
        assert!(step.unwrap().error_detail.is_none());
    }

    // Until it is pulled its name stands for another image.
    let [repository, tag] = ours_name.rsplit_once(':').unwrap().into();
    let tag = TagImageOptions { repo: Some(repository.to_owned()), tag: Some(tag.to_owned()) };
    scene.api.tag_image(&their_name, Some(tag)).await.unwrap();

    // Three by a lock file, of which one was there, and one under another name; one by the daemon.
    let locked = [(&*ours_name, &*ours), (&*their_name, &*theirs), (&*copy_name, &*theirs)];
    let lock = write_lock(&hub, &locked.map(|(name, digest)| (name, digest, json!({}))));
    let lock = lock.to_str().unwrap();
    let pulled = said(&hub, &["pull-images", "--lock-file", lock]);
    assert!(pulled.contains(&format!("{ours_name} pulled")), "{pulled}");
    assert!(pulled.contains(&format!("{copy_name} is there already")), "{pulled}");
    let id = scene.api.inspect_image(&their_name).await.unwrap().id.unwrap();
    assert!(
        pulled.contains("warning: until now its name stood for ") && pulled.contains(id.trim_start_matches("sha256:")),
        "{pulled}"
    );
    hub.write("servers.yaml", &server(&units_name));
    hub.start();
    hub.wait_reason("units", "Ready");

    // What a crash left while it was written.
    let noted = hub.home().join("state/images");
    let entries: Vec<_> = std::fs::read_dir(&noted).unwrap().map(|entry| entry.unwrap().path()).collect();
    for (number, entry) in entries.iter().enumerate() {
        std::fs::copy(entry, noted.join(format!(".tmp{number}"))).unwrap();
    }

    let none = at(&hub, "none.lock");
    let gc = |hub: &Hub, args: &[&str]| said(hub, &[&["gc", "--lock-file"], args].concat());
    assert!(gc(&hub, &[lock, "--older-than", "0s"]).contains(&format!("{ours_name} stays: it is locked")));
    assert!(gc(&hub, &[&none, "--yes"]).contains(&format!("{ours_name} stays: it was asked for recently")));
    let now = [&*none, "--older-than", "0s"];
    let planned = gc(&hub, &now);
    assert!(planned.contains(&format!("{ours_name} would go")) && planned.contains("1 would go: up to "), "{planned}");
    assert!(planned.contains(&format!("{units_name} stays: a container is made of it")), "{planned}");
    assert!(!planned.contains(&their_name) && !planned.contains(&copy_name), "{planned}");
    let tag = TagImageOptions { repo: Some("localhost/mine".to_owned()), tag: Some("1".to_owned()) };
    scene.api.tag_image(&ours_name, Some(tag)).await.unwrap();
    assert!(gc(&hub, &now).contains("stays: somebody gave it another name"));
    scene.api.remove_image("localhost/mine:1", None::<RemoveImageOptions>, None).await.unwrap();
    assert!(scene.api.inspect_image(&ours_name).await.is_ok(), "nothing went without --yes");

    let remove = [&*none, "--older-than", "0s", "--yes"];
    let removed = gc(&hub, &remove);
    assert!(removed.contains(&format!("{ours_name} removed")), "{removed}");
    assert!(scene.api.inspect_image(&ours_name).await.is_err(), "{removed}");
    hub.ok(&["down", "--all"]);
    let removed = gc(&hub, &remove);
    assert!(removed.contains(&format!("{units_name} removed")), "{removed}");
    assert!(scene.api.inspect_image(&units).await.is_err() && scene.api.inspect_image(&units_name).await.is_err());
    assert!(scene.api.inspect_image(&their_name).await.is_ok(), "{removed}");
    assert!(gc(&hub, &remove).contains("nothing to remove"));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_docker_only_what_we_brought_and_nobody_needs_is_tidied_away() {
    only_what_we_brought_and_nobody_needs_is_tidied_away(EngineKind::Docker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_podman_only_what_we_brought_and_nobody_needs_is_tidied_away() {
    only_what_we_brought_and_nobody_needs_is_tidied_away(EngineKind::Podman).await;
}
