//! Images that we brought and nobody needs any more.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use mcp_hub_supply::Reference;

use super::engine::{Engine, EngineError};
use super::image::full_id;
use super::ledger::{Entry, Ledger};
use super::look::FoundImage;

/// What stays, besides what containers are made of.
#[derive(Debug, Clone, Default)]
pub struct Needed {
    /// Full names of images: locked, or named by manifests and servers.
    pub names: BTreeSet<String>,
    /// Digests by which registries know images that are locked, or named by one.
    pub digests: BTreeSet<String>,
    /// Ids by which servers run theirs.
    pub ids: BTreeSet<String>,
    /// What was asked for after this is too recent.
    pub before: Timestamp,
}

/// An image that we brought and that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tidied {
    pub id: String,
    pub names: Vec<String>,
    /// With what it shares with other images.
    pub bytes: u64,
    /// `None`: it may go.
    pub stays: Option<Stays>,
}

/// Why an image stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    InUse,
    Needed,
    Named,
    Recent,
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InUse => "a container is made of it",
            Self::Needed => "it is locked, or a server is to run it",
            Self::Named => "somebody gave it another name",
            Self::Recent => "it was asked for recently",
        })
    }
}

impl Needed {
    /// Nothing yet, but what was asked for within this time.
    pub fn older_than(now: Timestamp, age: Duration) -> Self {
        Self { before: now.checked_sub(age).unwrap_or(Timestamp::MIN), ..Self::default() }
    }

    /// Whoever else may want it decides first; age last.
    fn stays(&self, entry: &Entry, found: &FoundImage, in_use: bool) -> Option<Stays> {
        let (tags, digests) = (references(&found.repo_tags), references(&found.repo_digests));
        let is_named = tags.iter().chain(&digests).any(|name| self.names.contains(&name.to_string()));
        let is_locked = digests.iter().any(|name| name.digest().is_some_and(|digest| self.digests.contains(digest)));
        if in_use {
            Some(Stays::InUse)
        } else if is_named || is_locked || self.ids.contains(&entry.id) {
            Some(Stays::Needed)
        } else if tags.iter().any(|tag| !entry.names.contains(&tag.to_string())) || is_of_others(&entry.names, &digests)
        {
            Some(Stays::Named)
        } else if entry.at > self.before {
            Some(Stays::Recent)
        } else {
            None
        }
    }
}

/// The names that can be read, in full: Docker shortens those of Docker Hub.
fn references(names: &Option<Vec<String>>) -> Vec<Reference> {
    names.iter().flatten().filter_map(|name| name.parse().ok()).collect()
}

/// Whether one of an image's digests is of a repository of which none of these names is.
fn is_of_others(names: &BTreeSet<String>, digests: &[Reference]) -> bool {
    let ours: Vec<Reference> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let is_ours = |digest: &Reference| {
        ours.iter().any(|name| (name.registry(), name.repository()) == (digest.registry(), digest.repository()))
    };
    !digests.iter().all(is_ours)
}

impl Engine {
    /// Looks at each image that we brought here. Of those that are gone nothing is kept in mind.
    ///
    /// # Errors
    /// The engine or the ledger does not answer.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn brought(&self, ledger: &Ledger, needed: &Needed) -> Result<Vec<Tidied>, EngineError> {
        let entries = ledger.entries(self).map_err(EngineError::Ledger)?;
        let in_use = self.images_in_use().await?;
        let mut all = Vec::new();
        for entry in entries {
            let Some(found) = self.image(&entry.id).await? else {
                ledger.forget(self, &entry.id).map_err(EngineError::Ledger)?;
                continue;
            };
            let stays = needed.stays(&entry, &found, in_use.contains(&full_id(found.id.clone())));
            let names = found.repo_tags.filter(|tags| !tags.is_empty());
            let names = names.unwrap_or_else(|| entry.names.iter().cloned().collect());
            all.push(Tidied { id: entry.id, names, bytes: found.size, stays });
        }
        Ok(all)
    }

    /// Removes an image as it was looked at: name by name, so that one that it got since then keeps it. Nothing is forced: an
    /// engine refuses what a container is made of by now. Returns whether it is gone; one that has another name by now is not.
    ///
    /// # Errors
    /// The engine refuses.
    ///
    /// # Cancel safety
    /// May be dropped at any time; done again, it goes on.
    pub async fn tidy(&self, ledger: &Ledger, image: &Tidied) -> Result<bool, EngineError> {
        let entry = ledger.entry(self, &image.id);
        let found = self.image(&image.id).await?.unwrap_or_default();
        let tags = found.repo_tags.unwrap_or_default();
        for name in tags.iter().filter(|tag| image.names.contains(tag)) {
            self.remove_image(name).await?;
        }
        if let Some(left) = self.image(&image.id).await? {
            let ours = entry.map(|entry| entry.names).unwrap_or_default();
            let is_tagged = left.repo_tags.iter().flatten().next().is_some();
            if is_tagged || is_of_others(&ours, &references(&left.repo_digests)) {
                return Ok(false);
            }
            self.remove_image(&image.id).await?;
        }
        ledger.forget(self, &image.id).map_err(EngineError::Ledger)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_goes_only_if_nobody_could_want_it() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        let now: Timestamp = "2026-11-26T12:00:00Z".parse().unwrap();
        let entry = |at: &str| Entry {
            engine: "e".to_owned(),
            id: "sha256:id".to_owned(),
            names: BTreeSet::from(["docker.io/library/a:1".to_owned()]),
            at: at.parse().unwrap(),
        };
        let old = entry("2026-11-25T11:00:00Z");
        let found = |tags: &[&str]| FoundImage {
            repo_tags: Some(tags.iter().map(|tag| (*tag).to_owned()).collect()),
            repo_digests: Some(vec![format!("a@{digest}")]),
            ..FoundImage::default()
        };
        let plain = Needed::older_than(now, Duration::from_secs(24 * 3600));
        let set = |text: &str| BTreeSet::from([text.to_owned()]);

        assert_eq!(plain.stays(&old, &found(&["a:1"]), false), None, "Docker shortens names");
        assert_eq!(plain.stays(&old, &found(&[]), false), None, "its name stands for another by now");
        assert_eq!(plain.stays(&old, &found(&["a:1"]), true), Some(Stays::InUse));
        assert_eq!(plain.stays(&old, &found(&["a:1", "mine:1"]), false), Some(Stays::Named));
        let elsewhere = FoundImage {
            repo_digests: Some(vec![format!("a@{digest}"), format!("mirror.io/a@{digest}")]),
            ..found(&["a:1"])
        };
        assert_eq!(plain.stays(&old, &elsewhere, false), Some(Stays::Named), "it was pulled from there, too");
        assert_eq!(plain.stays(&entry("2026-11-25T13:00:00Z"), &found(&["a:1"]), false), Some(Stays::Recent));
        for needed in [
            Needed { names: set("docker.io/library/a:1"), ..plain.clone() },
            Needed { names: set(&format!("docker.io/library/a@{digest}")), ..plain.clone() },
            Needed { digests: set(&digest), ..plain.clone() },
            Needed { ids: set("sha256:id"), ..plain.clone() },
        ] {
            assert_eq!(needed.stays(&old, &found(&["a:1"]), false), Some(Stays::Needed), "{needed:?}");
        }
    }
}
