//! What the store of one machine promises: identities, origins, statuses, and that nothing is lost.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube_runtime::reflector::ObjectRef;
use mcp_hub_crds::manifest::{self, Document};
use mcp_hub_crds::status::{Phase, condition};
use mcp_hub_crds::{MCPHub, MCPHubStatus, MCPServer, MCPServerStatus, ResourceKey, ResourceKind};
use mcp_hub_local_runtime::store::{LocalStore, OpenError, OriginProblem, SyncError};
use mcp_hub_reconcile::error::StoreError;
use mcp_hub_reconcile::owner::OwnerKey;
use mcp_hub_reconcile::ports::{Change, Event, EventKind, ResourceStore};
use mcp_hub_reconcile::status::{self, Findings};
use mcp_hub_reconcile::workload::{BASE_DIR_ANNOTATION, RESTARTED_AT_ANNOTATION, STOPPED_ANNOTATION};
use mcp_hub_secrets::Environment;

const PORT: u16 = 7337;

fn open_with_port(state: &Path, port: u16) -> Result<Arc<LocalStore>, OpenError> {
    LocalStore::open(state, Arc::new(Environment::new([])), port)
}

fn open(state: &Path) -> Arc<LocalStore> {
    open_with_port(state, PORT).unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn server_text(name: &str, program: &str) -> String {
    format!(
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec: {{source: {{command: {{path: {program}}}}}}}\n"
    )
}

fn hub_text(name: &str) -> String {
    format!("---\napiVersion: mcphub.io/v1alpha1\nkind: MCPHub\nmetadata: {{name: {name}}}\nspec: {{}}\n")
}

fn documents(text: &str) -> Vec<Document> {
    manifest::parse(text, Path::new("/manifests/hub.yaml")).unwrap()
}

fn key(name: &str) -> ResourceKey {
    ResourceKey { kind: ResourceKind::MCPServer, namespace: "default".to_owned(), name: name.to_owned() }
}

fn server(store: &LocalStore, name: &str) -> Option<Arc<MCPServer>> {
    store.servers().get(&ObjectRef::new(name).within("default"))
}

fn hub(store: &LocalStore, name: &str) -> Option<Arc<MCPHub>> {
    store.hubs().get(&ObjectRef::new(name).within("default"))
}

fn hub_names(store: &LocalStore) -> Vec<String> {
    let living = store.hubs().state().into_iter().filter(|hub| hub.metadata.deletion_timestamp.is_none());
    let mut names: Vec<String> = living.map(|hub| hub.name_any()).collect();
    names.sort();
    names
}

fn owner(store: &LocalStore, server: &MCPServer) -> OwnerKey {
    OwnerKey::of_server(store.installation().id(), server).unwrap()
}

fn ready() -> MCPServerStatus {
    MCPServerStatus { phase: Some(Phase::Ready), ..MCPServerStatus::default() }
}

#[test]
fn an_installation_keeps_its_identity_and_its_files_to_its_user() {
    let state = folder();
    let first = open(state.path());
    let (id, token) = (first.installation().id().to_owned(), first.installation().hub_token("u", 0));
    drop(first);
    let again = open(state.path()).installation();
    assert_eq!((again.id(), &again.hub_token("u", 0)), (id.as_str(), &token));
    for file in state.path().read_dir().unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", file.path().display());
    }

    let other = folder();
    assert_ne!(open(other.path()).installation().id(), id);
}

#[test]
fn a_second_daemon_on_one_state_folder_is_refused_and_told_who_has_it() {
    let state = folder();
    let first = open(state.path());
    let refusal = open_with_port(state.path(), PORT).unwrap_err();
    let OpenError::Held { pid, path } = &refusal else { panic!("{refusal}") };
    assert_eq!(*pid, Some(std::process::id()));
    assert_eq!(*path, state.path().join("daemon.lock"));
    assert!(refusal.to_string().contains(&std::process::id().to_string()), "{refusal}");
    assert!(refusal.hint().is_some());
    drop(first);
    open(state.path());
}

#[test]
fn an_origin_adds_changes_and_removes_and_each_change_of_a_spec_raises_the_generation() {
    let state = folder();
    let store = open(state.path());
    let origin = Path::new("/manifests/hub.yaml");
    let synced = store.sync(origin, &documents(&(server_text("a", "x") + &server_text("b", "x")))).unwrap();
    assert_eq!(synced.added, [key("a"), key("b")]);
    let before = server(&store, "a").unwrap();
    assert_eq!(
        (before.metadata.generation, before.annotations()[BASE_DIR_ANNOTATION].as_str()),
        (Some(1), "/manifests")
    );
    assert!(before.metadata.creation_timestamp.is_some());

    let again = store.sync(origin, &documents(&(server_text("a", "x") + &server_text("b", "x")))).unwrap();
    assert_eq!(again, Default::default());
    assert_eq!(server(&store, "a").unwrap().resource_version(), before.resource_version());

    let synced = store.sync(origin, &documents(&server_text("a", "y"))).unwrap();
    assert_eq!((synced.changed, synced.removed), (vec![key("a")], vec![key("b")]));
    let after = server(&store, "a").unwrap();
    assert_eq!((after.uid(), after.metadata.generation), (before.uid(), Some(2)));
    assert_ne!(after.resource_version(), before.resource_version());

    let labelled = server_text("a", "y").replace("{name: a}", "{name: a, labels: {team: dev}}");
    assert_eq!(store.sync(origin, &documents(&labelled)).unwrap().changed, [key("a")]);
    let after = server(&store, "a").unwrap();
    assert_eq!((after.labels()["team"].as_str(), after.metadata.generation), ("dev", Some(2)));
    assert_eq!(store.origin_of(&key("a")).unwrap().as_deref(), Some(origin));
}

#[tokio::test]
async fn a_deleted_object_stays_until_what_ran_for_it_is_gone() {
    let state = folder();
    let store = open(state.path());
    let origin = Path::new("/manifests/hub.yaml");
    store.sync(origin, &documents(&server_text("a", "x"))).unwrap();
    let living = server(&store, "a").unwrap();
    // A release that nobody asked for is none.
    store.release(&owner(&store, &living)).await.unwrap();
    assert!(server(&store, "a").is_some());

    assert_eq!(store.remove_origin(origin).unwrap(), [key("a")]);
    assert_eq!(store.origins().unwrap(), []);
    drop(store);
    let store = open(state.path());
    let leaving = server(&store, "a").unwrap();
    assert!(leaving.metadata.deletion_timestamp.is_some());
    assert_eq!(leaving.uid(), living.uid());
    assert!(!store.set_stopped(&key("a"), true).unwrap(), "what is leaving cannot be stopped");

    store.release(&owner(&store, &leaving)).await.unwrap();
    assert!(server(&store, "a").is_none());
    assert!(!store.delete(&key("a")).unwrap());
    drop(store);
    assert!(server(&open(state.path()), "a").is_none());
}

#[tokio::test]
async fn an_object_that_comes_back_while_it_is_deleted_is_a_new_one_once_the_old_is_gone() {
    let state = folder();
    let store = open(state.path());
    let origin = Path::new("/manifests/hub.yaml");
    store.sync(origin, &documents(&server_text("a", "old"))).unwrap();
    store.write_server_status(&server(&store, "a").unwrap(), &ready()).await.unwrap();
    assert!(store.set_stopped(&key("a"), true).unwrap());
    assert!(store.delete(&key("a")).unwrap());
    let old = server(&store, "a").unwrap();

    assert_eq!(store.sync(origin, &documents(&server_text("a", "new"))).unwrap().added, [key("a")]);
    let still = server(&store, "a").unwrap();
    assert_eq!((still.uid(), still.metadata.deletion_timestamp.is_some()), (old.uid(), true));
    drop(store);

    let store = open(state.path());
    store.release(&owner(&store, &old)).await.unwrap();
    let new = server(&store, "a").unwrap();
    assert_ne!(new.uid(), old.uid());
    assert_eq!((new.metadata.generation, new.metadata.deletion_timestamp.clone()), (Some(1), None));
    assert_eq!((new.status.clone(), new.annotations().get(STOPPED_ANNOTATION)), (None, None));
    assert!(serde_json::to_string(&new.spec).unwrap().contains("new"));
    let late = store.write_server_status(&old, &ready()).await.unwrap_err();
    assert!(matches!(late, StoreError::Conflict { .. }), "{late}");
    store.release(&owner(&store, &old)).await.unwrap();
    assert!(server(&store, "a").is_some(), "a second release of the old one takes the new one");
}

#[tokio::test]
async fn a_status_shows_at_once_and_survives_with_the_uid() {
    let state = folder();
    let store = open(state.path());
    let version = store.subscribe();
    store.sync(Path::new("/m"), &documents(&server_text("a", "x"))).unwrap();
    let object = server(&store, "a").unwrap();
    assert!(version.has_changed().unwrap());

    let mut changes = store.changes();
    let mut first = [changes.next().await.unwrap(), changes.next().await.unwrap()];
    first.sort_by_key(|change| matches!(change, Change::Hub(_)));
    let of_server = Change::Server(ObjectRef::new("a").within("default"));
    assert_eq!(first, [of_server.clone(), Change::Hub(ObjectRef::new("default").within("default"))]);

    store.write_server_status(&object, &ready()).await.unwrap();
    assert_eq!(server(&store, "a").unwrap().status, Some(ready()));
    assert_eq!(changes.next().await, Some(of_server.clone()), "hubs do not learn of a server's status");
    let after = server(&store, "a").unwrap();
    assert_eq!(after.metadata.generation, object.metadata.generation);

    // An equal status is no change, and a hub's status concerns no other object.
    store.write_server_status(&object, &ready()).await.unwrap();
    assert_eq!(server(&store, "a").unwrap().resource_version(), after.resource_version());
    let default = hub(&store, "default").unwrap();
    let hub_status = MCPHubStatus { endpoint: Some("http://e".to_owned()), ..MCPHubStatus::default() };
    store.write_hub_status(&default, &hub_status).await.unwrap();
    assert_eq!(hub(&store, "default").unwrap().status, Some(hub_status.clone()));
    store.secret_changed("default", "github");
    let secret = Change::Secret { namespace: "default".to_owned(), name: "github".to_owned() };
    assert_eq!(changes.next().await, Some(secret));

    drop(store);
    let store = open(state.path());
    let again = server(&store, "a").unwrap();
    assert_eq!((again.uid(), &again.status), (object.uid(), &Some(ready())));
    assert_eq!(hub(&store, "default").unwrap().status, Some(hub_status));
}

#[tokio::test]
async fn a_listener_that_lags_behind_is_told_of_everything() {
    let state = folder();
    let store = open(state.path());
    store.sync(Path::new("/m"), &documents(&(server_text("a", "x") + &server_text("b", "x")))).unwrap();
    let mut changes = store.changes();
    for _ in 0..3 {
        changes.next().await.unwrap();
    }
    for _ in 0..10_000 {
        store.secret_changed("default", "noise");
    }
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(format!("{:?}", changes.next().await.unwrap()));
    }
    assert!(told.iter().any(|change| change.contains("\"a\"")), "{told:?}");
    assert!(told.iter().any(|change| change.contains("\"b\"")), "{told:?}");
}

#[test]
fn stop_and_restart_are_kept_and_no_manifest_can_contradict_them() {
    let state = folder();
    let store = open(state.path());
    let origin = Path::new("/m");
    let text = server_text("a", "x")
        .replace("{name: a}", &format!("{{name: a, annotations: {{{STOPPED_ANNOTATION}: 'true', own: kept}}}}"));
    store.sync(origin, &documents(&text)).unwrap();
    let annotations = server(&store, "a").unwrap().annotations().clone();
    assert_eq!((annotations.get(STOPPED_ANNOTATION), annotations["own"].as_str()), (None, "kept"));

    assert!(store.set_stopped(&key("a"), true).unwrap());
    assert!(store.restart(&key("a")).unwrap());
    let restarted = server(&store, "a").unwrap().annotations()[RESTARTED_AT_ANNOTATION].clone();
    assert!(!store.set_stopped(&key("b"), true).unwrap());
    assert!(!store.restart(&key("b")).unwrap());
    store.sync(origin, &documents(&server_text("a", "y"))).unwrap();
    drop(store);

    let store = open(state.path());
    let again = server(&store, "a").unwrap();
    assert!(again.annotations().contains_key(STOPPED_ANNOTATION));
    assert_eq!(again.annotations()[RESTARTED_AT_ANNOTATION], restarted);
    assert!(store.set_stopped(&key("a"), false).unwrap());
    assert!(!server(&store, "a").unwrap().annotations().contains_key(STOPPED_ANNOTATION));
    store.restart(&key("a")).unwrap();
    assert_ne!(server(&store, "a").unwrap().annotations()[RESTARTED_AT_ANNOTATION], restarted);
}

#[tokio::test]
async fn a_key_belongs_to_the_origin_that_had_it_first_until_that_lets_it_go() {
    let state = folder();
    let store = open(state.path());
    let (one, two) = (Path::new("/one.yaml"), Path::new("/two.yaml"));
    store.sync(one, &documents(&server_text("a", "first"))).unwrap();
    let refusal = store.sync(two, &documents(&(server_text("a", "second") + &server_text("b", "x")))).unwrap_err();
    let SyncError::Claimed { key: claimed, origin } = &refusal else { panic!("{refusal}") };
    assert_eq!((claimed, origin.as_path()), (&key("a"), one));
    assert!(refusal.hint().is_some());
    assert!(server(&store, "b").is_some(), "the other objects of the origin were not taken");
    let first = server(&store, "a").unwrap();
    assert!(serde_json::to_string(&first.spec).unwrap().contains("first"));
    let origins = store.origins().unwrap();
    assert_eq!((origins[0].problem.as_deref(), origins[0].objects), (None, 1));
    assert_eq!(origins[1].problem.as_deref(), Some("MCPServer default/a is already defined by /one.yaml"));
    assert_eq!(origins[1].objects, 1);

    drop(store);
    let store = open(state.path());
    store.remove_origin(one).unwrap();
    store.release(&owner(&store, &first)).await.unwrap();
    let second = server(&store, "a").unwrap();
    assert!(serde_json::to_string(&second.spec).unwrap().contains("second"));
    assert_ne!(second.uid(), first.uid());
    assert_eq!(store.origins().unwrap()[0].problem, None);
    assert_eq!(store.origin_of(&key("a")).unwrap().as_deref(), Some(two));
}

#[tokio::test]
async fn the_implicit_hub_is_there_exactly_while_no_manifest_defines_one() {
    let state = folder();
    let store = open(state.path());
    let implicit = hub(&store, "default").unwrap();
    assert_eq!(implicit.spec.gateway.as_ref().unwrap().port, Some(i32::from(PORT)));
    let hub_key = |name: &str| ResourceKey { kind: ResourceKind::MCPHub, ..key(name) };
    assert!(!store.delete(&hub_key("default")).unwrap(), "nobody wrote it, so nobody can delete it");

    // A manifest of that name takes over: clients keep their token.
    let origin = Path::new("/hubs.yaml");
    assert_eq!(store.sync(origin, &documents(&hub_text("default"))).unwrap().added, [hub_key("default")]);
    let written = hub(&store, "default").unwrap();
    assert_eq!((written.uid(), &written.spec.gateway), (implicit.uid(), &None));

    // Another hub ends it, and its own end brings it back.
    store.sync(origin, &documents(&hub_text("other"))).unwrap();
    assert_eq!(hub_names(&store), ["other"]);
    let leaving = OwnerKey::of_hub(store.installation().id(), &hub(&store, "default").unwrap()).unwrap();
    store.release(&leaving).await.unwrap();
    assert!(hub(&store, "default").is_none());
    store.remove_origin(origin).unwrap();
    assert_eq!(hub_names(&store), ["default"]);
    assert_eq!(hub(&store, "default").unwrap().uid(), implicit.uid());

    // While it is leaving it can come back, too.
    store.sync(origin, &documents(&hub_text("third"))).unwrap();
    assert_eq!(hub_names(&store), ["third"]);
    store.sync(origin, &documents(&hub_text("default"))).unwrap();
    assert_eq!(
        (hub_names(&store), hub(&store, "default").unwrap().uid()),
        (vec!["default".to_owned()], implicit.uid())
    );
    store.release(&leaving).await.unwrap();
    assert!(hub(&store, "default").is_some(), "a release that came late took a hub that is wanted");

    store.remove_origin(origin).unwrap();
    drop(store);
    let store = open_with_port(state.path(), 4000).unwrap();
    let again = hub(&store, "default").unwrap();
    assert_eq!((again.uid(), again.spec.gateway.as_ref().unwrap().port), (implicit.uid(), Some(4000)));
}

#[test]
fn a_manifest_that_cannot_be_read_keeps_its_last_good_version_and_says_so() {
    let state = folder();
    let store = open(state.path());
    let origin = Path::new("/m/hub.yaml");
    store.sync(origin, &documents(&server_text("a", "x"))).unwrap();
    store.origin_failed(origin, &OriginProblem::Invalid("hub.yaml:3:1: not valid YAML".to_owned())).unwrap();

    let manifest_synced = |store: &LocalStore| {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let status = status::server(&server(store, "a").unwrap(), &Findings::default(), None, &now);
        let condition = status.conditions.unwrap().into_iter().find(|c| c.type_ == condition::MANIFEST_SYNCED);
        condition.map(|c| (c.status, c.reason, c.message))
    };
    let (truth, reason, message) = manifest_synced(&store).unwrap();
    assert_eq!((truth.as_str(), reason.as_str()), ("False", "ManifestInvalid"));
    assert!(message.contains("hub.yaml:3:1"), "{message}");
    assert!(store.origins().unwrap()[0].problem.as_ref().unwrap().contains("hub.yaml:3:1"));

    store.origin_failed(origin, &OriginProblem::Missing).unwrap();
    drop(store);
    let store = open(state.path());
    assert_eq!(manifest_synced(&store).unwrap().1, "ManifestMissing");
    store.sync(origin, &documents(&server_text("a", "x"))).unwrap();
    assert_eq!(manifest_synced(&store), None);
    assert_eq!(store.origins().unwrap()[0].problem, None);
}

#[tokio::test]
async fn events_are_counted_in_order_and_bounded() {
    let state = folder();
    let store = open(state.path());
    store.sync(Path::new("/m"), &documents(&server_text("a", "x"))).unwrap();
    let owner = owner(&store, &server(&store, "a").unwrap());
    let event = |message: &str| Event {
        owner: owner.clone(),
        kind: EventKind::Warning,
        reason: "NotReady",
        message: message.to_owned(),
    };
    for message in ["one", "two", "two"] {
        store.publish(event(message)).await;
    }
    let events = store.events(10).unwrap();
    let seen: Vec<_> = events.iter().map(|event| (event.message.as_str(), event.count)).collect();
    assert_eq!(seen, [("one", 1), ("two", 2)]);
    assert_eq!((events[1].object.as_str(), events[1].kind.as_str()), ("MCPServer default/a", "Warning"));
    assert_eq!(store.events(1).unwrap()[0].message, "two");
    for n in 0..1200 {
        store.publish(event(&n.to_string())).await;
    }
    let kept = store.events(usize::MAX).unwrap();
    assert_eq!((kept.len(), kept.last().unwrap().message.as_str()), (1000, "1199"));
}

/// What a store holds, without what depends on when.
fn contents(store: &LocalStore) -> String {
    let mut lines: Vec<String> = store
        .servers()
        .state()
        .iter()
        .map(|server| {
            let (meta, status) = (&server.metadata, &server.status);
            let gone = meta.deletion_timestamp.is_some();
            let phase = status.as_ref().map(|status| status.phase);
            let stopped = server.annotations().contains_key(STOPPED_ANNOTATION);
            format!("{} {:?} {:?} {gone} {phase:?} {stopped}", server.name_any(), meta.uid, meta.generation)
        })
        .chain(hub_names(store))
        .chain(store.origins().unwrap().iter().map(|origin| format!("{origin:?}")))
        .collect();
    lines.sort();
    lines.join("\n")
}

/// The database is cut at every place where a dying machine can cut it; what is found again is the state after some
/// transaction, never a part of one.
#[tokio::test]
async fn a_cut_anywhere_leaves_the_state_of_a_whole_transaction() {
    let (state, copies) = (folder(), folder());
    let store = open(state.path());
    let (origin, second) = (Path::new("/m/hub.yaml"), Path::new("/second.yaml"));
    let mut states = vec![contents(&store)];
    let copy = |name: &str| {
        let to = copies.path().join(name);
        std::fs::create_dir_all(&to).unwrap();
        for file in ["hub.db", "hub.db-wal", "installation.key"] {
            std::fs::copy(state.path().join(file), to.join(file)).unwrap();
        }
        to
    };
    let base = copy("begin").join("hub.db-wal").metadata().unwrap().len();

    let many: String = (0..20).map(|n| server_text(&format!("s{n}"), "x")).collect();
    store.sync(origin, &documents(&many)).unwrap();
    states.push(contents(&store));
    let some: String = (5..20).map(|n| server_text(&format!("s{n}"), "y")).collect();
    store.sync(origin, &documents(&(some + &hub_text("mine")))).unwrap();
    states.push(contents(&store));
    store.write_server_status(&server(&store, "s7").unwrap(), &ready()).await.unwrap();
    states.push(contents(&store));
    store.set_stopped(&key("s8"), true).unwrap();
    states.push(contents(&store));
    store.release(&owner(&store, &server(&store, "s0").unwrap())).await.unwrap();
    states.push(contents(&store));
    store.sync(second, &documents(&(server_text("s9", "z") + &server_text("t", "z")))).unwrap_err();
    states.push(contents(&store));
    store.origin_failed(origin, &OriginProblem::Missing).unwrap();
    states.push(contents(&store));

    let whole = copy("whole").join("hub.db-wal");
    let log = std::fs::read(&whole).unwrap();
    let base = usize::try_from(base).unwrap();
    assert!(log.len() > base, "the transactions are not in the log");
    let (mut last, mut reached) = (0, std::collections::BTreeSet::new());
    // 1031 is prime: cuts fall on every kind of place in frames of 4120 bytes.
    for cut in (base..log.len()).step_by(1031).chain([log.len()]) {
        let to = copies.path().join(format!("cut-{cut}"));
        std::fs::create_dir_all(&to).unwrap();
        for file in ["hub.db", "installation.key"] {
            std::fs::copy(state.path().join(file), to.join(file)).unwrap();
        }
        std::fs::write(to.join("hub.db-wal"), &log[..cut]).unwrap();
        let found = contents(&open(&to));
        let index = states.iter().position(|state| *state == found);
        let index = index.unwrap_or_else(|| panic!("cut at byte {cut} of {}: {found}", log.len()));
        assert!(index >= last, "a longer log holds less");
        last = index;
        reached.insert(index);
    }
    assert_eq!(last, states.len() - 1, "the whole log does not hold everything");
    assert!(reached.len() > 4, "the cuts reached few states: {reached:?}");
}

/// A small file system of its own; unmounted also after a panic.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None` without the right to mount.
    fn new(options: &str) -> Option<Self> {
        let place = folder();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(place.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(place))
    }

    fn remount(&self, options: &str) {
        let output = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0.path()).output();
        assert!(output.unwrap().status.success());
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).output().ok();
    }
}

#[test]
fn a_state_folder_that_cannot_be_is_refused_with_a_hint() {
    let place = folder();
    let file = place.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refusal = open_with_port(&file.join("state"), PORT).unwrap_err();
    assert!(matches!(refusal, OpenError::Io { .. }), "{refusal:?}");
    assert!(refusal.to_string().contains("file/state") && refusal.hint().is_some(), "{refusal}");

    std::fs::create_dir(place.path().join("damaged")).unwrap();
    std::fs::write(place.path().join("damaged/hub.db"), "this is no database, whatever else it may be".repeat(100))
        .unwrap();
    let refusal = open_with_port(&place.path().join("damaged"), PORT).unwrap_err();
    assert!(matches!(refusal, OpenError::Damaged { .. }), "{refusal:?}");
    assert!(refusal.hint().unwrap().contains("hub.db"));
}

#[test]
fn a_read_only_disk_is_refused_by_name() {
    let Some(mount) = Mount::new("size=4m") else { return eprintln!("skipped: no right to mount") };
    drop(open(&mount.path()));
    mount.remount("ro");
    let refusal = open_with_port(&mount.path(), PORT).unwrap_err();
    assert!(matches!(refusal, OpenError::ReadOnly { .. }), "{refusal:?}");
    assert!(refusal.hint().unwrap().contains("writable"), "{:?}", refusal.hint());
    mount.remount("rw");
    drop(open(&mount.path()));
}

#[tokio::test]
async fn a_full_disk_refuses_changes_and_loses_nothing() {
    let Some(mount) = Mount::new("size=1m") else { return eprintln!("skipped: no right to mount") };
    let store = open(&mount.path());
    let origin = Path::new("/m");
    store.sync(origin, &documents(&server_text("a", "x"))).unwrap();
    let before = contents(&store);

    let ballast = mount.0.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write(&mut file, &[0; 512]).is_ok() {}
    let many: String = (0..200).map(|n| server_text(&format!("s{n}"), "x")).collect();
    let refusal = store.sync(origin, &documents(&many)).unwrap_err();
    assert!(matches!(refusal, SyncError::Io { .. }), "{refusal:?}");
    assert!(refusal.hint().unwrap().contains("space"), "{:?}", refusal);
    assert_eq!(contents(&store), before, "a refused change is seen");
    drop(store);
    let refusal = open_with_port(&mount.0.path().join("other"), PORT).unwrap_err();
    assert!(matches!(refusal, OpenError::Full { .. }), "{refusal:?}");

    drop(file);
    std::fs::remove_file(ballast).unwrap();
    let store = open(&mount.path());
    assert_eq!(contents(&store), before);
    assert_eq!(store.sync(origin, &documents(&many)).unwrap().added.len(), 200);
    tokio::time::timeout(Duration::from_secs(5), store.changes().next()).await.unwrap();
}
