//! Asks an operator whether it is ready: what `helm test` runs, in an image that has nothing but the operator.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// A Service leads to a new pod a moment after it is ready.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);

/// The operator did not say that it is ready.
#[derive(Debug, thiserror::Error)]
#[error("{url} did not answer 200 within 30 s; the last try: {last}")]
pub struct ProbeError {
    url: Uri,
    last: String,
}

/// Waits for the answer 200, for half a minute at most.
///
/// # Errors
/// What the last try came to.
pub async fn ready(url: Uri) -> Result<(), ProbeError> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut last = "no answer".to_owned();
    let asking = async {
        loop {
            match client.get(url.clone()).await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => last = answer.status().to_string(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(()) => Ok(()),
        Err(_) => Err(ProbeError { url, last }),
    }
}
