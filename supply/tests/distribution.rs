//! The registry that most others are made of (Debian's `docker-registry`), with images of our own in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use mcp_hub_fakeregistry::Distribution;
use mcp_hub_supply::bundle::{self, Bundle};
use mcp_hub_supply::layout::{self, Image, Layer, Start};
use mcp_hub_supply::progress::Event;
use mcp_hub_supply::reference::Mirror;
use mcp_hub_supply::{Credentials, ImageLock, Platform, Published, Reference, Registries, RegistryError};

fn push(registry: &Distribution, archive: &Path, name: &str) {
    let to = [format!("oci-archive:{}", archive.display()), format!("docker://{}/{name}", registry.host)];
    let login = format!("--dest-creds={}:{}", Distribution::USER, Distribution::PASSWORD);
    skopeo(&["--dest-tls-verify=false", &login], &to);
}

fn at(registry: &Distribution, name: &str) -> Reference {
    format!("{}/{name}", registry.host).parse().unwrap()
}

/// Copies for all platforms.
fn skopeo(options: &[&str], from_to: &[String; 2]) {
    let skopeo = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--multi-arch", "all"])
        .args(options)
        .args(from_to)
        .output()
        .unwrap();
    assert!(skopeo.status.success(), "{}", String::from_utf8_lossy(&skopeo.stderr));
}

fn logins(registries: &[&Distribution]) -> Credentials {
    Credentials::from_docker_config(Distribution::logins(registries).as_bytes()).unwrap()
}

fn tell_nobody(_: Event<'_>) {}

fn image(architecture: &str) -> Image {
    Image {
        platform: Platform::linux(architecture),
        layers: vec![Layer::default().file("/server", 0o755, architecture)],
        start: Start {
            entrypoint: vec!["/server".to_owned(), architecture.to_owned()],
            user: "65532".to_owned(),
            ..Start::default()
        },
    }
}

#[tokio::test]
#[ignore = "needs docker-registry and skopeo: cargo xtask test --level images"]
async fn what_was_pushed_is_what_is_told() {
    let registry = Distribution::start().await;
    let folder = tempfile::tempdir().unwrap();
    for (name, architectures) in [("mcp/one:1", &["amd64"][..]), ("mcp/several:1", &["amd64", "arm64"])] {
        let archive = folder.path().join("archive");
        let images: Vec<_> = architectures.iter().map(|architecture| image(architecture)).collect();
        layout::write(&format!("localhost/{name}"), &images, std::fs::File::create(&archive).unwrap()).unwrap();
        push(&registry, &archive, name);

        let image: Reference = format!("{}/{name}", registry.host).parse().unwrap();
        let credentials = logins(&[&registry]);
        let registries = Registries::new().unwrap();
        for architecture in architectures {
            let facts = registries.resolve(&image, &credentials, &Platform::linux(architecture)).await.unwrap();
            assert_eq!(facts.entrypoint.unwrap(), ["/server", architecture]);
            assert_eq!(facts.user.as_deref(), Some("65532"));
            assert_eq!(facts.index_digest == facts.manifest_digest, architectures.len() == 1);
            // By its digest it is the same image.
            let pinned: Reference = image.at(&facts.index_digest).parse().unwrap();
            let again = registries.resolve(&pinned, &credentials, &Platform::linux(architecture)).await.unwrap();
            assert_eq!(again.manifest_digest, facts.manifest_digest);
        }
        let error = registries.resolve(&image, &Credentials::none(), &Platform::linux("amd64")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{error:?}");
        let missing: Reference = format!("{}/mcp/none:1", registry.host).parse().unwrap();
        let error = registries.resolve(&missing, &credentials, &Platform::linux("amd64")).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{} has no image `{missing}`: manifest unknown", registry.host));
    }
}

const NAMES: [&str; 2] = ["mcp/one:1", "mcp/several:1"];

/// Digests of all images and platforms, without the registry's name.
async fn digests(registry: &Distribution, names: [&str; 2]) -> Vec<(String, Vec<(String, String)>)> {
    let (registries, credentials) = (Registries::new().unwrap(), logins(&[registry]));
    let mut digests = Vec::new();
    for name in names {
        let pinned = registries.pin(&at(registry, name), &credentials, &tell_nobody).await.unwrap();
        digests.push((pinned.digest, pinned.platforms.into_iter().collect()));
    }
    digests
}

#[tokio::test]
#[ignore = "needs docker-registry and skopeo: cargo xtask test --level images"]
async fn images_are_the_same_after_they_were_locked_published_bundled_lost_and_loaded() {
    let (first, second) = (Distribution::start().await, Distribution::start().await);
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    for (name, architectures) in NAMES.into_iter().zip([&["amd64"][..], &["amd64", "arm64"]]) {
        let images: Vec<_> = architectures.iter().map(|architecture| image(architecture)).collect();
        layout::write(&format!("localhost/{name}"), &images, std::fs::File::create(&archive).unwrap()).unwrap();
        push(&first, &archive, name);
    }
    let (registries, credentials) = (Registries::new().unwrap(), logins(&[&first, &second]));

    // Locked.
    let mut lock = ImageLock::default();
    for name in NAMES {
        let image = at(&first, name);
        let pinned = registries.pin(&image, &credentials, &tell_nobody).await.unwrap();
        lock.pin(image, pinned, None, jiff::Timestamp::now());
    }
    let locked = digests(&first, NAMES).await;
    assert_eq!(locked[1].1.iter().map(|(platform, _)| &**platform).collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);

    // Published: to another repository of the same registry, where nothing is sent, and to another registry.
    let mirrors = [format!("{}/mirror", first.host), second.host.clone()].map(|text| text.parse::<Mirror>().unwrap());
    for (mirror, is_sent) in mirrors.iter().zip([false, true]) {
        for locked in lock.images() {
            let (from, to) = (locked.image.pinned(&locked.digest), mirror.name(&locked.image, &locked.digest).unwrap());
            let published = registries.copy(&from, &to, &credentials, &tell_nobody).await.unwrap();
            assert_eq!((published.sent > 0, published.spared > 0), (is_sent, !is_sent), "{to}");
            let again = registries.copy(&from, &to, &credentials, &tell_nobody).await.unwrap();
            assert_eq!(again, Published { sent: 0, spared: published.sent + published.spared });
        }
    }
    assert_eq!(digests(&first, ["mirror/mcp/one:1", "mirror/mcp/several:1"]).await, locked);
    assert_eq!(digests(&second, NAMES).await, locked);

    // In a bundle, which others read as well.
    let bundle = folder.path().join("bundle.tar");
    let images: Vec<_> = lock.images().map(|one| (one.image.clone(), one.digest.clone())).collect();
    let file = tokio::fs::File::create(&bundle).await.unwrap();
    bundle::save(&images, &registries, &credentials, &tell_nobody, file).await.unwrap();
    let theirs = folder.path().join("theirs.tar");
    let name = at(&first, "mcp/several:1");
    skopeo(
        &[],
        &[format!("oci-archive:{}:{name}", bundle.display()), format!("oci-archive:{}:{name}", theirs.display())],
    );
    assert_eq!(Bundle::open(&theirs).await.unwrap().images()[0].digest(), locked[1].0, "skopeo's bundle of our bundle");

    // Lost, and loaded into an empty registry.
    drop((first, second));
    let third = Distribution::start().await;
    let bundle = Bundle::open(&bundle).await.unwrap();
    for image in bundle.images() {
        let to = third.host.parse::<Mirror>().unwrap().name(&image.name, image.digest()).unwrap();
        bundle.publish(image, &to, &registries, &logins(&[&third]), &tell_nobody).await.unwrap();
    }
    assert_eq!(digests(&third, NAMES).await, locked);
}
