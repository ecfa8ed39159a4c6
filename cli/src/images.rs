//! What the commands about images share: the images that manifests name, the lock file, logins, progress.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mcp_hub_crds::source::Source;
use mcp_hub_crds::{Resource, manifest};
use mcp_hub_local_runtime::docker::{Brought, Engine, EngineKind, Ledger, Surroundings, find};
use mcp_hub_supply::lock::{Locked, MAX_BYTES};
use mcp_hub_supply::progress::Event;
use mcp_hub_supply::reference::Mirror;
use mcp_hub_supply::{Credentials, DockerConfig, ImageLock, Published, Reference, Registries};

use crate::args::{LockFile, RuntimeChoice, Transport};
use crate::daemon;
use crate::error::Error;
use crate::output;
use crate::places::Places;
use crate::target::local::Local;

/// As [`named`], of which there must be one.
pub(crate) fn of_manifests(places: &Places, file: Option<&Path>) -> Result<Vec<Reference>, Error> {
    let images = named(places, file)?;
    if images.is_empty() {
        let own = places.servers();
        return Err(Error::Invalid {
            message: format!("no server in {} comes from an image", file.unwrap_or(&own).display()),
            hint: Some("-f PATH names other manifests".to_owned()),
        });
    }
    Ok(images)
}

/// The images of a file or folder of manifests, or of the user's own configuration; each once, by full name.
pub(crate) fn named(places: &Places, file: Option<&Path>) -> Result<Vec<Reference>, Error> {
    let own = places.servers();
    let path = file.unwrap_or(&own);
    let documents = match path.try_exists() {
        // Nothing was ever added.
        Ok(false) if file.is_none() => Vec::new(),
        _ => manifest::load(path).map_err(|errors| daemon::invalid(&errors))?,
    };
    let mut images = BTreeMap::new();
    for document in &documents {
        let Resource::Server(server) = &document.resource else { continue };
        let Source::Image(image) = &server.spec.source else { continue };
        let reference: Reference = image.r#ref.parse().map_err(|error| Error::Invalid {
            message: format!("{}:{}: spec.source.image.ref: {error}", document.file.display(), document.line),
            hint: None,
        })?;
        images.insert(reference.to_string(), reference);
    }
    Ok(images.into_values().collect())
}

/// What the lock file holds; `None` if there is none.
pub(crate) fn read_lock(LockFile { path }: &LockFile) -> Result<Option<ImageLock>, Error> {
    let failed = Error::file("read", path);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    text.parse().map(Some).map_err(|source| Error::Lock { path: path.clone(), source })
}

/// A lock file with at least one image, which is to be moved.
pub(crate) fn locked(file: &LockFile) -> Result<ImageLock, Error> {
    let path = file.path.display();
    let lock = read_lock(file)?.filter(|lock| lock.images().len() > 0).ok_or_else(|| Error::NotFound {
        what: "locked image in",
        name: path.to_string(),
        hint: Some("`mcpctl lock-images` locks those of your manifests".to_owned()),
    })?;
    if lock.is_old() {
        // Its digests are those of indexes or of one platform's manifests; it does not say which.
        output::say(&format!("warning: {path} is of version 1.0: of some images it may name one platform only"));
        output::hint("`mcpctl lock-images` writes it as 2.0, with all platforms");
    }
    Ok(lock)
}

/// All that is locked, or what is locked for the images of some manifests, which all must be.
pub(crate) fn chosen<'a>(
    lock: &'a ImageLock,
    LockFile { path }: &LockFile,
    local: &Local,
    file: Option<&Path>,
) -> Result<Vec<&'a Locked>, Error> {
    let Some(file) = file else { return Ok(lock.images().collect()) };
    let missing = |image: &Reference| Error::NotFound {
        what: "image in the lock file that is named",
        name: image.to_string(),
        hint: Some(format!("`mcpctl lock-images` locks it; {} was read", path.display())),
    };
    let wanted = of_manifests(&local.places, Some(file))?;
    wanted.iter().map(|image| lock.get(image).ok_or_else(|| missing(image))).collect()
}

/// Writes a lock file whole or not at all. Returns whether it is another than before.
pub(crate) fn write_lock(path: &Path, lock: &ImageLock) -> Result<bool, Error> {
    let text = lock.to_string();
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    let write = || {
        let mut draft = draft(path)?;
        draft.write_all(text.as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(path)?;
        Ok(true)
    };
    write().map_err(Error::file("write", path))
}

/// A file beside the one that it is to become, which everybody may read who may read others of this user.
pub(crate) fn draft(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".draft").permissions(permissions).tempfile_in(folder)
}

pub(crate) fn registries(transport: &Transport) -> Result<Registries, Error> {
    Ok(Registries::new()?.plain_http(transport.plain_http.iter().cloned()))
}

/// The logins that `docker login` keeps.
pub(crate) async fn logins(images: impl IntoIterator<Item = &Reference>) -> Result<Credentials, Error> {
    let folder = match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) => Some(PathBuf::from(folder)),
        None => directories::BaseDirs::new().map(|folders| folders.home_dir().join(".docker")),
    };
    let Some(folder) = folder else { return Ok(Credentials::none()) };
    Ok(DockerConfig::read(&folder.join("config.json"))?.logins(images).await?)
}

/// Nobody looks again for a command. Podman asks package managers for versions before it says what it can do.
const PATIENCE: Duration = Duration::from_secs(30);

/// The engine that was chosen, or the first that answers.
pub(crate) async fn engine(runtime: RuntimeChoice) -> Result<Engine, Error> {
    let (around, chosen) = (Surroundings::of_this_process(), runtime.engine());
    let mut missing = Vec::new();
    for kind in EngineKind::ALL.into_iter().filter(|kind| chosen.is_none_or(|chosen| chosen == *kind)) {
        match find(kind, &around, PATIENCE).await {
            Ok(engine) => return Ok(engine),
            Err(none) => missing.push(none),
        }
    }
    Err(Error::NoEngine(missing))
}

/// Notes that an image is ours to tidy away, unless it was there before, and tells of a name that stands for another image
/// now.
pub(crate) fn brought(places: &Places, engine: &Engine, image: &Reference, brought: &Brought) {
    let note = || {
        places.create()?;
        let (ledger, name) = (Ledger::new(places.images()), image.to_string());
        let noted = match brought.was_there {
            true => ledger.note_again(engine, &brought.id, &name),
            false => ledger.note(engine, &brought.id, &name),
        };
        noted.map_err(Error::file("write", places.images()))
    };
    if let Err(error) = note() {
        output::warning(&error);
    }
    if let Some(other) = &brought.displaced {
        output::say(&format!("warning: until now its name stood for {other} on this engine"));
    }
}

/// Names of images in another registry. No two images may come to bear one name.
pub(crate) fn names<'a>(
    mirror: &Mirror,
    images: impl IntoIterator<Item = (&'a Reference, &'a str)>,
) -> Result<Vec<Reference>, Error> {
    let (mut names, mut taken) = (Vec::new(), BTreeMap::new());
    for (image, digest) in images {
        let invalid = |message: String| Error::Invalid { message, hint: None };
        let name = mirror.name(image, digest).map_err(|error| invalid(error.to_string()))?;
        if let Some((other, taken)) = taken.insert(name.to_string(), (image, digest))
            && taken != digest
        {
            return Err(Error::Invalid {
                message: format!("{other} and {image} would both become {name}"),
                hint: Some("publish them one by one, to different paths".to_owned()),
            });
        }
        names.push(name);
    }
    Ok(names)
}

/// Tells of one image's failure, and goes on to the next.
pub(crate) fn failed(image: &Reference, error: &Error) {
    output::say(&format!("{} {image}: {error}", output::painted(anstyle::AnsiColor::Red, "error:")));
    error.hint().iter().for_each(|hint| output::hint(hint));
}

pub(crate) fn published(image: &Reference, Published { sent, spared }: Published) {
    output::say(&match (sent, spared) {
        (0, _) => format!("{image} published ({} were there)", Bytes(spared)),
        (_, 0) => format!("{image} published ({} sent)", Bytes(sent)),
        _ => format!("{image} published ({} sent, {} were there)", Bytes(sent), Bytes(spared)),
    });
}

/// A size for people.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        indicatif::DecimalBytes(self.0).fmt(f)
    }
}

/// Bytes on their way: a bar where a person looks at stderr, nothing elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// The wait that was told last: layers that wait for the same thing say it once.
    told: Mutex<String>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let style = ProgressStyle::with_template("[{bar:40}] {decimal_bytes}/{decimal_total_bytes} {msg}");
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, told: Mutex::default() }
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Begins { image, bytes } => {
                self.bar.inc_length(*bytes);
                self.bar.set_message(image.to_string());
            }
            Event::Moved(bytes) | Event::Spared(bytes) => self.bar.inc(*bytes),
            Event::Again(bytes) => self.bar.set_position(self.bar.position().saturating_sub(*bytes)),
            Event::Waits { wait, error } => {
                let line = format!("{error}; trying again in {:.1} s", wait.as_secs_f64());
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if *told != line {
                    self.say(|| output::say(&line));
                    *told = line;
                }
            }
        }
    }

    /// Runs what writes lines, above the bar.
    pub(crate) fn say(&self, lines: impl FnOnce()) {
        self.bar.suspend(lines);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
