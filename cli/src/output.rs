//! What goes to stdout (data) and stderr (everything else), in colour only on a terminal.

use std::io::{IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::args::Format;
use crate::error::Error;
use crate::target::Scope;

/// Data to stdout. A reader that went away (`| head`) is no failure.
pub(crate) fn data(text: &str) -> Result<(), Error> {
    match anstream::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// One line to stderr.
pub(crate) fn say(text: &str) {
    // A closed stderr leaves nobody to tell.
    writeln!(anstream::stderr(), "{text}").unwrap_or_default();
}

pub(crate) fn error(error: &Error) {
    say(&format!("{} {error}", painted(AnsiColor::Red, "error:")));
    if let Some(text) = error.hint() {
        hint(&text);
    }
}

/// What failed and is done without.
pub(crate) fn warning(error: &Error) {
    say(&format!("warning: {error}"));
    if let Some(text) = error.hint() {
        hint(&text);
    }
}

pub(crate) fn hint(text: &str) {
    say(&format!("{} {text}", painted(AnsiColor::Cyan, "hint:")));
}

/// The text in a colour; streams that show none drop it (`NO_COLOR`, pipes).
pub(crate) fn painted(colour: AnsiColor, text: &str) -> String {
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{text}{style:#}")
}

/// Whether a person looks at stdout.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Rows under headings, without frames, so that `awk` reads it too.
pub(crate) fn table(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    // The last column's padding is of no use to anybody.
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A table whose first column is the namespace where objects of several may stand in it.
pub(crate) fn scoped_table<'a>(
    scope: &Scope,
    headings: &[&str],
    rows: impl Iterator<Item = (&'a str, Vec<String>)>,
) -> String {
    if *scope != Scope::All {
        return table(headings, rows.map(|(_, row)| row).collect());
    }
    let rows = rows.map(|(namespace, row)| std::iter::once(namespace.to_owned()).chain(row).collect());
    table(&[&["NAMESPACE"], headings].concat(), rows.collect())
}

/// A value in a machine's form.
pub(crate) fn document(format: Format, value: &impl Serialize) -> Result<(), Error> {
    let failed = |problem: String| Error::Invalid { message: format!("cannot be shown: {problem}"), hint: None };
    match format {
        Format::Table | Format::Json => {
            let json = serde_json::to_string_pretty(value).map_err(|error| failed(error.to_string()))?;
            data(&(json + "\n"))
        }
        Format::Yaml => data(&serde_saphyr::to_string(value).map_err(|error| failed(error.to_string()))?),
    }
}
