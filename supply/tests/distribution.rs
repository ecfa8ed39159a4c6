//! The registry that most others are made of (Debian's `docker-registry`), with images of our own in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mcp_hub_supply::layout::{self, Image, Layer, Start};
use mcp_hub_supply::{Credentials, Platform, Reference, Registries, RegistryError};

/// Longest wait on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const USER: &str = "reader";
const PASSWORD: &str = "reads";
/// bcrypt of the password, cheap.
const HASH: &str = "$2b$04$vdFtR/RDr0xoLYVpnyDhNuvHzNQnVxo3NdVcr0Jya1aFM2se9OjBq";

struct Distribution {
    process: Child,
    host: String,
    _folder: tempfile::TempDir,
}

impl Drop for Distribution {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Distribution {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = format!("127.0.0.1:{}", mcp_hub_test_port::free_port().unwrap());
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        std::fs::write(at("users"), format!("{USER}:{HASH}\n")).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}'}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            at("store"),
            at("users")
        );
        std::fs::write(at("config.yml"), config).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while tokio::net::TcpStream::connect(&host).await.is_err() {
            let log = std::fs::read_to_string(at("log")).unwrap();
            assert!(started.elapsed() < PATIENCE, "the registry does not listen: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, host, _folder: folder }
    }

    fn push(&self, archive: &Path, name: &str) {
        let skopeo = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--multi-arch", "all", "--dest-tls-verify=false"])
            .arg(format!("--dest-creds={USER}:{PASSWORD}"))
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{}/{name}", self.host))
            .output()
            .unwrap();
        assert!(skopeo.status.success(), "{}", String::from_utf8_lossy(&skopeo.stderr));
    }
}

fn image(architecture: &str) -> Image {
    Image {
        platform: Platform::linux(architecture),
        layers: vec![Layer::default().file("/server", 0o755, architecture)],
        start: Start {
            entrypoint: vec!["/server".to_owned(), architecture.to_owned()],
            user: "65532".to_owned(),
            ..Start::default()
        },
    }
}

#[tokio::test]
#[ignore = "needs docker-registry and skopeo: cargo xtask test --level images"]
async fn what_was_pushed_is_what_is_told() {
    let registry = Distribution::start().await;
    let folder = tempfile::tempdir().unwrap();
    for (name, architectures) in [("mcp/one:1", &["amd64"][..]), ("mcp/several:1", &["amd64", "arm64"])] {
        let archive = folder.path().join("archive");
        let images: Vec<_> = architectures.iter().map(|architecture| image(architecture)).collect();
        layout::write(&format!("localhost/{name}"), &images, std::fs::File::create(&archive).unwrap()).unwrap();
        registry.push(&archive, name);

        let image: Reference = format!("{}/{name}", registry.host).parse().unwrap();
        let entry =
            format!(r#"{{"auths": {{"{}": {{"username": "{USER}", "password": "{PASSWORD}"}}}}}}"#, registry.host);
        let credentials = Credentials::from_docker_config(entry.as_bytes()).unwrap();
        let registries = Registries::new().unwrap();
        for architecture in architectures {
            let facts = registries.resolve(&image, &credentials, &Platform::linux(architecture)).await.unwrap();
            assert_eq!(facts.entrypoint.unwrap(), ["/server", architecture]);
            assert_eq!(facts.user.as_deref(), Some("65532"));
            assert_eq!(facts.index_digest == facts.manifest_digest, architectures.len() == 1);
            // By its digest it is the same image.
            let pinned: Reference = image.at(&facts.index_digest).parse().unwrap();
            let again = registries.resolve(&pinned, &credentials, &Platform::linux(architecture)).await.unwrap();
            assert_eq!(again.manifest_digest, facts.manifest_digest);
        }
        let error = registries.resolve(&image, &Credentials::none(), &Platform::linux("amd64")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{error:?}");
        let missing: Reference = format!("{}/mcp/none:1", registry.host).parse().unwrap();
        let error = registries.resolve(&missing, &credentials, &Platform::linux("amd64")).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{} has no image `{missing}`: manifest unknown", registry.host));
    }
}
