//! Images that an engine fetches from a registry, and what it says when it does not.

use std::collections::HashMap;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::errors::Error as ApiError;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptions;
use futures::StreamExt;
use mcp_hub_dataplane_api::secret::SecretString;
use mcp_hub_supply::progress::{Event, Tell};
use mcp_hub_supply::{Credentials, Login, Reference};

use super::engine::{Engine, EngineError};

/// A pull that shows nothing for so long has stalled: engines tell of each part of a layer.
const SILENCE: Duration = Duration::from_secs(300);
/// Attempts of which each but the last is followed by a wait.
const ATTEMPTS: u32 = 4;
/// Before the second attempt; then it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Why an image was not pulled. Engines say so in words only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is not made for the engine's platform.
    Platform,
    /// The registry wants another login, or does not tell whether there is such an image.
    Login,
    Missing,
    DiskFull,
    /// What came is not what its digest says.
    Altered,
    /// Anything else: time may mend it.
    Other,
}

impl Refusal {
    fn of(words: &str, image: &Reference) -> Self {
        let words = without_name(&words.to_lowercase(), image);
        let known: [(Self, &[&str]); 5] = [
            (Self::Platform, &["no matching manifest", "no image found in manifest list", "no child with platform"]),
            (Self::Altered, &["verification failed", "did not match", "does not match", "digest mismatch"]),
            (Self::Login, &["unauthorized", "authentication required", "denied", "forbidden", "username or password"]),
            (Self::Missing, &["not found", "manifest unknown", "name unknown"]),
            (Self::DiskFull, &["no space left"]),
        ];
        let said = |phrases: &[&str]| phrases.iter().any(|phrase| words.contains(phrase));
        known.into_iter().find(|(_, phrases)| said(phrases)).map_or(Self::Other, |(refusal, _)| refusal)
    }
}

/// An engine's words without the names in them: an image may be called `access-denied-log`. Nor has a socket or file that the
/// engine may not use to do with logins.
fn without_name(words: &str, image: &Reference) -> String {
    let repository = image.repository();
    let mut names = vec![image.registry().to_owned(), format!("/{repository}")];
    // Engines leave Docker Hub's name out.
    names.extend(repository.contains('/').then(|| repository.to_owned()));
    names.extend(image.tag().into_iter().flat_map(|tag| [format!(":{tag}"), format!("/{tag}")]));
    names.push("permission denied".to_owned());
    names.into_iter().fold(words.to_owned(), |words, name| words.replace(&name.to_lowercase(), ""))
}

impl Engine {
    /// Pulls an image by its tag or digest. `heard` gets what the engine says of it.
    ///
    /// # Cancel safety
    /// May be dropped at any time; the engine ends the pull, and keeps what it has of it for the next.
    pub(super) async fn pull(
        &self,
        reference: &Reference,
        login: Option<DockerCredentials>,
        mut heard: impl FnMut(&CreateImageInfo) + Send,
    ) -> Result<(), EngineError> {
        let name = reference.to_string();
        let refused = |said: &str| self.pull_refused(reference, said);
        // With its tag or digest: without, all tags of a repository would be meant.
        let options = CreateImageOptions { from_image: Some(name.clone()), ..CreateImageOptions::default() };
        let mut pulled = self.api.create_image(Some(options), None, login);
        loop {
            let step = tokio::time::timeout(SILENCE, pulled.next()).await;
            let step = step.map_err(|_| refused(&format!("nothing came for {} s", SILENCE.as_secs())))?;
            let why = match step {
                None => return Ok(()),
                Some(Ok(info)) => {
                    heard(&info);
                    continue;
                }
                Some(Err(ApiError::DockerStreamError { error })) => error,
                Some(Err(ApiError::DockerResponseServerError { message, .. })) => message,
                Some(Err(error)) => return Err(self.failed("pull image", &name, error)),
            };
            return Err(refused(&why));
        }
    }

    /// Why an image was not pulled, in the engine's words.
    pub(super) fn pull_refused(&self, image: &Reference, said: &str) -> EngineError {
        EngineError::PullRefused {
            product: self.facts().product.clone(),
            architecture: self.facts().architecture.clone(),
            image: image.to_string(),
            said: said.trim().to_owned(),
            why: Refusal::of(said, image),
        }
    }

    /// As [`Engine::pull`]; what time may mend is tried again, after 1, 2 and 4 seconds.
    pub(super) async fn pull_insistently(
        &self,
        reference: &Reference,
        login: Option<DockerCredentials>,
        tell: Tell<'_>,
    ) -> Result<(), EngineError> {
        let mut wait = FIRST_WAIT;
        // One for all attempts: engines keep the layers that they have.
        let mut layers = Layers::default();
        for _ in 1..ATTEMPTS {
            match self.pull(reference, login.clone(), |info| layers.tell(info, reference, tell)).await {
                Err(error @ EngineError::PullRefused { why: Refusal::Other, .. }) => {
                    tell(Event::Waits { wait, error: &error });
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                done => return done,
            }
        }
        self.pull(reference, login, |info| layers.tell(info, reference, tell)).await
    }
}

/// How much of each layer is there. Docker tells; Podman does not.
#[derive(Default)]
struct Layers(HashMap<String, u64>);

impl Layers {
    fn tell(&mut self, info: &CreateImageInfo, image: &Reference, tell: Tell<'_>) {
        // What is unpacked afterwards has the same bytes again.
        if info.status.as_deref() != Some("Downloading") {
            return;
        }
        let (Some(layer), Some(progress)) = (&info.id, &info.progress_detail) else { return };
        let bytes = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok()).unwrap_or_default();
        let (now, total) = (bytes(progress.current), bytes(progress.total));
        if total == 0 {
            return;
        }
        let before = self.0.entry(layer.clone()).or_insert_with(|| {
            tell(Event::Begins { image, bytes: total });
            0
        });
        tell(match now.checked_sub(*before) {
            Some(more) => Event::Moved(more),
            None => Event::Again(*before - now),
        });
        *before = now;
    }
}

/// A login as engines take it.
pub(super) fn login(credentials: &Credentials, reference: &Reference) -> Option<DockerCredentials> {
    let text = |secret: &SecretString| Some(secret.expose_secret().to_owned());
    let for_registry =
        DockerCredentials { serveraddress: Some(reference.registry().to_owned()), ..DockerCredentials::default() };
    Some(match credentials.login(reference)? {
        Login::Password { user, password } => {
            DockerCredentials { username: Some(user.clone()), password: text(password), ..for_registry }
        }
        Login::Refresh(token) => DockerCredentials { identitytoken: text(token), ..for_registry },
        Login::Access(token) => DockerCredentials { registrytoken: text(token), ..for_registry },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bollard::models::ProgressDetail;

    use super::*;

    #[test]
    fn what_engines_say_tells_whether_trying_again_is_of_use() {
        for (words, wanted) in [
            ("no matching manifest for linux/amd64 in the manifest list entries", Refusal::Platform),
            ("choosing an image from manifest list docker://a: no image found in manifest list", Refusal::Platform),
            ("manifest verification failed for digest sha256:aa", Refusal::Altered),
            ("Digest did not match, expected sha256:aa, got sha256:bb", Refusal::Altered),
            ("Get \"http://a/v2/b\": unauthorized: authentication required", Refusal::Login),
            ("pull access denied for a, repository does not exist", Refusal::Login),
            ("manifest for a:1 not found: manifest unknown: manifest unknown", Refusal::Missing),
            ("write /var/lib/docker/tmp/x: no space left on device", Refusal::DiskFull),
            ("toomanyrequests: You have reached your pull rate limit", Refusal::Other),
            ("received unexpected HTTP status: 500 Internal Server Error", Refusal::Other),
            ("dial tcp 127.0.0.1:1: connect: connection refused", Refusal::Other),
            ("dial unix /run/proxy.sock: connect: permission denied", Refusal::Other),
            ("Head \"https://denied.io/v2/team/access-denied-log/manifests/unauthorized\": 500", Refusal::Other),
            ("team/access-denied-log:unauthorized: received unexpected HTTP status: 500", Refusal::Other),
            ("pull access denied for team/access-denied-log, repository does not exist", Refusal::Login),
            ("denied: permission denied", Refusal::Login),
        ] {
            let image = "denied.io/team/access-denied-log:unauthorized".parse().unwrap();
            assert_eq!(Refusal::of(words, &image), wanted, "{words}");
        }
    }

    #[test]
    fn each_byte_of_a_layer_is_told_once() {
        let image = "a/b:1".parse().unwrap();
        let told = Mutex::new((0, 0));
        let tell = |event: Event<'_>| {
            let (wanted, moved) = &mut *told.lock().unwrap();
            match event {
                Event::Begins { bytes, .. } => *wanted += bytes,
                Event::Moved(bytes) => *moved += bytes,
                Event::Again(bytes) => *moved -= bytes,
                _ => {}
            }
        };
        let mut layers = Layers::default();
        for (id, status, current, total) in [
            ("one", "Downloading", 10, 100),
            ("two", "Downloading", 5, 50),
            ("one", "Downloading", 100, 100),
            // It broke off.
            ("two", "Downloading", 1, 50),
            ("two", "Downloading", 50, 50),
            ("one", "Extracting", 70, 100),
            ("three", "Downloading", 7, -1),
        ] {
            let progress_detail = Some(ProgressDetail { current: Some(current), total: Some(total) });
            let info = CreateImageInfo {
                id: Some(id.to_owned()),
                status: Some(status.to_owned()),
                progress_detail,
                ..CreateImageInfo::default()
            };
            layers.tell(&info, &image, &tell);
        }
        assert_eq!(*told.lock().unwrap(), (150, 150));
    }
}
