//! What every service of ours has: the rights it has not, and its bounds.

use mcp_hub_crds::Quantity;
use mcp_hub_crds::server::ResourceAmounts;
use serde_json::{Map, Value, json};

use super::Engine;
use crate::variables::literal;

/// Processes and threads of one container: twenty times what the published servers have.
const PIDS: u32 = 512;

/// A service without rights. `read_only`: its root.
pub(super) fn hardened(engine: Engine, image: &str, user: &str, read_only: bool) -> Map<String, Value> {
    let mut service = Map::new();
    let mut set = |key: &str, value: Value| service.insert(key.to_owned(), value);
    set("image", literal(image).into());
    set("user", user.into());
    set("read_only", read_only.into());
    set("cap_drop", json!(["ALL"]));
    if engine == Engine::Compose {
        // A Swarm has no word for it; without capabilities a program gains none by another user.
        set("security_opt", json!(["no-new-privileges:true"]));
        set("pids_limit", PIDS.into());
    }
    service
}

/// CPU and memory, as the engine writes them.
pub(super) fn bound(engine: Engine, service: &mut Map<String, Value>, limits: Option<&ResourceAmounts>) {
    let cpu = limits.and_then(|limits| limits.cpu.as_ref());
    let memory = limits.and_then(|limits| limits.memory.as_ref()).map(bytes);
    match engine {
        Engine::Compose => {
            if let Some(cpu) = cpu {
                service.insert("cpus".to_owned(), cores(cpu).into());
            }
            if let Some(memory) = memory {
                service.insert("mem_limit".to_owned(), memory.clone().into());
                // The same again: no swap, which would only make running out of memory slow.
                service.insert("memswap_limit".to_owned(), memory.into());
            }
        }
        Engine::Swarm => {
            let mut bounds = Map::new();
            bounds.extend(cpu.map(|cpu| ("cpus".to_owned(), cores(cpu).into())));
            bounds.extend(memory.map(|memory| ("memory".to_owned(), memory.into())));
            bounds.insert("pids".to_owned(), PIDS.into());
            let deploy = service.entry("deploy").or_insert_with(|| json!({}));
            deploy["resources"] = json!({"limits": bounds});
        }
    }
}

/// `0.5`.
fn cores(cpu: &Quantity) -> String {
    let millis = cpu.millis();
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `256m`: the largest unit of which it is a whole number.
fn bytes(memory: &Quantity) -> String {
    let bytes = memory.units();
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}m", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
        _ => format!("{bytes}b"),
    }
}

/// A folder in memory.
pub(super) fn tmpfs(target: &str, bytes: u64) -> Value {
    json!({"type": "tmpfs", "target": target, "tmpfs": {"size": bytes}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_engines_read_them() {
        let quantity = |text| Quantity::new(text).unwrap();
        for (text, wanted) in [("500m", "0.5"), ("1", "1"), ("10", "10"), ("1500m", "1.5"), ("1m", "0.001")] {
            assert_eq!(cores(&quantity(text)), wanted, "{text}");
        }
        for (text, wanted) in
            [("256Mi", "256m"), ("1Gi", "1024m"), ("1Ki", "1k"), ("1M", "1000000b"), ("1.5Ki", "1536b")]
        {
            assert_eq!(bytes(&quantity(text)), wanted, "{text}");
        }
    }
}
