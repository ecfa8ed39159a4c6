//! Archives of images, read back as others read them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Read;

use mcp_hub_supply::Platform;
use mcp_hub_supply::layout::{self, Image, Layer, Start};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const NAME: &str = "localhost/mcp-hub/example:1.2";

fn example(architecture: &str) -> Image {
    let layer = Layer::default()
        .folder("/run/server", 0o755)
        .owned_by(65532)
        .file("/server", 0o755, architecture)
        .file(&format!("/etc/{}end", "long/".repeat(40)), 0o644, "deep")
        .link("/bin/server", "/server");
    Image {
        platform: Platform::linux(architecture),
        layers: vec![Layer::default().folder("/etc", 0o755), layer],
        start: Start {
            entrypoint: vec!["/server".to_owned()],
            cmd: vec!["stdio".to_owned()],
            user: "65532".to_owned(),
            env: BTreeMap::from([("A".to_owned(), "b".to_owned()), ("C".to_owned(), String::new())]),
            working_dir: "/run/server".to_owned(),
            labels: BTreeMap::from([("org.opencontainers.image.version".to_owned(), "1.2".to_owned())]),
        },
    }
}

fn write(images: &[Image]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = Vec::new();
    layout::write(NAME, images, &mut archive).unwrap();
    let mut again = Vec::new();
    layout::write(NAME, images, &mut again).unwrap();
    assert!(archive == again, "the same input gives the same bytes");
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!(entry.header().mtime().unwrap(), 0);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
    }
    for (path, content) in &files {
        if let Some(digest) = path.strip_prefix("blobs/sha256/") {
            assert_eq!(digest, hex::encode(Sha256::digest(content)), "a blob is found by its digest");
        }
    }
    files
}

fn json_at(files: &BTreeMap<String, Vec<u8>>, path: &str) -> Value {
    serde_json::from_slice(&files[path]).unwrap()
}

/// What a descriptor describes.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let content = &files[&format!("blobs/sha256/{digest}")];
    assert_eq!(descriptor["size"], content.len());
    content
}

fn parsed(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
    serde_json::from_slice(blob(files, descriptor)).unwrap()
}

#[test]
fn an_archive_holds_its_image_under_its_name() {
    let files = write(&[example("amd64")]);
    assert_eq!(json_at(&files, "oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
    let index = json_at(&files, "index.json");
    let [top] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
    assert_eq!(
        top["annotations"],
        json!({"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "1.2"})
    );
    assert_eq!(top["platform"], json!({"os": "linux", "architecture": "amd64"}));
    let manifest = parsed(&files, top);
    let config = parsed(&files, &manifest["config"]);
    assert_eq!(
        config["config"],
        json!({"Entrypoint": ["/server"], "Cmd": ["stdio"], "User": "65532", "Env": ["A=b", "C="],
               "WorkingDir": "/run/server", "Labels": {"org.opencontainers.image.version": "1.2"}})
    );
    assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!("amd64")));
    let layers = manifest["layers"].as_array().unwrap();
    let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    assert_eq!(config["rootfs"], json!({"type": "layers", "diff_ids": digests}));
    let mut unpacked = Vec::new();
    for entry in tar::Archive::new(blob(&files, &layers[1])).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let link = entry.link_name().unwrap().map(|link| link.to_string_lossy().into_owned());
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        unpacked.push((path, header.mode().unwrap(), owner, link));
    }
    let (root, long) = ((0, 0), format!("etc/{}end", "long/".repeat(40)));
    assert_eq!(
        unpacked,
        [
            ("run/server/".to_owned(), 0o755, (65532, 65532), None),
            ("server".to_owned(), 0o755, root, None),
            (long, 0o644, root, None),
            ("bin/server".to_owned(), 0o777, root, Some("/server".to_owned())),
        ]
    );
    // For engines that know no layout.
    let docker = json_at(&files, "manifest.json");
    assert_eq!(docker[0]["RepoTags"], json!([NAME]));
    for path in docker[0]["Layers"].as_array().unwrap().iter().chain([&docker[0]["Config"]]) {
        assert!(files.contains_key(path.as_str().unwrap()), "{path}");
    }
}

#[test]
fn an_image_for_several_platforms_is_one_name() {
    let files = write(&[example("amd64"), example("arm64")]);
    assert!(!files.contains_key("manifest.json"));
    let index = json_at(&files, "index.json");
    let [top] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
    assert_eq!(top["annotations"]["io.containerd.image.name"], NAME);
    let inner = parsed(&files, top);
    let manifests = inner["manifests"].as_array().unwrap();
    let of = |manifest: &Value| {
        let config = parsed(&files, &parsed(&files, manifest)["config"]);
        (manifest["platform"]["architecture"].clone(), config["architecture"].clone())
    };
    assert_eq!(manifests.iter().map(of).collect::<Vec<_>>(), ["amd64", "arm64"].map(|name| (json!(name), json!(name))));
}

#[test]
fn what_is_not_given_is_not_there() {
    let image = Image { platform: Platform::linux("amd64"), layers: Vec::new(), start: Start::default() };
    let files = write(&[image]);
    let top = &json_at(&files, "index.json")["manifests"][0];
    let config = parsed(&files, &parsed(&files, top)["config"]);
    assert_eq!(config["config"], json!({}));
}

#[test]
fn of_an_archive_the_wanted_part_becomes_a_layer_of_root() {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_mtime(9);
        let content: &[u8] = if kind == tar::EntryType::Regular { b"x" } else { b"" };
        header.set_size(content.len() as u64);
        match link {
            Some(target) => archive.append_link(&mut header, path, target).unwrap(),
            None => archive.append_data(&mut header, path, content).unwrap(),
        }
    };
    add("./usr/bin/", tar::EntryType::Directory, None);
    add("./usr/bin/su", tar::EntryType::Regular, None);
    add("./bin", tar::EntryType::Symlink, Some("usr/bin"));
    add("./dev/null", tar::EntryType::Char, None);
    let archive = archive.into_inner().unwrap();

    let wanted = |path: &str| (!path.starts_with("dev/")).then(|| format!("root/{path}"));
    let layer = Layer::default().unpacked(&archive[..], wanted).unwrap();
    let image = Image { layers: vec![layer], ..example("amd64") };
    let files = write(std::slice::from_ref(&image));
    let manifest = parsed(&files, &json_at(&files, "index.json")["manifests"][0]);
    let layer = blob(&files, &manifest["layers"][0]);
    let mut found = Vec::new();
    for entry in tar::Archive::new(layer).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.mode().unwrap() & 0o7000, header.uid().unwrap()), (0, 0), "nothing runs as another user");
        found.push(entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned());
    }
    assert_eq!(found, ["root/usr/bin", "root/usr/bin/su", "root/bin"]);
    assert!(Layer::default().unpacked(&archive[..], |path| Some(path.to_owned())).is_err(), "a device is no file");
}
