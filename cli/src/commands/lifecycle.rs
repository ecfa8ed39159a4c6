//! `mcpctl start`, `stop` and `restart`.

use crate::admin::client::Admin;
use crate::admin::{Action, ActionRequest, Name, path};
use crate::args::Lifecycle;
use crate::commands::wait::{self, Of};
use crate::error::Error;
use crate::output;

pub(crate) async fn run(admin: &Admin, action: Action, args: &Lifecycle) -> Result<(), Error> {
    let namespace = &args.namespace.namespace;
    let servers = args.names.iter().map(|name| Name { namespace: namespace.clone(), name: name.clone() }).collect();
    let names: Vec<String> = admin.post(path::ACTIONS, &ActionRequest { action, servers }).await?;
    let done = match action {
        Action::Start => "started",
        Action::Stop => "stopped",
        Action::Restart => "restarted",
    };
    names.iter().for_each(|name| output::say(&format!("{name} {done}")));
    match action {
        // Stopped is not ready, and is what was asked for.
        Action::Stop => Ok(()),
        Action::Start | Action::Restart => wait::settle(admin, args.wait, &Of::Named(names)).await,
    }
}
