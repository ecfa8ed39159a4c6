//! Counts of passes, for metrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::Error;

/// How passes ended, by controller and outcome. Neither holds an object's name, so that the number of series is bounded.
#[derive(Debug, Default)]
pub struct Passes(Mutex<BTreeMap<(&'static str, &'static str), Tally>>);

#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    count: u64,
    time: Duration,
}

impl Passes {
    pub(crate) fn count<T>(&self, controller: &'static str, result: &Result<T, Error>, time: Duration) {
        let outcome = match result {
            Ok(_) => "ok",
            Err(error) => error.reason(),
        };
        let mut tallies = self.tallies();
        let tally = tallies.entry((controller, outcome)).or_default();
        tally.count += 1;
        tally.time += time;
    }

    /// In the text format of Prometheus.
    pub fn render(&self) -> String {
        let tallies = self.tallies().clone();
        let mut text =
            String::from("# HELP mcp_hub_passes_total Passes over objects.\n# TYPE mcp_hub_passes_total counter\n");
        let series = |name: &str, controller: &str, outcome: &str| {
            format!("{name}{{controller=\"{controller}\",outcome=\"{outcome}\"}}")
        };
        for ((controller, outcome), tally) in &tallies {
            // Writing to a String does not fail.
            writeln!(text, "{} {}", series("mcp_hub_passes_total", controller, outcome), tally.count)
                .unwrap_or_default();
        }
        text.push_str(
            "# HELP mcp_hub_pass_seconds_total Time spent in passes.\n# TYPE mcp_hub_pass_seconds_total counter\n",
        );
        for ((controller, outcome), tally) in &tallies {
            let name = series("mcp_hub_pass_seconds_total", controller, outcome);
            writeln!(text, "{name} {:.3}", tally.time.as_secs_f64()).unwrap_or_default();
        }
        text
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<(&'static str, &'static str), Tally>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_by_reason_and_not_by_object() {
        let passes = Passes::default();
        let timeout =
            |object: &str| Err::<(), _>(Error::Timeout { object: object.to_owned(), limit: Duration::from_secs(1) });
        passes.count("server", &Ok(()), Duration::from_millis(1500));
        passes.count("server", &timeout("a"), Duration::from_secs(1));
        passes.count("server", &timeout("b"), Duration::from_secs(1));
        insta::assert_snapshot!(passes.render(), @r#"
        # HELP mcp_hub_passes_total Passes over objects.
        # TYPE mcp_hub_passes_total counter
        mcp_hub_passes_total{controller="server",outcome="Timeout"} 2
        mcp_hub_passes_total{controller="server",outcome="ok"} 1
        # HELP mcp_hub_pass_seconds_total Time spent in passes.
        # TYPE mcp_hub_pass_seconds_total counter
        mcp_hub_pass_seconds_total{controller="server",outcome="Timeout"} 2.000
        mcp_hub_pass_seconds_total{controller="server",outcome="ok"} 1.500
        "#);
    }
}
