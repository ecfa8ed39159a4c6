//! One configured server: how it is reached, what is known of it, and the sessions with it.

mod definitions;
mod failure;
mod handshake;
mod http;
mod http_sse;
mod messages;
mod proxy;
mod said;
mod sessions;
mod topics;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::http::{HeaderValue, Method, Response, StatusCode};
use arc_swap::ArcSwap;
use bytes::Bytes;
use mcp_hub_dataplane_api::gateway::{self as config, Target, Transport, UpstreamEra, UpstreamStatus};
use mcp_hub_dataplane_api::status::Handshake;
use mcp_hub_dataplane_api::{Era, LEGACY_VERSIONS, SessionMode};
use mcp_hub_mcp::envelope::write_request;
use mcp_hub_mcp::methods;
use serde_json::Value;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;

pub(crate) use self::failure::Failure;
pub(crate) use self::handshake::{
    Caching, Introduction, Item, ItemLists, PATIENCE, introduce, is_usable, item, list, modern_meta, summary,
    tools_summary,
};
pub(crate) use self::http::{Endpoint, Events, HttpClient, collect, http_client, is_type};
use self::http_sse::Link;
pub(crate) use self::messages::modern_fields;
use self::messages::{answer, refusal, result_of};
pub(crate) use self::said::{Broken, Said};
pub(crate) use self::sessions::{LegacySession, Owner, Sessions};
pub(crate) use self::topics::{Topic, Topics};
use crate::Inner;
use crate::activity::Activity;
use crate::fields::{self, Fields};
use crate::param_headers::{self, Annotation};
use crate::translate::LEVELS;

/// Notifications that a slow listener may lag behind.
const BROADCAST: usize = 64;
/// How long after its start a server holds up merged lists that want its definitions; afterwards it delays nobody's.
pub(crate) const SETTLE: Duration = Duration::from_secs(3);

/// Longest wait for a server to change its log level.
const TUNING: Duration = Duration::from_secs(5);

/// What is known of a server; kept while it is away.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) introduction: Option<Introduction>,
    pub(crate) handshake: Option<Handshake>,
    pub(crate) lists: ItemLists,
    /// Tools whose schemas want arguments in headers, by their own names.
    pub(crate) annotations: HashMap<String, Vec<Annotation>>,
}

impl Catalog {
    pub(crate) fn new(introduction: Option<Introduction>, handshake: Option<Handshake>, lists: ItemLists) -> Self {
        let mut annotations = HashMap::new();
        for tool in lists[0].iter().flatten() {
            // Where they are invalid there are none.
            let found = param_headers::annotations(&tool.raw).unwrap_or_default();
            if !found.is_empty() {
                annotations.insert(tool.key.clone(), found);
            }
        }
        Self { introduction, handshake, lists, annotations }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Health {
    /// Nothing is known yet.
    Unknown,
    Ready,
    /// Nothing runs, as configured; what is known of it holds.
    Asleep,
    Away {
        since: Instant,
        failure: Failure,
    },
}

#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) config: config::Upstream,
    endpoint: Result<Option<Arc<Endpoint>>, String>,
    catalog: ArcSwap<Catalog>,
    health: Mutex<Health>,
    /// Of the lists, in the order of [`methods::LISTS`].
    caching: Mutex<[Caching; 4]>,
    sessions: Sessions,
    next_id: AtomicU64,
    pub(crate) topics: Arc<Topics>,
    pub(crate) activity: Arc<Activity>,
    /// Notifications of the server that belong to no request, as it wrote them.
    pub(crate) notifications: broadcast::Sender<Bytes>,
    /// Wakes the watch: the lists may be outdated.
    pub(crate) refresh: Notify,
    /// Whether the first attempt to shake hands has ended.
    pub(crate) settled: watch::Sender<bool>,
    started: Instant,
    stale_for: Duration,
}

/// A server and the task that keeps its lists fresh, which ends with the last user of both.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) upstream: Arc<Upstream>,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    /// Takes over what a predecessor of the same server knew.
    pub(crate) fn start(
        config: config::Upstream,
        stale_for: Duration,
        inner: &Arc<Inner>,
        predecessor: Option<&Upstream>,
    ) -> Arc<Self> {
        let upstream = Arc::new(Upstream::new(config, stale_for, &inner.http, predecessor));
        let task = tokio::spawn(crate::watch::run(upstream.clone(), Arc::downgrade(inner)));
        Arc::new(Self { upstream, task })
    }
}

impl Upstream {
    fn new(config: config::Upstream, stale_for: Duration, client: &HttpClient, predecessor: Option<&Self>) -> Self {
        let endpoint = Endpoint::of(&config.target, client).map(|endpoint| endpoint.map(Arc::new));
        let away = |failure| {
            let before = predecessor.map(Self::health);
            let since = match before {
                Some(Health::Away { since, .. }) => since,
                _ => Instant::now(),
            };
            Health::Away { since, failure }
        };
        let health = match (&config.target, &endpoint) {
            (Target::Unavailable { reason, message, hint }, _) => {
                let (reason, message, hint) = (reason.clone(), message.clone(), hint.clone());
                away(Failure::Unavailable { reason, message, hint })
            }
            (Target::Asleep, _) => Health::Asleep,
            (_, Err(problem)) => away(Failure::Unreachable(problem.clone())),
            _ => Health::Unknown,
        };
        let catalog = Self::first_catalog(&config, predecessor);
        Self {
            settled: watch::Sender::new(matches!(health, Health::Asleep | Health::Away { .. })),
            config,
            endpoint,
            catalog: ArcSwap::new(catalog),
            health: Mutex::new(health),
            caching: Mutex::new([Caching::none(); 4]),
            sessions: Sessions::default(),
            next_id: AtomicU64::new(1),
            activity: predecessor.map_or_else(Arc::default, |old| old.activity.clone()),
            topics: predecessor.map_or_else(Arc::default, |old| old.topics.clone()),
            notifications: predecessor
                .map_or_else(|| broadcast::Sender::new(BROADCAST), |old| old.notifications.clone()),
            refresh: Notify::new(),
            started: Instant::now(),
            stale_for,
        }
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    pub(crate) fn learn(&self, catalog: Catalog) {
        self.catalog.store(Arc::new(catalog));
    }

    pub(crate) fn learn_tools(&self, tools: Vec<Item>) {
        let before = self.catalog();
        let mut lists = before.lists.clone();
        lists[0] = Some(tools);
        self.learn(Catalog::new(before.introduction.clone(), before.handshake.clone(), lists));
    }

    pub(crate) fn note_caching(&self, list: &str, caching: Caching) {
        if let Some(place) = methods::LISTS.iter().position(|(method, _)| *method == list) {
            self.caching.lock().unwrap_or_else(PoisonError::into_inner)[place] = caching;
        }
    }

    /// How long the list in this place holds.
    pub(crate) fn caching(&self, place: usize) -> Caching {
        self.caching.lock().unwrap_or_else(PoisonError::into_inner)[place]
    }

    pub(crate) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.health.lock().unwrap_or_else(PoisonError::into_inner), Health::Ready)
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.config.target == Target::Asleep
    }

    /// Notes how the server is; whether that is news.
    pub(crate) fn set_health(&self, outcome: Result<(), Failure>) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let (after, news) = match (&*health, outcome) {
            (Health::Ready, Ok(())) => (Health::Ready, false),
            (_, Ok(())) => (Health::Ready, true),
            (Health::Away { since, failure: before }, Err(failure)) => {
                let news = before.to_string() != failure.to_string();
                (Health::Away { since: *since, failure }, news)
            }
            (_, Err(failure)) => (Health::Away { since: Instant::now(), failure }, true),
        };
        *health = after;
        news
    }

    pub(crate) fn status(&self) -> UpstreamStatus {
        match (self.health(), self.catalog().handshake.clone()) {
            (Health::Away { failure: Failure::AuthRequired(message), .. }, _) => {
                UpstreamStatus::AuthRequired { message }
            }
            (Health::Away { failure: Failure::Unavailable { .. }, .. }, _) => UpstreamStatus::Unknown,
            (Health::Away { failure, .. }, _) => UpstreamStatus::Failed { message: failure.to_string() },
            (Health::Ready, Some(handshake)) => UpstreamStatus::Ready { handshake },
            (Health::Ready | Health::Asleep | Health::Unknown, _) => UpstreamStatus::Unknown,
        }
    }

    /// When the definitions of a server that is away are given up; `None` while it is not away.
    pub(crate) fn stale_at(&self) -> Option<Instant> {
        match self.health() {
            Health::Away { since, .. } => Some(since + self.stale_for),
            Health::Ready | Health::Asleep | Health::Unknown => None,
        }
    }

    /// Whether what is known of the server may still be shown.
    pub(crate) fn is_listed(&self) -> bool {
        self.stale_at().is_none_or(|at| Instant::now() < at)
    }

    /// Waits for the first handshake to end, but not longer than [`SETTLE`] after the server was configured.
    pub(crate) async fn settle(&self) {
        self.settle_until(self.started + SETTLE).await;
    }

    async fn settle_until(&self, deadline: Instant) {
        // The time first: it is what holds for most of a server's life.
        if Instant::now() >= deadline || *self.settled.borrow() {
            return;
        }
        let mut settled = self.settled.subscribe();
        // Not settled in time: what is known by then is used.
        tokio::time::timeout_at(deadline.into(), settled.wait_for(|settled| *settled)).await.ok();
    }

    /// The server's introduction, waited for a while if it has not been made yet.
    pub(crate) async fn introduction(&self, patience: Duration) -> Result<Introduction, Failure> {
        if let Some(introduction) = &self.catalog().introduction {
            return Ok(introduction.clone());
        }
        self.settle_until(Instant::now() + patience).await;
        match (&self.catalog().introduction, self.health()) {
            (Some(introduction), _) => Ok(introduction.clone()),
            (None, Health::Away { failure, .. }) => Err(failure),
            (None, Health::Asleep) => Err(Failure::Asleep),
            (None, Health::Ready | Health::Unknown) => Err(Failure::Unreachable("no handshake yet".to_owned())),
        }
    }

    /// The server's era, known or found out.
    pub(crate) async fn era(&self, patience: Duration) -> Result<Era, Failure> {
        match self.config.era {
            UpstreamEra::Known(era) => Ok(era),
            UpstreamEra::Probe => Ok(self.introduction(patience).await?.era),
        }
    }

    /// The era as far as it is known now.
    pub(crate) fn known_era(&self) -> Option<Era> {
        match self.config.era {
            UpstreamEra::Known(era) => Some(era),
            UpstreamEra::Probe => self.catalog.load().introduction.as_ref().map(|introduction| introduction.era),
        }
    }

    /// Whether the server has been away so long that a request need not wait for it.
    pub(crate) fn is_long_away(&self) -> bool {
        matches!(self.health(), Health::Away { since, .. } if since.elapsed() > SETTLE)
    }

    /// Whether requests of several clients share one session, so that their ids have to be made different.
    pub(crate) fn is_shared(&self) -> bool {
        self.config.sessions == SessionMode::Shared
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn endpoint(&self) -> Result<&Arc<Endpoint>, Failure> {
        match &self.endpoint {
            Ok(Some(endpoint)) => Ok(endpoint),
            Err(problem) => Err(Failure::Unreachable(problem.clone())),
            Ok(None) => match self.health() {
                Health::Away { failure, .. } => Err(failure),
                Health::Asleep => Err(Failure::Asleep),
                Health::Ready | Health::Unknown => Err(Failure::Unreachable("it has no address".to_owned())),
            },
        }
    }

    /// Sends one message, in a session with a legacy server; a 401 or 403 becomes a failure.
    pub(crate) async fn post(
        &self,
        session: Option<&LegacySession>,
        mut extra: Fields,
        body: Bytes,
    ) -> Result<Response<Said>, Failure> {
        let response = match session.map(|session| (session, &session.link)) {
            Some((_, Some(link))) => Box::pin(link.post(body)).await?,
            opened => {
                extra.extend(opened.into_iter().flat_map(|(session, _)| session.fields()));
                self.endpoint()?.send(Method::POST, extra, body).await?.map(Said::Http)
            }
        };
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(refusal(&response)),
            _ => Ok(response),
        }
    }

    /// The owner's session, if one is open that is not the one that the server forgot.
    pub(crate) fn usable_session(
        &self,
        owner: Owner,
        forgotten: Option<&Arc<LegacySession>>,
    ) -> Option<Arc<LegacySession>> {
        let session = self.sessions.used(if self.is_shared() { Owner::Shared } else { owner })?;
        forgotten.is_none_or(|forgotten| !Arc::ptr_eq(forgotten, &session)).then_some(session)
    }

    /// The owner's session: opened if there is none, and opened again if it is still the one that the server forgot.
    /// `capabilities` are the client's, raw.
    pub(crate) async fn session(
        &self,
        owner: Owner,
        capabilities: Option<&str>,
        forgotten: Option<&Arc<LegacySession>>,
    ) -> Result<Arc<LegacySession>, Failure> {
        let owner = if self.is_shared() { Owner::Shared } else { owner };
        let (slot, evicted) = self.sessions.slot(owner);
        if let Some(evicted) = evicted {
            self.end(&evicted).await;
        }
        let usable = |session: &Arc<LegacySession>| forgotten.is_none_or(|forgotten| !Arc::ptr_eq(forgotten, session));
        if let Some(session) = slot.current.load_full().filter(usable) {
            return Ok(session);
        }
        let _opening = slot.opening.lock().await;
        if let Some(session) = slot.current.load_full().filter(usable) {
            return Ok(session);
        }
        let (session, _) = self.open(capabilities).await?;
        slot.current.store(Some(session.clone()));
        if forgotten.is_some() {
            // A server that forgot its sessions was restarted and may offer other things now.
            self.refresh.notify_one();
        }
        Ok(session)
    }

    /// Opens a session for the owner, whatever there was before; the raw result of `initialize`.
    pub(crate) async fn initialize(&self, owner: Owner, capabilities: Option<&str>) -> Result<String, Failure> {
        let (slot, evicted) = self.sessions.slot(owner);
        if let Some(evicted) = evicted {
            self.end(&evicted).await;
        }
        let _opening = slot.opening.lock().await;
        let (session, result) = self.open(capabilities).await?;
        slot.current.store(Some(session));
        Ok(result)
    }

    async fn open(&self, capabilities: Option<&str>) -> Result<(Arc<LegacySession>, String), Failure> {
        let params = handshake::initialize_params(capabilities.unwrap_or("{}"));
        let message = write_request(Some("0"), methods::INITIALIZE, Some(&params));
        let opened = async {
            let message = Bytes::from(message);
            if self.config.transport == Transport::HttpSse {
                return self.open_stream(message).await;
            }
            let response = self.post(None, Fields::new(), message.clone()).await?;
            let status = response.status();
            let id = response.headers().get(&fields::SESSION_ID).cloned();
            let refused = match answer(response).await.and_then(result_of) {
                Ok(result) => return Ok((id, None, result)),
                Err(refused) => refused,
            };
            // A server of before answers its address with events, and no message (2025-11-25, "Backwards Compatibility").
            if self.config.transport != Transport::Probe || !status.is_client_error() {
                return Err(refused);
            }
            self.open_stream(message).await.map_err(|failure| match (refused, failure) {
                (_, failure @ (Failure::AuthRequired(_) | Failure::Refused { .. })) => failure,
                (Failure::Unreadable(text), Failure::Unreadable(stream)) => {
                    Failure::Unreadable(format!("{text}; nor HTTP+SSE: {stream}"))
                }
                (refused, _) => refused,
            })
        };
        let (id, link, result) =
            tokio::time::timeout(PATIENCE, opened).await.map_err(|_| Failure::Timeout(PATIENCE))??;
        let parsed: Value = serde_json::from_str(&result).map_err(|error| Failure::Unreadable(error.to_string()))?;
        let version = parsed["protocolVersion"].as_str().unwrap_or_default();
        if !LEGACY_VERSIONS.contains(&version) {
            return Err(Failure::Unreadable(format!("it negotiated the unknown protocol version `{version}`")));
        }
        let version = HeaderValue::from_str(version).map_err(|error| Failure::Unreadable(error.to_string()))?;
        let session = Arc::new(LegacySession::new(id, version, link));
        let ready = write_request(None, methods::INITIALIZED, None);
        self.post(Some(&session), Fields::new(), ready.into()).await?;
        Ok((session, result))
    }

    /// Opens the stream of a session with a server of HTTP+SSE, and introduces us in it.
    async fn open_stream(&self, message: Bytes) -> Result<(Option<HeaderValue>, Option<Link>, String), Failure> {
        let patience = Duration::from_millis(self.config.call_timeout_ms);
        let link = Link::open(self.endpoint()?, self.is_shared(), patience).await?;
        let result = result_of(answer(link.post(message).await?).await?)?;
        Ok((None, Some(link), result))
    }

    /// Ends a session at the server, which may have forgotten it or not know such a request.
    pub(crate) async fn end(&self, session: &LegacySession) {
        if let (Ok(endpoint), Some(_)) = (self.endpoint(), &session.id) {
            let ending = endpoint.send(Method::DELETE, session.fields().collect(), Bytes::new());
            tokio::time::timeout(Duration::from_secs(2), ending).await.ok();
        }
    }

    /// Asks for log messages of this level and above in this session, unless it brings them already.
    pub(crate) async fn tune(&self, owner: Owner, session: &LegacySession, level: usize) {
        let offers = self.catalog().introduction.as_ref().is_some_and(|known| known.offers("logging"));
        if !offers || level >= session.level.fetch_min(level, Ordering::Relaxed) {
            return;
        }
        let owner = if self.is_shared() { Owner::Shared } else { owner };
        let params = format!(r#"{{"level":"{}"}}"#, LEVELS[level.min(LEVELS.len() - 1)]);
        // Log messages are worth no failed call.
        self.ask(Era::Legacy, owner, methods::SET_LEVEL, &params, TUNING).await.ok();
    }

    /// Ends sessions that nobody else does.
    pub(crate) async fn end_idle_sessions(&self) {
        for session in self.sessions.take_idle(Instant::now()) {
            self.end(&session).await;
        }
    }

    pub(crate) fn open_session(&self, owner: Owner) -> Option<Arc<LegacySession>> {
        self.sessions.open(if self.is_shared() { Owner::Shared } else { owner })
    }

    /// The sessions of single clients.
    pub(crate) fn open_sessions(&self) -> Vec<(Owner, Arc<LegacySession>)> {
        self.sessions.of_clients()
    }

    /// Goes on with a session that another replica opened, unless the owner has one here.
    pub(crate) async fn adopt(&self, owner: Owner, session: LegacySession) {
        if self.is_shared() {
            return;
        }
        let (slot, evicted) = self.sessions.slot(owner);
        if let Some(evicted) = evicted {
            self.end(&evicted).await;
        }
        let _opening = slot.opening.lock().await;
        if slot.current.load().is_none() {
            slot.current.store(Some(Arc::new(session)));
        }
    }

    pub(crate) fn take_session(&self, owner: Owner) -> Option<Arc<LegacySession>> {
        self.sessions.take(owner)
    }

    /// The stream of a session's notifications.
    pub(crate) async fn stream(&self, session: &LegacySession) -> Result<Response<Said>, Failure> {
        match &session.link {
            Some(link) => Ok(link.beside()),
            None => {
                Ok(self.endpoint()?.send(Method::GET, session.fields().collect(), Bytes::new()).await?.map(Said::Http))
            }
        }
    }

    /// A request of our own; its raw result.
    pub(crate) async fn ask(
        &self,
        era: Era,
        owner: Owner,
        method: &str,
        params: &str,
        patience: Duration,
    ) -> Result<String, Failure> {
        let asked = async {
            let mut forgotten = None;
            loop {
                // Of the ids that are in use on a session, ours are numbers from one counter.
                let message = write_request(Some(&self.next_id().to_string()), method, Some(params));
                let (extra, session) = match era {
                    Era::Modern => (modern_fields(method, None), None),
                    Era::Legacy => {
                        let session = match self.sessions.open(owner) {
                            Some(session) if forgotten.is_none() => session,
                            _ if self.is_shared() => self.session(owner, None, forgotten.as_ref()).await?,
                            // What this client can do is not known here; its next call opens another.
                            _ if owner != Owner::Shared => {
                                return Err(Failure::Unreachable("the session is over".to_owned()));
                            }
                            _ => {
                                self.initialize(owner, None).await?;
                                let opened = self.sessions.open(owner);
                                opened.ok_or_else(|| Failure::Unreachable("the session was closed".to_owned()))?
                            }
                        };
                        (Fields::new(), Some(session))
                    }
                };
                let response = self.post(session.as_deref(), extra, message.into()).await?;
                if response.status() == StatusCode::NOT_FOUND && forgotten.is_none() && session.is_some() {
                    forgotten = session;
                    continue;
                }
                return result_of(answer(response).await?);
            }
        };
        tokio::time::timeout(patience, asked).await.map_err(|_| Failure::Timeout(patience))?
    }
}
