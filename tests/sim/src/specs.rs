//! What users write.

use serde_json::{Value, json};

pub const NAMESPACE: &str = "team";
/// Where the remote server is.
pub const REMOTE: &str = "https://docs.example.com/mcp";

pub fn server(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    })
}

pub fn hub(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "mcphub.io/v1alpha1", "kind": "MCPHub",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    })
}

pub fn secret(name: &str, key: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE},
        "stringData": {key: value},
    })
}

/// A server of this image.
pub fn image(image: &str) -> Value {
    json!({"source": {"image": {"ref": image}}})
}

/// A remote server that wants a header out of a Secret.
pub fn remote() -> Value {
    json!({"source": {"remote": {
        "url": REMOTE, "headers": [{"name": "authorization", "secretRef": {"name": "docs", "key": "token"}}],
    }}})
}

/// A server that needs a Secret in its environment.
pub fn with_secret(image: &str) -> Value {
    json!({
        "source": {"image": {"ref": image}},
        "env": [{"name": "TOKEN", "secretRef": {"name": "github", "key": "token"}}],
    })
}
