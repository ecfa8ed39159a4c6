//! Origins are followed as people save files: by renaming, in halves, in bursts, and not at all for a while.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use mcp_hub_local_runtime::origins::{LoadError, follow};
use mcp_hub_local_runtime::store::{LocalStore, SyncError};
use mcp_hub_reconcile::ports::ResourceStore;
use mcp_hub_secrets::Environment;

/// Longest wait for a state; a save is usually seen within a fifth of a second.
const LONGEST: Duration = Duration::from_secs(20);

fn open(state: &Path) -> Arc<LocalStore> {
    LocalStore::open(state, Arc::new(Environment::new([])), 7337).unwrap()
}

fn server(name: &str, program: &str) -> String {
    format!(
        "---\napiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {{name: {name}}}\nspec: {{source: {{command: {{path: {program}}}}}}}\n"
    )
}

/// Servers that are wanted, as `NAME=PROGRAM`.
fn servers(store: &LocalStore) -> Vec<String> {
    let living = store.servers().state().into_iter().filter(|server| server.metadata.deletion_timestamp.is_none());
    let program = |spec: &_| {
        serde_json::to_value::<&mcp_hub_crds::MCPServerSpec>(spec).unwrap()["source"]["command"]["path"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut found: Vec<String> = living.map(|s| format!("{}={}", s.name_any(), program(&s.spec))).collect();
    found.sort();
    found
}

fn problem(store: &LocalStore) -> Option<String> {
    store.origins().unwrap().into_iter().next().and_then(|origin| origin.problem)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONGEST, "not within {LONGEST:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for(store: &LocalStore, wanted: &[&str]) {
    wait_until(&format!("{wanted:?}"), || servers(store) == wanted);
}

#[test]
fn a_saved_file_is_seen_whether_written_in_place_or_renamed_over() {
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, file) = (open(state.path()), home.path().join("hub.yaml"));
    fs::write(&file, server("a", "one")).unwrap();
    let (followed, loaded) = follow(store.clone(), file.clone());
    assert_eq!(loaded.unwrap().added.len(), 1);
    assert_eq!(servers(&store), ["a=one"]);

    fs::write(&file, server("a", "two")).unwrap();
    wait_for(&store, &["a=two"]);
    let draft = home.path().join(".hub.yaml.swp");
    fs::write(&draft, server("a", "three") + &server("b", "three")).unwrap();
    fs::rename(&draft, &file).unwrap();
    wait_for(&store, &["a=three", "b=three"]);
    fs::write(&file, "# no servers at all\n").unwrap();
    wait_for(&store, &[]);

    fs::write(&file, server("c", "four")).unwrap();
    wait_for(&store, &["c=four"]);
    drop(followed);
    let revision = *store.subscribe().borrow();
    fs::write(&file, server("c", "five")).unwrap();
    // Nothing can be waited for here: that the thread has ended is what the drop above promises.
    assert_eq!(*store.subscribe().borrow(), revision);
    assert_eq!(Arc::strong_count(&store), 1, "somebody still follows");
    assert_eq!(servers(&store), ["c=four"]);
}

#[test]
fn a_half_saved_file_keeps_the_last_good_version_until_it_is_whole() {
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, file) = (open(state.path()), home.path().join("hub.yaml"));
    fs::write(&file, server("a", "one") + &server("b", "one")).unwrap();
    let (_followed, loaded) = follow(store.clone(), file.clone());
    loaded.unwrap();

    // Emptied, as an editor does before it writes: no moment for taking all servers away.
    let mut saving = File::create(&file).unwrap();
    wait_until("an empty file is a problem", || problem(&store).is_some_and(|p| p.contains("empty")));
    assert_eq!(servers(&store), ["a=one", "b=one"]);
    let whole = server("a", "two") + &server("b", "two");
    let (first, second) = whole.split_at(whole.len() / 2 + 30);
    saving.write_all(first.as_bytes()).unwrap();
    saving.write_all(second.as_bytes()).unwrap();
    drop(saving);
    wait_for(&store, &["a=two", "b=two"]);
    wait_until("no problem is left", || problem(&store).is_none());

    fs::write(&file, "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer\nmetadata: {name: a").unwrap();
    wait_until("half a document is a problem", || problem(&store).is_some_and(|p| p.contains("hub.yaml")));
    assert_eq!(servers(&store), ["a=two", "b=two"]);
    fs::write(&file, server("a", "three")).unwrap();
    wait_for(&store, &["a=three"]);
}

#[test]
fn a_missing_file_keeps_its_objects_and_is_taken_again_when_it_appears() {
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, deep) = (open(state.path()), home.path().join("later/deeper"));
    let file = deep.join("hub.yaml");
    let (followed, loaded) = follow(store.clone(), file.clone());
    assert!(matches!(loaded, Err(LoadError::Manifest(_))), "{loaded:?}");
    assert!(problem(&store).unwrap().contains("does not exist"));

    fs::create_dir_all(&deep).unwrap();
    fs::write(&file, server("a", "one")).unwrap();
    wait_for(&store, &["a=one"]);
    fs::remove_file(&file).unwrap();
    wait_until("a file that went away is a problem", || problem(&store).is_some());
    assert_eq!(servers(&store), ["a=one"]);
    fs::remove_dir_all(home.path().join("later")).unwrap();
    fs::create_dir_all(&deep).unwrap();
    fs::write(&file, server("a", "two")).unwrap();
    wait_for(&store, &["a=two"]);
    wait_until("no problem is left", || problem(&store).is_none());

    // The next daemon finds what the last one left.
    drop((followed, store));
    fs::remove_file(&file).unwrap();
    let store = open(state.path());
    assert_eq!(store.origins().unwrap()[0].path, file);
    let (_followed, loaded) = follow(store.clone(), file);
    assert!(loaded.is_err());
    assert_eq!(servers(&store), ["a=two"]);
}

#[test]
fn a_folder_is_followed_file_by_file() {
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, folder) = (open(state.path()), home.path().join("servers"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), server("a", "one")).unwrap();
    let (_followed, loaded) = follow(store.clone(), folder.clone());
    loaded.unwrap();
    fs::write(folder.join("b.yaml"), server("b", "one")).unwrap();
    wait_for(&store, &["a=one", "b=one"]);
    // A deleted manifest takes its servers with it.
    fs::remove_file(folder.join("a.yaml")).unwrap();
    wait_for(&store, &["b=one"]);
    fs::write(folder.join("broken.yaml"), "kind: [").unwrap();
    wait_until("one broken file is a problem of all", || problem(&store).is_some_and(|p| p.contains("broken.yaml")));
    assert_eq!(servers(&store), ["b=one"]);
    fs::remove_file(folder.join("broken.yaml")).unwrap();
    wait_until("no problem is left", || problem(&store).is_none());

    // A missing folder is a disk that is away, not an order to delete.
    fs::rename(&folder, home.path().join("away")).unwrap();
    wait_until("a missing folder is a problem", || problem(&store).is_some());
    assert_eq!(servers(&store), ["b=one"]);
    fs::write(home.path().join("away/c.yaml"), server("c", "one")).unwrap();
    fs::rename(home.path().join("away"), &folder).unwrap();
    wait_for(&store, &["b=one", "c=one"]);
    fs::write(folder.join("c.yaml"), server("c", "two")).unwrap();
    wait_for(&store, &["b=one", "c=two"]);
}

#[test]
fn a_link_is_followed_to_where_it_leads() {
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, link) = (open(state.path()), home.path().join("hub.yaml"));
    fs::create_dir(home.path().join("real")).unwrap();
    let target = home.path().join("real/config.yaml");
    fs::write(&target, server("a", "one")).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let (_followed, loaded) = follow(store.clone(), link.clone());
    loaded.unwrap();
    fs::write(&target, server("a", "two")).unwrap();
    wait_for(&store, &["a=two"]);
    let other = home.path().join("other.yaml");
    fs::write(&other, server("a", "three")).unwrap();
    let draft = home.path().join("draft");
    std::os::unix::fs::symlink(&other, &draft).unwrap();
    fs::rename(&draft, &link).unwrap();
    wait_for(&store, &["a=three"]);
}

#[test]
fn a_burst_of_saves_is_one_reading() {
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, folder) = (open(state.path()), home.path().to_owned());
    let (_followed, loaded) = follow(store.clone(), folder.clone());
    loaded.unwrap();
    let before = *store.subscribe().borrow();
    let wanted: Vec<String> = (0..50).map(|n| format!("s{n:02}=x")).collect();
    for n in 0..50 {
        fs::write(folder.join(format!("{n}.yaml")), server(&format!("s{n:02}"), "x")).unwrap();
    }
    wait_until("all are there", || servers(&store) == wanted);
    let changes = *store.subscribe().borrow() - before;
    assert!(changes < 10, "{changes} transactions for one burst");
}

#[test]
fn one_server_from_two_origins_is_refused_and_mended_by_editing_either() {
    let (state, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, one, two) = (open(state.path()), home.path().join("one.yaml"), home.path().join("two.yaml"));
    fs::write(&one, server("a", "first")).unwrap();
    fs::write(&two, server("a", "second") + &server("b", "second")).unwrap();
    let (_one, loaded) = follow(store.clone(), one.clone());
    loaded.unwrap();
    let (_two, loaded) = follow(store.clone(), two.clone());
    let Err(LoadError::Sync(SyncError::Claimed { key, origin })) = loaded else { panic!("{loaded:?}") };
    assert_eq!((key.name.as_str(), origin), ("a", one));
    assert_eq!(servers(&store), ["a=first", "b=second"]);
    fs::write(&two, server("c", "second") + &server("b", "second")).unwrap();
    wait_for(&store, &["a=first", "b=second", "c=second"]);
    assert!(store.origins().unwrap().iter().all(|origin| origin.problem.is_none()));
}
