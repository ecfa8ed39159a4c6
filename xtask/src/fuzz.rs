//! Level `fuzz`: each target of `fuzz/` for a while, from its corpus.
//!
//! libFuzzer with LLVM's own coverage needs nothing but the stable toolchain of the repository and a C++ compiler. What
//! nightly and `cargo fuzz` would add are sanitizers, which find what `unsafe` code does; there is none here. The layout is
//! that of `cargo fuzz`, which works as well.

use std::process::Command;

use crate::shell::{self, Error};

/// Seconds for each target: enough to notice a change that breaks a property, not to find what took days to hide.
const SECONDS: u32 = 10;

/// What `cargo fuzz` sets, without sanitizers.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

pub(crate) fn run() -> Result<(), Error> {
    let folder = shell::root().join("fuzz");
    let target = shell::target().join("fuzz");
    let host = host()?;
    // Flags are for the target's code only where a target is named: build scripts have no libFuzzer.
    let mut build = shell::cargo(&["build", "--locked", "--release", "--target", &host]);
    build.arg("--manifest-path").arg(folder.join("Cargo.toml")).arg("--target-dir").arg(&target);
    shell::run(build.env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    let corpora = folder.join("corpus");
    let listed = std::fs::read_dir(&corpora).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut names: Vec<_> = listed
        .map_err(|source| Error::File { action: "list", path: corpora.clone(), source })?
        .into_iter()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    for name in names {
        // New inputs are kept here, never in the repository by themselves.
        let found = target.join("corpus").join(&name);
        std::fs::create_dir_all(&found).map_err(|source| Error::File {
            action: "create",
            path: found.clone(),
            source,
        })?;
        let mut fuzz = Command::new(target.join(&host).join("release").join(&name));
        fuzz.args([format!("-max_total_time={SECONDS}"), "-timeout=10".to_owned(), "-rss_limit_mb=1024".to_owned()]);
        fuzz.arg(format!("-artifact_prefix={}/", target.display()));
        shell::run(fuzz.args(["-verbosity=0"]).arg(found).arg(corpora.join(&name)))?;
    }
    Ok(())
}

/// The target triple of this machine.
fn host() -> Result<String, Error> {
    let version = shell::output(Command::new("rustc").arg("-vV").current_dir(shell::root()))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or(Error::Output { command: "rustc -vV".to_owned(), message: version })
}
