//! Vessel's Docker-compatible service. It listens only when somebody started it, so we do when a server is to run there.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::detect::{Candidate, EngineKind, NotFound, Surroundings, find};
use super::engine::Engine;

/// The service has this long to answer.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// Of what it said before it failed, the last line is told, cut to so many bytes.
const LAST_LINE: usize = 400;

/// The engine that answers, after its service was started if none does. A place that the user names is theirs to serve.
///
/// `hello`: how long each place has to answer.
///
/// The service is the user's Vessel's from then on: like its containers it outlives this process.
///
/// # Cancel safety
/// Dropped while it waits, it leaves the service as it is; the next call finds it or starts it anew.
pub(super) async fn awaken(around: &Surroundings, hello: Duration) -> Result<Engine, NotFound> {
    let mut missing = match find(EngineKind::Vessel, around, hello).await {
        Err(missing) if !around.names_vessel() => missing,
        outcome => return outcome,
    };
    match serve(around, hello).await {
        Ok(engine) => Ok(engine),
        Err(why) => {
            missing.tried.push((Candidate { address: "vessel compat".to_owned(), source: "PATH" }, why));
            Err(missing)
        }
    }
}

async fn serve(around: &Surroundings, hello: Duration) -> Result<Engine, String> {
    let told = |what: &'static str| move |error: std::io::Error| format!("could not {what}: {error}");
    // Not a pipe, which would break under the service when this process ends.
    let said = tempfile::tempfile().map_err(told("keep what it says"))?;
    let stderr = said.try_clone().map_err(told("keep what it says"))?;
    // In a group of its own, so that a Ctrl-C here does not end it.
    let child = Command::new("vessel")
        .arg("compat")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .process_group(0)
        .current_dir("/")
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => "there is no program of that name".to_owned(),
        _ => told("start it")(error),
    })?;
    tracing::info!("Vessel's Docker-compatible service was started");
    let begun = Instant::now();
    let mut last = String::new();
    while begun.elapsed() < PATIENCE {
        match find(EngineKind::Vessel, around, hello).await {
            Ok(engine) => return Ok(engine),
            Err(missing) => last = missing.to_string(),
        }
        // One that goes to the background has succeeded.
        if let Ok(Some(status)) = child.try_wait()
            && !status.success()
        {
            return Err(ended(status, said));
        }
        tokio::time::sleep(PAUSE).await;
    }
    end(&mut child);
    Err(format!("it was started, and after {} s {last}", PATIENCE.as_secs()))
}

fn ended(status: ExitStatus, mut said: File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is not told.
    said.rewind().and_then(|()| said.take(64 << 10).read_to_end(&mut bytes)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
    format!("it ended ({status}): {}", &line[..line.floor_char_boundary(LAST_LINE)])
}

/// Ends a service that does not answer, with what it started: the next attempt would meet it.
fn end(child: &mut Child) {
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(group) = group {
        // It may have ended by itself.
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap_or_default();
    }
}
