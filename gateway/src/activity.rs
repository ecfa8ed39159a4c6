//! How much each server is used, so that one that nobody calls can be put to sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use mcp_hub_dataplane_api::gateway::UpstreamActivity;

/// Calls of one server; outlives changes of its configuration.
#[derive(Debug)]
pub(crate) struct Activity {
    since: Instant,
    in_flight: AtomicU32,
    /// Milliseconds from `since` to the end of the last call, and one; 0 if none has ended.
    ended: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { since: Instant::now(), in_flight: AtomicU32::new(0), ended: AtomicU64::new(0) }
    }
}

/// A call under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Activity {
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    pub(crate) fn told(&self) -> UpstreamActivity {
        let ended = self.ended.load(Ordering::Relaxed).checked_sub(1);
        UpstreamActivity {
            calls_in_flight: self.in_flight.load(Ordering::Relaxed),
            idle_ms: ended.map(|ended| self.now().saturating_sub(ended)),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Before the count, so that whoever sees none in flight sees when the last one ended.
        self.0.ended.fetch_max(self.0.now() + 1, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_until_it_ends_and_the_idle_time_begins_with_its_end() {
        let activity = Arc::new(Activity::default());
        assert_eq!(activity.told(), UpstreamActivity::default());
        let (one, other) = (activity.begin(), activity.begin());
        assert_eq!(activity.told().calls_in_flight, 2);
        drop(one);
        let told = activity.told();
        assert_eq!(told.calls_in_flight, 1);
        assert!(told.idle_ms.is_some_and(|idle| idle < 10_000));
        drop(other);
        assert_eq!(activity.told().calls_in_flight, 0);
    }
}
