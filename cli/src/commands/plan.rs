//! `mcpctl plan`: what would be done.

use crate::admin::client::Admin;
use crate::admin::{OriginPath, Planned, path};
use crate::args::{Format, Plan};
use crate::error::Error;
use crate::output;

pub(crate) async fn run(admin: &Admin, args: &Plan) -> Result<(), Error> {
    let origin = match &args.file {
        Some(file) => Some(OriginPath { path: std::fs::canonicalize(file).map_err(Error::file("open", file))? }),
        None => None,
    };
    let planned: Vec<Planned> = admin.post(path::PLAN, &origin).await?;
    if args.output.output != Format::Table {
        return output::document(args.output.output, &planned);
    }
    let mut text = String::new();
    for server in &planned {
        match &server.problem {
            Some(problem) => text.push_str(&format!("! {}: {problem}\n", server.server)),
            None => server.steps.iter().for_each(|step| text.push_str(&format!("{step}\n"))),
        }
    }
    if text.is_empty() {
        output::say("nothing to do");
    }
    output::data(&text)
}
