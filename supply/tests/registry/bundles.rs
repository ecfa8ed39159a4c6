//! Images in a file, and files that only look like it.

use std::path::Path;

use mcp_hub_fakeregistry::{Access, Fault, INDEX, Registry, digest};
use mcp_hub_supply::bundle::{self, Bundle, BundleError};
use mcp_hub_supply::{Credentials, Published, Reference};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{impatient, layer, push_example, tell_nobody, told};

const LARGE: usize = 3 << 20;

async fn save(registry: &Registry, images: &[(&str, &str)], path: &Path) -> Result<u64, BundleError> {
    let images: Vec<(Reference, String)> =
        images.iter().map(|(name, digest)| (registry.image(name), (*digest).to_owned())).collect();
    let file = tokio::fs::File::create(path).await.unwrap();
    bundle::save(&images, &impatient(), &Credentials::none(), &tell_nobody, file).await
}

#[tokio::test]
async fn what_was_saved_is_the_same_after_it_was_loaded_elsewhere() {
    let from = Registry::start(Access::Everybody).await;
    let (git, time) = (push_example(&from, "mcp/git", "1", LARGE), push_example(&from, "mcp/time", "2", LARGE));
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.tar"), folder.path().join("second.tar"));
    let images = [("mcp/git:1", &*git), ("mcp/time:2", &*time)];
    let bytes = save(&from, &images, &first).await.unwrap();
    assert!(bytes < LARGE as u64 * 2, "what two images share is there once: {bytes}");
    from.fault_times("GET /v2/mcp/git/blobs", 1, Fault::Cut);
    save(&from, &images, &second).await.unwrap();
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "the same images give the same bytes");

    // Whatever it was made of is gone.
    let names = [from.image("mcp/git:1"), from.image("mcp/time:2")];
    drop(from);
    let to = Registry::start(Access::Everybody).await;
    let bundle = Bundle::open(&first).await.unwrap();
    assert_eq!(bundle.images().iter().map(|image| image.name.clone()).collect::<Vec<_>>(), names);
    for (image, name) in bundle.images().iter().zip(["here/git:1", "here/time:2"]) {
        let (target, none) = (to.image(name), Credentials::none());
        let published = bundle.publish(image, &target, &impatient(), &none, &tell_nobody).await.unwrap();
        assert!(published.sent > LARGE as u64 && published.spared == 0);
        let again = bundle.publish(image, &target, &impatient(), &none, &tell_nobody).await.unwrap();
        assert_eq!(again, Published { sent: 0, spared: published.sent });
    }
    let pin = |name| {
        let image = to.image(name);
        async move { impatient().pin(&image, &Credentials::none(), &tell_nobody).await.unwrap() }
    };
    assert_eq!([pin("here/git:1").await.digest, pin("here/time:2").await.digest], [git, time]);
    assert_eq!(pin("here/git:1").await.platforms.len(), 2);
}

#[tokio::test]
async fn a_registry_that_gives_something_else_makes_no_bundle() {
    let registry = Registry::start(Access::Everybody).await;
    let index = push_example(&registry, "a", "1", 1000);
    let folder = tempfile::tempdir().unwrap();
    registry.fault("GET /v2/a/blobs", Fault::Corrupt);
    let error = save(&registry, &[("a:1", &index)], &folder.path().join("a.tar")).await.unwrap_err();
    assert!(told(&error).contains("is not what its digest says"), "{}", told(&error));
}

/// A file of an archive: its path, its content, and what kind of file it is.
type Entry = (String, Vec<u8>, tar::EntryType);

fn file(path: &str, content: impl Into<Vec<u8>>) -> Entry {
    (path.to_owned(), content.into(), tar::EntryType::Regular)
}

fn blob(content: &[u8]) -> Entry {
    file(&blob_path(content), content)
}

fn blob_path(content: &[u8]) -> String {
    format!("blobs/sha256/{}", digest(content).strip_prefix("sha256:").unwrap())
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content, kind) in entries {
        let mut header = tar::Header::new_gnu();
        // Not by the library, which refuses paths that lead elsewhere.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        if kind.is_symlink() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        archive.append(&header, &content[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

/// The files of a good bundle of one image, in their usual order.
fn good() -> Vec<Entry> {
    let (config, layer) = (json!({"os": "linux", "architecture": "amd64"}).to_string(), layer(1, 3000));
    let manifest = json!({"schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(&layer), "size": layer.len()}]});
    let manifest = manifest.to_string();
    let index = index_of(manifest.as_bytes(), "ghcr.io/a/b:1");
    vec![
        file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", index),
        blob(manifest.as_bytes()),
        blob(config.as_bytes()),
        blob(&layer),
    ]
}

fn index_of(manifest: &[u8], name: &str) -> String {
    let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(manifest),
                       "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": name}});
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string()
}

async fn open(bytes: &[u8]) -> Result<Bundle, BundleError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.tar");
    std::fs::write(&path, bytes).unwrap();
    Bundle::open(&path).await
}

#[tokio::test]
async fn of_a_damaged_or_malicious_bundle_nothing_is_taken() {
    let good = good();
    assert_eq!(open(&archive(&good)).await.unwrap().images()[0].name.to_string(), "ghcr.io/a/b:1");
    // Folders, and what others put into a layout, do no harm.
    let mut more = good.clone();
    more.insert(0, ("blobs/".to_owned(), Vec::new(), tar::EntryType::Directory));
    more.push(file("manifest.json", "[]"));
    // Nor do extensions of tar, which are under whatever name the program likes that made it.
    more.insert(0, ("/tmp/GlobalHead.1.1".to_owned(), b"17 comment=harm\n".to_vec(), tar::EntryType::XGlobalHeader));
    for name in ["PaxHeaders.0/x", "./blobs/sha256/PaxHeaders/x", "/tmp/PaxHeaders/x"] {
        more.push((name.to_owned(), b"20 path=../../evil\n".to_vec(), tar::EntryType::XHeader));
    }
    open(&archive(&more)).await.unwrap();

    let with = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = good.clone();
        change(&mut entries);
        archive(&entries)
    };
    let cut = |at: usize| archive(&good)[..at].to_vec();
    let flipped = {
        let mut bytes = archive(&good);
        // In the middle of the last file.
        let at = bytes.len() - 1024 - 2000;
        bytes[at] ^= 1;
        bytes
    };
    let manifest = &good[2].1;
    let resized = String::from_utf8(manifest.clone()).unwrap().replace("3000", "2999");
    let nested: Value = serde_json::from_slice(&good[1].1).unwrap();
    let nested = nested.to_string();
    for (bytes, wanted) in [
        (b"this is no archive, however long it may be".repeat(100), "this is no bundle: it is no tar archive"),
        (vec![0x1f, 0x8b, 8, 0], "this is no bundle"),
        (Vec::new(), "this is no bundle: it holds no OCI image layout"),
        (archive(&good[1..]), "this is no bundle: it holds no OCI image layout"),
        (with(&|entries| drop(entries.remove(1))), "this is no bundle: it holds no OCI image layout"),
        (cut(archive(&good).len() - 1024 - 2000), "breaks off in the middle of `blobs/sha256/"),
        (cut(512 * 7 + 100), "the bundle is damaged after `blobs/sha256/"),
        (flipped, "is not what its name says"),
        (with(&|entries| entries[3].1 = b"another".to_vec()), "is not what its name says"),
        (with(&|entries| drop(entries.pop())), "a part of `ghcr.io/a/b:1`"),
        (with(&|entries| drop(entries.remove(2))), "a part of `ghcr.io/a/b:1`"),
        (with(&|entries| entries.push(file("../../etc/cron.d/evil", "x"))), "leads out of it"),
        (with(&|entries| entries.push(file("/etc/cron.d/evil", "x"))), "leads out of it"),
        (with(&|entries| entries.push(file("blobs/sha256/../../../evil", "x"))), "leads out of it"),
        (with(&|entries| entries[4].2 = tar::EntryType::Symlink), "is no plain file"),
        (with(&|entries| entries[4].2 = tar::EntryType::Link), "is no plain file"),
        (with(&|entries| entries.push(file("index.json", "{}"))), "`index.json` in the bundle is there twice"),
        (with(&|entries| entries[1].1 = vec![b' '; (4 << 20) + 1]), "is larger than 4 MiB"),
        (with(&|entries| entries[1].1 = br#"{"manifests":[]}"#.to_vec()), "this is no bundle: it holds no image"),
        (with(&|entries| entries[1].1 = b"{".to_vec()), "the index of the bundle is no valid document"),
        (with(&|entries| entries[1].1 = index_of(manifest, "latest").into_bytes()), "has no full name, but `latest`"),
        (
            with(&|entries| {
                entries[1].1 = index_of(resized.as_bytes(), "ghcr.io/a/b:1").into_bytes();
                entries[2] = blob(resized.as_bytes());
            }),
            "is of another size than its manifest says",
        ),
        (
            with(&|entries| {
                let huge = vec![b' '; (4 << 20) + 1];
                entries[1].1 = index_of(&huge, "ghcr.io/a/b:1").into_bytes();
                entries.push(blob(&huge));
            }),
            "is too large for a manifest",
        ),
        (
            with(&|entries| {
                // An index of an index of an index.
                let inner = index_of(nested.as_bytes(), "x");
                let outer = index_of(inner.as_bytes(), "x");
                entries[1].1 = index_of(outer.as_bytes(), "ghcr.io/a/b:1").into_bytes();
                entries.extend([blob(nested.as_bytes()), blob(inner.as_bytes()), blob(outer.as_bytes())]);
            }),
            "is an index of indexes",
        ),
    ] {
        let error = open(&bytes).await.expect_err(wanted);
        assert!(told(&error).contains(wanted), "wanted `{wanted}`, got `{}`", told(&error));
    }
}

/// An index with a manifest under each of these names.
fn index_of_all<'a>(images: impl Iterator<Item = (&'a [u8], String)>) -> Entry {
    let entries = images.map(|(manifest, name)| {
        let mut index: Value = serde_json::from_str(&index_of(manifest, &name)).unwrap();
        index["manifests"][0].take()
    });
    file("index.json", json!({"schemaVersion": 2, "manifests": entries.collect::<Vec<_>>()}).to_string())
}

#[tokio::test]
async fn what_a_bundle_lists_takes_bounded_memory_however_often_it_lists_it() {
    const NAMES: usize = 9;
    // Nearly 4 MiB each.
    let manifest: Value = serde_json::from_slice(&good()[2].1).unwrap();
    let manifests: Vec<Vec<u8>> = (0..NAMES)
        .map(|number| {
            let mut manifest = manifest.clone();
            manifest["annotations"] = json!({"number": number, "of no use": " ".repeat((4 << 20) - 2000)});
            manifest.to_string().into_bytes()
        })
        .collect();
    let named = |number: usize| format!("ghcr.io/a/b:{number}");

    let mut entries = good();
    entries[2] = blob(&manifests[0]);
    entries[1] = index_of_all((0..NAMES).map(|number| (&*manifests[0], named(number))));
    let bundle = open(&archive(&entries)).await.unwrap();
    let images: Vec<_> = bundle.images().iter().map(|image| (image.name.to_string(), image.digest())).collect();
    let one = digest(&manifests[0]);
    assert_eq!(images, (0..NAMES).map(|number| (named(number), &*one)).collect::<Vec<_>>());

    entries.extend(manifests[1..].iter().map(|manifest| blob(manifest)));
    entries[1] = index_of_all(manifests.iter().enumerate().map(|(number, manifest)| (&**manifest, named(number))));
    // Not to be shown: it is large.
    let error = open(&archive(&entries)).await.map(drop).unwrap_err();
    assert!(
        told(&error).contains("all manifests up to those of `ghcr.io/a/b:8` is over the limit"),
        "{}",
        told(&error)
    );
}

#[tokio::test]
async fn a_bundle_that_changes_after_it_was_opened_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle.tar");
    let mut bytes = archive(&good());
    std::fs::write(&path, &bytes).unwrap();
    let bundle = Bundle::open(&path).await.unwrap();
    let at = bytes.len() - 1024 - 2000;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let to = Registry::start(Access::Everybody).await;
    let (image, target) = (&bundle.images()[0], to.image("a:1"));
    let error = bundle.publish(image, &target, &impatient(), &Credentials::none(), &tell_nobody).await.unwrap_err();
    assert!(told(&error).contains("is not what its digest says"), "{}", told(&error));
    assert!(!to.has("a", "1") && to.count("PUT /v2/a/manifests") == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_byte_is_wrong_it_is_refused_or_the_image_is_the_same(at in 0usize..10_000, wrong in 1u8..) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut bytes = archive(&good());
        let at = at % bytes.len();
        bytes[at] ^= wrong;
        if let Ok(bundle) = runtime.block_on(open(&bytes)) {
            let digests: Vec<&str> = bundle.images().iter().map(|image| image.digest()).collect();
            prop_assert_eq!(digests, [digest(&good()[2].1)]);
        }
    }
}
