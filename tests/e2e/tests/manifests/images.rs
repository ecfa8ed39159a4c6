//! Images that manifests name: locked, published, carried.

use std::path::PathBuf;

use mcp_hub_e2e::{Hub, text};
use mcp_hub_fakeregistry::{Access, CONFIG, Fault, PASSWORD, Registry, USER};
use serde_json::{Value, json};

/// Two servers from two images, in a registry that wants a login, which a helper has.
struct Scene {
    hub: Hub,
    registry: Registry,
}

impl Scene {
    async fn new() -> Self {
        let registry = Registry::start(Access::UsersToken).await;
        registry.push_index("mcp/git", "1", &["linux/amd64", "linux/arm64", "unknown/unknown"]);
        registry.push("mcp/time", Some("2"), "linux/s390x", &json!({}));
        let mut hub = Hub::new();
        hub.write("git.yaml", &manifest("git", &format!("{}/mcp/git:1", registry.host)));
        hub.write("time.yaml", &manifest("time", &format!("{}/mcp/time:2", registry.host)));
        let helper = hub.home().join("docker-credential-test");
        let answer = json!({"ServerURL": "", "Username": USER, "Secret": PASSWORD});
        let script = format!(
            "#!/bin/sh\nread -r host\n[ \"$1\" = get ] && [ \"$host\" = {} ] && printf '%s' '{answer}' && exit\n\
             echo 'credentials not found in native keychain'\nexit 1\n",
            registry.host
        );
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(hub.home().join("config.json"), r#"{"auths": {"x.io": {}}, "credsStore": "test"}"#).unwrap();
        let path = std::env::var("PATH").unwrap();
        let home = hub.home().to_str().unwrap().to_owned();
        hub.set_env("PATH", &format!("{home}:{path}"));
        hub.set_env("DOCKER_CONFIG", &home);
        Self { hub, registry }
    }

    fn lock_file(&self) -> PathBuf {
        self.hub.home().join("images.lock.json")
    }

    /// Stderr of a command that ends with this code.
    fn run(&self, code: i32, args: &[&str]) -> String {
        let lock = self.lock_file();
        let output = self.hub.mcpctl(&[args, &["--lock-file", lock.to_str().unwrap()]].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(!said.contains(PASSWORD), "{said}");
        said
    }

    fn lock(&self, code: i32) -> String {
        let manifests = self.hub.manifests();
        self.run(code, &["lock-images", "-f", manifests.to_str().unwrap()])
    }

    fn locked(&self) -> String {
        std::fs::read_to_string(self.lock_file()).unwrap()
    }

    /// The lock's entry for an image.
    fn entry(&self, image: &str) -> Value {
        let lock: Value = serde_json::from_str(&self.locked()).unwrap();
        lock["images"][format!("{}/{image}", self.registry.host)].clone()
    }
}

fn manifest(name: &str, image: &str) -> String {
    format!(
        "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec: {{source: {{image: {{ref: '{image}'}}}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_locked_to_what_their_names_stand_for() {
    let scene = Scene::new().await;
    let said = scene.lock(0);
    assert!(said.contains("(linux/amd64, linux/arm64)"), "{said}");
    assert!(said.contains("mcp/time:2 is not made for this machine"), "{said}");
    let first = scene.locked();
    assert_eq!(scene.entry("mcp/git:1")["platforms"].as_object().unwrap().len(), 2);

    // The same again is the same, byte for byte.
    let said = scene.lock(0);
    assert!(said.contains("is up to date") && scene.locked() == first, "{said}");

    // One name stands for another image; the other entry stays as it is.
    let git = scene.entry("mcp/git:1");
    let time = scene.registry.push("mcp/time", Some("2"), "linux/amd64", &json!({"Cmd": ["new"]}));
    let said = scene.lock(0);
    assert!(said.contains(&format!("mcp/time:2 is now {time} (linux/amd64)")), "{said}");
    assert_eq!((scene.entry("mcp/git:1"), scene.entry("mcp/time:2")["digest"].clone()), (git, json!(time)));

    // One that cannot be resolved: it is named, so is what became of the others, and nothing is written.
    let before = scene.locked();
    scene.hub.write("gone.yaml", &manifest("gone", &format!("{}/mcp/gone:1", scene.registry.host)));
    let said = scene.lock(1);
    assert!(said.contains("mcp/gone:1: ") && said.contains("1 of 3 images could not be locked"), "{said}");
    assert_eq!(scene.locked(), before);
    std::fs::remove_file(scene.hub.manifests().join("gone.yaml")).unwrap();

    // A file of the first version.
    let digest = scene.entry("mcp/git:1")["digest"].clone();
    let name = format!("{}/mcp/git:1", scene.registry.host);
    let old = json!({"version": "1.0", "images": {name.clone(): {"tag": name, "digest": digest,
        "platform": "linux/amd64", "last_updated": "2024-05-01T10:00:00.5"}}});
    std::fs::write(scene.lock_file(), old.to_string()).unwrap();
    let bundle = scene.hub.home().join("images.tar");
    let save = ["bundle", "save", bundle.to_str().unwrap()];
    let said = scene.run(0, &save);
    assert!(said.contains("warning: ") && said.contains("may name one platform only"), "{said}");
    let said = scene.lock(0);
    assert!(said.contains("is of version 1.0: written as 2.0"), "{said}");
    assert!(!scene.run(0, &save).contains("warning"));
    assert_eq!(scene.entry("mcp/git:1")["last_updated"], "2024-05-01T10:00:00Z");

    // The user's own configuration, where nothing else is named.
    std::fs::remove_file(scene.lock_file()).unwrap();
    assert!(scene.run(6, &["lock-images"]).contains("comes from an image"));
    let time = scene.hub.manifests().join("time.yaml");
    scene.hub.ok(&["apply", "-f", time.to_str().unwrap()]);
    scene.run(0, &["lock-images"]);
    assert_eq!((scene.entry("mcp/git:1"), scene.entry("mcp/time:2")["digest"].is_string()), (Value::Null, true));

    // What is no lock file is not overwritten.
    std::fs::write(scene.lock_file(), r#"{"version": "9"}"#).unwrap();
    assert!(scene.lock(6).contains("is no lock file"));
    assert_eq!(scene.locked(), r#"{"version": "9"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_images_go_to_a_registry_and_by_file_to_another() {
    let scene = Scene::new().await;
    assert!(scene.run(3, &["publish-images", "--registry", "localhost:1"]).contains("mcpctl lock-images"));
    scene.lock(0);
    let mirror = Registry::start(Access::Everybody).await;
    let own_lock = scene.hub.home().join("mirror.lock.json");
    let team = format!("{}/team", mirror.host);
    let publish = ["publish-images", "--registry", &team, "--write-lock", own_lock.to_str().unwrap()];
    let said = scene.run(0, &publish);
    assert!(said.contains(&format!("{team}/mcp/git:1 published (")), "{said}");
    assert!(scene.run(0, &publish).contains("were there)"));
    let own = std::fs::read_to_string(&own_lock).unwrap();
    let written: Value = serde_json::from_str(&own).unwrap();
    let there = &written["images"][format!("{team}/mcp/git:1")];
    assert_eq!(there["platforms"], scene.entry("mcp/git:1")["platforms"]);

    // Somebody stores another image under the name before it is locked.
    let config = mirror.blob("team/mcp/git", r#"{"os": "linux", "architecture": "amd64"}"#);
    let other = json!({"schemaVersion": 2, "layers": [],
        "config": {"mediaType": CONFIG, "digest": config, "size": 40}});
    let body = other.to_string();
    let digest = mcp_hub_fakeregistry::digest(body.as_bytes());
    mirror.fault("GET /v2/team/mcp/git/manifests/1", Fault::Answer { status: 200, headers: Vec::new(), body });
    let said = scene.run(1, &publish);
    assert!(said.contains(&format!("got {digest})")) && said.contains("do not run it"), "{said}");
    assert_eq!(std::fs::read_to_string(&own_lock).unwrap(), own);
    mirror.mend();

    // Only some of them; one that is not locked; two that would become one.
    let (git, gone) = (scene.hub.manifests().join("git.yaml"), scene.hub.home().join("gone.yaml"));
    let only = ["publish-images", "--registry", &format!("{}/only", mirror.host), "-f"];
    scene.run(0, &[&only[..], &[git.to_str().unwrap()]].concat());
    assert!(mirror.has("only/mcp/git", "1") && !mirror.has("only/mcp/time", "2"));
    std::fs::write(&gone, manifest("gone", "ghcr.io/mcp/gone:1")).unwrap();
    let said = scene.run(3, &[&only[..], &[gone.to_str().unwrap()]].concat());
    assert!(said.contains("`ghcr.io/mcp/gone:1`"), "{said}");
    let good = scene.locked();
    let entry = |byte: &str, host: &str| {
        let (tag, digest) = (format!("{host}/a:1"), format!("sha256:{}", byte.repeat(32)));
        (tag.clone(), json!({"tag": tag, "digest": digest, "platforms": {}, "last_updated": "2026-11-26T05:00:00Z"}))
    };
    let images: serde_json::Map<String, Value> = [entry("01", "a.io"), entry("02", "b.io")].into_iter().collect();
    std::fs::write(scene.lock_file(), json!({"version": "2.0", "images": images}).to_string()).unwrap();
    assert!(scene.run(6, &only[..3]).contains("a.io/a:1 and b.io/a:1 would both become"));
    std::fs::write(scene.lock_file(), good).unwrap();

    let bundle = scene.hub.home().join("images.tar");
    let said = scene.run(0, &["bundle", "save", bundle.to_str().unwrap()]);
    assert!(said.contains("images.tar written: 2 images"), "{said}");
    let island = Registry::start(Access::Everybody).await;
    let load = ["bundle", "load", bundle.to_str().unwrap(), "--registry", &island.host];
    let loaded = scene.hub.mcpctl(&load);
    assert!(loaded.status.success(), "{}", text(&loaded.stderr));
    let digest = scene.entry("mcp/git:1")["digest"].as_str().unwrap().to_owned();
    assert!(island.has("mcp/git", "1") && island.has("mcp/git", &digest) && island.has("mcp/time", "2"));

    // A damaged one goes nowhere.
    let mut bytes = std::fs::read(&bundle).unwrap();
    let at = bytes.len() - 1024 - 600;
    bytes[at] ^= 1;
    std::fs::write(&bundle, bytes).unwrap();
    island.forget_requests();
    let error = scene.hub.fails(6, &load);
    assert!(error.contains("images.tar: ") && error.contains("hint: "), "{error}");
    assert_eq!(island.requests(), Vec::<String>::new());
    // Nor does half of one stay behind where it cannot be made.
    mirror.forget_requests();
    let nowhere = scene.run(1, &["bundle", "save", "/nonexistent/images.tar"]);
    assert!(nowhere.contains("could not write /nonexistent/images.tar"), "{nowhere}");
}
