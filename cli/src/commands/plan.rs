//! `mcpctl plan`: what would be done.

use crate::admin::Planned;
use crate::args::{Format, Plan};
use crate::error::Error;
use crate::output;
use crate::target::{Scope, Target};

pub(crate) async fn run(target: &dyn Target, args: &Plan) -> Result<(), Error> {
    let scope = args.namespaces.scope();
    let planned = target.plan(args.file.as_deref(), &scope).await?;
    if args.output.output != Format::Table {
        return output::document(args.output.output, &planned);
    }
    let text = lines(&planned, &scope);
    if text.is_empty() {
        output::say("nothing to do");
    }
    output::data(&text)
}

/// A line a step; where steps of several namespaces may stand in it, the namespace comes first, as in tables.
fn lines(planned: &[Planned], scope: &Scope) -> String {
    let width = planned.iter().map(|server| server.namespace.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Planned { namespace, server, steps, problem } in planned {
        let steps = match problem {
            Some(problem) => vec![format!("! {server}: {problem}")],
            None => steps.clone(),
        };
        for step in steps {
            match scope {
                Scope::All => text.push_str(&format!("{namespace:<width$}  {step}\n")),
                Scope::Usual | Scope::In(_) => text.push_str(&format!("{step}\n")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_all_namespaces_say_of_which_they_are() {
        let planned = |namespace: &str, steps: &[&str], problem: Option<&str>| Planned {
            namespace: namespace.to_owned(),
            server: "github".to_owned(),
            steps: steps.iter().map(|step| (*step).to_owned()).collect(),
            problem: problem.map(str::to_owned),
        };
        let plan = [
            planned("production", &["+ apply Deployment mcp-github", "- remove Service mcp-github"], None),
            planned("test", &[], Some("not looked after")),
        ];
        assert_eq!(
            lines(&plan, &Scope::All),
            "production  + apply Deployment mcp-github\nproduction  - remove Service mcp-github\n\
             test        ! github: not looked after\n"
        );
        assert!(lines(&plan, &Scope::of("test")).starts_with("+ apply"));
        assert_eq!(lines(&[], &Scope::All), "");
    }
}
