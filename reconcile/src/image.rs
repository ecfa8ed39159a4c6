//! What a container runs that is made of a user's image: the bridge, and behind it what the image would have run.

use mcp_hub_crds::source::{ImageSource, Resolved};
use mcp_hub_dataplane_api::launch::ChildTransport;

use crate::lower::Unsupported;

/// Port that the bridge listens on in a container of its own.
pub fn bridge_port(transport: &ChildTransport) -> u16 {
    match transport {
        ChildTransport::StreamableHttp { port: 7337, .. } | ChildTransport::Sse { port: 7337, .. } => 7338,
        _ => 7337,
    }
}

/// The program and its arguments. `source.image.command` replaces ENTRYPOINT and drops CMD; `args` replaces CMD.
///
/// # Errors
/// [`Unsupported`] of `runtime` if it is not known what the image runs, or it runs nothing.
pub fn command(
    runtime: &str,
    image: &ImageSource,
    resolved: &Resolved,
    args: &[String],
) -> Result<(String, Vec<String>), Unsupported> {
    let refused = |message: &str| Unsupported {
        runtime: runtime.to_owned(),
        field: "spec.source.image".to_owned(),
        message: message.to_owned(),
        hint: Some("set spec.source.image.command".to_owned()),
    };
    let mut command = match (&image.command, &resolved.image) {
        (Some(command), _) => command.clone(),
        (None, Some(facts)) => {
            let mut command = facts.entrypoint.clone().unwrap_or_default();
            if args.is_empty() {
                command.extend(facts.cmd.clone().unwrap_or_default());
            }
            command
        }
        (None, None) => return Err(refused("the image's entrypoint is not known")),
    };
    command.extend(args.iter().cloned());
    let mut command = command.into_iter();
    match command.next() {
        Some(program) => Ok((program, command.collect())),
        None => Err(refused("the image names no program to run")),
    }
}
