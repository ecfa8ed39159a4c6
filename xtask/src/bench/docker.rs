//! `cargo xtask bench docker`: what servers in containers cost beside the bare containers, on an engine of the run's own.
//! Writes `docs/src/benchmarks/docker.json` and prints the goals.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mcp_hub_test_cluster::{Engine, EngineKind, Tap, Verdict};
use serde_json::{Value, json};

use super::median;
use crate::shell::{self, Error};
use crate::{dist, images};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// Pairs of rounds, bare and through the hub
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long the daemon is watched at rest, in seconds
    #[arg(long, default_value_t = 120)]
    rest: u64,
    /// Folder with `mcpctl`, bridges inside, and `units.tar` that were built before, measured instead
    #[arg(long, value_name = "FOLDER")]
    built: Option<PathBuf>,
}

const SERVERS: usize = 20;
/// As the hub makes containers.
const PARALLEL: usize = 8;
const KILLS: usize = 9;
const NETWORK: &str = "bench";
/// Goals.
const RATIO: f64 = 1.25;
const SEEN_MS: f64 = 200.0;
/// Longest wait for a state; reached only by a bug.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(plan: &Plan) -> Result<(), Error> {
    let (mcpctl, image) = match &plan.built {
        Some(folder) => (folder.join("mcpctl"), folder.join("units.tar")),
        None => {
            images::for_tests()?;
            (dist::carrying(&dist::programs()?, "release")?, shell::target().join("images/units.tar"))
        }
    };
    let engine = Engine::up(EngineKind::Docker)?;
    let tap = Tap::before(&engine, |_| Verdict::Pass)?;
    let api = Api(engine.socket());
    api.load(&image)?;
    api.ask(
        "POST",
        "/networks/create",
        &json!({"Name": NETWORK, "Options": {"com.docker.network.bridge.enable_icc": "false"}}),
    )?;
    let hub = Hub::set(&engine, &tap, mcpctl)?;

    // The first of each finds nothing in any cache.
    bare(&api)?;
    hub.up()?;
    hub.down()?;
    let mut seconds = Vec::new();
    for _ in 0..plan.rounds {
        let bare = bare(&api)?;
        let through_us = hub.up()?;
        hub.down()?;
        seconds.push(json!({"bare": bare, "hub": through_us, "ratio": through_us / bare}));
    }

    hub.up()?;
    let there = api.ours()?;
    let mut seen = Vec::new();
    for kill in 0..KILLS {
        seen.push(hub.kill(&api, &format!("units-{}", kill % SERVERS))?);
    }
    // What follows a restart is no rest.
    thread::sleep(Duration::from_secs(10));
    tap.forget();
    thread::sleep(Duration::from_secs(plan.rest));
    let asked = tap.asked();
    hub.down()?;

    let ratios: Vec<f64> = seconds.iter().filter_map(|round| round["ratio"].as_f64()).collect();
    let report = json!({
        "servers": SERVERS,
        "up_seconds": seconds,
        "kill_seen_ms": seen,
        "at_rest": {"seconds": plan.rest, "asked": asked},
        "on_the_engine": there,
    });
    say(&format!("{SERVERS} servers up, of the bare containers' time"), median(&ratios), RATIO);
    say("ms from the end of a container to its status", median(&seen), SEEN_MS);
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    say(&format!("API calls in {} s at rest", plan.rest), asked.len() as f64, 0.0);
    shell::say(&format!("on the engine: {there}"));
    let path = shell::root().join("docs/src/benchmarks/docker.json");
    std::fs::write(&path, format!("{report:#}\n")).map_err(|source| Error::File { action: "write", path, source })
}

fn say(what: &str, measured: f64, goal: f64) {
    let verdict = if measured <= goal { "" } else { ": missed" };
    shell::say(&format!("{what}: {measured:.2}, goal {goal:.2}{verdict}"));
}

/// Seconds until as many containers run as the hub would make, with the same image, bounds and parallelism, and no bridge.
fn bare(api: &Api) -> Result<f64, Error> {
    let body = json!({
        "Image": "localhost/mcp-hub/units:test", "OpenStdin": true, "User": "65532:65532",
        "ExposedPorts": {"7337/tcp": {}},
        "HostConfig": {
            "NetworkMode": NETWORK, "ReadonlyRootfs": true, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": 1024, "Memory": 64 << 20, "MemorySwap": 64 << 20,
            "Tmpfs": {"/tmp": "rw,nosuid,nodev,mode=1777", "/run/mcp-hub": "rw,nosuid,nodev,mode=1777"},
            "PortBindings": {"7337/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        },
    });
    let each = |work: &(dyn Fn(&str) -> Result<(), Error> + Sync)| {
        thread::scope(|scope| {
            let shares = (0..PARALLEL).map(|share| {
                scope.spawn(move || {
                    (share..SERVERS).step_by(PARALLEL).try_for_each(|number| work(&format!("bare-{number}")))
                })
            });
            let shares: Vec<_> = shares.collect();
            shares.into_iter().try_for_each(|share| share.join().map_err(|_| unexpected("a thread panicked"))?)
        })
    };
    let start = Instant::now();
    each(&|name| {
        api.ask("POST", &format!("/containers/create?name={name}"), &body)?;
        api.ask("POST", &format!("/containers/{name}/start"), &Value::Null).map(drop)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    each(&|name| api.ask("DELETE", &format!("/containers/{name}?force=true"), &Value::Null).map(drop))?;
    Ok(seconds)
}

/// The daemon with its servers.
struct Hub<'a> {
    engine: &'a Engine,
    mcpctl: PathBuf,
    home: PathBuf,
    /// The engine's address.
    address: String,
}

impl<'a> Hub<'a> {
    fn set(engine: &'a Engine, tap: &Tap, mcpctl: PathBuf) -> Result<Self, Error> {
        let home = shell::target().join("bench-docker");
        let path = home.join("servers.yaml");
        let failed = |source| Error::File { action: "write", path: path.clone(), source };
        std::fs::create_dir_all(&home).map_err(failed)?;
        let servers = (0..SERVERS).map(|number| {
            let spec = json!({
                "source": {"image": {"ref": "localhost/mcp-hub/units:test"}},
                "resources": {"limits": {"memory": "64Mi"}},
                // A server that is killed again and again is to come back at once.
                "restart": {"backoff": {"initial": "100ms"}},
            });
            let name = format!("units-{number}");
            let object = json!({"apiVersion": "mcphub.io/v1alpha1", "kind": "MCPServer", "metadata": {"name": name}, "spec": spec});
            format!("---\n{object}\n")
        });
        std::fs::write(&path, servers.collect::<String>()).map_err(failed)?;
        Ok(Self { engine, mcpctl, home, address: tap.address() })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.engine.command(&self.mcpctl);
        command
            .args(args)
            .env("MCPHUB_HOME", &self.home)
            .env("DOCKER_HOST", &self.address)
            .env("MCPHUB_RUNTIME", "docker");
        command
    }

    /// Seconds until all are ready, the start of the daemon included.
    fn up(&self) -> Result<f64, Error> {
        let manifest = self.home.join("servers.yaml").to_string_lossy().into_owned();
        let start = Instant::now();
        shell::output(&mut self.command(&["up", "--detach", "--file", &manifest, "--wait", "--timeout", "5m"]))?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn down(&self) -> Result<(), Error> {
        shell::output(&mut self.command(&["down", "--all"])).map(drop)
    }

    /// Kills a server's container; gives the milliseconds from the engine's event to its status, and returns when it is ready
    /// again.
    ///
    /// The first kill is mended at once, often before anything of it could be shown; after the second one it takes a second.
    fn kill(&self, api: &Api, name: &str) -> Result<f64, Error> {
        let first = api.container(name)?;
        api.kill(&first)?;
        self.until(name, |ready| ready && api.container(name).is_ok_and(|now| !now.is_empty() && now != first))?;
        let second = api.container(name)?;
        api.kill(&second)?;
        self.until(name, |ready| !ready)?;
        let seen = since_1970();
        self.until(name, |ready| ready)?;
        Ok((seen - api.death(&second)?) * 1000.0)
    }

    fn until(&self, name: &str, reached: impl Fn(bool) -> bool) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let text = shell::output(&mut self.command(&["get", "servers", name, "-o", "json"]))?;
            let server: Value = serde_json::from_str(&text).map_err(|error| unexpected(&error.to_string()))?;
            if reached(server["status"]["phase"] == "Ready") {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(unexpected(&format!("{name} stayed as it is: {}", server["status"])));
            }
        }
    }
}

impl Drop for Hub<'_> {
    fn drop(&mut self) {
        // Nothing runs if the start itself failed, and then there is nothing to end.
        self.down().unwrap_or_else(|error| shell::say(&format!("could not stop the servers: {error}")));
    }
}

/// The engine's API, asked directly.
struct Api(PathBuf);

impl Api {
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Error> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, "application/json", &body)
    }

    fn load(&self, archive: &Path) -> Result<(), Error> {
        let failed = |source| Error::File { action: "read", path: archive.to_owned(), source };
        self.send("POST", "/images/load", "application/x-tar", &std::fs::read(archive).map_err(failed)?).map(drop)
    }

    /// An answer that is no JSON is none.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Value, Error> {
        let failed = |source| Error::File { action: "ask", path: self.0.clone(), source };
        let length = body.len();
        // An answer in the old version ends with the connection.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = UnixStream::connect(&self.0).map_err(failed)?;
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if head.split(' ').nth(1).is_none_or(|status| !status.starts_with('2')) {
            return Err(unexpected(&format!("{method} {path}: {answer}")));
        }
        Ok(serde_json::from_str(body).unwrap_or_default())
    }

    /// The id of the server's container; empty if there is none.
    fn container(&self, server: &str) -> Result<String, Error> {
        let path = format!("/containers/json?filters={{%22label%22:[%22mcphub.io/name={server}%22]}}");
        Ok(self.ask("GET", &path, &Value::Null)?[0]["Id"].as_str().unwrap_or_default().to_owned())
    }

    fn kill(&self, container: &str) -> Result<(), Error> {
        self.ask("POST", &format!("/containers/{container}/kill"), &Value::Null).map(drop)
    }

    /// When a container ended, in seconds since 1970, by the engine's own event.
    fn death(&self, container: &str) -> Result<f64, Error> {
        let filters = format!("{{%22container%22:[%22{container}%22],%22event%22:[%22die%22]}}");
        let path = format!("/events?since=0&until={:.3}&filters={filters}", since_1970());
        let nanos = self.ask("GET", &path, &Value::Null)?["timeNano"].as_f64();
        nanos.map(|nanos| nanos / 1e9).ok_or_else(|| unexpected(&format!("no event of the end of {container}")))
    }

    /// How many things of the hub's there are.
    fn ours(&self) -> Result<Value, Error> {
        let marked = "filters={%22label%22:[%22mcphub.io/installation%22]}";
        let count = |path: &str, member: Option<&str>| {
            let found = self.ask("GET", &format!("{path}{marked}"), &Value::Null)?;
            let list = member.map_or(&found, |member| &found[member]);
            Ok::<usize, Error>(list.as_array().map_or(0, Vec::len))
        };
        Ok(json!({
            "containers": count("/containers/json?all=true&", None)?,
            "networks": count("/networks?", None)?,
            "volumes": count("/volumes?", Some("Volumes"))?,
        }))
    }
}

fn since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn unexpected(message: &str) -> Error {
    Error::Output { command: "bench docker".to_owned(), message: message.to_owned() }
}
