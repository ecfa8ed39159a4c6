//! Prints the support matrix: which runtime honours which field of `MCPServer`, found by lowering each field with each
//! runtime's own code.

mod cluster;
mod machine;

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

use mcp_hub_reconcile::contract::fields::{Base, Support, support};
use mcp_hub_reconcile::ports::Runtime;

/// What one runtime does with each field, in the order of the table.
type Column = Vec<(&'static str, Support)>;

const HEAD: &str = "# What each runtime honours

Written by `cargo xtask generate` from the runtimes' own code: each field, set alone, is lowered by each of them. Nothing is \
ignored in silence: for a field that would be this page is not written.

- **yes**: it is honoured.
- **in part**: less is done than asked for, or nothing because it means nothing there; condition `RuntimeSupported` says what.
- **no**: it is refused by its name, and the server does not start.
- **not yet**: no runtime has it in this release; it is refused.

The engines are taken to limit memory, processors and processes, as they do when root runs them; what one cannot limit is \
refused. A remote server runs nowhere, and its fields are the gateway's matter. Some rows say only that a field is taken: \
[containers](../containers.md), [Kubernetes](../kubernetes.md) and [Compose](../compose.md) tell what is made of it.
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let machine = machine::processes(folder.path())?;
    let processes = told(&machine, &machine::process_base())?;
    let mut columns = vec![("processes", processes.clone())];
    for (name, engine) in [("docker, vessel", machine::DOCKER), ("podman", machine::PODMAN)] {
        let engine = machine::engine(folder.path(), engine).await?;
        columns.push((name, of_engine(told(&*engine, &machine::engine_base())?, &processes)));
    }
    columns.push(("Kubernetes", told(&*cluster::runtime(), &cluster::base())?));
    let ignored = ignored(&columns);
    if !ignored.is_empty() {
        return Err(format!("ignored in silence: {}", ignored.join(", ")).into());
    }
    std::io::stdout().write_all(page(&columns).as_bytes())?;
    Ok(())
}

/// What a runtime neither honours nor refuses by name.
fn ignored(columns: &[(&str, Column)]) -> Vec<String> {
    let of = |(name, column): &(&str, Column)| {
        let silent = column.iter().filter(|(_, told)| *told == Support::Silent);
        silent.map(|(field, _)| format!("{field} by {name}")).collect::<Vec<_>>()
    };
    columns.iter().flat_map(of).collect()
}

/// Without the field that says which column it is.
fn told(runtime: &dyn Runtime, base: &Base) -> Result<Column, String> {
    let column = support(runtime, base)?.into_iter();
    Ok(column.filter(|(field, _)| *field != "spec.runtime").collect())
}

/// What an engine is never asked is as it is on its machine.
fn of_engine(engine: Column, machine: &Column) -> Column {
    let is_elsewhere = |field: &str| field.starts_with("spec.source.remote");
    let rows = engine.into_iter().zip(machine);
    rows.map(|(engine, machine)| if is_elsewhere(engine.0) { *machine } else { engine }).collect()
}

fn page(columns: &[(&str, Column)]) -> String {
    let mut page = format!("{HEAD}\n| Field |");
    columns.iter().for_each(|(name, _)| page.push_str(&format!(" {name} |")));
    page.push_str("\n|---|");
    columns.iter().for_each(|_| page.push_str("---|"));
    page.push('\n');
    let rows = columns.first().map(|(_, column)| column.len()).unwrap_or_default();
    for row in 0..rows {
        let field = columns[0].1[row].0.trim_start_matches("spec.");
        // Writing to a text does not fail.
        write!(page, "| `{field}` |").unwrap_or_default();
        for (_, column) in columns {
            page.push_str(&format!(" {} |", word(column[row].1)));
        }
        page.push('\n');
    }
    page
}

fn word(support: Support) -> &'static str {
    match support {
        Support::Honoured => "yes",
        Support::InPart => "in part",
        Support::Refused => "no",
        Support::NotYet => "not yet",
        // Of such a field no page is written.
        Support::Silent => "**ignored**",
    }
}
