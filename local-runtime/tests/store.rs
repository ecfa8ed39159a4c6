//! The store of one machine, and the origins that feed it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use mcp_hub_crds::manifest::parse;
use mcp_hub_crds::{MCPServer, MCPServerStatus, ResourceKey, ResourceKind};
use mcp_hub_local_runtime::origins::{LoadError, follow};
use mcp_hub_local_runtime::store::{LocalStore, OpenError, OriginProblem, SyncError};
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Change, Event, EventKind, ResourceStore};
use mcp_hub_reconcile::status::MANIFEST_PROBLEM_ANNOTATION;
use mcp_hub_reconcile::workload::{BASE_DIR_ANNOTATION, STOPPED_ANNOTATION};
use mcp_hub_secrets::Environment;

struct World {
    folder: tempfile::TempDir,
    store: Option<Arc<LocalStore>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Some(open(folder.path()).unwrap());
        Self { folder, store }
    }

    fn store(&self) -> &Arc<LocalStore> {
        self.store.as_ref().unwrap()
    }

    /// As a daemon that was killed and started again.
    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(open(self.folder.path()).unwrap());
    }

    fn origin(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sync(&self, origin: &str, text: &str) -> Result<mcp_hub_local_runtime::store::Synced, SyncError> {
        let path = self.origin(origin);
        let documents = parse(text, &path.join("servers.yaml")).unwrap();
        self.store().sync(&path, &documents)
    }

    fn server(&self, name: &str) -> Option<MCPServer> {
        self.store()
            .servers()
            .state()
            .iter()
            .find(|server| server.name_any() == name)
            .map(|server| MCPServer::clone(server))
    }

    fn owner(&self, name: &str) -> OwnerKey {
        OwnerKey::of_server(self.store().installation().id(), &self.server(name).unwrap()).unwrap()
    }

    fn hubs(&self) -> Vec<String> {
        let hubs = self.store().hubs().state();
        let mut names: Vec<String> =
            hubs.iter().filter(|hub| hub.metadata.deletion_timestamp.is_none()).map(|hub| hub.name_any()).collect();
        names.sort();
        names
    }
}

fn open(folder: &Path) -> Result<Arc<LocalStore>, OpenError> {
    LocalStore::open(&folder.join("state"), Arc::new(Environment::new([("MCP_A".to_owned(), "secret".to_owned())])))
}

fn server(name: &str, args: &str) -> String {
    format!(
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec: {{source: {{command: {{path: ./x}}}}, args: [{args}]}}\n"
    )
}

fn hub(name: &str) -> String {
    format!("---\napiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {{name: {name}}}\nspec: {{}}\n")
}

fn key(name: &str) -> ResourceKey {
    ResourceKey { kind: ResourceKind::MCPServer, namespace: "default".to_owned(), name: name.to_owned() }
}

#[tokio::test]
async fn an_origin_says_what_there_is_and_a_restart_forgets_nothing() {
    let mut world = World::new();
    let synced = world.sync("a", &(server("one", "x") + &server("two", "x"))).unwrap();
    assert_eq!((synced.added.len(), synced.changed.len(), synced.removed.len()), (2, 0, 0));
    let one = world.server("one").unwrap();
    assert_eq!(one.metadata.generation, Some(1));
    assert_eq!(one.annotations()[BASE_DIR_ANNOTATION], world.origin("a").to_str().unwrap());

    let status = MCPServerStatus { last_error: Some("kept".to_owned()), ..MCPServerStatus::default() };
    world.store().write_server_status(&one, &status).await.unwrap();
    world.store().set_stopped(&key("two"), true).unwrap();
    world.reopen();
    let again = world.server("one").unwrap();
    assert_eq!(again.metadata.uid, one.metadata.uid);
    assert_eq!(again.status.unwrap().last_error.as_deref(), Some("kept"));
    assert!(world.server("two").unwrap().annotations().contains_key(STOPPED_ANNOTATION));

    // The same again changes nothing, not even a counter.
    let version = world.server("one").unwrap().resource_version();
    assert_eq!(world.sync("a", &(server("one", "x") + &server("two", "x"))).unwrap(), Default::default());
    assert_eq!(world.server("one").unwrap().resource_version(), version);

    let synced = world.sync("a", &server("one", "y")).unwrap();
    assert_eq!((synced.changed, synced.removed), (vec![key("one")], vec![key("two")]));
    assert_eq!(world.server("one").unwrap().metadata.generation, Some(2));
    assert!(world.server("two").unwrap().metadata.deletion_timestamp.is_some());
    let owner = world.owner("two");
    world.store().release(&owner).await.unwrap();
    assert!(world.server("two").is_none());
}

#[tokio::test]
async fn what_comes_back_while_it_is_being_deleted_is_a_new_object_afterwards() {
    let mut world = World::new();
    world.sync("a", &server("one", "x")).unwrap();
    let old = world.owner("one");
    world.sync("a", "").unwrap();
    world.sync("a", &server("one", "z")).unwrap();
    assert_eq!(world.owner("one"), old, "the old one is still being deleted");
    world.reopen();
    world.store().release(&old).await.unwrap();
    let new = world.server("one").unwrap();
    assert_ne!(new.uid().unwrap(), old.uid);
    assert_eq!(new.spec.args.as_deref(), Some(&["z".to_owned()][..]));
    assert_eq!(new.metadata.deletion_timestamp, None);
    // A late release of the old one does not touch the new one.
    world.store().release(&old).await.unwrap();
    assert!(world.server("one").is_some());
}

#[tokio::test]
async fn one_key_from_two_origins_is_refused_and_everything_else_taken() {
    let world = World::new();
    world.sync("a", &server("one", "x")).unwrap();
    let error = world.sync("b", &(server("one", "y") + &server("two", "y"))).unwrap_err();
    assert!(
        error.to_string().contains("default/one") && error.to_string().contains(world.origin("a").to_str().unwrap()),
        "{error}"
    );
    assert_eq!(world.server("one").unwrap().spec.args.as_deref(), Some(&["x".to_owned()][..]));
    assert!(world.server("two").is_some());
    let origins = world.store().origins().unwrap();
    assert!(origins[0].problem.is_none() && origins[1].problem.is_some(), "{origins:?}");

    // When the first gives it up the second may have it.
    world.sync("a", "").unwrap();
    let owner = world.owner("one");
    world.store().release(&owner).await.unwrap();
    world.sync("b", &(server("one", "y") + &server("two", "y"))).unwrap();
    assert_eq!(world.store().origin_of(&key("one")).unwrap(), Some(world.origin("b")));
    assert!(world.store().origins().unwrap().iter().all(|origin| origin.problem.is_none()));
}

#[tokio::test]
async fn a_hub_is_there_by_itself_until_one_is_defined_and_keeps_its_uid() {
    let mut world = World::new();
    let uid = |world: &World| world.store().hubs().state()[0].uid().unwrap();
    assert_eq!(world.hubs(), ["default"]);
    let first = uid(&world);
    world.reopen();
    assert_eq!(uid(&world), first);
    // A manifest takes it over.
    world.sync("a", &hub("default")).unwrap();
    assert_eq!((world.hubs(), uid(&world)), (vec!["default".to_owned()], first.clone()));
    // Another name replaces it.
    world.sync("a", &hub("mine")).unwrap();
    assert_eq!(world.hubs(), ["mine"]);
    let hub_owner = |world: &World, name: &str| {
        let hubs = world.store().hubs().state();
        let hub = hubs.iter().find(|hub| hub.name_any() == name).unwrap().clone();
        OwnerKey::of_hub(world.store().installation().id(), &hub).unwrap()
    };
    let gone = hub_owner(&world, "default");
    world.store().release(&gone).await.unwrap();
    world.sync("a", "").unwrap();
    let gone = hub_owner(&world, "mine");
    world.store().release(&gone).await.unwrap();
    assert_eq!((world.hubs(), uid(&world)), (vec!["default".to_owned()], first));
}

#[tokio::test]
async fn an_origin_that_cannot_be_read_keeps_its_objects_and_they_say_why() {
    let world = World::new();
    world.sync("a", &server("one", "x")).unwrap();
    world.store().origin_failed(&world.origin("a"), &OriginProblem::Invalid("line 3".to_owned())).unwrap();
    assert_eq!(world.server("one").unwrap().annotations()[MANIFEST_PROBLEM_ANNOTATION], "line 3");
    world.sync("a", &server("one", "x")).unwrap();
    assert!(!world.server("one").unwrap().annotations().contains_key(MANIFEST_PROBLEM_ANNOTATION));
    assert_eq!(world.server("one").unwrap().metadata.generation, Some(1));
}

#[tokio::test]
async fn two_daemons_do_not_share_a_state_folder() {
    let mut world = World::new();
    match open(world.folder.path()) {
        Err(OpenError::Held { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    let (id, token) = (world.store().installation().id().to_owned(), world.store().installation().hub_token("u", 0));
    world.reopen();
    assert_eq!((world.store().installation().id(), world.store().installation().hub_token("u", 0)), (&*id, token));
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_written_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("state"), "a file where the folder should be").unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("state"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    std::fs::write(
        folder.path().join("state/hub.db"),
        "this is no database, and too long to be taken for an empty one".repeat(20),
    )
    .unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("begin anew"), "{error}");
}

#[tokio::test]
async fn changes_begin_with_everything_and_go_on_with_what_changes() {
    let world = World::new();
    world.sync("a", &server("one", "x")).unwrap();
    let mut changes = world.store().changes();
    let mut next = async || tokio::time::timeout(Duration::from_secs(10), changes.next()).await.unwrap().unwrap();
    assert!(matches!(next().await, Change::Server(server) if server.name == "one"));
    assert!(matches!(next().await, Change::Hub(hub) if hub.name == "default"));
    world.store().set_stopped(&key("one"), true).unwrap();
    assert!(matches!(next().await, Change::Server(server) if server.name == "one"));
    world.store().secret_changed("default", "gh");
    assert_eq!(next().await, Change::Secret { namespace: "default".to_owned(), name: "gh".to_owned() });
}

#[tokio::test]
async fn a_status_of_a_former_object_is_refused() {
    let world = World::new();
    world.sync("a", &server("one", "x")).unwrap();
    let mut former = world.server("one").unwrap();
    former.metadata.uid = Some("another".to_owned());
    assert!(world.store().write_server_status(&former, &MCPServerStatus::default()).await.is_err());
}

#[tokio::test]
async fn equal_events_are_counted_and_old_ones_go() {
    let world = World::new();
    world.sync("a", &server("one", "x")).unwrap();
    let event =
        |message: String| Event { owner: world.owner("one"), kind: EventKind::Normal, reason: "Ready", message };
    for _ in 0..3 {
        world.store().publish(event("same".to_owned())).await;
    }
    let events = world.store().events(10).unwrap();
    assert_eq!((events.len(), events[0].count, events[0].object.as_str()), (1, 3, "MCPServer default/one"));
    for number in 0..1100 {
        world.store().publish(event(format!("number {number}"))).await;
    }
    let events = world.store().events(10_000).unwrap();
    assert_eq!((events.len(), events.last().unwrap().message.as_str()), (1000, "number 1099"));
}

#[tokio::test]
async fn a_followed_folder_is_taken_over_as_it_changes() {
    let world = World::new();
    let origin = world.origin("manifests");
    std::fs::create_dir(&origin).unwrap();
    std::fs::write(origin.join("a.yaml"), server("one", "x")).unwrap();
    let (_followed, result) = follow(world.store().clone(), origin.clone());
    assert_eq!(result.unwrap().added, [key("one")]);

    let mut revision = world.store().subscribe();
    let mut reached = async |what: &str, check: &dyn Fn() -> bool| {
        let reached = async {
            while !check() {
                revision.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap_or_else(|_| panic!("not reached: {what}"));
    };
    std::fs::write(origin.join("b.yaml"), server("two", "x")).unwrap();
    reached("a new file", &|| world.server("two").is_some()).await;
    std::fs::write(origin.join("b.yaml"), "apiVersion: [").unwrap();
    let problem = |name: &str| world.server(name).unwrap().annotations().get(MANIFEST_PROBLEM_ANNOTATION).cloned();
    reached("a half-saved file", &|| problem("two").is_some()).await;
    assert!(problem("one").unwrap().contains("b.yaml"), "{:?}", problem("one"));
    // As editors save: a new file renamed over the old one.
    std::fs::write(origin.join("draft"), server("two", "y")).unwrap();
    std::fs::rename(origin.join("draft"), origin.join("b.yaml")).unwrap();
    reached("the whole file", &|| {
        problem("two").is_none() && world.server("two").unwrap().metadata.generation == Some(2)
    })
    .await;
    std::fs::remove_file(origin.join("a.yaml")).unwrap();
    reached("a deleted file", &|| world.server("one").unwrap().metadata.deletion_timestamp.is_some()).await;

    let aside = world.origin("aside");
    std::fs::rename(&origin, &aside).unwrap();
    reached("a missing folder", &|| problem("two").is_some()).await;
    std::fs::rename(&aside, &origin).unwrap();
    reached("the folder is back", &|| problem("two").is_none()).await;
    std::fs::write(origin.join("c.yaml"), server("three", "x")).unwrap();
    reached("it is followed again", &|| world.server("three").is_some()).await;
}

#[tokio::test]
async fn a_manifest_with_mistakes_is_refused_with_all_of_them() {
    let world = World::new();
    let file = world.origin("bad.yaml");
    std::fs::write(&file, "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {name: A}\nspec: {}\n").unwrap();
    let (_followed, result) = follow(world.store().clone(), file);
    let Err(LoadError::Manifest(errors)) = result else { panic!("{result:?}") };
    assert!(errors.0.len() >= 2, "{errors}");
    assert!(world.store().servers().state().is_empty());
}
