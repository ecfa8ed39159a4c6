//! `mcpctl down`: the reverse of `up -d`.

use std::time::{Duration, Instant};

use crate::admin::{DaemonVersion, OriginPath, Shutdown, Synced, path};
use crate::args::{Down, Start};
use crate::commands::up::ensure_daemon;
use crate::error::Error;
use crate::output;
use crate::places::Places;
use crate::target::local::Local;

/// All servers end at a time, each within its grace period.
const END: Duration = Duration::from_secs(120);

pub(crate) async fn run(local: &Local, args: &Down) -> Result<(), Error> {
    let Local { places, admin } = local;
    if let Some(file) = &args.file {
        let path = std::path::absolute(file).map_err(Error::file("find", file))?;
        // A folder that was deleted is still followed, under the name it had.
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let synced: Synced = admin.delete(path::ORIGINS, &OriginPath { path: path.clone() }).await?;
        if synced.removed.is_empty() {
            return Err(Error::NotFound {
                what: "followed file or folder",
                name: path.display().to_string(),
                hint: Some("`mcpctl get origins` lists them".to_owned()),
            });
        }
        synced.removed.iter().for_each(|key| output::say(&format!("{key} ended")));
        return Ok(());
    }
    let running = match admin.get::<DaemonVersion>(path::VERSION).await {
        Ok(_) => true,
        Err(Error::NoDaemon) => false,
        Err(error) => return Err(error),
    };
    if !running {
        let left = std::fs::read_dir(places.run()).map(|mut folders| folders.next().is_some()).unwrap_or(false);
        match (left, args.all) {
            (false, _) => {
                output::say("nothing runs");
                return Ok(());
            }
            (true, false) => {
                return Err(Error::Invalid {
                    message: "no daemon runs, but servers of an earlier one do".to_owned(),
                    hint: Some("`mcpctl down --all` ends them, `mcpctl up` takes them over".to_owned()),
                });
            }
            // Only a daemon knows what belongs to whom, so one is started to end them. Whether its hub gets the port does
            // not matter: it is gone within moments.
            (true, true) => ensure_daemon(local, &Start::ANY).await?,
        }
    }
    admin.post::<()>(path::SHUTDOWN, &Shutdown::Everything).await?;
    let start = Instant::now();
    // The end of a process that is not ours gives no event.
    while !is_gone(places) {
        if start.elapsed() > END {
            return Err(Error::TimedOut(format!("the daemon has not ended within {} s", END.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    output::say("everything ended");
    Ok(())
}

/// The daemon removes its socket as the last thing it does.
fn is_gone(places: &Places) -> bool {
    !places.admin_socket().exists()
}
