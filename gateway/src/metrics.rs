//! Counters in the Prometheus text format. Labels are bounded: the era, the outcome, never a name that a client chose.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) requests_legacy: AtomicU64,
    pub(crate) requests_modern: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) calls_unavailable: AtomicU64,
    pub(crate) unauthorized: AtomicU64,
    pub(crate) refused_origins: AtomicU64,
    pub(crate) upstream_sessions: AtomicU64,
    pub(crate) parked: AtomicU64,
    pub(crate) parked_expired: AtomicU64,
    pub(crate) wakes: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) taken_over: AtomicU64,
    pub(crate) adopted: AtomicU64,
    pub(crate) configs_taken: AtomicU64,
    pub(crate) configs_superseded: AtomicU64,
    pub(crate) configs_refused: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    /// `waiting` counts the calls that are parked now.
    pub(crate) fn render(&self, upstreams: usize, ready: usize, waiting: usize) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
            // Writing to a String cannot fail.
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").unwrap_or_default();
            for (labels, value) in samples {
                writeln!(out, "{name}{labels} {value}").unwrap_or_default();
            }
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        family(
            "mcp_hub_gateway_requests_total",
            "counter",
            "JSON-RPC requests by the client's era",
            &[("{era=\"legacy\"}", get(&self.requests_legacy)), ("{era=\"modern\"}", get(&self.requests_modern))],
        );
        family("mcp_hub_gateway_calls_total", "counter", "Requests passed on to servers", &[("", get(&self.calls))]);
        family(
            "mcp_hub_gateway_calls_unavailable_total",
            "counter",
            "Requests answered for a server that could not be reached",
            &[("", get(&self.calls_unavailable))],
        );
        family(
            "mcp_hub_gateway_refused_total",
            "counter",
            "Requests refused before they were looked into",
            &[("{reason=\"token\"}", get(&self.unauthorized)), ("{reason=\"origin\"}", get(&self.refused_origins))],
        );
        family(
            "mcp_hub_gateway_upstream_sessions_total",
            "counter",
            "Sessions opened with servers",
            &[("", get(&self.upstream_sessions))],
        );
        family(
            "mcp_hub_gateway_parked_calls_total",
            "counter",
            "Times that a call began to wait for its modern client's answers",
            &[("", get(&self.parked))],
        );
        family(
            "mcp_hub_gateway_parked_calls_expired_total",
            "counter",
            "Calls cancelled because their client did not come back in time",
            &[("", get(&self.parked_expired))],
        );
        family(
            "mcp_hub_gateway_wakes_total",
            "counter",
            "Times that a sleeping server was asked for",
            &[("", get(&self.wakes))],
        );
        family(
            "mcp_hub_gateway_forwarded_total",
            "counter",
            "Requests passed on to the replica that holds what they are about",
            &[("", get(&self.forwarded))],
        );
        family(
            "mcp_hub_gateway_taken_over_total",
            "counter",
            "Requests served in place of a replica that is gone",
            &[("", get(&self.taken_over))],
        );
        family(
            "mcp_hub_gateway_adopted_total",
            "counter",
            "Clients whose state a replica that ended handed over",
            &[("", get(&self.adopted))],
        );
        family(
            "mcp_hub_gateway_configs_total",
            "counter",
            "Configurations that came, mounted or pushed, by what became of them",
            &[
                ("{outcome=\"taken\"}", get(&self.configs_taken)),
                ("{outcome=\"superseded\"}", get(&self.configs_superseded)),
                ("{outcome=\"refused\"}", get(&self.configs_refused)),
            ],
        );
        let (upstreams, ready, waiting) = (upstreams as u64, ready as u64, waiting as u64);
        family("mcp_hub_gateway_parked_calls", "gauge", "Calls that wait for their client's answers", &[("", waiting)]);
        family("mcp_hub_gateway_servers", "gauge", "Servers of the hub", &[("", upstreams)]);
        family("mcp_hub_gateway_servers_ready", "gauge", "Servers that shook hands", &[("", ready)]);
        out
    }
}
