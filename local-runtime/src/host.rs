//! What a server may know of the machine: an explicit environment, not the daemon's whole one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cgroup::Delegation;

/// Variables handed on to servers: where programs and the home are, the language, proxies and CA bundles.
const HANDED_ON: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
];

/// The daemon's view of the machine, taken once at its start so that lowering stays pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub env: BTreeMap<String, String>,
    pub home: PathBuf,
    pub uid: u32,
    pub gid: u32,
    /// Whether the kernel can confine a process's file access.
    pub landlock: bool,
    /// Where limits of several processes together can be set; nowhere until the daemon has claimed a place.
    pub cgroup: Option<Delegation>,
}

impl Host {
    pub fn of_this_process() -> Self {
        let env: BTreeMap<String, String> =
            HANDED_ON.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
        let home = env.get("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Self {
            env,
            home,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            landlock: has_landlock(),
            cgroup: None,
        }
    }

    /// `path` as an absolute one: `~/` is the home, anything else relative starts from `base`.
    pub fn absolute(&self, base: &Path, path: &str) -> PathBuf {
        let joined = match path.strip_prefix("~/") {
            Some(rest) => self.home.join(rest),
            None if path == "~" => self.home.clone(),
            None => base.join(path),
        };
        // `.` and `..` are taken out by name only: the path need not exist.
        let mut clean = PathBuf::new();
        for part in joined.components() {
            match part {
                std::path::Component::CurDir => {}
                std::path::Component::ParentDir => {
                    clean.pop();
                }
                other => clean.push(other),
            }
        }
        clean
    }

    /// The search path of programs.
    pub fn path(&self) -> &str {
        self.env.get("PATH").map_or("/usr/local/bin:/usr/bin:/bin", String::as_str)
    }
}

/// Asks the kernel by making a rule set, which changes nothing until it is enforced.
fn has_landlock() -> bool {
    use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::from_all(ABI::V1)).and_then(|ruleset| ruleset.create()).is_ok()
}
