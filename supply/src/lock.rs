//! The lock file `images.lock.json`: which image each name stood for when it was locked.
//!
//! Version "2.0", which is read and written here:
//!
//! ```json
//! {
//!   "version": "2.0",
//!   "images": {
//!     "ghcr.io/example/server:v1": {
//!       "tag": "ghcr.io/example/server:v1",
//!       "digest": "sha256:…",
//!       "platforms": {"linux/amd64": "sha256:…", "linux/arm64": "sha256:…"},
//!       "last_updated": "2026-11-26T05:00:00Z"
//!     }
//!   }
//! }
//! ```
//!
//! `digest` is what the name stood for: the index of an image for several platforms, else the manifest. `platforms` has
//! the manifest for each platform. Version "1.0", which has one `platform` in place of `platforms`, is read.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::platform::Platform;
use crate::reference::{Reference, is_digest};
use crate::registry::Pinned;

/// The file's usual name.
pub const FILE: &str = "images.lock.json";
/// Largest lock file that is read, in bytes; an image takes some 500.
pub const MAX_BYTES: u64 = 16 << 20;

const VERSION: &str = "2.0";
const OLD_VERSION: &str = "1.0";

/// Images by their full names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageLock {
    images: BTreeMap<String, Locked>,
    is_old: bool,
}

/// What an image's name stood for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    pub image: Reference,
    pub digest: String,
    /// Digest of each platform's manifest, by the platform's name as in [`Platform`](crate::Platform). A file of version
    /// "1.0" knows of one.
    pub platforms: BTreeMap<String, String>,
    /// When the name began to stand for it, as far as the file's writers saw.
    pub last_updated: Timestamp,
}

/// Why a lock file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{0}")]
    Json(#[source] serde_json::Error),
    #[error("its version is `{0}`, and 1.0 and 2.0 are known")]
    Version(String),
    #[error("`{name}`: {problem}")]
    Entry { name: String, problem: &'static str },
}

#[derive(Serialize, Deserialize)]
struct File {
    version: String,
    images: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    tag: String,
    digest: String,
    #[serde(default)]
    platforms: BTreeMap<String, String>,
    /// Of version "1.0".
    #[serde(default, skip_serializing)]
    platform: Option<String>,
    last_updated: String,
}

impl Locked {
    /// Whether it is for a platform, as far as the file says: an old one says nothing of some. Without a wish for a variant
    /// every one will do.
    pub fn is_made_for(&self, wanted: &Platform) -> bool {
        let wanted = wanted.to_string();
        let fits =
            |name: &String| name.strip_prefix(&wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.platforms.is_empty() || self.platforms.keys().any(fits)
    }
}

impl ImageLock {
    /// Whether it was read from a file of version "1.0".
    pub fn is_old(&self) -> bool {
        self.is_old
    }

    /// By full name.
    pub fn images(&self) -> impl ExactSizeIterator<Item = &Locked> {
        self.images.values()
    }

    /// What is locked for an image, however its name is written.
    pub fn get(&self, image: &Reference) -> Option<&Locked> {
        self.images.get(&image.to_string())
    }

    /// Locks an image to what its registry says of it now. The time stays where the digest does.
    pub fn pin(&mut self, image: Reference, pinned: Pinned, old: Option<&Locked>, now: Timestamp) {
        let Pinned { digest, platforms } = pinned;
        // Of an old file it is not known whether its digest is the index's or its platform's.
        let stays = |old: &&Locked| old.digest == digest || platforms.values().any(|one| *one == old.digest);
        let last_updated = old.filter(stays).map_or(now, |old| old.last_updated);
        self.images.insert(image.to_string(), Locked { image, digest, platforms, last_updated });
    }
}

impl FromStr for ImageLock {
    type Err = LockError;

    fn from_str(text: &str) -> Result<Self, LockError> {
        let file: File = serde_json::from_str(text).map_err(LockError::Json)?;
        let is_old = match &*file.version {
            VERSION => false,
            OLD_VERSION => true,
            other => return Err(LockError::Version(other.chars().take(40).collect())),
        };
        let mut images = BTreeMap::new();
        for (name, entry) in file.images {
            let wrong = |problem| LockError::Entry { name: name.clone(), problem };
            let locked = entry.locked(is_old).map_err(wrong)?;
            if name.parse::<Reference>().as_ref() != Ok(&locked.image) {
                return Err(wrong("its tag names another image"));
            }
            if images.insert(locked.image.to_string(), locked).is_some() {
                return Err(wrong("another entry is for the same image"));
            }
        }
        Ok(Self { images, is_old })
    }
}

impl Entry {
    fn locked(self, is_old: bool) -> Result<Locked, &'static str> {
        let image: Reference = self.tag.parse().map_err(|_| "its tag is no image reference")?;
        // Files of version 1.0 may have it as Docker shows it, with the repository in front.
        let digest = self.digest.rsplit_once('@').filter(|_| is_old).map_or(&*self.digest, |(_, digest)| digest);
        let platforms = match self.platform.filter(|_| is_old) {
            Some(platform) => BTreeMap::from([(platform, digest.to_owned())]),
            None => self.platforms,
        };
        if !is_digest(digest) || !platforms.values().all(|digest| is_digest(digest)) {
            return Err("a digest is `sha256:` and 64 hexadecimal digits");
        }
        if image.digest().is_some_and(|named| named != digest) {
            return Err("its digest is another than that in its name");
        }
        let last_updated =
            time(&self.last_updated).ok_or("its last_updated is no time, such as 2026-11-26T05:00:00Z")?;
        Ok(Locked { digest: digest.to_owned(), image, platforms, last_updated })
    }
}

/// With an offset, or as Python writes it: without, which is taken for UTC.
fn time(text: &str) -> Option<Timestamp> {
    let local = || text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    text.parse().ok().or_else(local)
}

/// The file's text: always the same for the same images.
impl std::fmt::Display for ImageLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entry = |(name, locked): (&String, &Locked)| {
            let entry = Entry {
                tag: name.clone(),
                digest: locked.digest.clone(),
                platforms: locked.platforms.clone(),
                platform: None,
                last_updated: locked.last_updated.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            };
            (name.clone(), entry)
        };
        let file = File { version: VERSION.to_owned(), images: self.images.iter().map(entry).collect() };
        let text = serde_json::to_string_pretty(&file).map_err(|_| std::fmt::Error)?;
        writeln!(f, "{text}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn old_file(digest: &str) -> String {
        format!(
            r#"{{"version": "1.0", "images": {{"ghcr.io/a/b:1": {{"tag": "ghcr.io/a/b:1", "digest": "{digest}",
            "platform": "linux/amd64", "last_updated": "2024-05-01T10:00:00.123456"}}}}}}"#
        )
    }

    fn pinned(index: &str, platforms: &[(&str, &str)]) -> Pinned {
        let platforms = platforms.iter().map(|(platform, byte)| ((*platform).to_owned(), digest(byte)));
        Pinned { digest: digest(index), platforms: platforms.collect() }
    }

    #[test]
    fn what_is_written_is_read_and_written_alike() {
        let mut lock = ImageLock::default();
        let now = at("2026-11-26T05:00:00.9Z");
        let platforms = [("linux/arm64", "02"), ("linux/amd64", "01")];
        lock.pin("ghcr.io/a/b:1".parse().unwrap(), pinned("aa", &platforms), None, now);
        lock.pin("busybox".parse().unwrap(), pinned("bb", &[("linux/amd64", "bb")]), None, now);
        let text = lock.to_string();
        let one = |byte: &str| digest(byte);
        assert_eq!(
            text,
            format!(
                r#"{{
  "version": "2.0",
  "images": {{
    "docker.io/library/busybox:latest": {{
      "tag": "docker.io/library/busybox:latest",
      "digest": "{bb}",
      "platforms": {{
        "linux/amd64": "{bb}"
      }},
      "last_updated": "2026-11-26T05:00:00Z"
    }},
    "ghcr.io/a/b:1": {{
      "tag": "ghcr.io/a/b:1",
      "digest": "{aa}",
      "platforms": {{
        "linux/amd64": "{first}",
        "linux/arm64": "{second}"
      }},
      "last_updated": "2026-11-26T05:00:00Z"
    }}
  }}
}}
"#,
                bb = one("bb"),
                aa = one("aa"),
                first = one("01"),
                second = one("02"),
            )
        );
        let read: ImageLock = text.parse().unwrap();
        assert_eq!(read.to_string(), text);
        assert_eq!(read.get(&"docker.io/busybox".parse().unwrap()).unwrap().digest, one("bb"));
        assert!(!read.is_old() && read.get(&"busybox:2".parse().unwrap()).is_none());
    }

    #[test]
    fn a_file_of_the_first_version_is_understood_with_its_docker_digests_and_its_times_without_a_zone() {
        for digest_text in [digest("aa"), format!("ghcr.io/a/b@{}", digest("aa"))] {
            let lock: ImageLock = old_file(&digest_text).parse().unwrap();
            assert!(lock.is_old());
            let [locked] = &lock.images().collect::<Vec<_>>()[..] else { panic!("{lock:?}") };
            assert_eq!(locked.digest, digest("aa"));
            assert_eq!(locked.platforms, BTreeMap::from([("linux/amd64".to_owned(), digest("aa"))]));
            assert_eq!(locked.last_updated, at("2024-05-01T10:00:00.123456Z"));
            assert!(lock.to_string().contains(r#""version": "2.0""#));
        }
    }

    #[test]
    fn an_image_keeps_its_time_as_long_as_it_is_the_same_image() {
        let image: Reference = "ghcr.io/a/b:1".parse().unwrap();
        let now = at("2026-11-26T05:00:00Z");
        let then = at("2024-05-01T10:00:00.123456Z");
        for (index, platforms, wanted) in [
            ("aa", &[("linux/amd64", "01")][..], then),
            // An old file may have had the platform's digest.
            ("cc", &[("linux/amd64", "aa"), ("linux/arm64", "02")], then),
            ("cc", &[("linux/amd64", "01")], now),
        ] {
            let old: ImageLock = old_file(&digest("aa")).parse().unwrap();
            let mut lock = ImageLock::default();
            lock.pin(image.clone(), pinned(index, platforms), old.get(&image), now);
            assert_eq!(lock.get(&image).unwrap().last_updated, wanted, "{index} {platforms:?}");
        }
    }

    #[test]
    fn a_platform_is_told_by_its_whole_name() {
        let of = |names: &[&str]| Locked {
            image: "a.io/b:1".parse().unwrap(),
            digest: digest("a1"),
            platforms: names.iter().map(|name| ((*name).to_owned(), digest("a1"))).collect(),
            last_updated: at("2026-11-26T05:00:00Z"),
        };
        let own = Platform::linux("arm64");
        assert!(of(&["linux/amd64", "linux/arm64/v8"]).is_made_for(&own));
        assert!(of(&[]).is_made_for(&own), "a lock file may say nothing of it");
        for wrong in [&["linux/amd64"][..], &["linux/arm64be"], &["windows(10.0.17763.1)/arm64"]] {
            assert!(!of(wrong).is_made_for(&own), "{wrong:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let entry = |name: &str, tag: &str, digest: &str, time: &str| {
            format!(
                r#"{{"version": "2.0", "images": {{"{name}": {{"tag": "{tag}", "digest": "{digest}", "platforms": {{}},
                "last_updated": "{time}"}}}}}}"#
            )
        };
        let (good, time) = (digest("aa"), "2026-11-26T05:00:00Z");
        entry("a:1", "a:1", &good, time).parse::<ImageLock>().unwrap();
        for (text, wanted) in [
            ("{".to_owned(), "line 1 column 1"),
            (r#"{"version": "3.0", "images": {}}"#.to_owned(), "its version is `3.0`"),
            (entry("a:1", "a:2", &good, time), "`a:1`: its tag names another image"),
            (entry("a:1", "A", &good, time), "its tag is no image reference"),
            (entry("a:1", "a:1", "sha256:12", time), "a digest is"),
            (entry("a:1", "a:1", &format!("a@{good}"), time), "a digest is"),
            (entry("a:1", "a:1", &good, "yesterday"), "its last_updated is no time"),
            (
                entry(&format!("a@{good}"), &format!("a@{good}"), &digest("bb"), time),
                "its digest is another than that in its name",
            ),
        ] {
            let error = text.parse::<ImageLock>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let one = r#"{"tag": "a", "digest": "D", "platforms": {}, "last_updated": "2026-11-26T05:00:00Z"}"#;
        let twice = format!(r#"{{"version": "2.0", "images": {{"a": {one}, "a:latest": {one}}}}}"#);
        let error = twice.replace('D', &good).parse::<ImageLock>().unwrap_err().to_string();
        assert!(error.contains("another entry is for the same image"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in r#"[{}":a-z0-9., ]{0,80}"#) {
            text.parse::<ImageLock>().ok();
        }
    }
}
