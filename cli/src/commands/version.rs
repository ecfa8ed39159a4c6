//! `mcpctl version`.

use serde_json::{Map, Value};

use crate::args::{Format, OutputOnly};
use crate::error::Error;
use crate::output;
use crate::target::Target;

pub(crate) async fn run(target: &dyn Target, args: &OutputOnly) -> Result<(), Error> {
    let own = env!("CARGO_PKG_VERSION");
    let versions = target.versions().await?;
    if args.output == Format::Table {
        let lines: String = versions.iter().map(|version| format!("{} {}\n", version.of, version.text)).collect();
        return output::data(&format!("mcpctl {own}\n{lines}"));
    }
    let others = versions.into_iter().map(|version| (version.of.to_owned(), version.value));
    let all: Map<String, Value> = std::iter::once(("mcpctl".to_owned(), own.into())).chain(others).collect();
    output::document(args.output, &all)
}
