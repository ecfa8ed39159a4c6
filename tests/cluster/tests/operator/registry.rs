//! A registry that has every image: all are the same one.

use std::net::TcpListener;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::stand_in::StandIn;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub(crate) fn listen(listener: TcpListener) -> StandIn {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/server"], "User": "1000"},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, &config), "layers": [],
    });
    let manifest = manifest.to_string();
    StandIn::listen(listener, move |path| {
        // An image is asked for by its tag, a blob by its digest.
        if path.contains("/manifests/") { Some((MANIFEST, manifest.clone())) } else { Some((CONFIG, config.clone())) }
    })
}

fn described(kind: &str, content: &str) -> Value {
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(content)));
    json!({"mediaType": kind, "digest": digest, "size": content.len()})
}
