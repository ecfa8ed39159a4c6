//! The merged lists of `/mcp`, and whose a name or URI of theirs is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mcp_hub_dataplane_api::gateway::NamingMode;
use mcp_hub_mcp::envelope::{Params, quoted, string};
use mcp_hub_mcp::methods::{self, LISTS};
use mcp_hub_mcp::object::RawObject;

use crate::Served;
use crate::names;
use crate::outgoing::Aim;
use crate::upstream::{Caching, Item, Upstream};
use crate::uris;

/// Instructions of one server, and of all, in characters: clients put them into every prompt.
const INSTRUCTIONS_MAX: usize = 2_000;
const ALL_INSTRUCTIONS_MAX: usize = 16_000;
/// Definitions on one page. Many clients look at the first only, so it is for hubs that no model would be shown whole.
const PAGE: usize = 1000;

/// Merged lists, made when they are first asked for and forgotten when a list of a server changes.
#[derive(Debug, Default)]
pub(crate) struct Lists(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    /// Counts what was forgotten, so that a list made of what was known before is not kept.
    age: u64,
    lists: [Option<Arc<Merged>>; LISTS.len()],
}

/// One merged list.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// The definitions in the order of servers and then of their own; one page at least.
    pub(crate) pages: Vec<Page>,
    /// Name offered to server and own name.
    routes: HashMap<String, (String, String)>,
    /// Names left out because several servers offer them.
    pub(crate) collisions: BTreeMap<String, Vec<String>>,
}

/// A part of a merged list.
#[derive(Debug)]
pub(crate) struct Page {
    /// JSON array of the definitions, and the end of an answer whose result ends with it.
    pub(crate) items: Bytes,
    /// Name of the last of them.
    pub(crate) last: String,
}

impl Merged {
    /// The page after this name, with whether others follow it; `None` if no page ends with the name. The first without.
    pub(crate) fn page(&self, after: Option<&str>) -> Option<(&Page, bool)> {
        let place = match after {
            None => 0,
            Some(name) => self.pages.iter().position(|page| page.last == name)? + 1,
        };
        Some((self.pages.get(place)?, place + 1 < self.pages.len()))
    }
}

/// Whose something is, and what the server calls it.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) aim: Aim,
}

impl Lists {
    pub(crate) fn forget(&self) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.age = made.age.wrapping_add(1);
        made.lists = Default::default();
    }
}

impl Served {
    /// The merged list in this place of [`LISTS`], from what is known now.
    pub(crate) fn merged(&self, place: usize) -> Arc<Merged> {
        let age = {
            let made = self.lists.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(merged) = &made.lists[place] {
                return merged.clone();
            }
            made.age
        };
        let merged = Arc::new(self.merge(place));
        let mut made = self.lists.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.age == age {
            made.lists[place] = Some(merged.clone());
        }
        merged
    }

    /// Waits for servers that have only just been configured; the others delay nobody.
    pub(crate) async fn settle(&self) {
        for watched in self.upstreams.values() {
            watched.upstream.settle().await;
        }
    }

    fn merge(&self, place: usize) -> Merged {
        let naming = &self.config.naming;
        // Name offered, server, own name, definition.
        let mut all: Vec<(String, &str, String, String)> = Vec::new();
        for (server, watched) in &self.upstreams {
            let upstream = &watched.upstream;
            if !upstream.is_listed() {
                continue;
            }
            let catalog = upstream.catalog();
            let mut seen = std::collections::HashSet::new();
            for Item { key, raw } in catalog.lists[place].iter().flatten() {
                let (member, shown) = match LISTS[place].1 {
                    "tools" => match names::offered(&upstream.config.tools, key) {
                        Some(name) => ("name", names::exposed(naming, server, name)),
                        None => continue,
                    },
                    "prompts" => ("name", names::exposed(naming, server, key)),
                    "resources" => ("uri", uris::outward(server, key)),
                    _ => ("uriTemplate", uris::outward(server, key)),
                };
                if !seen.insert(shown.clone()) {
                    continue;
                }
                let definition = match member {
                    // Tools of MCP Apps name a resource.
                    "name" => {
                        uris::rewrite(server, &if shown == *key { raw.clone() } else { renamed(raw, member, &shown) })
                    }
                    _ => renamed(raw, member, &shown),
                };
                all.push((shown, server, key.clone(), definition));
            }
        }
        let mut offering: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (shown, server, _, _) in &all {
            offering.entry(shown).or_default().push((*server).to_owned());
        }
        let collisions: BTreeMap<String, Vec<String>> = offering
            .into_iter()
            .filter(|(_, servers)| servers.len() > 1)
            .map(|(shown, servers)| (shown.to_owned(), servers))
            .collect();
        let mut merged = Merged::default();
        let mut items = Vec::with_capacity(all.len());
        for (shown, server, own, definition) in all {
            if !collisions.contains_key(&shown) {
                items.push((shown.clone(), definition));
                merged.routes.insert(shown, (server.to_owned(), own));
            }
        }
        let page = |items: &[(String, String)]| {
            let definitions: Vec<&str> = items.iter().map(|(_, definition)| definition.as_str()).collect();
            let last = items.last().map(|(name, _)| name.clone()).unwrap_or_default();
            Page { items: format!("[{}]}}}}", definitions.join(",")).into(), last }
        };
        merged.pages = items.chunks(PAGE).map(page).collect();
        if merged.pages.is_empty() {
            merged.pages.push(page(&[]));
        }
        merged.collisions = collisions;
        merged
    }

    /// How long the merged list in this place holds, and for whom: as long as the first part of it that does not, and for
    /// everybody only if each part does.
    pub(crate) fn caching(&self, place: usize) -> Caching {
        let upstreams = self.upstreams.values().map(|watched| &watched.upstream);
        let parts = upstreams.filter(|upstream| upstream.is_listed() && upstream.catalog().lists[place].is_some());
        parts.map(|upstream| upstream.caching(place)).reduce(Caching::and).unwrap_or_else(Caching::none)
    }

    fn find(&self, server: &str) -> Option<Arc<Upstream>> {
        self.upstreams.get(server).map(|watched| watched.upstream.clone())
    }

    /// Where a request of the aggregate goes; `None` if there is nothing of that name.
    pub(crate) async fn route(&self, method: &str, params: &Params<'_>) -> Option<Route> {
        match method {
            methods::TOOLS_CALL => self.route_name(0, &string(params.name?)?).await,
            methods::PROMPTS_GET => self.route_name(1, &string(params.name?)?).await,
            methods::RESOURCES_READ => self.route_uri(&string(params.uri?)?).await,
            methods::COMPLETE => {
                let mut reference = RawObject::parse(params.reference?.get())?;
                let member = |name: &str| reference.get(name).and_then(|raw| serde_json::from_str::<String>(raw).ok());
                let (name, route) = match (member("name"), member("uri")) {
                    (Some(name), _) => ("name", self.route_name(1, &name).await?),
                    (None, Some(uri)) => ("uri", self.route_uri(&uri).await?),
                    (None, None) => return None,
                };
                if let Aim::Name(own) | Aim::Uri(own) = &route.aim {
                    reference.set(name, quoted(own));
                }
                Some(Route { upstream: route.upstream, aim: Aim::Reference(reference.to_string()) })
            }
            _ => None,
        }
    }

    async fn route_name(&self, place: usize, name: &str) -> Option<Route> {
        let listed = |merged: &Merged| {
            let (server, own) = merged.routes.get(name)?;
            Some(Route { upstream: self.find(server)?, aim: Aim::Name(own.clone()) })
        };
        if let Some(route) = listed(&self.merged(place)) {
            return Some(route);
        }
        self.settle().await;
        if let Some(route) = listed(&self.merged(place)) {
            return Some(route);
        }
        // A server that is away and whose list is not known is the likely owner of what bears its prefix: the caller gets
        // to know why it is not there, as against that there is no such tool.
        let naming = &self.config.naming;
        if naming.mode == NamingMode::Bare {
            return None;
        }
        let away = |upstream: &Arc<Upstream>| !upstream.is_ready();
        let owner = self.upstreams.iter().map(|(server, watched)| (server, &watched.upstream)).find_map(
            |(server, upstream)| {
                let own = name.strip_prefix(server.as_str())?.strip_prefix(naming.separator.as_str())?;
                let own = if place == 0 { names::own(&upstream.config.tools, own)? } else { own };
                away(upstream).then(|| (upstream.clone(), own.to_owned()))
            },
        )?;
        Some(Route { upstream: owner.0, aim: Aim::Name(owner.1) })
    }

    pub(crate) async fn route_uri(&self, uri: &str) -> Option<Route> {
        if let Some((server, own)) = uris::inward(uri) {
            return Some(Route { upstream: self.find(server)?, aim: Aim::Uri(own) });
        }
        // What has no scheme is listed as it is.
        self.settle().await;
        let merged = self.merged(2);
        let (server, own) = merged.routes.get(uri)?;
        Some(Route { upstream: self.find(server)?, aim: Aim::Uri(own.clone()) })
    }

    /// What the servers want a model to know, each under its name.
    pub(crate) fn instructions(&self) -> Option<String> {
        let mut all = String::new();
        for (server, watched) in &self.upstreams {
            let catalog = watched.upstream.catalog();
            let introduction = catalog.introduction.as_ref().filter(|_| watched.upstream.is_listed());
            let Some(text) = introduction.and_then(|introduction| introduction.instructions()) else { continue };
            let cut: String = text.chars().take(INSTRUCTIONS_MAX).collect();
            all.push_str(&format!("## {server}\n{}\n\n", cut.trim()));
        }
        let cut: String = all.chars().take(ALL_INSTRUCTIONS_MAX).collect();
        (!cut.is_empty()).then(|| cut.trim_end().to_owned())
    }
}

/// A definition with one of its text members changed.
pub(crate) fn renamed(raw: &str, member: &str, to: &str) -> String {
    match RawObject::parse(raw) {
        Some(mut object) => {
            object.set(member, quoted(to));
            object.to_string()
        }
        None => raw.to_owned(),
    }
}

/// What a caller is told of a name that nobody has.
pub(crate) fn unknown(method: &str) -> &'static str {
    match method {
        methods::TOOLS_CALL => "there is no such tool",
        methods::PROMPTS_GET => "there is no such prompt",
        methods::RESOURCES_READ => "there is no such resource",
        _ => "there is nothing of that name",
    }
}
