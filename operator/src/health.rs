//! `/healthz`, `/readyz` and `/metrics` of an operator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use mcp_hub_reconcile::passes::Passes;
use tokio::net::TcpListener;

/// How far an operator has come.
#[derive(Debug, Default)]
pub struct Health(AtomicU8);

const STARTED: u8 = 1;
const LEADING: u8 = 2;

impl Health {
    /// It takes part in the election: a replica that waits is as ready as the one that leads.
    pub fn starts(&self) {
        self.0.store(STARTED, Ordering::Relaxed);
    }

    pub fn leads(&self) {
        self.0.store(LEADING, Ordering::Relaxed);
    }
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, health: Arc<Health>, passes: Arc<Passes>) {
    let ready = |State(health): State<Arc<Health>>| async move {
        match health.0.load(Ordering::Relaxed) {
            STARTED | LEADING => StatusCode::OK,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    };
    let metrics = move |State(health): State<Arc<Health>>| async move {
        let leads = u8::from(health.0.load(Ordering::Relaxed) == LEADING);
        format!(
            "# HELP mcp_hub_operator_leader Whether this replica leads.\n# TYPE mcp_hub_operator_leader gauge\n\
             mcp_hub_operator_leader {leads}\n{}",
            passes.render()
        )
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(error = %error, "the health endpoint ended");
    }
}
