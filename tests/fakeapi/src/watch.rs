//! Watches: a stream of changes from a revision on.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::failure::Failure;
use crate::request::{Representation, Request};
use crate::selector::Selector;
use crate::server::Shared;
use crate::state::{Cut, State, represented};
use crate::store::Change;

/// How often the server says where it is.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// How long a watch lasts whose client names no time.
const LONGEST: Duration = Duration::from_secs(1_800);

#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Shared,
    resource: String,
    api_version: String,
    kind: String,
    namespace: Option<String>,
    selector: Selector,
    representation: Representation,
    /// The last revision that was looked at.
    position: u64,
    /// Lines that are to be sent before anything else.
    first: VecDeque<Value>,
    /// After them, the one that says that they are all.
    initial_end: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    cuts: u64,
    changed: tokio::sync::watch::Receiver<u64>,
    ended: bool,
}

/// What a look at the state gives.
enum Look {
    Lines(Vec<Value>),
    End(Option<io::Error>),
    Nothing,
}

impl Watcher {
    pub(crate) fn new(shared: Shared, state: &State, request: &Request) -> Result<Self, Failure> {
        let kind = &request.kind;
        let resource = kind.resource();
        let selector = request.selector()?;
        let version = request.param("resourceVersion");
        let initial = request.flag("sendInitialEvents");
        if initial && request.param("resourceVersionMatch") != "NotOlderThan" {
            return Err(Failure::new(422, "Invalid", "sendInitialEvents needs resourceVersionMatch=NotOlderThan"));
        }
        let seconds: Option<u64> = request.query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok());
        let now = Instant::now();
        let mut watcher = Self {
            changed: shared.changes(),
            shared,
            api_version: kind.api_version(),
            kind: kind.name.clone(),
            namespace: request.namespace.clone(),
            selector,
            representation: request.representation,
            position: state.visible(&resource),
            first: VecDeque::new(),
            initial_end: initial,
            bookmarks: request.flag("allowWatchBookmarks"),
            next_bookmark: now + BOOKMARKS,
            deadline: now + seconds.map_or(LONGEST, Duration::from_secs),
            cuts: state.cuts.get(&resource).map_or(0, |(count, _)| *count),
            ended: false,
            resource,
        };
        if initial || version.is_empty() || version == "0" {
            let objects = state
                .store
                .list_at(&watcher.resource, watcher.namespace.as_deref(), watcher.position)
                .unwrap_or_default();
            for object in objects.into_values().filter(|object| watcher.selector.matches(object)) {
                watcher.first.push_back(
                    json!({"type": "ADDED", "object": represented((*object).clone(), watcher.representation)}),
                );
            }
        } else {
            watcher.position = version.parse().map_err(|_| {
                Failure::bad_request(format!("Invalid value: {version:?}: resourceVersion is no number"))
            })?;
        }
        Ok(watcher)
    }

    /// The body of the answer: one JSON document a line.
    pub(crate) fn lines(self) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
        futures::stream::unfold(self, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((chunk, watcher))
        })
    }

    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        if self.ended {
            return None;
        }
        loop {
            // Marked as seen before the look, so that no change after it is missed.
            self.changed.borrow_and_update();
            match self.look() {
                Look::Lines(lines) => {
                    let mut chunk = Vec::new();
                    for line in lines {
                        self.ended |= line["type"] == "ERROR";
                        chunk.extend_from_slice(line.to_string().as_bytes());
                        chunk.push(b'\n');
                    }
                    return Some(Ok(Bytes::from(chunk)));
                }
                Look::End(None) => return None,
                Look::End(Some(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                Look::Nothing => {}
            }
            tokio::select! {
                biased;
                // The server outlives its watches: they hold it.
                _ = self.changed.changed() => {}
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark += BOOKMARKS;
                    let revision = self.shared.lock().visible(&self.resource).max(self.position);
                    let line = self.bookmark(revision, false);
                    return Some(Ok(Bytes::from(format!("{line}\n"))));
                }
            }
        }
    }

    fn look(&mut self) -> Look {
        let shared = self.shared.clone();
        let state = shared.lock();
        let broken = || io::Error::new(io::ErrorKind::ConnectionReset, "the connection was cut");
        if state.down {
            return Look::End(Some(broken()));
        }
        if let Some((count, cut)) = state.cuts.get(&self.resource)
            && *count != self.cuts
        {
            return Look::End(match cut {
                Cut::Closed => None,
                Cut::Broken => Some(broken()),
            });
        }
        if !self.first.is_empty() || self.initial_end {
            let mut lines: Vec<Value> = self.first.drain(..).collect();
            if std::mem::take(&mut self.initial_end) {
                lines.push(self.bookmark(self.position, true));
            }
            return Look::Lines(lines);
        }
        let visible = state.visible(&self.resource);
        let Some(changes) = state.store.after(self.position) else {
            let message = format!("too old resource version: {} ({})", self.position, state.store.oldest());
            return Look::Lines(vec![json!({"type": "ERROR", "object": Failure::expired(message).status()})]);
        };
        let lines: Vec<Value> =
            changes.take_while(|change| change.revision <= visible).filter_map(|change| self.event(change)).collect();
        self.position = self.position.max(visible);
        if lines.is_empty() { Look::Nothing } else { Look::Lines(lines) }
    }

    /// How this watch sees a change: an object that leaves the selection is deleted for it.
    fn event(&self, change: &Change) -> Option<Value> {
        let key = &change.key;
        if key.resource != self.resource || self.namespace.as_ref().is_some_and(|namespace| key.namespace != *namespace)
        {
            return None;
        }
        let before = change.before.as_ref().filter(|object| self.selector.matches(object));
        let after = change.after.as_ref().filter(|object| self.selector.matches(object));
        let (what, object) = match (before, after) {
            (None, Some(object)) => ("ADDED", (**object).clone()),
            (Some(_), Some(object)) => ("MODIFIED", (**object).clone()),
            (Some(object), None) => {
                let mut last = (**object).clone();
                last["metadata"]["resourceVersion"] = Value::from(change.revision.to_string());
                ("DELETED", last)
            }
            (None, None) => return None,
        };
        Some(json!({"type": what, "object": represented(object, self.representation)}))
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Value {
        let mut object = json!({
            "kind": self.kind,
            "apiVersion": self.api_version,
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        json!({"type": "BOOKMARK", "object": represented(object, self.representation)})
    }
}
