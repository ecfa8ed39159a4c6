//! A command line that starts an MCP server, as the documentation of servers gives it, turned into a source: `npx` and
//! `uvx` lines become packages, `docker run` lines images, anything else a command.

use std::collections::BTreeMap;

use crate::server::{EnvVar, RuntimeChoice, Volume};
use crate::source::{CommandSource, ImageSource, PackageRegistry, PackageSource, SecretKeyRef, Source};

/// What a command line says about a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    pub source: Source,
    pub runtime: Option<RuntimeChoice>,
    pub args: Vec<String>,
    pub env: Vec<EnvVar>,
    pub volumes: Vec<Volume>,
    pub working_dir: Option<String>,
    pub warnings: Vec<String>,
}

/// A command line that cannot become a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("no command given")]
    Empty,
    #[error("`{program}` is not told what to run")]
    NothingToRun { program: String },
    #[error("flag `{flag}` of `{program}` cannot be honoured")]
    Flag { program: String, flag: String },
    #[error("flag `{flag}` of `{program}` needs a value")]
    FlagValue { program: String, flag: String },
    #[error("`{spec}` is no package of a registry")]
    NotFromRegistry { spec: String },
    #[error("`{spec}` names no exact version")]
    NotExact { spec: String },
    #[error("`{text}` is no volume of the form SOURCE:PATH[:ro]")]
    Volume { text: String },
}

impl CommandError {
    /// What the user does next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Empty => Some("write the command after `--`".to_owned()),
            Self::NothingToRun { .. } => None,
            Self::Flag { .. } => Some("write an MCPServer manifest that says what the flag is for".to_owned()),
            Self::FlagValue { .. } => None,
            Self::NotFromRegistry { .. } => {
                Some("install it yourself and give the path of its program as the command".to_owned())
            }
            Self::NotExact { .. } => {
                Some("write one version such as 1.2.3, or none to take and keep the newest".to_owned())
            }
            Self::Volume { .. } => None,
        }
    }
}

/// The server that `argv` starts. `env` is its environment; a `docker run` line passes on only what `-e` names.
///
/// # Errors
/// [`CommandError`] names the part that has no counterpart in a manifest. Nothing is dropped in silence: what is left out
/// harmlessly is told in [`Invocation::warnings`].
pub fn source_of_command(argv: &[String], env: &BTreeMap<String, String>) -> Result<Invocation, CommandError> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    of(&argv, env)
}

fn of(argv: &[&str], env: &BTreeMap<String, String>) -> Result<Invocation, CommandError> {
    let (program, rest) = argv.split_first().filter(|(program, _)| !program.is_empty()).ok_or(CommandError::Empty)?;
    // `C:\…\npx.cmd` and `/usr/bin/npx` are npx.
    let name = program.rsplit(['/', '\\']).next().unwrap_or(program);
    let name = [".cmd", ".exe"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    match (name, rest) {
        ("cmd", ["/c" | "/C", rest @ ..]) => of(rest, env),
        ("npx" | "bunx", rest) => npm(name, rest, env),
        ("pnpm", ["dlx", rest @ ..]) => npm("pnpm dlx", rest, env),
        ("npm", ["exec", rest @ ..]) => npm("npm exec", rest, env),
        ("bun", ["x", rest @ ..]) => npm("bun x", rest, env),
        ("uvx", rest) => pypi("uvx", "--from", rest, env),
        ("uv", ["tool", "run", rest @ ..]) => pypi("uv tool run", "--from", rest, env),
        ("pipx", ["run", rest @ ..]) => pypi("pipx run", "--spec", rest, env),
        ("docker" | "podman", ["run", rest @ ..]) => container(name, rest, env),
        ("docker" | "podman", ["container", "run", rest @ ..]) => container(name, rest, env),
        _ => Ok(invocation(Source::Command(CommandSource { path: (*program).to_owned() }), rest, env)),
    }
}

fn invocation(source: Source, args: &[&str], env: &BTreeMap<String, String>) -> Invocation {
    let literal =
        |(name, value): (&String, &String)| EnvVar { name: name.clone(), value: Some(value.clone()), secret_ref: None };
    Invocation {
        source,
        runtime: None,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: env.iter().map(literal).collect(),
        volumes: Vec::new(),
        working_dir: None,
        warnings: Vec::new(),
    }
}

/// `--flag VALUE` and `--flag=VALUE`; `rest` is left behind both.
fn value_of<'a>(
    program: &str,
    flag: &str,
    inline: Option<&'a str>,
    rest: &mut &[&'a str],
) -> Result<&'a str, CommandError> {
    if let Some(value) = inline {
        return Ok(value);
    }
    let missing = || CommandError::FlagValue { program: program.to_owned(), flag: flag.to_owned() };
    let (value, tail) = rest.split_first().ok_or_else(missing)?;
    *rest = tail;
    Ok(value)
}

fn npm(program: &str, mut rest: &[&str], env: &BTreeMap<String, String>) -> Result<Invocation, CommandError> {
    let mut package = None;
    while let Some((flag, tail)) = rest.split_first().filter(|(flag, _)| flag.starts_with('-')) {
        rest = tail;
        let (flag, inline) = flag.split_once('=').map_or((*flag, None), |(flag, value)| (flag, Some(value)));
        match flag {
            "-y" | "--yes" | "-q" | "--quiet" | "--bun" => {}
            "-p" | "--package" if package.is_none() => package = Some(value_of(program, flag, inline, &mut rest)?),
            "--" => break,
            _ => return Err(CommandError::Flag { program: program.to_owned(), flag: flag.to_owned() }),
        }
    }
    let nothing = || CommandError::NothingToRun { program: program.to_owned() };
    let (first, args) = rest.split_first().ok_or_else(nothing)?;
    let args = args.strip_prefix(&["--"]).filter(|_| program == "npm exec").unwrap_or(args);
    let (spec, executable) = package.map_or((*first, None), |package| (package, Some((*first).to_owned())));
    // The `@` of a scope is no version's.
    let (name, version) = match spec.get(1..).and_then(|tail| tail.rfind('@')) {
        Some(at) => (&spec[..=at], Some(&spec[at + 2..])),
        None => (spec, None),
    };
    let valid = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '~' || c == '-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
    };
    let from_registry = match name.strip_prefix('@').map(|scoped| scoped.split_once('/')) {
        Some(Some((scope, name))) => valid(scope) && valid(name),
        Some(None) => false,
        None => valid(name),
    };
    if !from_registry {
        return Err(CommandError::NotFromRegistry { spec: spec.to_owned() });
    }
    let exact = |version: &str| {
        let core = version.split(['-', '+']).next().unwrap_or_default();
        let numbers: Vec<&str> = core.split('.').collect();
        numbers.len() == 3 && numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let version = exact_version(spec, version, exact)?;
    let source = PackageSource { registry: PackageRegistry::Npm, name: name.to_owned(), version, executable };
    Ok(invocation(Source::Package(source), args, env))
}

/// The version if it is exact; `latest` is what no version means.
fn exact_version(
    spec: &str,
    version: Option<&str>,
    exact: impl Fn(&str) -> bool,
) -> Result<Option<String>, CommandError> {
    match version {
        None | Some("latest") => Ok(None),
        Some(version) if exact(version) => Ok(Some(version.to_owned())),
        Some(_) => Err(CommandError::NotExact { spec: spec.to_owned() }),
    }
}

fn pypi(
    program: &str,
    spec_flag: &str,
    mut rest: &[&str],
    env: &BTreeMap<String, String>,
) -> Result<Invocation, CommandError> {
    let mut from = None;
    while let Some((flag, tail)) = rest.split_first().filter(|(flag, _)| flag.starts_with('-')) {
        rest = tail;
        let (flag, inline) = flag.split_once('=').map_or((*flag, None), |(flag, value)| (flag, Some(value)));
        match flag {
            "-q" | "--quiet" => {}
            _ if flag == spec_flag && from.is_none() => from = Some(value_of(program, flag, inline, &mut rest)?),
            "--" => break,
            _ => return Err(CommandError::Flag { program: program.to_owned(), flag: flag.to_owned() }),
        }
    }
    let nothing = || CommandError::NothingToRun { program: program.to_owned() };
    let (first, args) = rest.split_first().ok_or_else(nothing)?;
    let spec = from.unwrap_or(first);
    let (name, version) = match (spec.split_once("=="), spec.split_once('@')) {
        (Some((name, version)), _) | (None, Some((name, version))) => (name, Some(version)),
        (None, None) => (spec, None),
    };
    if name.contains(['<', '>', '~', '!', '=']) {
        return Err(CommandError::NotExact { spec: spec.to_owned() });
    }
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !version.is_some_and(|version| version.contains(['/', ':']));
    if !valid {
        return Err(CommandError::NotFromRegistry { spec: spec.to_owned() });
    }
    let exact = |version: &str| {
        version.starts_with(|c: char| c.is_ascii_digit())
            && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+!-".contains(&b))
    };
    let version = exact_version(spec, version, exact)?;
    let executable = from.filter(|_| *first != name).map(|_| (*first).to_owned());
    let source = PackageSource { registry: PackageRegistry::Pypi, name: name.to_owned(), version, executable };
    Ok(invocation(Source::Package(source), args, env))
}

fn container(engine: &str, mut rest: &[&str], env: &BTreeMap<String, String>) -> Result<Invocation, CommandError> {
    let program = format!("{engine} run");
    let mut found = invocation(Source::Command(CommandSource { path: String::new() }), &[], &BTreeMap::new());
    let mut entrypoint = None;
    let mut passed = Vec::new();
    while let Some((flag, tail)) = rest.split_first().filter(|(flag, _)| flag.starts_with('-')) {
        rest = tail;
        let (flag, inline) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            // `-eNAME`: a short flag with its value.
            None if flag.len() > 2 && (flag.starts_with("-e") || flag.starts_with("-v") || flag.starts_with("-w")) => {
                flag.split_at_checked(2).map_or((*flag, None), |(flag, value)| (flag, Some(value)))
            }
            None => (*flag, None),
        };
        match flag {
            // What every server gets anyway: its input kept open, the container removed, children reaped.
            "-i" | "--interactive" | "--rm" | "--init" => {}
            "-e" | "--env" => {
                let text = value_of(&program, flag, inline, &mut rest)?;
                found.env.push(container_variable(text, env, &mut found.warnings));
                passed.push(text.split('=').next().unwrap_or(text));
            }
            "-v" | "--volume" => {
                let text = value_of(&program, flag, inline, &mut rest)?;
                let volume = volume(text, found.volumes.len())?;
                found.volumes.push(volume);
            }
            "--mount" => {
                let text = value_of(&program, flag, inline, &mut rest)?;
                let volume = mount(text, found.volumes.len())?;
                found.volumes.push(volume);
            }
            "-w" | "--workdir" => found.working_dir = Some(value_of(&program, flag, inline, &mut rest)?.to_owned()),
            "--entrypoint" => entrypoint = Some(value_of(&program, flag, inline, &mut rest)?.to_owned()),
            _ => return Err(CommandError::Flag { program, flag: flag.to_owned() }),
        }
    }
    let (image, args) = rest.split_first().ok_or(CommandError::NothingToRun { program })?;
    found.source = Source::Image(ImageSource {
        r#ref: (*image).to_owned(),
        command: entrypoint.map(|program| vec![program]),
        pull_secret_ref: None,
        pin_digest: None,
        verify: None,
    });
    found.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    found.runtime = (engine == "podman").then_some(RuntimeChoice::Podman);
    for name in env.keys().filter(|name| !passed.contains(&name.as_str())) {
        found
            .warnings
            .push(format!("environment variable {name} is left out: no `-e {name}` passes it to the container"));
    }
    Ok(found)
}

/// `NAME=VALUE`, or `NAME` alone, which takes the value from the environment of the command.
fn container_variable(text: &str, env: &BTreeMap<String, String>, warnings: &mut Vec<String>) -> EnvVar {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, env.get(text).cloned()),
    };
    let secret_ref = if value.is_none() {
        let secret = secret_named(name);
        warnings.push(format!(
            "environment variable {name} has no value here: it is taken from the secret `{}`",
            secret.name
        ));
        Some(secret)
    } else {
        None
    };
    EnvVar { name: name.to_owned(), value, secret_ref }
}

/// The secret that stands for a variable: `GITHUB_TOKEN` is key `value` of `github-token`.
pub fn secret_named(variable: &str) -> SecretKeyRef {
    let name: String =
        variable.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    SecretKeyRef { name: name.trim_matches('-').to_owned(), key: "value".to_owned() }
}

/// `SOURCE:PATH[:ro|rw]`.
fn volume(text: &str, index: usize) -> Result<Volume, CommandError> {
    let invalid = || CommandError::Volume { text: text.to_owned() };
    let (rest, read_only) = match text.rsplit_once(':') {
        Some((rest, "ro")) => (rest, Some(true)),
        Some((rest, "rw")) => (rest, None),
        _ => (text, None),
    };
    let (source, path) = rest.rsplit_once(':').ok_or_else(invalid)?;
    bind(source, path, read_only, index).ok_or_else(invalid)
}

/// `type=bind,src=SOURCE,dst=PATH[,readonly]`.
fn mount(text: &str, index: usize) -> Result<Volume, CommandError> {
    let invalid = || CommandError::Volume { text: text.to_owned() };
    let (mut source, mut path, mut read_only, mut is_bind) = (None, None, None, false);
    for part in text.split(',') {
        match part.split_once('=').unwrap_or((part, "true")) {
            ("type", "bind") => is_bind = true,
            ("source" | "src", value) => source = Some(value),
            ("destination" | "dst" | "target", value) => path = Some(value),
            ("readonly" | "ro", "true" | "1") => read_only = Some(true),
            ("readonly" | "ro", "false" | "0") => read_only = None,
            _ => return Err(invalid()),
        }
    }
    match (is_bind, source, path) {
        (true, Some(source), Some(path)) => bind(source, path, read_only, index).ok_or_else(invalid),
        _ => Err(invalid()),
    }
}

/// A folder of the machine. A named volume (a source without a slash) is the engine's own and has no counterpart.
fn bind(source: &str, path: &str, read_only: Option<bool>, index: usize) -> Option<Volume> {
    let folder = source.contains(['/', '\\']) || source.starts_with(['.', '~']);
    (folder && path.starts_with('/')).then(|| Volume {
        name: format!("volume-{}", index + 1),
        mount_path: path.to_owned(),
        read_only,
        host_path: Some(source.to_owned()),
        empty_dir: None,
        pvc: None,
        config_map: None,
    })
}
