//! `mcpctl version`.

use crate::admin::client::Admin;
use crate::admin::{DaemonVersion, path};
use crate::args::{Format, OutputOnly};
use crate::bridge_program;
use crate::error::Error;
use crate::output;

pub(crate) async fn run(admin: &Admin, args: &OutputOnly) -> Result<(), Error> {
    let own = env!("CARGO_PKG_VERSION");
    let daemon = match admin.get::<DaemonVersion>(path::VERSION).await {
        Ok(daemon) => Some(daemon),
        Err(Error::NoDaemon) => None,
        Err(error) => return Err(error),
    };
    match args.output {
        Format::Table => {
            let daemon =
                daemon.map_or_else(|| "not running".to_owned(), |d| format!("{} (process {})", d.version, d.pid));
            let bridges = match bridge_program::carried() {
                none if none.is_empty() => "beside mcpctl".to_owned(),
                targets => targets.join(", "),
            };
            output::data(&format!("mcpctl {own}\ndaemon {daemon}\nbridges {bridges}\n"))
        }
        format => output::document(
            format,
            &serde_json::json!({"mcpctl": own, "daemon": daemon, "bridges": bridge_program::carried()}),
        ),
    }
}
