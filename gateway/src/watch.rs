//! Keeps what is known of a server fresh: shakes hands, fetches its lists, listens for changes, and tries again with
//! patience when the server is away.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::{Era, SessionMode};
use mcp_hub_mcp::envelope::{Envelope, Kind, quoted, write_request};
use mcp_hub_mcp::methods::{self, ACKNOWLEDGED, LISTS, PROMPTS_CHANGED, RESOURCES_CHANGED, TOOLS_CHANGED};
use serde_json::Value;

use crate::Inner;
use crate::told::{News, Told};
use crate::upstream::{
    Catalog, Events, Failure, Introduction, ItemLists, Owner, PATIENCE, Upstream, introduce, is_type, list,
    modern_fields, modern_meta, summary,
};

/// Between attempts to reach a server: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Between attempts on a server that wants authorization: only a person mends that, usually by a new configuration.
const BACKOFF_AUTH: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// Lists are looked at this often even if nothing says that they changed: not every server says so.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The same where a look costs a process of the server's.
const LOOK_AGAIN_DEARLY: Duration = Duration::from_secs(600);
/// Changes come in bursts; one look serves those that arrive within this.
const BURST: Duration = Duration::from_millis(20);

/// Runs until the task is aborted.
pub(crate) async fn run(upstream: Arc<Upstream>, inner: Weak<Inner>) {
    if upstream.endpoint().is_err() {
        return give_up_when_stale(&upstream, &inner).await;
    }
    let mut attempt = 0;
    loop {
        let failure = match refresh(&upstream, &inner).await {
            Ok(introduction) => {
                attempt = 0;
                follow(&upstream, &inner, &introduction).await
            }
            Err(failure) => failure,
        };
        tracing::debug!(server = upstream.config.name, %failure, "server is away");
        let (first, last) = if matches!(failure, Failure::AuthRequired(_)) { BACKOFF_AUTH } else { BACKOFF };
        let pause = first.saturating_mul(1 << attempt.min(16)).min(last);
        attempt += 1;
        note(&upstream, &inner, Err(failure));
        upstream.settled.send_replace(true);
        let stale = upstream.stale_at();
        let expire = async {
            match stale {
                Some(at) if at > Instant::now() => tokio::time::sleep_until(at.into()).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = upstream.refresh.notified() => {}
            () = expire => all_changed(&inner),
        }
    }
}

async fn give_up_when_stale(upstream: &Upstream, inner: &Weak<Inner>) {
    if let Some(at) = upstream.stale_at() {
        tokio::time::sleep_until(at.into()).await;
        all_changed(inner);
    }
}

fn all_changed(inner: &Weak<Inner>) {
    if let Some(inner) = inner.upgrade() {
        inner.all_outdated();
    }
}

fn note(upstream: &Upstream, inner: &Weak<Inner>, outcome: Result<(), Failure>) {
    if upstream.set_health(outcome)
        && let Some(inner) = inner.upgrade()
    {
        inner.status_changed();
    }
}

/// Shakes hands and fetches every list.
async fn refresh(upstream: &Upstream, inner: &Weak<Inner>) -> Result<Introduction, Failure> {
    let started = Instant::now();
    let introduction = introduce(upstream).await?;
    if let Some(inner) = inner.upgrade() {
        crate::metrics::count(&inner.metrics.upstream_sessions);
    }
    let lists = fetch(upstream, &introduction).await?;
    // A server that gives each client a process of its own has spent one on this.
    if upstream.config.sessions == SessionMode::PerClient
        && let Some(session) = upstream.take_session(Owner::Shared)
    {
        upstream.end(&session).await;
    }
    let handshake = summary(&introduction, &lists, started);
    let before = upstream.catalog();
    let was_listed = upstream.is_listed();
    let changed: Vec<usize> =
        (0..LISTS.len()).filter(|place| before.lists[*place] != lists[*place] || !was_listed).collect();
    let introduced = before.introduction.as_ref().map(|old| &old.result) != Some(&introduction.result);
    upstream.learn(Catalog::new(Some(introduction.clone()), Some(handshake), lists));
    note(upstream, inner, Ok(()));
    upstream.settled.send_replace(true);
    tell(upstream, inner, &changed);
    if introduced && let Some(inner) = inner.upgrade() {
        inner.status_changed();
    }
    Ok(introduction)
}

async fn fetch(upstream: &Upstream, introduction: &Introduction) -> Result<ItemLists, Failure> {
    let mut lists: ItemLists = Default::default();
    for (place, (method, key)) in LISTS.into_iter().enumerate() {
        if !introduction.offers(key) {
            continue;
        }
        lists[place] = match list(upstream, introduction.era, method, key).await {
            Ok(items) => Some(items),
            // It says so again whoever asks; the other lists are not worse for it.
            Err(Failure::Refused { .. } | Failure::Unreadable(_)) => None,
            Err(failure) => return Err(failure),
        };
    }
    Ok(lists)
}

/// Tells clients of changed lists, by their places.
fn tell(upstream: &Upstream, inner: &Weak<Inner>, changed: &[usize]) {
    let mut told: Vec<&'static str> = changed.iter().map(|place| methods::outdated_by(LISTS[*place].0)).collect();
    told.dedup();
    for notification in told {
        let message = write_request(None, notification, None);
        // Nobody listens, nobody has to be told.
        upstream.notifications.send(message.into()).ok();
        if let Some(inner) = inner.upgrade() {
            inner.outdated(notification);
        }
    }
}

/// Listens for changes and looks again from time to time, until the server is away.
async fn follow(upstream: &Upstream, inner: &Weak<Inner>, introduction: &Introduction) -> Failure {
    let mut topics = upstream.topics.changes.subscribe();
    let mut covered = *topics.borrow_and_update();
    let mut stream = listen(upstream, introduction).await;
    let pause = if upstream.is_shared() { LOOK_AGAIN } else { LOOK_AGAIN_DEARLY };
    loop {
        let event = async {
            match &mut stream {
                Some(events) => events.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = event => match event {
                Ok(Some(message)) => {
                    if let Some(outdated) = on_message(upstream, inner, covered, &message)
                        && let Err(failure) = look_again(upstream, inner, introduction, Some(outdated)).await
                    {
                        return failure;
                    }
                }
                // A stream that ends says that the server may have been restarted, with another era and other tools. The
                // pause keeps a server that closes every stream at once from being asked all the time.
                Ok(None) | Err(_) => {
                    tokio::time::sleep(BACKOFF.0).await;
                    if let Err(failure) = look_again(upstream, inner, introduction, None).await {
                        return failure;
                    }
                    stream = None;
                    let reopened = tokio::time::timeout(BACKOFF.1, listen(upstream, introduction));
                    stream = reopened.await.ok().flatten().or(stream);
                }
            },
            // The new stream is there before the old one ends.
            Ok(()) = topics.changed() => {
                covered = *topics.borrow_and_update();
                stream = listen(upstream, introduction).await;
                if stream.is_none() {
                    // It is wanted, or the server is away.
                    upstream.refresh.notify_one();
                }
            }
            () = upstream.refresh.notified() => {
                if let Err(failure) = look_again(upstream, inner, introduction, None).await { return failure }
                if stream.is_none() { stream = listen(upstream, introduction).await }
            }
            () = tokio::time::sleep(pause) => {
                upstream.end_idle_sessions().await;
                if let Err(failure) = look_again(upstream, inner, introduction, None).await { return failure }
                if stream.is_none() { stream = listen(upstream, introduction).await }
            }
        }
    }
}

/// Fetches the lists anew, those that a notification outdates or all.
async fn look_again(
    upstream: &Upstream,
    inner: &Weak<Inner>,
    introduction: &Introduction,
    outdated: Option<&'static str>,
) -> Result<(), Failure> {
    if upstream.config.sessions == SessionMode::PerClient {
        return refresh(upstream, inner).await.map(drop);
    }
    tokio::time::sleep(BURST).await;
    let before = upstream.catalog();
    let mut lists = before.lists.clone();
    let mut changed = Vec::new();
    for (place, (method, key)) in LISTS.into_iter().enumerate() {
        let wanted = outdated.is_none_or(|outdated| methods::outdated_by(method) == outdated);
        if !wanted || !introduction.offers(key) {
            continue;
        }
        match list(upstream, introduction.era, method, key).await {
            Ok(items) => {
                if lists[place].as_ref() != Some(&items) {
                    changed.push(place);
                }
                lists[place] = Some(items);
            }
            Err(Failure::Refused { .. } | Failure::Unreadable(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    if !changed.is_empty() {
        let mut handshake = before.handshake.clone();
        if let (Some(handshake), Some(tools)) = (&mut handshake, &lists[0]) {
            handshake.tools = Some(crate::upstream::tools_summary(tools));
        }
        upstream.learn(Catalog::new(before.introduction.clone(), handshake, lists));
        if let Some(inner) = inner.upgrade() {
            inner.status_changed();
        }
        tell(upstream, inner, &changed);
    }
    note(upstream, inner, Ok(()));
    Ok(())
}

/// What a message of the stream says of the lists; others go to whoever listens. `covered` counts the changes of topics
/// that the stream was opened with.
fn on_message(upstream: &Upstream, inner: &Weak<Inner>, covered: u64, message: &[u8]) -> Option<&'static str> {
    let envelope = Envelope::parse(message).ok()?;
    if envelope.kind() != Kind::Notification {
        return None;
    }
    match &*envelope.method() {
        TOOLS_CHANGED => Some(TOOLS_CHANGED),
        PROMPTS_CHANGED => Some(PROMPTS_CHANGED),
        RESOURCES_CHANGED => Some(RESOURCES_CHANGED),
        ACKNOWLEDGED => {
            upstream.topics.acknowledged.send_replace(covered);
            None
        }
        _ => {
            let message = bytes::Bytes::copy_from_slice(message);
            match (News::of(&envelope), inner.upgrade()) {
                // Nobody listens, nobody has to be told.
                (Some(news), Some(inner)) => {
                    let server = upstream.config.name.as_str().into();
                    inner.told.send(Told { server, owner: Owner::Shared, news, message }).ok();
                }
                _ => drop(upstream.notifications.send(message)),
            }
            None
        }
    }
}

/// The stream of changes, if the server offers one.
async fn listen(upstream: &Upstream, introduction: &Introduction) -> Option<Events> {
    let topics = upstream.topics.shared();
    let response = match introduction.era {
        Era::Legacy => {
            let session = upstream.open_session(Owner::Shared).filter(|_| upstream.is_shared())?;
            let response = upstream.stream(&session).await;
            // A new session knows nothing of them.
            for uri in topics {
                let params = format!(r#"{{"uri":{}}}"#, quoted(&uri));
                // One that cannot be had any more is missed, the others are not.
                upstream.ask(Era::Legacy, Owner::Shared, methods::RESOURCES_SUBSCRIBE, &params, PATIENCE).await.ok();
            }
            response
        }
        Era::Modern => {
            let capabilities = introduction.capabilities();
            let mut wanted = serde_json::Map::new();
            for (member, list) in [
                ("toolsListChanged", "tools"),
                ("promptsListChanged", "prompts"),
                ("resourcesListChanged", "resources"),
            ] {
                if capabilities[list]["listChanged"] == true {
                    wanted.insert(member.to_owned(), true.into());
                }
            }
            if !topics.is_empty() {
                wanted.insert("resourceSubscriptions".to_owned(), topics.into());
            }
            if wanted.is_empty() {
                return None;
            }
            let params = format!(r#"{{"notifications":{},"_meta":{}}}"#, Value::Object(wanted), modern_meta());
            let message = write_request(Some(&upstream.next_id().to_string()), methods::LISTEN, Some(&params));
            upstream.post(None, modern_fields(methods::LISTEN, None), message.into()).await
        }
    };
    let response = response.ok().filter(|response| response.status().is_success())?;
    is_type(response.headers(), "text/event-stream").then(|| Events::new(response.into_body()))
}
