//! The daemon's side of the admin API.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use mcp_hub_crds::ResourceKind;
use mcp_hub_reconcile::ports::LogQuery;
use tokio::net::UnixListener;

use super::{
    ActionRequest, DaemonVersion, HubEndpoint, LogRequest, Name, Objects, OriginAnswer, OriginPath, OriginQuery,
    OriginState, Planned, Refusal, Shutdown, Synced, path,
};
use crate::daemon::Daemon;
use crate::error::{Error, Exit};

/// Bursts of changes show as one snapshot.
const QUIET: Duration = Duration::from_millis(40);

type Shared = State<Arc<Daemon>>;

/// Binds the socket, for this user only. The caller holds the state folder's lock, so a file that is there already is a
/// dead daemon's.
pub(crate) fn bind(socket: &Path) -> Result<UnixListener, Error> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::file("remove", socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(Error::file("listen on", socket))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(Error::file("protect", socket))?;
    Ok(listener)
}

/// Serves until `shutdown` resolves.
pub(crate) async fn run(
    listener: UnixListener,
    daemon: Arc<Daemon>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route(path::VERSION, get(version))
        .route(path::OBJECTS, get(objects))
        .route(path::WATCH, post(watch))
        .route(path::EVENTS, get(events))
        .route(path::ORIGINS, get(origins).post(follow).delete(unfollow))
        .route(path::ORIGIN_OF, get(origin_of))
        .route(path::ACTIONS, post(act))
        .route(path::PLAN, post(plan))
        .route(path::LOGS, post(logs))
        .route(path::ENDPOINT, post(endpoint))
        .route(path::SECRETS, post(secret_changed))
        .route(path::SHUTDOWN, post(stop))
        .with_state(daemon);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown).await {
        tracing::error!(%error, "the admin socket failed");
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match self.exit() {
            Exit::NotFound => StatusCode::NOT_FOUND,
            Exit::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Exit::Held => StatusCode::CONFLICT,
            Exit::Failed | Exit::Usage | Exit::NoAnswer | Exit::TimedOut | Exit::ToolError | Exit::Forbidden => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let refusal = Refusal { code: self.exit() as u8, message: self.to_string(), hint: self.hint() };
        (status, Json(refusal)).into_response()
    }
}

async fn version() -> Json<DaemonVersion> {
    Json(DaemonVersion { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() })
}

async fn objects(State(daemon): Shared) -> Json<Objects> {
    Json(daemon.objects())
}

/// A snapshot at once and after each change, one a line.
async fn watch(State(daemon): Shared) -> Response {
    let changes = daemon.store.subscribe();
    let start = (daemon, changes, true);
    let lines = futures::stream::unfold(start, |(daemon, mut changes, first)| async move {
        if !first {
            tokio::select! {
                changed = changes.changed() => changed.ok()?,
                () = daemon.ended() => return None,
            }
            tokio::time::sleep(QUIET).await;
        }
        changes.borrow_and_update();
        let mut line = serde_json::to_string(&daemon.objects()).ok()?;
        line.push('\n');
        Some((Ok::<_, std::convert::Infallible>(line), (daemon, changes, false)))
    });
    Body::from_stream(lines).into_response()
}

async fn events(State(daemon): Shared) -> Result<Json<serde_json::Value>, Error> {
    let events = daemon.store.events(1000).map_err(|error| crate::daemon::sync_failed(&error))?;
    Ok(Json(serde_json::to_value(events).unwrap_or_default()))
}

async fn origins(State(daemon): Shared) -> Result<Json<Vec<OriginState>>, Error> {
    daemon.origins().map(Json)
}

async fn follow(State(daemon): Shared, Json(origin): Json<OriginPath>) -> Result<Json<Synced>, Error> {
    daemon.follow(&origin.path).map(Json)
}

async fn unfollow(State(daemon): Shared, Json(origin): Json<OriginPath>) -> Result<Json<Synced>, Error> {
    daemon.unfollow(&origin.path).await.map(Json)
}

async fn origin_of(State(daemon): Shared, Query(query): Query<OriginQuery>) -> Result<Json<OriginAnswer>, Error> {
    let kind = ResourceKind::ALL.into_iter().find(|kind| kind.as_str() == query.kind).ok_or(Error::NotFound {
        what: "kind",
        name: query.kind,
        hint: None,
    })?;
    daemon.origin_of(&Name { namespace: query.namespace, name: query.name }.key(kind)).map(Json)
}

async fn act(State(daemon): Shared, Json(request): Json<ActionRequest>) -> Result<Json<Vec<String>>, Error> {
    daemon.act(&request).map(Json)
}

async fn plan(State(daemon): Shared, Json(origin): Json<Option<OriginPath>>) -> Result<Json<Vec<Planned>>, Error> {
    daemon.plan(origin.map(|origin| origin.path).as_deref()).await.map(Json)
}

async fn logs(State(daemon): Shared, Json(request): Json<LogRequest>) -> Result<Response, Error> {
    let query = LogQuery { tail: request.tail, follow: request.follow };
    let lines = daemon.logs(&Name { namespace: request.namespace, name: request.name }, query).await?;
    let lines = lines.map(|line| Ok::<_, std::convert::Infallible>(line + "\n"));
    Ok(Body::from_stream(lines).into_response())
}

async fn endpoint(State(daemon): Shared, Json(hub): Json<Name>) -> Result<Json<HubEndpoint>, Error> {
    daemon.endpoint(&hub).map(Json)
}

async fn secret_changed(State(daemon): Shared, Json(secret): Json<Name>) -> Json<()> {
    daemon.store.secret_changed(&secret.namespace, &secret.name);
    Json(())
}

async fn stop(State(daemon): Shared, Json(request): Json<Shutdown>) -> Result<Json<()>, Error> {
    daemon.shut_down(request).await.map(Json)
}
