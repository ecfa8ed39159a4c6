//! What the watches show, kept as small as passes need it, by owner.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use mcp_hub_reconcile::owner::OwnerKey;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// A projection of one object.
pub(crate) trait Shown: Clone + PartialEq + Send + 'static {
    fn owner(&self) -> &OwnerKey;
}

/// Objects of one kind that carry our labels. Clones are the same cache.
#[derive(Debug)]
pub(crate) struct Cache<V>(Arc<Inner<V>>);

#[derive(Debug)]
struct Inner<V> {
    state: Mutex<State<V>>,
    /// First lists still to come.
    pending: watch::Sender<usize>,
    /// Where the kind cannot be seen, and why; as watches go, by namespace.
    closed: watch::Sender<BTreeMap<Option<String>, Closed>>,
}

/// Why the objects of a kind cannot be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The cluster has no such kind.
    Unknown,
    /// We may not list it.
    Forbidden,
}

#[derive(Debug)]
struct State<V> {
    // In boxes, because a table of thousands is up to half empty.
    objects: HashMap<Key, Box<Entry<V>>>,
    /// Ordered. Most owners have one object of a kind.
    by_owner: HashMap<String, Vec<Key>>,
    /// Uids of objects that we deleted and whose deletion the watch has not told of: older news of them is no news.
    deleted: BTreeSet<String>,
    /// Uids of the last objects that the watch said are gone, and up to which version: the answer to an earlier write may
    /// come after that. One that only lost our labels may come back under its uid.
    gone: VecDeque<(String, u64)>,
}

/// Between two looks whether a kind can be seen by now.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Answers that come late come within the time of a request, in which far fewer objects are deleted.
const GONE: usize = 1_024;

type Key = (String, String);

/// Where an object was last seen, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) version: u64,
}

#[derive(Debug)]
struct Entry<V> {
    version: u64,
    uid: String,
    value: V,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: Shown> Cache<V> {
    /// `lists` watches will fill it.
    pub(crate) fn new(lists: usize) -> Self {
        let state = State {
            objects: HashMap::new(),
            by_owner: HashMap::new(),
            deleted: BTreeSet::new(),
            gone: VecDeque::new(),
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            pending: watch::Sender::new(lists),
            closed: watch::Sender::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State<V>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the first list of each watch.
    pub(crate) async fn ready(&self) {
        // The sender lives in this very value.
        self.0.pending.subscribe().wait_for(|pending| *pending == 0).await.ok();
    }

    /// Why the objects of a namespace cannot be seen; `None` if they can.
    pub(crate) fn closed(&self, namespace: &str) -> Option<Closed> {
        let closed = self.0.closed.borrow();
        closed.get(&None).or_else(|| closed.get(&Some(namespace.to_owned()))).copied()
    }

    /// Tells whenever the kind can be seen where it could not, or no more where it could.
    pub(crate) fn openings(&self) -> watch::Receiver<BTreeMap<Option<String>, Closed>> {
        self.0.closed.subscribe()
    }

    /// The objects of an owner, ordered by name.
    pub(crate) fn of(&self, owner_uid: &str) -> Vec<V> {
        let state = self.state();
        let keys = state.by_owner.get(owner_uid).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key)).map(|entry| entry.value.clone()).collect()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<V> {
        let key = (namespace.to_owned(), name.to_owned());
        self.state().objects.get(&key).map(|entry| entry.value.clone())
    }

    pub(crate) fn owners(&self) -> BTreeSet<OwnerKey> {
        self.state().objects.values().map(|entry| entry.value.owner().clone()).collect()
    }

    /// Takes news of an object, `value` being `None` if it is not ours. Gives the owners that it concerns, none if the news
    /// is old or changes nothing that we look at.
    pub(crate) fn see(&self, object: &impl Resource, value: Option<V>) -> Vec<OwnerKey> {
        let meta = object.meta();
        let uid = meta.uid.clone().unwrap_or_default();
        let version = version_of(object);
        let key = key_of(object);
        let mut state = self.state();
        let late = state.gone.iter().any(|(gone, until)| *gone == uid && version <= *until);
        if late || state.deleted.contains(&uid) {
            return Vec::new();
        }
        let old = state.objects.get(&key);
        if old.is_some_and(|old| old.uid == uid && old.version > version) {
            return Vec::new();
        }
        if old.map(|old| &old.value) == value.as_ref() && old.is_some_and(|old| old.uid == uid) {
            if let Some(entry) = state.objects.get_mut(&key) {
                entry.version = version;
            }
            return Vec::new();
        }
        let mut concerned = state.take(&key);
        if let Some(value) = value {
            let owner = value.owner().clone();
            let keys = state.by_owner.entry(owner.uid.clone()).or_default();
            if let Err(place) = keys.binary_search(&key) {
                keys.reserve_exact(1);
                keys.insert(place, key.clone());
            }
            state.objects.insert(key, Box::new(Entry { version, uid, value }));
            if !concerned.contains(&owner) {
                concerned.push(owner);
            }
        }
        concerned
    }

    /// Where all objects are.
    pub(crate) fn places(&self) -> Vec<Place> {
        let state = self.state();
        let place = |((namespace, name), entry): (&Key, &Entry<V>)| Place {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: entry.uid.clone(),
            version: entry.version,
        };
        state.objects.iter().map(|(key, entry)| place((key, &**entry))).collect()
    }

    /// Takes the news that an object is no more at its place, for kinds that are not watched.
    pub(crate) fn lost(&self, namespace: &str, name: &str, uid: &str) -> Vec<OwnerKey> {
        let mut state = self.state();
        let key = (namespace.to_owned(), name.to_owned());
        match state.objects.get(&key) {
            Some(entry) if entry.uid == uid => state.take(&key),
            // A successor of the same name is another object.
            _ => Vec::new(),
        }
    }

    /// Takes the news that an object is gone.
    pub(crate) fn gone(&self, object: &impl Resource) -> Vec<OwnerKey> {
        let mut state = self.state();
        let uid = object.meta().uid.clone().unwrap_or_default();
        state.deleted.remove(&uid);
        let until = version_of(object);
        if until != u64::MAX {
            state.gone.push_back((uid.clone(), until));
        }
        if state.gone.len() > GONE {
            state.gone.pop_front();
        }
        let key = key_of(object);
        match state.objects.get(&key) {
            // A successor of the same name is another object.
            Some(entry) if entry.uid != uid => Vec::new(),
            _ => state.take(&key),
        }
    }

    /// Forgets an object that we deleted, before the watch tells of it.
    pub(crate) fn deleted(&self, namespace: &str, name: &str) {
        let mut state = self.state();
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(entry) = state.objects.get(&key) {
            let uid = entry.uid.clone();
            state.deleted.insert(uid);
            state.take(&key);
        }
    }

    /// Keeps nothing but what the list held.
    fn retain(&self, namespace: Option<&str>, listed: &BTreeSet<Key>, uids: &BTreeSet<String>) -> Vec<OwnerKey> {
        let mut state = self.state();
        state.deleted.retain(|uid| uids.contains(uid));
        let outside = |key: &&Key| namespace.is_none_or(|namespace| key.0 == namespace) && !listed.contains(*key);
        let gone: Vec<Key> = state.objects.keys().filter(outside).cloned().collect();
        gone.iter().flat_map(|key| state.take(key)).collect()
    }

    /// Follows a watch for ever, and where the kind cannot be seen, looks again and again whether it can by now. `show`
    /// projects an object; `tell` hears which owners have news. `optional`: the operator can do without the kind.
    pub(crate) async fn follow<K>(
        self,
        api: Api<K>,
        config: watcher::Config,
        (namespace, optional): (Option<String>, bool),
        show: impl Fn(&K) -> Option<V>,
        tell: impl Fn(OwnerKey),
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut first = true;
        loop {
            let place = (namespace.as_deref(), optional);
            let (why, answer) = self.watch(&api, &config, place, &mut first, &show, &tell).await;
            // Once a change: a kind may be missing for ever.
            if self.0.closed.send_if_modified(|closed| closed.insert(namespace.clone(), why) != Some(why)) {
                tracing::info!(path = api.resource_url(), %answer, ?why, "a kind cannot be seen");
            }
            self.retain(namespace.as_deref(), &BTreeSet::new(), &BTreeSet::new()).into_iter().for_each(&tell);
            self.listed(&mut first);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Follows a watch until the cluster says that it does not know the kind, or does not let it be listed, if it is one that
    /// we can do without. Of all others 404 is no answer: who stands before an API server that starts says so too.
    async fn watch<K>(
        &self,
        api: &Api<K>,
        config: &watcher::Config,
        (namespace, optional): (Option<&str>, bool),
        first: &mut bool,
        show: &impl Fn(&K) -> Option<V>,
        tell: &impl Fn(OwnerKey),
    ) -> (Closed, watcher::Error)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut events = std::pin::pin!(watcher(api.clone(), config.clone()).default_backoff());
        let (mut listed, mut uids) = (BTreeSet::new(), BTreeSet::new());
        // The stream of a watch has no end of its own.
        loop {
            let Some(event) = events.next().await else { std::future::pending().await };
            let news = match event {
                Ok(watcher::Event::Init) => {
                    listed.clear();
                    uids.clear();
                    Vec::new()
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed.insert(key_of(&object));
                    uids.extend(object.uid());
                    self.see(&object, show(&object))
                }
                Ok(watcher::Event::InitDone) => {
                    let news = self.retain(namespace, &listed, &uids);
                    self.listed(first);
                    self.0.closed.send_if_modified(|closed| closed.remove(&namespace.map(str::to_owned)).is_some());
                    news
                }
                Ok(watcher::Event::Apply(object)) => self.see(&object, show(&object)),
                Ok(watcher::Event::Delete(object)) => self.gone(&object),
                Err(error) => {
                    if let Some(why) = closed(&error).filter(|_| optional) {
                        return (why, error);
                    }
                    // Nothing waits for a kind that it may not need.
                    if optional {
                        self.listed(first);
                    }
                    // The watcher waits and lists anew; what is known stands meanwhile.
                    tracing::warn!(error = %error, kind = std::any::type_name::<V>(), "a watch broke");
                    Vec::new()
                }
            };
            news.into_iter().for_each(tell);
        }
    }

    /// One of the first lists is there, or there is nothing to list.
    fn listed(&self, first: &mut bool) {
        if std::mem::take(first) {
            self.0.pending.send_modify(|pending| *pending = pending.saturating_sub(1));
        }
    }
}

/// Whether the answer is that there is no such collection, or that it is not to be listed. A refusal in the middle is
/// followed by a list, which decides: what is known stands until then.
fn closed(error: &watcher::Error) -> Option<Closed> {
    let (status, lists) = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => (status, true),
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => (status, false),
        watcher::Error::WatchError(status) => (status, false),
        _ => return None,
    };
    match status.code {
        404 => Some(Closed::Unknown),
        403 if lists => Some(Closed::Forbidden),
        _ => None,
    }
}

impl<V: Shown> State<V> {
    fn take(&mut self, key: &Key) -> Vec<OwnerKey> {
        let Some(entry) = self.objects.remove(key) else { return Vec::new() };
        let owner = entry.value.owner().clone();
        if let Some(keys) = self.by_owner.get_mut(&owner.uid) {
            keys.retain(|known| known != key);
            if keys.is_empty() {
                self.by_owner.remove(&owner.uid);
            }
        }
        vec![owner]
    }
}

fn key_of(object: &impl Resource) -> Key {
    (object.meta().namespace.clone().unwrap_or_default(), object.meta().name.clone().unwrap_or_default())
}

/// Versions of one kind are ordered (KEP-5504); one that is no number is taken as it comes.
pub(crate) fn version_of(object: &impl Resource) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version.and_then(|version| version.parse().ok()).unwrap_or(u64::MAX)
}
