//! `mcpctl generate`: manifests written down for other tools.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use kube::ResourceExt;
use mcp_hub_compose::engine::{self, Engine, Images, Key, TOKENS_FILE};
use mcp_hub_compose::project::Project;
use mcp_hub_compose::{Access, File, Generated, MARK, kubernetes};
use mcp_hub_crds::manifest::{self, Document};
use mcp_hub_crds::source::{ImageSource, ResolvedImage};
use mcp_hub_crds::{MCPServer, Resource};
use mcp_hub_reconcile::workload::BASE_DIR_ANNOTATION;
use mcp_hub_supply::{Credentials, ImageFacts, Platform, Reference, Registries, RegistryError};

use crate::args::{Form, Generate};
use crate::daemon;
use crate::error::Error;
use crate::places::Places;
use crate::{images, output};

pub(crate) async fn run(args: &Generate) -> Result<(), Error> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => Places::find()?.servers(),
    };
    let documents = manifest::load(&path).map_err(|errors| daemon::invalid(&errors))?;
    for warning in documents.iter().flat_map(|document| &document.warnings) {
        output::say(&format!("warning: {warning}"));
    }
    if documents.is_empty() {
        return Err(Error::Invalid {
            message: format!("{} holds no manifests", path.display()),
            hint: Some("name a file or folder of manifests with -f".to_owned()),
        });
    }
    let engine = match args.format {
        Form::Compose => Engine::Compose,
        Form::Swarm => Engine::Swarm,
        Form::Kubernetes => {
            let resources: Vec<Resource> = documents.into_iter().map(|document| document.resource).collect();
            let generated = kubernetes::write(&resources).map_err(refused)?;
            tell(&generated);
            return match &args.output {
                Some(folder) => write(folder, &generated.files, args.force),
                None => generated.files.iter().try_for_each(|file| output::data(&file.content)),
            };
        }
    };
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from("."));
    let resources = documents.into_iter().map(|document| placed(document, &folder)).collect::<Result<_, _>>()?;
    let project = Project::of(resources, args.hub.as_deref())
        .map_err(|problem| Error::Invalid { message: problem.to_string(), hint: problem.hint() })?;
    let key = key(&folder.join(TOKENS_FILE))?;
    let facts = resolve(&project.images()).await;
    let images = Images::of(&args.images, env!("CARGO_PKG_VERSION"));
    let generated = engine::write(engine, &project, &facts, &images, &key).map_err(refused)?;
    tell(&generated);
    write(&folder, &generated.files, args.force)
}

fn refused(refused: mcp_hub_compose::refusal::Refused) -> Error {
    Error::Invalid { message: refused.to_string(), hint: None }
}

fn tell(generated: &Generated) {
    generated.notices.iter().for_each(|notice| output::say(&format!("note: {notice}")));
}

/// Relative paths of a manifest start from its folder, which need not be the project's.
fn placed(document: Document, folder: &Path) -> Result<Resource, Error> {
    let Resource::Server(server) = document.resource else { return Ok(document.resource) };
    let parent = document.file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let base = parent.canonicalize().map_err(Error::file("find", parent))?;
    let same = folder.canonicalize().is_ok_and(|folder| folder == base);
    let mut server: MCPServer = server;
    if !same {
        server.annotations_mut().insert(BASE_DIR_ANNOTATION.to_owned(), base.to_string_lossy().into_owned());
    }
    Ok(Resource::Server(server))
}

/// The project's key: that of the last time, else a new one.
fn key(path: &Path) -> Result<Key, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Key::of_file(&text).map_err(|problem| Error::Invalid {
            message: format!("{}: {problem}", path.display()),
            hint: Some("delete it for new tokens, or generate into another folder".to_owned()),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|error| Error::Invalid {
                message: format!("the system gives no random numbers: {error}"),
                hint: None,
            })?;
            Ok(Key::new(bytes))
        }
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Registries throttle.
const AT_ONCE: usize = 8;

/// What registries say of the images. One that does not answer is said; the spec may tell enough without it.
async fn resolve(images: &[&ImageSource]) -> BTreeMap<String, ResolvedImage> {
    let mut found = BTreeMap::new();
    if images.is_empty() {
        return found;
    }
    let registries = match Registries::new() {
        Ok(registries) => registries,
        Err(error) => {
            output::warning(&error.into());
            return found;
        }
    };
    // What is no reference is refused with its field.
    let references: BTreeMap<String, Reference> =
        images.iter().filter_map(|image| Some((image.r#ref.clone(), image.r#ref.parse().ok()?))).collect();
    // A helper that fails takes the answers of private registries only.
    let credentials = images::logins(references.values()).await.unwrap_or_else(|error| {
        output::warning(&error);
        Credentials::none()
    });
    let (registries, credentials) = (&registries, &credentials);
    let questions = references.iter().map(|(name, reference)| async move {
        let facts = registries.resolve(reference, credentials, &Platform::own()).await?;
        let ImageFacts { index_digest, entrypoint, cmd, user, .. } = facts;
        Ok::<_, RegistryError>((name.clone(), ResolvedImage { index: index_digest, id: None, entrypoint, cmd, user }))
    });
    let mut answers = futures::stream::iter(questions).buffered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok((reference, image)) => {
                found.insert(reference, image);
            }
            Err(problem) => output::warning(&problem.into()),
        }
    }
    found
}

/// Writes all files, each whole or not at all, after a look at all that is there.
fn write(folder: &Path, files: &[File], force: bool) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    for file in files {
        let path = folder.join(file.name);
        match std::fs::read_to_string(&path) {
            Ok(text) if force || is_ours(&text) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(_) | Err(_) => {
                return Err(Error::Invalid {
                    message: format!("{} is there already, and is not of `mcpctl generate`", path.display()),
                    hint: Some("choose another folder with --output, or write over it with --force".to_owned()),
                });
            }
        }
    }
    for file in files {
        let path = folder.join(file.name);
        store(folder, file).map_err(Error::file("write", &path))?;
        output::say(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// JSON has no comment for the mark; nothing else reads as a gateway's configuration.
fn is_ours(text: &str) -> bool {
    text.starts_with(MARK) || mcp_hub_dataplane_api::document::read(text.as_bytes()).is_ok()
}

fn store(folder: &Path, file: &File) -> std::io::Result<()> {
    // For its owner alone until it is written.
    let mut draft = tempfile::Builder::new().prefix(".draft").tempfile_in(folder)?;
    draft.write_all(file.content.as_bytes())?;
    #[cfg(unix)]
    if file.access == Access::Everybody {
        use std::os::unix::fs::PermissionsExt;
        // Whatever the mask is: a container reads it as another user.
        draft.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    draft.as_file().sync_all()?;
    draft.persist(folder.join(file.name))?;
    Ok(())
}
