//! Level `kubernetes`: the operator, installed by its chart on a real cluster, and every story told there.
//!
//! Without a kubeconfig the cluster is the tests' own and goes with this process; with one, as for kind in CI, the images
//! are there already and nothing but the release is changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use mcp_hub_test_cluster::{Cluster, Options, Shape};

use crate::cluster;
use crate::images::{self, PREFIX, TEST_TAG};
use crate::needs::Need;
use crate::shell::{self, Error};

/// What the level needs: a cluster, and what images are built with.
pub(crate) const NEEDS: [Need; 8] = {
    let [root, go, tools, programs] = cluster::NEEDS;
    let [targets, cc, node, debian] = images::NEEDS;
    [root, go, tools, programs, targets, cc, node, debian]
};

const NAMESPACE: &str = "mcp-hub-system";
/// The registry of packages that a story serves on the cluster.
const PACKAGES: &str = "http://packages.mcp-hub-test-packages.svc";

/// The whole level, on clusters of this machine.
pub(crate) fn run() -> Result<(), Error> {
    let archives = images::for_tests()?;
    let paths = std::env::join_paths(&archives)
        .map_err(|error| Error::Output { command: "cargo xtask images".to_owned(), message: error.to_string() })?;
    let mut chart = shell::cargo(&["test", "--locked", "--package", "mcp-hub-chart-tests"]);
    shell::run(named(&mut chart).env("MCP_HUB_TEST_ARCHIVES", paths))?;

    let cluster = Cluster::up(Options::new(Shape::Node))?;
    archives.iter().try_for_each(|archive| cluster.load(archive))?;
    let tools = Tools {
        helm: cluster.program("helm").get_program().into(),
        kubectl: cluster.program("kubectl").get_program().into(),
        kubeconfig: cluster.kubeconfig(),
    };
    let outcome = tools.stories();
    // Dropped it would go as well, and keep to itself what stays.
    outcome.and(cluster.down().map_err(Error::from))
}

/// The stories on a cluster that has the images already.
pub(crate) fn run_on(kubeconfig: &Path) -> Result<(), Error> {
    let kubeconfig = std::path::absolute(kubeconfig).map_err(|source| Error::File {
        action: "find",
        path: kubeconfig.to_owned(),
        source,
    })?;
    Tools { helm: "helm".into(), kubectl: "kubectl".into(), kubeconfig }.stories()
}

struct Tools {
    helm: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Tools {
    fn stories(&self) -> Result<(), Error> {
        // Stories tell of it, too.
        shell::programs()?;
        self.install().inspect_err(|_| self.explain())?;
        let mut stories = shell::cargo(&["test", "--locked", "--package", "mcp-hub-kubernetes-tests"]);
        let stories = named(&mut stories).env("MCP_HUB_TEST_KUBECONFIG", &self.kubeconfig);
        shell::run(stories).inspect_err(|_| self.explain())
    }

    fn install(&self) -> Result<(), Error> {
        let mut helm = self.command(&self.helm);
        helm.args(["upgrade", "--install", "mcp-hub"]).arg(shell::root().join("charts/mcp-hub"));
        helm.args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout=180s"]);
        for value in [
            format!("images.prefix={PREFIX}"),
            format!("images.tag={TEST_TAG}"),
            format!("packages.npmRegistry={PACKAGES}/npm"),
            format!("packages.pypiIndex={PACKAGES}/simple"),
        ] {
            helm.args(["--set", &value]);
        }
        shell::run(&mut helm)
    }

    /// What a failure in CI leaves to be read.
    fn explain(&self) {
        for words in [
            &["get", "pods,mcpservers,mcphubs", "--all-namespaces", "--output=wide"][..],
            &["logs", "--namespace", NAMESPACE, "--selector=app.kubernetes.io/component=operator", "--tail=200"],
        ] {
            // The failure that is explained is the one to be told.
            shell::run(self.command(&self.kubectl).args(words)).unwrap_or_default();
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }
}

/// Tells tests which images to use.
fn named(command: &mut Command) -> &mut Command {
    command.env("MCP_HUB_TEST_IMAGES", PREFIX).env("MCP_HUB_TEST_TAG", TEST_TAG)
}
