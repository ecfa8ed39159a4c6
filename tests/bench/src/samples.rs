//! How long requests took.

use std::time::Duration;

/// Durations of requests.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The duration, in microseconds, that this share of the requests did not exceed (nearest rank); 0 if there were none.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
    pub(crate) fn percentile_us(&mut self, share: f64) -> f64 {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        let (_, value, _) = self.0.select_nth_unstable(rank.saturating_sub(1).min(last));
        value.as_secs_f64() * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let mut samples = Samples::default();
        for ms in (1..=100).rev() {
            samples.add(Duration::from_millis(ms));
        }
        assert!((samples.percentile_us(0.5) - 50_000.0).abs() < 1e-6);
        assert!((samples.percentile_us(0.99) - 99_000.0).abs() < 1e-6);
        assert!((samples.percentile_us(1.0) - 100_000.0).abs() < 1e-6);
        assert!(Samples::default().percentile_us(0.5).abs() < 1e-9);
    }
}
