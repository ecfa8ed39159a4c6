//! What an image starts, and as whom: what every runtime of containers has to know to put the bridge in front of it.

use mcp_hub_crds::server::RunAs;
use mcp_hub_crds::source::{ImageSource, ResolvedImage};
use mcp_hub_dataplane_api::launch::ChildTransport;

use crate::lower::Unsupported;

/// User of images that name none, or one by name.
pub const NOBODY: i64 = 65_532;

/// Port that the bridge listens on in a container of its own.
pub fn bridge_port(transport: &ChildTransport) -> u16 {
    match transport {
        ChildTransport::StreamableHttp { port: 7337, .. } | ChildTransport::Sse { port: 7337, .. } => 7338,
        _ => 7337,
    }
}

/// What the bridge starts: [`command`], as program and arguments.
///
/// # Errors
/// [`Unsupported`] of `runtime` if it is not known what the image runs, or it runs nothing.
pub fn program(
    runtime: &str,
    image: &ImageSource,
    facts: Option<&ResolvedImage>,
    args: &[String],
) -> Result<(String, Vec<String>), Unsupported> {
    let refused = |message: &str| Unsupported {
        runtime: runtime.to_owned(),
        field: "spec.source.image".to_owned(),
        message: message.to_owned(),
        hint: Some("set spec.source.image.command".to_owned()),
    };
    let command = command(image, facts, args).ok_or_else(|| refused("the image's entrypoint is not known"))?;
    let mut words = command.into_iter();
    let program = words.next().ok_or_else(|| refused("the image names no program to run"))?;
    Ok((program, words.collect()))
}

/// The program and its arguments: `source.image.command` replaces ENTRYPOINT and drops CMD, `args` replaces CMD. `None` if
/// neither the source nor what is known of the image tells; empty if the image names no program.
pub fn command(image: &ImageSource, facts: Option<&ResolvedImage>, args: &[String]) -> Option<Vec<String>> {
    let mut command = match (&image.command, facts) {
        (Some(command), _) => command.clone(),
        (None, Some(facts)) => {
            let mut command = facts.entrypoint.clone().unwrap_or_default();
            if args.is_empty() {
                command.extend(facts.cmd.clone().unwrap_or_default());
            }
            command
        }
        (None, None) => return None,
    };
    command.extend(args.iter().cloned());
    Some(command)
}

/// The reference to run: by digest, unless the spec wants the tag or the digest is not known.
pub fn to_run(image: &ImageSource, facts: Option<&ResolvedImage>) -> String {
    match facts {
        Some(facts) if image.pin_digest != Some(false) && !image.r#ref.contains('@') => {
            // A tag beside a digest is ignored by everyone; it stays for people.
            format!("{}@{}", image.r#ref, facts.index)
        }
        _ => image.r#ref.clone(),
    }
}

/// Whom a server runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub user: i64,
    pub group: i64,
    /// Not the image's own user, whose home it may not write.
    pub homeless: bool,
    /// User that the image names by a name, which is not looked at.
    pub named: Option<String>,
}

/// The user of the spec, else the image's if it is a number other than root's, else nobody's.
pub fn identity(run_as: Option<&RunAs>, facts: Option<&ResolvedImage>) -> Identity {
    let group = |user: i64| run_as.and_then(|run_as| run_as.group).unwrap_or(user);
    if let Some(user) = run_as.and_then(|run_as| run_as.user) {
        return Identity { user, group: group(user), homeless: true, named: None };
    }
    let of_image = facts.and_then(|image| image.user.as_deref()).unwrap_or_default();
    let (user, own_group) = of_image.split_once(':').unwrap_or((of_image, ""));
    let nobody = |named| Identity { user: NOBODY, group: group(NOBODY), homeless: true, named };
    match user.parse::<i64>() {
        Ok(user) if user != 0 => {
            let own_group = own_group.parse().unwrap_or(user);
            let group = run_as.and_then(|run_as| run_as.group).unwrap_or(own_group);
            Identity { user, group, homeless: false, named: None }
        }
        Ok(_) => nobody(None),
        Err(_) => nobody((!user.is_empty() && user != "root").then(|| user.to_owned())),
    }
}
