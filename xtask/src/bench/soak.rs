//! `cargo xtask bench soak MINUTES`: whether gateway and bridge keep their size under a load that goes on.

use std::time::{Duration, Instant};

use mcp_hub_dataplane_api::Era;

use super::load::{Ask, Endpoint};
use super::process;
use super::stage::{Build, Stage, upstream};
use crate::shell::{self, Error};

/// The first part of the time is for caches, pools and the allocator to reach their size.
const SETTLING: f64 = 0.3;
/// What may be added after that, as a share and in MB: arenas and pages that come and go. A hundred bytes lost with each
/// call would be several times as much within a minute.
const SLACK: (f64, f64) = (0.1, 4.0);
/// One kind of load after the other, each this long.
const TURN_SECONDS: f64 = 0.5;

/// As shipped, for so many minutes. Fails if either grows.
pub(crate) fn run(minutes: f64) -> Result<(), Error> {
    soak(&Stage::set()?, &Build::now()?, minutes)
}

/// As tests are built, for a minute: enough to see what grows with every call or session.
pub(crate) fn short() -> Result<(), Error> {
    let build = Build::debug()?;
    soak(&Stage::of("dev")?, &build, 1.0)
}

fn soak(stage: &Stage, build: &Build, minutes: f64) -> Result<(), Error> {
    let backend = stage.backend(0)?;
    let bridge = stage.bridge(build, "soak-bridge", Era::Legacy)?;
    let url = |tools: usize| format!("http://{}/{tools}/mcp", backend.address);
    let gateway = stage.gateway(
        build,
        "soak",
        vec![
            upstream("bridged", format!("http://{}/mcp", bridge.address), Era::Legacy),
            upstream("legacy", url(10), Era::Legacy),
            upstream("modern", url(10), Era::Modern),
        ],
    )?;
    let endpoint = |path: &str| {
        let (path, tool) = (path.to_owned(), "echo".to_owned());
        Endpoint { address: gateway.address, path, tool, pid: None }
    };
    let ask = |era, connections, bytes| Ask { era, connections, bytes };
    let turns = [
        ("/servers/bridged/mcp", ask(Era::Legacy, 64, Some(200))),
        ("/servers/bridged/mcp", ask(Era::Modern, 16, Some(75_000))),
        ("/servers/legacy/mcp", ask(Era::Legacy, 64, Some(9_000))),
        ("/servers/legacy/mcp", ask(Era::Modern, 16, Some(200))),
        ("/servers/modern/mcp", ask(Era::Modern, 64, Some(75_000))),
        ("/servers/modern/mcp", ask(Era::Legacy, 16, Some(200))),
        ("/mcp", ask(Era::Legacy, 64, None)),
        ("/mcp", ask(Era::Modern, 16, None)),
    ];
    let (started, time) = (Instant::now(), Duration::from_secs_f64(minutes * 60.0));
    let mut watched = [("gateway", gateway.process.pid()), ("bridge", bridge.process.pid())]
        .map(|(name, pid)| Watched { name, pid, settled: 0.0, most: 0.0 });
    let mut rounds = 0_u32;
    while started.elapsed() < time {
        for (path, ask) in &turns {
            endpoint(path).measure(&stage.peers, ask, TURN_SECONDS)?;
        }
        endpoint("/servers/bridged/mcp").open_sessions(&stage.peers, 500)?;
        rounds += 1;
        let is_settling = started.elapsed() < time.mul_f64(SETTLING);
        watched.iter_mut().for_each(|watched| watched.look(is_settling));
    }
    let grown: Vec<String> = watched.iter().filter_map(Watched::verdict).collect();
    for Watched { name, settled, most, .. } in &watched {
        shell::say(&format!("{name}: {settled:.1} MB when settled, at most {most:.1} MB in {rounds} rounds"));
    }
    if grown.is_empty() { Ok(()) } else { Err(Error::Several(grown)) }
}

/// A process and its largest resident size, before and after it had settled.
#[derive(Debug)]
struct Watched {
    name: &'static str,
    pid: u32,
    settled: f64,
    most: f64,
}

impl Watched {
    fn look(&mut self, is_settling: bool) {
        let now = process::rss_mb(self.pid);
        // A run too short to settle takes its first look for that.
        if is_settling || self.settled <= 0.0 {
            self.settled = self.settled.max(now);
        }
        self.most = self.most.max(now);
    }

    fn verdict(&self) -> Option<String> {
        let most = self.settled * (1.0 + SLACK.0) + SLACK.1;
        (self.most > most).then(|| format!("{} grew from {:.1} to {:.1} MB", self.name, self.settled, self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_after_settling_is_told() {
        let watched = |settled, most| Watched { name: "gateway", pid: 0, settled, most };
        assert_eq!(watched(10.0, 14.9).verdict(), None);
        assert_eq!(watched(10.0, 15.1).verdict().unwrap(), "gateway grew from 10.0 to 15.1 MB");
    }
}
