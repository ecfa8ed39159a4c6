//! `cargo xtask images`: the product's images, made from scratch out of static programs.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use mcp_hub_supply::Platform;
use mcp_hub_supply::layout::{self, Image, Layer, Start};

use crate::needs::{MUSL_TARGETS, Need};
use crate::shell::{self, Error};
use crate::{certificates, dist, runner};

/// Whom programs run as: nobody's number, as the restricted pod security standard wants one.
const USER: &str = "65532:65532";
/// Registry and path of images that were not pushed anywhere, as the chart has it.
pub(crate) const PREFIX: &str = "localhost/mcp-hub";
/// Tag of tests' images: no version's, and not `latest`, for which a node would ask a registry.
pub(crate) const TEST_TAG: &str = "test";

#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// Folder for the archives [default: target/images]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Registry and path before the image's own name
    #[arg(long, value_name = "PREFIX", default_value = PREFIX)]
    prefix: String,
    /// Tag of every image
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Optimise as a release does, which takes minutes, and leave out what only tests use
    #[arg(long)]
    release: bool,
    /// These images only
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// An image of one program.
struct Recipe {
    /// Of the image.
    name: &'static str,
    package: &'static str,
    program: &'static str,
    /// In layers below its own, in this order.
    brings: &'static [Part],
    title: &'static str,
    is_for_tests: bool,
}

/// What an image holds besides its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Node.js and Python.
    Interpreters,
    /// For those that call other machines by TLS.
    Certificates,
    /// The bridges of all platforms.
    Bridges,
}

const BRIDGE: &str = "bridge";

const RECIPES: [Recipe; 6] = [
    Recipe {
        name: "gateway",
        package: "mcp-hub-gateway",
        program: "mcp-hub-gateway",
        brings: &[Part::Certificates],
        title: "MCP Hub gateway",
        is_for_tests: false,
    },
    Recipe {
        name: "operator",
        package: "mcp-hub-operator",
        program: "mcp-hub-operator",
        brings: &[Part::Certificates, Part::Bridges],
        title: "MCP Hub operator",
        is_for_tests: false,
    },
    Recipe {
        name: "runner",
        package: "mcp-hub-packages",
        program: "mcp-runner",
        brings: &[Part::Interpreters, Part::Certificates],
        title: "MCP Hub runner: Node.js and Python for packages",
        is_for_tests: false,
    },
    Recipe {
        name: "relay",
        package: "mcp-hub-relay",
        program: "mcp-hub-relay",
        brings: &[],
        title: "MCP Hub relay",
        is_for_tests: false,
    },
    Recipe {
        name: "units",
        package: "units-server",
        program: "units-server",
        brings: &[],
        title: "MCP Hub example: a server that converts units",
        is_for_tests: false,
    },
    Recipe {
        name: "fixture",
        package: "mcp-hub-fixture-server",
        program: "fixture-server",
        brings: &[],
        title: "MCP server for tests",
        is_for_tests: true,
    },
];

/// What images are built with.
pub(crate) const NEEDS: [Need; 4] = [Need::MuslTargets, Need::MuslCc, Need::Node, Need::Debian];

pub(crate) fn run(plan: &Plan) -> Result<(), Error> {
    for need in NEEDS {
        if !need.is_there() {
            shell::say(&format!("images need {}; installing it", need.hint()));
            need.install()?;
        }
    }
    for archive in build(plan)? {
        shell::say(&format!("made {}", archive.display()));
    }
    Ok(())
}

/// Builds all images that tests use; gives their archives.
pub(crate) fn for_tests() -> Result<Vec<PathBuf>, Error> {
    let (prefix, tag) = (PREFIX.to_owned(), TEST_TAG.to_owned());
    build(&Plan { out: None, prefix, tag, release: false, names: Vec::new() })
}

fn build(plan: &Plan) -> Result<Vec<PathBuf>, Error> {
    let mut names: Vec<&str> = recipes(plan).map(|recipe| recipe.name).collect();
    names.push(BRIDGE);
    if let Some(name) = plan.names.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(Error::NoImage { name: name.clone(), images: names.join(", ") });
    }
    let is_wanted = |name: &str| plan.names.is_empty() || plan.names.iter().any(|wanted| wanted == name);
    let out = plan.out.clone().unwrap_or_else(|| shell::target().join("images"));
    std::fs::create_dir_all(&out).map_err(file("create", &out))?;
    let mut archives = Vec::new();
    if is_wanted(BRIDGE) {
        let images = bridges(plan)?.into_iter().map(|(target, program)| {
            let layer = Layer::default().file("/mcp-bridge", 0o755, program);
            image(&target, &plan.tag, "MCP Hub bridge", "mcp-bridge", vec![layer])
        });
        archives.push(write(plan, &out, BRIDGE, &images.collect::<Vec<_>>())?);
    }
    for recipe in recipes(plan).filter(|recipe| is_wanted(recipe.name)) {
        archives.push(write(plan, &out, recipe.name, &[recipe.image(plan)?])?);
    }
    Ok(archives)
}

fn recipes(plan: &Plan) -> impl Iterator<Item = &'static Recipe> {
    let release = plan.release;
    RECIPES.iter().filter(move |recipe| !(release && recipe.is_for_tests))
}

impl Recipe {
    fn image(&self, plan: &Plan) -> Result<Image, Error> {
        let Self { package, program, brings, title, .. } = self;
        let target = dist::own_target();
        let profile = if plan.release { "release" } else { "image" };
        let options = ["--package", package, "--bin", program, "--profile", profile, "--target", &target];
        shell::run(shell::cargo(&["build", "--locked"]).args(options))?;
        let built = shell::target().join(&target).join(profile).join(program);
        dist::check(&built, &target)?;
        // What changes least comes first: whoever has that layer takes the next only.
        let mut layers = Vec::new();
        for part in *brings {
            match part {
                Part::Interpreters => {
                    layers.extend(runner::layers(&platform(&target).architecture, plan.release)?);
                }
                Part::Certificates => layers.push(
                    ["/etc", "/etc/ssl", "/etc/ssl/certs"]
                        .iter()
                        .fold(Layer::default(), |layer, folder| layer.folder(folder, 0o755))
                        .file(certificates::PATH, 0o644, certificates::bundle()),
                ),
                Part::Bridges => {
                    let mut layer = Layer::default().folder("/bridges", 0o755);
                    for (target, program) in bridges(plan)? {
                        let path = format!("/bridges/linux-{}", platform(&target).architecture);
                        layer = layer.file(&path, 0o755, program);
                    }
                    layers.push(layer);
                }
            }
        }
        layers.push(Layer::default().file(&format!("/{program}"), 0o755, read(&built)?));
        let mut image = image(&target, &plan.tag, title, program, layers);
        if brings.contains(&Part::Interpreters) {
            image.start.env = runner::env();
        }
        Ok(image)
    }
}

fn image(target: &str, version: &str, title: &str, program: &str, layers: Vec<Layer>) -> Image {
    let label = |name: &str, value: &str| (format!("org.opencontainers.image.{name}"), value.to_owned());
    Image {
        platform: platform(target),
        layers,
        start: Start {
            entrypoint: vec![format!("/{program}")],
            user: USER.to_owned(),
            labels: [label("title", title), label("version", version), label("licenses", env!("CARGO_PKG_LICENSE"))]
                .into(),
            ..Start::default()
        },
    }
}

/// The bridges by their targets: every platform's in a release; a test needs this machine's.
fn bridges(plan: &Plan) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let own = dist::own_target();
    let targets = if plan.release { MUSL_TARGETS.to_vec() } else { vec![own.as_str()] };
    targets.into_iter().map(|target| Ok((target.to_owned(), read(&dist::bridge(target)?)?))).collect()
}

/// The platform of one of [`MUSL_TARGETS`].
fn platform(target: &str) -> Platform {
    Platform::linux(if target.starts_with("aarch64") { "arm64" } else { "amd64" })
}

fn write(plan: &Plan, out: &Path, name: &str, images: &[Image]) -> Result<PathBuf, Error> {
    let archive = out.join(format!("{name}.tar"));
    let full = format!("{}/{name}:{}", plan.prefix, plan.tag);
    let draft = archive.with_extension("tar.new");
    let written = File::create(&draft).and_then(|file| layout::write(&full, images, BufWriter::new(file)));
    written.and_then(|()| std::fs::rename(&draft, &archive)).map_err(file("write", &archive))?;
    Ok(archive)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(file("read", path))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}
