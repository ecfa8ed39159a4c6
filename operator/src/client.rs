//! How the operator speaks to the API server: so many requests at a time, and few retries.

use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder};
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::retry::RetryLayer;
use tower::{BoxError, Service};

/// Requests to the API server that wait for their answer to begin.
const REQUESTS: usize = 64;

/// A client that holds back requests over the limit, and asks again three times when the server says that it is busy.
pub fn patient<S, B>(builder: ClientBuilder<S>) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + Sync,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    // Retries need a service that can be shared.
    let builder = builder.with_layer(&BufferLayer::new(REQUESTS));
    match RetryPolicy::new(Duration::from_millis(100), Duration::from_secs(2), 3, true) {
        Ok(policy) => {
            let retries = RetryLayer::new(policy);
            builder.with_layer(&retries).with_layer(&ConcurrencyLimitLayer::new(REQUESTS)).build()
        }
        // The bounds above are in order, so there is always a policy.
        Err(_) => builder.with_layer(&ConcurrencyLimitLayer::new(REQUESTS)).build(),
    }
}
