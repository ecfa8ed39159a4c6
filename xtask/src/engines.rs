//! Level `engines`: servers in containers, on engines that each test starts for itself.

use crate::images;
use crate::needs::Need;
use crate::shell::{self, Error};
use crate::{cluster, dist};

/// Root starts engines in network namespaces; their images are ours, some of a registry beside them.
pub(crate) const NEEDS: [Need; 7] = {
    let [root, ..] = cluster::NEEDS;
    let [targets, cc, node, debian] = images::NEEDS;
    [root, targets, cc, node, debian, Need::Engines, Need::Registry]
};

pub(crate) fn run() -> Result<(), Error> {
    shell::programs()?;
    let programs = dist::programs()?;
    let mcpctl = dist::carrying(&programs, "dev")?;
    images::for_tests()?;
    let mut test = shell::cargo(&["test", "--locked", "--package", "mcp-hub-engine-tests"]);
    test.env("MCP_HUB_TEST_IMAGES", shell::target().join("images"));
    test.env("MCP_HUB_TEST_BRIDGE", programs.bridges.join(dist::own_target()));
    test.env("MCP_HUB_TEST_RELAY", programs.relays.join(dist::own_target()));
    test.env("MCP_HUB_TEST_MCPCTL", mcpctl);
    shell::run(&mut test)
}
