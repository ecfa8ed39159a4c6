//! `cargo xtask bench gateway`: gateway and bridge beside what they are compared with, in one batch.
//!
//! Each round asks every endpoint in turn, so that whatever else the machine does falls on all of them; ratios are made
//! within a round. Writes `docs/src/benchmarks/gateway.json` with the raw numbers and prints the goals.

use std::net::SocketAddr;
use std::path::PathBuf;

use mcp_hub_dataplane_api::Era;
use serde_json::{Value, json};

use super::load::{Ask, Endpoint, Figures, measure_pipe};
use super::stage::{Build, Served, Stage, upstream};
use super::{median, process};
use crate::shell::{self, Error};

/// Tools of each server.
const TOOLS: usize = 10;
/// Sessions opened to see what one costs.
const SESSIONS: usize = 20_000;
const KB: usize = 1000;

/// What to measure, and beside what.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// Little of everything, to see that it works; writes no file
    #[arg(long)]
    quick: bool,
    /// This part only; writes no file
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Port of the echo server, for a gateway of somebody else's in front of it
    #[arg(long, default_value_t = 0)]
    backend_port: u16,
    /// Endpoint of that gateway, such as http://127.0.0.1:3000/mcp
    #[arg(long, value_name = "URL", requires = "backend_port")]
    peer: Option<http::Uri>,
    /// Its process, for its processor time
    #[arg(long, value_name = "PID", requires = "peer")]
    peer_pid: Option<u32>,
    /// What it calls the tool `echo`
    #[arg(long, value_name = "NAME", default_value = "echo")]
    peer_tool: String,
    /// Folder with `mcp-hub-gateway` and `mcp-bridge` of an earlier build, measured beside this one
    #[arg(long, value_name = "FOLDER")]
    before: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Calls through the gateway
    Calls,
    /// `tools/list`
    Lists,
    /// Calls through the bridge
    Bridge,
    /// Resident memory of the gateway
    Memory,
}

/// Everything that was measured: a row for each question and endpoint, with a value for each round.
#[derive(Debug, Default)]
struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    ask: Ask,
    /// What distinguishes questions that are otherwise equal.
    what: String,
    endpoint: &'static str,
    rounds: Vec<Figures>,
}

impl Table {
    fn add(&mut self, ask: &Ask, what: &str, endpoint: &'static str, figures: Figures) {
        let same = |row: &&mut Row| row.ask == *ask && row.what == what && row.endpoint == endpoint;
        match self.0.iter_mut().find(same) {
            Some(row) => row.rounds.push(figures),
            None => {
                let (ask, what) = (ask.clone(), what.to_owned());
                self.0.push(Row { ask, what, endpoint, rounds: vec![figures] });
            }
        }
    }

    /// The rounds of a question at an endpoint.
    fn rounds(&self, ask: &Ask, what: &str, endpoint: &str) -> &[Figures] {
        let row = self.0.iter().find(|row| row.ask == *ask && row.what == what && row.endpoint == endpoint);
        row.map_or(&[], |row| &row.rounds)
    }

    fn json(&self) -> Value {
        let rows = self.0.iter().map(|row| {
            let each = |value: fn(&Figures) -> f64| -> Vec<f64> {
                row.rounds.iter().map(|figures| (value(figures) * 10.0).round() / 10.0).collect()
            };
            json!({
                "what": row.what,
                "era": row.ask.era,
                "bytes": row.ask.bytes,
                "connections": row.ask.connections,
                "endpoint": row.endpoint,
                "per_second": each(|figures| figures.per_second),
                "p50_us": each(|figures| figures.p50_us),
                "p99_us": each(|figures| figures.p99_us),
                "cpu_us": row.rounds.iter().all(|figures| figures.cpu_us.is_some())
                    .then(|| each(|figures| figures.cpu_us.unwrap_or_default())),
            })
        });
        rows.collect()
    }
}

pub(crate) fn run(plan: &Plan) -> Result<(), Error> {
    let stage = Stage::set()?;
    let build = Build::now()?;
    let before = plan.before.as_deref().map(Build::kept);
    let bench = Bench { plan, stage: &stage, build: &build, before: before.as_ref() };
    let wanted = |part| plan.part.is_none_or(|only| only == part);
    let mut table = Table::default();
    let mut memory = Value::Null;
    if wanted(Part::Calls) {
        bench.calls(&mut table)?;
    }
    if wanted(Part::Lists) {
        bench.lists(&mut table)?;
    }
    if wanted(Part::Bridge) {
        bench.bridge(&mut table)?;
    }
    if wanted(Part::Memory) {
        memory = bench.memory()?;
    }
    show(&table);
    goals(&table, &memory).iter().for_each(|line| shell::say(line));
    if plan.quick || plan.part.is_some() {
        return Ok(());
    }
    let report = json!({"memory": memory, "rows": table.json()});
    let path = shell::root().join("docs/src/benchmarks/gateway.json");
    std::fs::write(&path, format!("{report:#}\n")).map_err(|source| Error::File { action: "write", path, source })
}

struct Bench<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    build: &'a Build,
    before: Option<&'a Build>,
}

type Endpoints = Vec<(&'static str, Endpoint)>;

impl Bench<'_> {
    fn seconds(&self) -> f64 {
        if self.plan.quick { 0.2 } else { 0.6 }
    }

    fn rounds(&self) -> usize {
        if self.plan.quick { 1 } else { self.plan.rounds }
    }

    fn connections(&self) -> &'static [usize] {
        if self.plan.quick { &[1, 16] } else { &[1, 16, 64, 256] }
    }

    fn sizes(&self) -> &'static [usize] {
        if self.plan.quick { &[200, 75 * KB] } else { &[200, 9 * KB, 75 * KB, 1000 * KB] }
    }

    fn ask_all(&self, table: &mut Table, ask: &Ask, what: &str, endpoints: &Endpoints) -> Result<(), Error> {
        for (name, endpoint) in endpoints {
            table.add(ask, what, name, endpoint.measure(&self.stage.peers, ask, self.seconds())?);
        }
        Ok(())
    }

    /// Gateways of this build, and of an earlier one if there is one.
    fn gateways(&self, name: &str, backend: SocketAddr, servers: usize) -> Result<Vec<(&'static str, Served)>, Error> {
        let upstreams = || {
            let url = format!("http://{backend}/{TOOLS}/mcp");
            let era = |place| if place == 1 { Era::Modern } else { Era::Legacy };
            (0..servers).map(|place| upstream(&format!("s{place}"), url.clone(), era(place))).collect()
        };
        let mut gateways = vec![("gateway", self.stage.gateway(self.build, name, upstreams())?)];
        if let Some(before) = self.before {
            gateways.push(("before", self.stage.gateway(before, &format!("{name}-before"), upstreams())?));
        }
        Ok(gateways)
    }

    fn peer(&self) -> Option<(&'static str, Endpoint)> {
        let url = self.plan.peer.as_ref()?;
        let address = url.authority()?.as_str().parse().ok()?;
        let (path, tool) = (url.path().to_owned(), self.plan.peer_tool.clone());
        Some(("peer", Endpoint { address, path, tool, pid: self.plan.peer_pid }))
    }

    /// Calls in every size, number and era: at the server, behind the bare pass-through, and through the gateway to a
    /// server of the client's era; then those that are translated, and those on the aggregate.
    fn calls(&self, table: &mut Table) -> Result<(), Error> {
        let backend = self.stage.backend(self.plan.backend_port)?;
        let through = self.stage.through(backend.address)?;
        let gateways = self.gateways("calls", backend.address, 2)?;
        let own = format!("/{TOOLS}/mcp");
        for _ in 0..self.rounds() {
            for era in [Era::Legacy, Era::Modern] {
                for (&connections, &bytes) in pairs(self.connections(), self.sizes()) {
                    let ask = Ask { era, connections, bytes: Some(bytes) };
                    let mut endpoints =
                        vec![("direct", at(&backend, &own, "echo")), ("through", at(&through, &own, "echo"))];
                    let path = format!("/servers/s{}/mcp", usize::from(era == Era::Modern));
                    endpoints.extend(gateways.iter().map(|(name, gateway)| (*name, at(gateway, &path, "echo"))));
                    endpoints.extend(self.peer());
                    self.ask_all(table, &ask, "call", &endpoints)?;
                }
                for (what, path, tool) in [
                    ("call, aggregate", "/mcp", format!("s{}_echo", usize::from(era == Era::Modern))),
                    (
                        "call, other era",
                        if era == Era::Modern { "/servers/s0/mcp" } else { "/servers/s1/mcp" },
                        "echo".to_owned(),
                    ),
                ] {
                    let ask = Ask { era, connections: 16, bytes: Some(200) };
                    let endpoints = gateways.iter().map(|(name, gateway)| (*name, at(gateway, path, &tool))).collect();
                    self.ask_all(table, &ask, what, &endpoints)?;
                }
            }
        }
        Ok(())
    }

    /// `tools/list` over several servers, beside one server that offers as many tools.
    fn lists(&self, table: &mut Table) -> Result<(), Error> {
        let backend = self.stage.backend(self.plan.backend_port)?;
        let through = self.stage.through(backend.address)?;
        for servers in [1, 5, 50] {
            let gateways = self.gateways("lists", backend.address, servers)?;
            let alike = format!("/{}/mcp", servers * TOOLS);
            let mut endpoints =
                vec![("direct", at(&backend, &alike, "echo")), ("through", at(&through, &alike, "echo"))];
            endpoints.extend(gateways.iter().map(|(name, gateway)| (*name, at(gateway, "/mcp", "echo"))));
            for _ in 0..self.rounds() {
                for era in [Era::Legacy, Era::Modern] {
                    let ask = Ask { era, connections: 64, bytes: None };
                    self.ask_all(table, &ask, &format!("list over {servers}"), &endpoints)?;
                    if servers == 1 && era == Era::Legacy {
                        let mut own = endpoints.clone();
                        own.iter_mut().skip(2).for_each(|(_, endpoint)| endpoint.path = "/servers/s0/mcp".to_owned());
                        self.ask_all(table, &ask, "list of one server", &own)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls through the bridge, beside the same server on its bare pipes; and through gateway and bridge.
    fn bridge(&self, table: &mut Table) -> Result<(), Error> {
        let builds = [("bridge", Some(self.build)), ("before", self.before)];
        for era in [Era::Legacy, Era::Modern] {
            let mut bridges = Vec::new();
            for (name, build) in builds.iter().filter_map(|(name, build)| Some((*name, (*build)?))) {
                bridges.push((name, self.stage.bridge(build, name, era)?));
            }
            let behind =
                bridges.first().map(|(_, bridge)| upstream("echo", format!("http://{}/mcp", bridge.address), era));
            let gateway = self.stage.gateway(self.build, "chain", behind.into_iter().collect())?;
            let connections = if self.plan.quick { self.connections() } else { &[1, 16, 64] };
            let sizes = if self.plan.quick { self.sizes() } else { &[200, 9 * KB, 75 * KB] };
            for _ in 0..self.rounds() {
                for (&connections, &bytes) in pairs(connections, sizes) {
                    let ask = Ask { era, connections, bytes: Some(bytes) };
                    table.add(&ask, "stdio", "pipe", measure_pipe(&self.stage.peers, &ask, self.seconds())?);
                    let mut endpoints: Endpoints =
                        bridges.iter().map(|(name, bridge)| (*name, at(bridge, "/mcp", "echo"))).collect();
                    endpoints.push(("gateway and bridge", at(&gateway, "/servers/echo/mcp", "echo")));
                    self.ask_all(table, &ask, "stdio", &endpoints)?;
                }
            }
            for (name, bridge) in &bridges {
                shell::say(&format!("{name}, {era:?}: {:.1} MB after load", process::rss_mb(bridge.process.pid())));
            }
        }
        Ok(())
    }

    /// Resident memory: idle, after calls of up to 75 KB, with many sessions, and after results of 1 MB.
    fn memory(&self) -> Result<Value, Error> {
        let backend = self.stage.backend(0)?;
        let gateways = self.gateways("memory", backend.address, 2)?;
        let mut memory = serde_json::Map::new();
        for (name, gateway) in &gateways {
            let rss = || process::rss_mb(gateway.process.pid());
            let idle = rss();
            let ask = |bytes| Ask { era: Era::Legacy, connections: 64, bytes: Some(bytes) };
            let endpoint = at(gateway, "/servers/s0/mcp", "echo");
            for bytes in [200, 9 * KB, 75 * KB] {
                endpoint.measure(&self.stage.peers, &ask(bytes), self.seconds())?;
            }
            let loaded = rss();
            let count = if self.plan.quick { SESSIONS / 20 } else { SESSIONS };
            // What the connections cost is paid before it is measured.
            endpoint.open_sessions(&self.stage.peers, count / 20)?;
            let before = rss();
            endpoint.open_sessions(&self.stage.peers, count)?;
            #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
            let session = (rss() - before) * 1024.0 * 1024.0 / count as f64;
            endpoint.measure(&self.stage.peers, &ask(1000 * KB), self.seconds())?;
            let large = rss();
            let row = json!({"idle_mb": idle, "loaded_mb": loaded, "session_bytes": session, "large_mb": large});
            memory.insert((*name).to_owned(), row);
        }
        let bridge = self.stage.bridge(self.build, "bridge", Era::Legacy)?;
        let idle = process::rss_mb(bridge.process.pid());
        for bytes in [200, 9 * KB, 75 * KB] {
            let ask = Ask { era: Era::Legacy, connections: 16, bytes: Some(bytes) };
            at(&bridge, "/mcp", "echo").measure(&self.stage.peers, &ask, self.seconds())?;
        }
        let loaded = process::rss_mb(bridge.process.pid());
        memory.insert("bridge".to_owned(), json!({"idle_mb": idle, "loaded_mb": loaded}));
        Ok(memory.into())
    }
}

fn at(served: &Served, path: &str, tool: &str) -> Endpoint {
    let (path, tool) = (path.to_owned(), tool.to_owned());
    Endpoint { address: served.address, path, tool, pid: Some(served.process.pid()) }
}

fn pairs<'a>(left: &'a [usize], right: &'a [usize]) -> impl Iterator<Item = (&'a usize, &'a usize)> {
    left.iter().flat_map(move |a| right.iter().map(move |b| (a, b)))
}

fn middle(rounds: &[Figures], value: impl Fn(&Figures) -> f64) -> f64 {
    median(&rounds.iter().map(value).collect::<Vec<_>>())
}

fn show(table: &Table) {
    for row in &table.0 {
        let cpu = middle(&row.rounds, |figures| figures.cpu_us.unwrap_or_default());
        let bytes = row.ask.bytes.map_or(String::new(), |bytes| format!(" {bytes} B"));
        let what = format!("{:?} {}{bytes} c={}", row.ask.era, row.what, row.ask.connections);
        shell::say(&format!(
            "{what:<44} {:<18} {:>8.0}/s  p50 {:>7.0} µs  p99 {:>7.0} µs  cpu {cpu:>6.1} µs",
            row.endpoint,
            middle(&row.rounds, |figures| figures.per_second),
            middle(&row.rounds, |figures| figures.p50_us),
            middle(&row.rounds, |figures| figures.p99_us),
        ));
    }
}

/// The middle of a value's ratio between two endpoints within each round; `None` if either was not measured.
fn ratio(a: &[Figures], b: &[Figures], value: fn(&Figures) -> f64) -> Option<f64> {
    let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| value(a) / value(b)).collect();
    (!ratios.is_empty()).then(|| median(&ratios))
}

/// The goals that the design names, each with what was measured, where it was.
fn goals(table: &Table, memory: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |goal: String, measured: Option<f64>| {
        lines.extend(measured.map(|measured| format!("{goal:<64} {measured:.2}")));
    };
    let call = |era, connections, bytes| Ask { era, connections, bytes: Some(bytes) };
    let rounds = |ask: &Ask, what: &str, endpoint: &str| table.rounds(ask, what, endpoint).to_vec();
    for era in [Era::Legacy, Era::Modern] {
        for endpoint in ["through", "gateway", "before", "peer"] {
            for (bytes, goal) in [(200, "≥ 0.38"), (75 * KB, "≥ 0.70")] {
                let ask = call(era, 64, bytes);
                let (ours, direct) = (rounds(&ask, "call", endpoint), rounds(&ask, "call", "direct"));
                let found = ratio(&ours, &direct, |figures| figures.per_second);
                line(format!("{endpoint} {era:?}: of direct, c=64, {bytes} B ({goal})"), found);
            }
            for connections in [1, 16] {
                let ask = call(era, connections, 200);
                let (ours, bare) = (rounds(&ask, "call", endpoint), rounds(&ask, "call", "through"));
                let found = ratio(&ours, &bare, |figures| figures.p50_us);
                line(format!("{endpoint} {era:?}: p50 of the pass-through's, c={connections} (≤ 1.3)"), found);
            }
            let ours = rounds(&call(era, 16, 200), "call", endpoint);
            let cpu = (!ours.is_empty()).then(|| middle(&ours, |figures| figures.cpu_us.unwrap_or_default()));
            line(format!("{endpoint} {era:?}: CPU µs a call, c=16 (≤ 25)"), cpu);
            for what in ["list over 1", "list over 5", "list over 50", "list of one server"] {
                let ask = Ask { era, connections: 64, bytes: None };
                let (ours, direct) = (rounds(&ask, what, endpoint), rounds(&ask, what, "direct"));
                let found = ratio(&ours, &direct, |figures| figures.per_second);
                line(format!("{endpoint} {era:?}: {what} of direct (≥ 0.30)"), found);
            }
        }
        for endpoint in ["bridge", "before"] {
            let (one, sixteen) = (call(era, 1, 200), call(era, 16, 200));
            let (ours, pipe) = (rounds(&one, "stdio", endpoint), rounds(&one, "stdio", "pipe"));
            let added: Vec<f64> = ours.iter().zip(&pipe).map(|(a, b)| a.p50_us - b.p50_us).collect();
            line(
                format!("{endpoint} {era:?}: stdio p50 added, µs (≤ 90)"),
                (!added.is_empty()).then(|| median(&added)),
            );
            let ours = rounds(&sixteen, "stdio", endpoint);
            let of = |value: fn(&Figures) -> f64| (!ours.is_empty()).then(|| middle(&ours, value));
            line(
                format!("{endpoint} {era:?}: stdio requests a second, c=16 (≥ 25000)"),
                of(|figures| figures.per_second),
            );
            let cpu = of(|figures| figures.cpu_us.unwrap_or_default());
            line(format!("{endpoint} {era:?}: stdio CPU µs a call, c=16 (≤ 45)"), cpu);
        }
    }
    for (endpoint, name, goal) in [
        ("gateway", "idle_mb", "MB idle (≤ 12)"),
        ("gateway", "loaded_mb", "MB after load (≤ 20)"),
        ("gateway", "session_bytes", "bytes a session (≤ 1024)"),
        ("gateway", "large_mb", "MB after results of 1 MB (no goal)"),
        ("before", "idle_mb", "MB idle (≤ 12)"),
        ("before", "loaded_mb", "MB after load (≤ 20)"),
        ("before", "large_mb", "MB after results of 1 MB (no goal)"),
        ("bridge", "idle_mb", "MB idle (≤ 3)"),
        ("bridge", "loaded_mb", "MB after load (no goal)"),
    ] {
        line(format!("{endpoint}: {goal}"), memory[endpoint][name].as_f64());
    }
    lines
}
