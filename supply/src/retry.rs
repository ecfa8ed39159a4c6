//! How often something is tried, and how long is waited in between.

use std::time::Duration;

use crate::error::RegistryError;
use crate::progress::{Event, Tell};

/// Attempts that fail one after the other.
const ATTEMPTS: u32 = 6;
/// A registry that wants to be left alone for longer is left alone: whoever waits for the command decides.
const LONGEST: Duration = Duration::from_secs(60);

/// The attempts at one thing.
#[derive(Debug, Clone)]
pub(crate) struct Attempts {
    left: u32,
    first: Duration,
    next: Duration,
}

impl Attempts {
    /// `first`: what is waited before the second attempt; then it doubles.
    pub(crate) fn new(first: Duration) -> Self {
        Self { left: ATTEMPTS - 1, first, next: first }
    }

    /// What to wait before the next attempt; `None` if there is to be none.
    pub(crate) fn after(&mut self, error: &RegistryError) -> Option<Duration> {
        let asked = error.retry_after().unwrap_or_default();
        if !error.is_transient() || asked > LONGEST {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        let wait = self.next.max(asked);
        self.next = (self.next * 2).min(LONGEST);
        Some(wait)
    }

    /// As after none yet: it went on for a good while.
    pub(crate) fn anew(&mut self) {
        *self = Self::new(self.first);
    }
}

/// Tries until it succeeds, fails for good, or was tried often enough.
///
/// # Cancel safety
/// As that of the attempt.
pub(crate) async fn insist<T, F>(first: Duration, tell: Tell<'_>, attempt: impl Fn() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut attempts = Attempts::new(first);
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(wait) = attempts.after(&error) else { return Err(error) };
        tell(Event::Waits { wait, error: &error });
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(seconds: Option<u64>) -> RegistryError {
        RegistryError::RateLimited { registry: "a.io".to_owned(), retry_after: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn waits_double_are_as_long_as_the_registry_wants_and_end() {
        let mut attempts = Attempts::new(Duration::from_secs(1));
        let waits = [None, Some(10), None, Some(1), Some(60)].map(|asked| attempts.after(&limited(asked)));
        assert_eq!(waits, [1, 10, 4, 8, 60].map(|seconds| Some(Duration::from_secs(seconds))));
        assert_eq!(attempts.after(&limited(None)), None, "often enough");
        attempts.anew();
        assert_eq!(attempts.after(&limited(Some(61))), None, "too long for anybody to sit there");
        assert_eq!(attempts.after(&limited(None)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn what_time_does_not_mend_is_not_tried_again() {
        let (image, registry) = ("a.io/b:1".to_owned(), "a.io".to_owned());
        let status = |status| RegistryError::Status {
            image: image.clone(),
            registry: registry.clone(),
            status,
            said: None,
            retry_after: None,
        };
        for (error, is_tried) in [
            (status(500), true),
            (status(503), true),
            (status(400), false),
            (RegistryError::Interrupted { host: registry.clone(), source: "reset".into() }, true),
            (RegistryError::NotFound { image: image.clone(), registry: registry.clone(), said: None }, false),
            (
                RegistryError::Unauthorized {
                    image: image.clone(),
                    registry: registry.clone(),
                    status: 403,
                    with_credentials: true,
                    said: None,
                },
                false,
            ),
        ] {
            assert_eq!(Attempts::new(Duration::ZERO).after(&error).is_some(), is_tried, "{error}");
        }
    }
}
