//! The runtimes of one machine. Engines are such as say what they are, and are asked for nothing else.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mcp_hub_local_runtime::docker::{
    Bridges, DockerConfig, DockerRuntime, EngineKind, Ledger, Program, ProgramImage, Surroundings,
};
use mcp_hub_local_runtime::host::Host;
use mcp_hub_local_runtime::process::{ProcessConfig, ProcessRuntime};
use mcp_hub_local_runtime::runtime_set::RuntimeSet;
use mcp_hub_local_runtime::secret_source::Given;
use mcp_hub_reconcile::contract::fields::Base;
use mcp_hub_reconcile::installation::Installation;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// An engine as it answers: its kind, the variable that names it, its product.
pub(crate) type Product = (EngineKind, &'static str, &'static str);

pub(crate) const DOCKER: Product = (EngineKind::Docker, "DOCKER_HOST", "Engine");
pub(crate) const PODMAN: Product = (EngineKind::Podman, "CONTAINER_HOST", "Podman Engine");

fn host() -> Host {
    let (env, home) = (BTreeMap::new(), PathBuf::from("/home/user"));
    // What a kernel has is not the question here.
    Host { env, home, uid: 1000, gid: 1000, landlock: true, cgroup: None }
}

pub(crate) fn process_base() -> Base {
    Base {
        source: json!({"command": {"path": "/bin/server"}}),
        volume: json!({"hostPath": "/data"}),
        filesystem: "readOnly",
    }
}

pub(crate) fn engine_base() -> Base {
    Base { source: json!({"image": {"ref": "a:1"}}), volume: json!({"hostPath": "/data"}), filesystem: "unrestricted" }
}

/// A machine without an engine.
pub(crate) fn processes(folder: &Path) -> Result<RuntimeSet, Box<dyn std::error::Error>> {
    let config = ProcessConfig {
        run_dir: folder.join("run"),
        cache_dir: folder.join("cache"),
        bridge: PathBuf::from("/nowhere/bridge"),
        installation: "matrix".to_owned(),
        host: host(),
    };
    Ok(RuntimeSet::new(ProcessRuntime::new(config, Arc::<Given>::default())?, Vec::new(), None))
}

/// The runtime over an engine of this product.
pub(crate) async fn engine(folder: &Path, (kind, variable, product): Product) -> io::Result<Arc<DockerRuntime>> {
    let socket = folder.join(format!("{}.sock", kind.as_str()));
    tokio::spawn(serve(UnixListener::bind(&socket)?, product));
    let program = |name: &str| Program {
        architecture: "amd64".to_owned(),
        digest: "0".repeat(mcp_hub_local_runtime::docker::DIGITS),
        image: ProgramImage::Kept(folder.join(name)),
    };
    let env = BTreeMap::from([(variable.to_owned(), format!("unix://{}", socket.display()))]);
    let config = DockerConfig {
        kind,
        around: Surroundings { env, ..Surroundings::default() },
        installation: Installation::new("matrix", [1; 32]),
        host: host(),
        bridges: Bridges::new(vec![program("bridge")], folder.join("bridges")),
        relays: vec![program("relay")],
        ledger: Ledger::new(folder.join("images")),
    };
    let runtime = DockerRuntime::start(config, Arc::<Given>::default()).await;
    runtime.engine().map_err(|missing| io::Error::other(missing.to_string()))?;
    Ok(runtime)
}

/// Says what it is; of anything else it has none.
async fn serve(listener: UnixListener, product: &'static str) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = vec![0; 16 << 10];
            let length = stream.read(&mut head).await.unwrap_or(0);
            let body = answer(&String::from_utf8_lossy(&head[..length]), product).to_string();
            let length = body.len();
            let response = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            // Who asked may be gone.
            stream.write_all(response.as_bytes()).await.ok();
        });
    }
}

fn answer(request: &str, product: &str) -> Value {
    let path = request.split(' ').nth(1).unwrap_or_default();
    if path.ends_with("/version") {
        json!({
            "Version": "0", "ApiVersion": "1.41", "Os": "linux", "Arch": "amd64",
            "Components": [{"Name": product, "Version": "0"}],
        })
    } else if path.ends_with("/info") {
        json!({"MemoryLimit": true, "CpuCfsQuota": true, "PidsLimit": true})
    } else {
        json!([])
    }
}
