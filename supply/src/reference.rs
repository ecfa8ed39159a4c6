//! Names of images, as Docker and Kubernetes read them.

use std::fmt;
use std::str::FromStr;

/// Longest name with its registry, which every registry takes.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The registry that is meant when none is named.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// A parsed image reference in its full form, such as `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{reference}` is no image reference: {problem}")]
pub struct ReferenceError {
    pub reference: String,
    pub problem: &'static str,
}

impl Reference {
    /// Host, with its port if it has one: `ghcr.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// `None` for an image that is named by its digest alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What a registry is asked for: the digest, else the tag.
    pub(crate) fn version(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or_default()
    }

    /// The host that answers for the registry.
    pub(crate) fn host(&self) -> &str {
        if self.registry == DOCKER_HUB { "registry-1.docker.io" } else { &self.registry }
    }

    /// Whether the registry is on this very machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = host_without_port(&self.registry);
        host == "localhost" || host == "[::1]" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The image of exactly this digest in the same repository.
    pub fn pinned(&self, digest: &str) -> Self {
        Self { tag: None, digest: Some(digest.to_owned()), ..self.clone() }
    }

    /// The reference of exactly this digest.
    pub fn at(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

/// Where images are put: a registry, or a path in it, as `HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror(String);

impl Mirror {
    /// An image's name there: its repository below the path, and its tag, or the digest where it has no tag.
    ///
    /// # Errors
    /// If the name becomes too long.
    pub fn name(&self, image: &Reference, digest: &str) -> Result<Reference, ReferenceError> {
        let version = image.tag().map_or_else(|| format!("@{digest}"), |tag| format!(":{tag}"));
        format!("{}/{}{version}", self.0, image.repository).parse()
    }
}

impl FromStr for Mirror {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let wrong = |problem| ReferenceError { reference: text.chars().take(NAME_MAX).collect(), problem };
        let below = parse(&format!("{text}/a")).map_err(wrong)?;
        match text.split('/').next() {
            Some(host) if host == below.registry && !text.contains('@') => Ok(Self(text.to_owned())),
            // Docker takes it for a part of Docker Hub.
            _ => Err(wrong("it does not begin with a registry's host, such as ghcr.io or localhost:5000")),
        }
    }
}

pub(crate) fn host_without_port(host: &str) -> &str {
    // The colons of an IPv6 address stand in brackets.
    match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => host,
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { reference: text.chars().take(NAME_MAX).collect(), problem })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("its digest is not `sha256:` and 64 hexadecimal digits");
    }
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag is not up to 128 letters, digits and `_.-`");
    }
    // As Docker tells a registry from the first part of a path.
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || has_upper(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    if !is_host(registry) {
        return Err("its registry is no host name");
    }
    if !path.split('/').all(is_path_part) {
        return Err(
            "its path is not lower-case letters and digits, with `.`, `_`, `-` between them and `/` between parts",
        );
    }
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    let repository =
        if registry == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if registry.len() + repository.len() >= NAME_MAX {
        return Err("it is too long");
    }
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        // So that one image has one form.
        tag: tag.or(if digest.is_none() { Some("latest") } else { None }).map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// The one algorithm that is in use.
pub(crate) fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_host(text: &str) -> bool {
    let host = host_without_port(text);
    let port = text[host.len()..].strip_prefix(':');
    let is_address =
        host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()).is_some();
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    port.is_none_or(|port| port.parse::<u16>().is_ok()) && (is_address || host.split('.').all(is_label))
}

fn is_path_part(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_between = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    let ends_in_words = text.bytes().next().is_some_and(is_word) && text.bytes().last().is_some_and(is_word);
    let mut separators = text.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    ends_in_words && separators.all(|between| between.is_empty() || is_between(between))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(text: &str) -> Result<String, &'static str> {
        text.parse().map(|reference: Reference| reference.to_string()).map_err(|error: ReferenceError| error.problem)
    }

    #[test]
    fn a_short_name_means_what_docker_takes_it_for() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        for (text, wanted) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("mcp/git:1.2", "docker.io/mcp/git:1.2"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/mcp/git", "docker.io/mcp/git:latest"),
            ("ghcr.io/github/github-mcp-server:v1", "ghcr.io/github/github-mcp-server:v1"),
            ("localhost/mcp-hub/bridge:0.1.0", "localhost/mcp-hub/bridge:0.1.0"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("[::1]:5000/a/b__c", "[::1]:5000/a/b__c:latest"),
            ("Registry/a", "Registry/a:latest"),
        ] {
            assert_eq!(full(text).as_deref(), Ok(wanted));
            assert_eq!(full(&format!("{wanted}@{digest}")), Ok(format!("{wanted}@{digest}")));
        }
        let by_digest: Reference = format!("busybox@{digest}").parse().unwrap();
        assert_eq!(
            (by_digest.version(), by_digest.to_string()),
            (&*digest, format!("docker.io/library/busybox@{digest}"))
        );
        assert_eq!(by_digest.at(&digest), by_digest.to_string());
    }

    #[test]
    fn what_no_registry_could_mean_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "A",
            "a/B",
            "a//b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            ".a",
            "a:",
            "a:b:c",
            "a:-x",
            "a b",
            "a\n",
            "a@",
            "a@sha256:abc",
            "a@sha512:00",
            "host.:80/a",
            "-host.io/a",
            "host.io:99999/a",
            "[::1/a",
            "[zz]:80/a",
            "http://host.io/a",
            "user@host.io/a",
            "host.io/a?b",
            "../a",
            "host.io/../a",
            "a%2fb",
        ] {
            assert!(full(text).is_err(), "{text:?} is {:?}", full(text));
        }
        assert_eq!(full(&"a".repeat(400)), Err("it is too long"));
        assert!(full(&format!("a:{}", "t".repeat(129))).is_err());
    }

    #[test]
    fn a_registry_of_this_machine_is_known_by_its_name() {
        for (text, is_loopback) in [
            ("localhost/a", true),
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("127.9.9.9/a", true),
            ("[::1]:5000/a", true),
            ("localhost.evil.io/a", false),
            ("127.0.0.1.evil.io/a", false),
            ("10.0.0.1:5000/a", false),
            ("busybox", false),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().is_loopback(), is_loopback, "{text}");
        }
    }

    #[test]
    fn an_image_keeps_its_repository_and_tag_in_another_registry() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        for (mirror, image, wanted) in [
            ("localhost:5000", "ghcr.io/a/b:1", "localhost:5000/a/b:1".to_owned()),
            ("registry.example.com/team/", "busybox", "registry.example.com/team/library/busybox:latest".to_owned()),
            ("docker.io/me", "ghcr.io/a/b:1", "docker.io/me/a/b:1".to_owned()),
            ("[::1]:5000", &format!("ghcr.io/a/b@{digest}"), format!("[::1]:5000/a/b@{digest}")),
            ("a.io", &format!("ghcr.io/a/b:1@{digest}"), "a.io/a/b:1".to_owned()),
        ] {
            let name = mirror.parse::<Mirror>().unwrap().name(&image.parse().unwrap(), &digest).unwrap();
            assert_eq!(name.to_string(), wanted);
        }
        for wrong in
            ["", "/", "team", "team/x", "http://a.io", "a.io/A", "a.io//b", "a.io/b:1/c", "a.io@x", "a.io:99999"]
        {
            assert!(wrong.parse::<Mirror>().is_err(), "{wrong}");
        }
        let long = format!("a.io/{}", "x".repeat(240)).parse::<Mirror>().unwrap();
        assert!(long.name(&"ghcr.io/some/image".parse().unwrap(), &digest).is_err());
    }

    proptest! {
        #[test]
        fn a_full_form_means_itself(text in r"[a-zA-Z0-9.:/@_\[\]-]{1,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap().to_string(), reference.to_string());
            }
        }
    }
}
