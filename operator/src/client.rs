//! How the operator speaks to the API server: so many requests at a time, and few retries.

use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder};
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::retry::RetryLayer;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, Service};

/// Requests to the API server that wait for their answer to begin.
const REQUESTS: usize = 64;
/// An answer that has not begun by then is not waited for. The API server gives up a request after a minute and says so,
/// and the answer to a watch begins at once.
const ANSWER: Duration = Duration::from_secs(70);
/// A connection that says nothing for so long amid an answer is dead. Watches are ended by the API server before.
pub const SILENCE: Duration = Duration::from_secs(310);

/// A client that holds back requests over the limit, asks again three times when the server says that it is busy, and waits
/// for the beginning of no answer for ever: a list that never comes would leave an operator blind without a word.
pub fn patient<S, B>(builder: ClientBuilder<S>) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + Sync,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    // Retries need a service that can be shared.
    let builder = builder.with_layer(&TimeoutLayer::new(ANSWER)).with_layer(&BufferLayer::new(REQUESTS));
    match RetryPolicy::new(Duration::from_millis(100), Duration::from_secs(2), 3, true) {
        Ok(policy) => {
            let retries = RetryLayer::new(policy);
            builder.with_layer(&retries).with_layer(&ConcurrencyLimitLayer::new(REQUESTS)).build()
        }
        // The bounds above are in order, so there is always a policy.
        Err(_) => builder.with_layer(&ConcurrencyLimitLayer::new(REQUESTS)).build(),
    }
}
