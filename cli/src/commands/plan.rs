//! `mcpctl plan`: what would be done.

use crate::args::{Format, Plan};
use crate::error::Error;
use crate::output;
use crate::target::Target;

pub(crate) async fn run(target: &dyn Target, args: &Plan) -> Result<(), Error> {
    let planned = target.plan(args.file.as_deref(), &args.namespaces.scope()).await?;
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
