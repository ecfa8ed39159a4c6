//! The registry that most others are made of, as a process of its own.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// bcrypt of [`Distribution::PASSWORD`], cheap.
const HASH: &str = "$2b$04$vdFtR/RDr0xoLYVpnyDhNuvHzNQnVxo3NdVcr0Jya1aFM2se9OjBq";

/// Debian's `docker-registry`, empty, for who has the login. Dropped, it ends, and what it held is gone.
#[derive(Debug)]
pub struct Distribution {
    process: Child,
    pub host: String,
    _folder: tempfile::TempDir,
}

impl Drop for Distribution {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Distribution {
    pub const USER: &str = "reader";
    pub const PASSWORD: &str = "reads";

    /// Starts one at any free port.
    pub async fn start() -> Self {
        Self::at(&format!("127.0.0.1:{}", mcp_hub_test_port::free_port().unwrap())).await
    }

    /// Starts one at this address, where the calling thread's network is, and waits until it listens.
    pub async fn at(host: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        std::fs::write(at("users"), format!("{}:{HASH}\n", Self::USER)).unwrap();
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
        let registry = Self { process, host: host.to_owned(), _folder: folder };
        let started = Instant::now();
        while tokio::net::TcpStream::connect(host).await.is_err() {
            let log = std::fs::read_to_string(registry._folder.path().join("log")).unwrap();
            assert!(started.elapsed() < PATIENCE, "the registry does not listen: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        registry
    }

    /// Docker's `config.json` with the logins for these.
    pub fn logins(registries: &[&Self]) -> String {
        let entry = |registry: &&Self| {
            (registry.host.clone(), serde_json::json!({"username": Self::USER, "password": Self::PASSWORD}))
        };
        let entries: serde_json::Map<_, _> = registries.iter().map(entry).collect();
        serde_json::json!({"auths": entries}).to_string()
    }
}
