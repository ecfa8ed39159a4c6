//! The reference of all commands as Markdown, made from the same definitions that parse them.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

use crate::args::Cli;

pub(crate) fn markdown() -> String {
    let mut out = String::from("# mcpctl\n\n");
    let mut root = Cli::command();
    root.build();
    // Writing to a String cannot fail.
    writeln!(out, "{}.\n", root.get_about().map(ToString::to_string).unwrap_or_default()).unwrap_or_default();
    if let Some(codes) = root.get_after_help() {
        writeln!(out, "{codes}\n").unwrap_or_default();
    }
    out.push_str("Data goes to stdout, everything else to stderr. `NO_COLOR` is honoured.\n");
    out.push_str("\nEvery command takes this:\n");
    table(&mut out, root.get_arguments().filter(|argument| argument.is_global_set()));
    root.get_subcommands().for_each(|command| section(&mut out, command, "mcpctl"));
    out
}

fn section(out: &mut String, command: &Command, parent: &str) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(out, "\n## `{name}`\n\n{about}.").unwrap_or_default();
    table(out, command.get_arguments().filter(|argument| !argument.is_global_set()));
    command.get_subcommands().for_each(|inner| section(out, inner, &name));
}

fn table<'a>(out: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let shown = |argument: &&Arg| !argument.is_hide_set() && !["help", "version"].contains(&argument.get_id().as_str());
    for (at, argument) in arguments.filter(shown).enumerate() {
        if at == 0 {
            out.push_str("\n| Argument | Meaning |\n|---|---|\n");
        }
        writeln!(out, "| `{}` | {} |", form(argument), meaning(argument)).unwrap_or_default();
    }
}

fn form(argument: &Arg) -> String {
    let value = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string).unwrap_or_default();
    let takes_value = argument.get_action().takes_values();
    match (argument.get_short(), argument.get_long()) {
        (None, None) => value,
        (short, long) => {
            let names = [short.map(|c| format!("-{c}")), long.map(|name| format!("--{name}"))];
            let names: Vec<String> = names.into_iter().flatten().collect();
            let value = if takes_value { format!(" {value}") } else { String::new() };
            format!("{}{value}", names.join(", "))
        }
    }
}

fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let takes_value = argument.get_action().takes_values();
    let choices: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| value.get_name().to_owned())
        .collect();
    if takes_value && !choices.is_empty() {
        write!(text, " ({})", choices.join(", ")).unwrap_or_default();
    }
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if takes_value && !defaults.is_empty() {
        write!(text, "; default `{}`", defaults.join(" ")).unwrap_or_default();
    }
    if let Some(variable) = argument.get_env() {
        write!(text, "; or `{}`", variable.to_string_lossy()).unwrap_or_default();
    }
    text.replace('|', "\\|")
}
