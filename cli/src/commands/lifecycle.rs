//! `mcpctl start`, `stop` and `restart`.

use mcp_hub_crds::MCPServer;

use crate::admin::{Action, Name};
use crate::args::Lifecycle;
use crate::commands::wait::{self, Of};
use crate::error::Error;
use crate::output;
use crate::target::{Scope, Target};

pub(crate) async fn run(target: &dyn Target, action: Action, args: &Lifecycle) -> Result<(), Error> {
    let servers: Vec<Name> = if args.names.is_empty() {
        let all = target.servers(&Scope::asked(&args.namespace)).await?;
        all.iter().map(|MCPServer { metadata, .. }| Name::of_metadata(metadata)).collect()
    } else {
        args.names.iter().map(|name| target.named(&args.namespace, name)).collect()
    };
    target.act(action, &servers).await?;
    let done = match action {
        Action::Start => "started",
        Action::Stop => "stopped",
        Action::Restart => "restarted",
    };
    servers.iter().for_each(|server| output::say(&format!("{} {done}", server.name)));
    match action {
        // Stopped is not ready, and is what was asked for.
        Action::Stop => Ok(()),
        Action::Start | Action::Restart => wait::settle(target, args.wait, &Of::Named(servers)).await,
    }
}
