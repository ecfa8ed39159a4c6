//! The lists of all servers as one: names, order, and whose each thing is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use mcp_hub_dataplane_api::gateway::NamingMode;
use mcp_hub_mcp::envelope::quoted;
use mcp_hub_mcp::methods::{INSTRUCTIONS_MAX, LISTS};
use mcp_hub_mcp::object::RawObject;

use crate::upstream::{Item, Upstream};
use crate::{Served, names, uris};

/// A merged list.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// Raw definitions under their exposed names, ordered by server and then as the server gave them.
    pub(crate) items: Vec<String>,
    /// Exposed name to server and its own name.
    pub(crate) routes: HashMap<String, (String, String)>,
}

/// The merged lists of one configuration, made when first asked for and again when something changed.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    made: Mutex<[Option<Arc<Merged>>; LISTS.len()]>,
    /// Names that a `Bare` hub leaves out, with the servers that offer them.
    collisions: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Lists {
    pub(crate) fn forget(&self) {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    pub(crate) fn collisions(&self) -> BTreeMap<String, Vec<String>> {
        self.collisions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The merged list at this place of [`LISTS`]. Servers that have just been configured are waited for a moment, all at
    /// the same time; one that is away or slow delays nobody after that.
    pub(crate) async fn merged(&self, served: &Served, place: usize) -> Arc<Merged> {
        if let Some(made) = self.made.lock().unwrap_or_else(PoisonError::into_inner)[place].clone() {
            return made;
        }
        futures::future::join_all(served.upstreams.values().map(|watched| watched.upstream.settle())).await;
        let merged = Arc::new(self.merge(served, place));
        self.made.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(merged.clone());
        merged
    }

    fn merge(&self, served: &Served, place: usize) -> Merged {
        let key = LISTS[place].1;
        let naming = &served.config.naming;
        let mut offered: Vec<(String, &str, Item)> = Vec::new();
        for (server, watched) in &served.upstreams {
            let upstream = &watched.upstream;
            if !upstream.is_listed() {
                continue;
            }
            for item in items_of(upstream, place) {
                let exposed = match key {
                    "resources" | "resourceTemplates" => uris::outward(server, &item.key),
                    _ => names::exposed(naming, server, &shown_name(upstream, key, &item.key)),
                };
                offered.push((exposed, server, item));
            }
        }
        let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (exposed, server, _) in &offered {
            owners.entry(exposed).or_default().push((*server).to_owned());
        }
        owners.retain(|_, servers| servers.len() > 1);
        if key == "tools" {
            let collisions = owners.iter().map(|(name, servers)| ((*name).to_owned(), servers.clone())).collect();
            *self.collisions.lock().unwrap_or_else(PoisonError::into_inner) = collisions;
        }
        let mut merged = Merged::default();
        for (exposed, server, item) in &offered {
            // Nobody can be asked for a name that is two servers'; the first of a prefixed hub cannot be meant either.
            if owners.contains_key(exposed.as_str()) && naming.mode == NamingMode::Bare {
                continue;
            }
            if merged.routes.contains_key(exposed) {
                continue;
            }
            merged.routes.insert(exposed.clone(), ((*server).to_owned(), item.key.clone()));
            merged.items.push(renamed(key, item, exposed, Some(server)));
        }
        merged
    }
}

/// Definitions of a server that its rules offer. Rules speak of tools only.
pub(crate) fn items_of(upstream: &Upstream, place: usize) -> Vec<Item> {
    let catalog = upstream.catalog();
    let items = catalog.lists[place].clone().unwrap_or_default();
    match LISTS[place].1 {
        "tools" => {
            items.into_iter().filter(|item| names::offered(&upstream.config.tools, &item.key).is_some()).collect()
        }
        _ => items,
    }
}

/// The name that a server's own rules give one of its things.
pub(crate) fn shown_name(upstream: &Upstream, key: &str, name: &str) -> String {
    match key {
        "tools" => names::offered(&upstream.config.tools, name).unwrap_or(name).to_owned(),
        _ => name.to_owned(),
    }
}

/// A server's own name of the tool that its rules show under `shown`; `None` if they do not offer it. Without rules every
/// name is passed on: the server knows best what it has.
pub(crate) fn own_tool(upstream: &Upstream, shown: &str) -> Option<String> {
    let rules = &upstream.config.tools;
    let renamed = rules.rename.iter().find(|(_, to)| *to == shown).map(|(from, _)| from.as_str());
    let own = renamed.unwrap_or(shown);
    (names::offered(rules, own) == Some(shown)).then(|| own.to_owned())
}

/// The definition under another name; for resources with the URIs in it, too.
pub(crate) fn renamed(key: &str, item: &Item, exposed: &str, server: Option<&str>) -> String {
    let member = match key {
        "resources" => "uri",
        "resourceTemplates" => "uriTemplate",
        _ => "name",
    };
    let links = server.filter(|_| item.raw.contains("resourceUri"));
    if item.key == exposed && links.is_none() {
        return item.raw.clone();
    }
    let Some(mut object) = RawObject::parse(&item.raw) else { return item.raw.clone() };
    object.set(member, quoted(exposed));
    if let (Some(server), Some(meta)) = (links, object.get("_meta").map(str::to_owned)) {
        let mut meta: serde_json::Value = serde_json::from_str(&meta).unwrap_or_default();
        uris::rewrite(server, &mut meta);
        object.set("_meta", meta.to_string());
    }
    object.to_string()
}

/// What all servers say of how to use them, cut where it becomes too long for a client's context.
pub(crate) fn instructions(served: &Served) -> Option<String> {
    let mut text = String::new();
    for (name, watched) in &served.upstreams {
        let catalog = watched.upstream.catalog();
        let Some(said) = catalog.introduction.as_ref().and_then(|introduction| introduction.instructions()) else {
            continue;
        };
        text.push_str(&format!("# {name}\n{}\n\n", said.trim()));
        if text.len() > INSTRUCTIONS_MAX {
            text.truncate(text.floor_char_boundary(INSTRUCTIONS_MAX));
            text.push('…');
            break;
        }
    }
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
