//! What servers at rest offer, kept for gateways that start while nobody can ask the servers themselves.
//!
//! It lies in the configurations' Secrets, which have little room; what is here is what the next of them will hold.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mcp_hub_dataplane_api::document;
use mcp_hub_dataplane_api::gateway::Definitions;

/// Room for definitions in one hub's Secret, which holds 900 KiB: a few hundred servers of a dozen tools.
const ROOM: usize = 600 << 10;

#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<HashMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    definitions: Definitions,
    /// Its size in a Secret, where others make it rather smaller.
    zipped: usize,
}

impl Kept {
    pub(crate) fn get(&self, server_uid: &str) -> Option<Definitions> {
        self.entries().get(server_uid).map(|entry| entry.definitions.clone())
    }

    pub(crate) fn insert(&self, server_uid: &str, definitions: Definitions) {
        let zipped = serde_json::to_vec(&definitions).ok().and_then(|json| document::zip(&json).ok());
        let zipped = zipped.map_or(usize::MAX, |zipped| zipped.len());
        self.entries().insert(server_uid.to_owned(), Entry { definitions, zipped });
    }

    pub(crate) fn forget(&self, server_uid: &str) {
        self.entries().remove(server_uid);
    }

    pub(crate) fn retain(&self, is_left: impl Fn(&str) -> bool) {
        self.entries().retain(|uid, _| is_left(uid));
    }

    /// Whether those of these servers that are kept have room in one Secret.
    pub(crate) fn fit(&self, servers: &BTreeSet<String>) -> bool {
        let entries = self.entries();
        let sizes = servers.iter().filter_map(|uid| entries.get(uid)).map(|entry| entry.zipped);
        sizes.fold(0_usize, usize::saturating_add) <= ROOM
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use mcp_hub_dataplane_api::Era;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Definitions that no compression makes smaller than this.
    fn definitions(kib: usize) -> Definitions {
        let noise: String = (0..kib * 32).map(|n| hex::encode(Sha256::digest(n.to_le_bytes()))).collect();
        let (introduction, tools) = ("{}".to_owned(), Some(noise));
        Definitions { era: Era::Modern, introduction, tools, prompts: None, resources: None, resource_templates: None }
    }

    #[test]
    fn a_hub_has_room_for_so_much_and_another_for_as_much() {
        let kept = Kept::default();
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        kept.insert("a", definitions(350));
        kept.insert("b", definitions(350));
        assert!(kept.fit(&of(&["a"])) && kept.fit(&of(&["b", "unknown"])));
        assert!(!kept.fit(&of(&["a", "b"])));
        kept.forget("a");
        assert!(kept.fit(&of(&["a", "b"])));
    }
}
