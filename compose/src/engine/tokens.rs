//! The key of a project and the tokens that are derived from it.
//!
//! Bridges are given hashes, which may stand in a file that everybody reads; the gateway gets the tokens from the one file
//! that holds secrets, beside the others and for its owner alone. The key in it makes the next `generate` derive the same
//! tokens. It is the project's own: the daemon's key goes nowhere.

use std::fmt;

use kube::ResourceExt;
use mcp_hub_crds::MCPServer;
use mcp_hub_crds::source::Source;
use mcp_hub_reconcile::installation::Installation;

use crate::MARK;
use crate::project::Project;

/// The file that holds secrets.
pub const TOKENS_FILE: &str = "gateway.env";
const KEY: &str = "MCP_HUB_KEY";
/// What the names of all variables in it begin with. Those of secrets do not.
pub(super) const OWN_VARIABLES: &str = "MCP_HUB_";
/// By which the owner mark of processes tells a project's from a daemon's.
const INSTALLATION: &str = "compose";

/// 32 random bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

/// A tokens file without a key, which is not to be written over: who had the tokens would have them no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it holds no {KEY} of 64 hexadecimal digits")]
pub struct NoKey;

impl Key {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key in a tokens file.
    pub fn of_file(text: &str) -> Result<Self, NoKey> {
        let line = text.lines().find_map(|line| line.strip_prefix(KEY)?.strip_prefix('='));
        let bytes = line.and_then(|hex| hex::decode(hex.trim()).ok()).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(NoKey)
    }

    pub(super) fn installation(&self) -> Installation {
        Installation::new(INSTALLATION, self.0)
    }

    /// The tokens file: environment of the gateway's container.
    pub(super) fn file(&self, project: &Project, installation: &Installation) -> String {
        let hub = project.hub.uid().unwrap_or_default();
        let mut text = format!(
            "{MARK}. Keep it: whoever reads it can use the hub and its servers.\n\
             # The token of clients is MCP_HUB_TOKEN; a new {KEY} makes all tokens new.\n\
             {KEY}={}\nMCP_HUB_SEALING_KEY={}\nMCP_HUB_TOKEN={}\n",
            hex::encode(self.0),
            hex::encode(installation.sealing_key(&hub)),
            installation.hub_token(&hub, 0).expose_secret(),
        );
        for server in project.servers.iter().filter(|server| !matches!(server.spec.source, Source::Remote(_))) {
            let token = installation.bridge_token(&server.uid().unwrap_or_default(), 0);
            text.push_str(&format!("{}={}\n", bridge_variable(server), token.expose_secret()));
        }
        text
    }
}

/// The gateway's variable with the token of a server's bridge.
pub(super) fn bridge_variable(server: &MCPServer) -> String {
    // Names hold neither underscores nor, here, small letters: no two servers have one variable.
    let upper = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    format!("MCP_HUB_BRIDGE_{}_in_{}", upper(&server.name_any()), upper(&server.namespace().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_read_back_and_never_shown() {
        let key = Key::new([7; 32]);
        assert_eq!(Key::of_file(&format!("# x\nMCP_HUB_KEY={}\n", "07".repeat(32))), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), "Key(***)");
        for wrong in ["", "MCP_HUB_KEY=", "MCP_HUB_KEY=07", &format!("KEY={}", "07".repeat(32))] {
            assert_eq!(Key::of_file(wrong), Err(NoKey), "{wrong}");
        }
    }
}
