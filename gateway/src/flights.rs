//! Requests that servers work on, so that they can be cancelled: by a legacy client's notification, by a modern client
//! that goes away, or when their time is up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mcp_hub_mcp::envelope::write_request;
use mcp_hub_mcp::methods;
use tokio::sync::Notify;

use crate::Inner;
use crate::fields::Fields;
use crate::upstream::{LegacySession, Owner, Upstream};

/// Client and raw id: what a client calls its request.
pub(crate) type Caller = (Owner, String);

#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<Caller, Arc<Route>>>);

#[derive(Debug)]
struct Route {
    upstream: Arc<Upstream>,
    /// The session in which a legacy server knows the request.
    session: Option<Arc<LegacySession>>,
    id: String,
    cancelled: Notify,
}

/// What becomes of a request whose client is gone (design: legacy disconnect does not cancel, modern does).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDrop {
    Cancel,
    Forget,
}

/// A request under way; acts when dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    inner: Arc<Inner>,
    caller: Caller,
    route: Arc<Route>,
    on_drop: OnDrop,
}

impl Flights {
    /// Cancels a client's request; whether there was one.
    pub(crate) fn cancel(&self, caller: &Caller) -> bool {
        let route = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(caller).cloned();
        let Some(route) = route else { return false };
        tell(&route);
        route.cancelled.notify_one();
        true
    }
}

impl Flight {
    pub(crate) fn new(
        inner: &Arc<Inner>,
        upstream: &Arc<Upstream>,
        caller: Caller,
        session: Option<Arc<LegacySession>>,
        id: String,
        on_drop: OnDrop,
    ) -> Self {
        let route = Arc::new(Route { upstream: upstream.clone(), session, id, cancelled: Notify::new() });
        // Modern clients cancel by going away, and their ids may be equal.
        if on_drop == OnDrop::Forget {
            let mut flights = inner.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
            flights.insert(caller.clone(), route.clone());
        }
        Self { inner: inner.clone(), caller, route, on_drop }
    }

    /// Resolves when the client has cancelled the request.
    pub(crate) async fn cancelled(&self) {
        self.route.cancelled.notified().await;
    }

    pub(crate) fn session(&self) -> Option<&Arc<LegacySession>> {
        self.route.session.as_ref()
    }

    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.route.upstream
    }

    /// The request was answered.
    pub(crate) fn landed(mut self) {
        self.on_drop = OnDrop::Forget;
    }

    /// The request is given up.
    pub(crate) fn abandon(mut self) {
        self.on_drop = OnDrop::Cancel;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.inner.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A later request may have taken the id.
        if flights.get(&self.caller).is_some_and(|route| Arc::ptr_eq(route, &self.route)) {
            flights.remove(&self.caller);
        }
        drop(flights);
        if self.on_drop == OnDrop::Cancel {
            tell(&self.route);
        }
    }
}

/// Tells a legacy server; a modern one sees its connection end.
fn tell(route: &Arc<Route>) {
    let (Some(session), Ok(runtime)) = (route.session.clone(), tokio::runtime::Handle::try_current()) else { return };
    let route = route.clone();
    runtime.spawn(async move {
        let params = format!(r#"{{"requestId":{},"reason":"the client cancelled it or is gone"}}"#, route.id);
        let message = write_request(None, methods::CANCELLED, Some(&params));
        // A server that is gone has nothing to be told.
        route.upstream.post(Some(&session), Fields::new(), message.into()).await.ok();
    });
}
