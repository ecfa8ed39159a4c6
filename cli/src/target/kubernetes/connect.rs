//! The client of a cluster, from a kubeconfig as `kubectl` reads it, or from the pod that this runs in.

use std::io::ErrorKind;
use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::{Cluster, ClusterError};

/// An API server that is up accepts a connection within moments, also across the world.
const CONNECT: Duration = Duration::from_secs(10);

/// Of the cluster whose pod this runs in.
const OWN_CLUSTER: &str = "of this pod";

pub(super) async fn connect(context: Option<&str>) -> Result<Cluster, ClusterError> {
    let (name, mut config) = match Kubeconfig::read() {
        Ok(kubeconfig) => from_kubeconfig(kubeconfig, context).await?,
        Err(error) => match (absent(&error), context) {
            (None, _) => return Err(ClusterError::Kubeconfig { problem: error.to_string() }),
            (Some(problem), Some(_)) => return Err(ClusterError::NoKubeconfig { problem }),
            (Some(problem), None) => {
                let config = Config::incluster().map_err(|_| ClusterError::NoKubeconfig { problem })?;
                (OWN_CLUSTER.to_owned(), config)
            }
        },
    };
    config.connect_timeout = Some(CONNECT);
    // It waits up to minutes, and a person would rather be told.
    config.default_retry = false;
    config.headers.push((USER_AGENT, HeaderValue::from_static(concat!("mcpctl/", env!("CARGO_PKG_VERSION")))));
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config)
        .map_err(|error| ClusterError::Kubeconfig { problem: super::failure::innermost(&error) })?;
    Ok(Cluster::new(client, name, namespace))
}

async fn from_kubeconfig(kubeconfig: Kubeconfig, context: Option<&str>) -> Result<(String, Config), ClusterError> {
    let known: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    let Some(name) = context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone()) else {
        return Err(ClusterError::NoCurrentContext { known });
    };
    if !known.contains(&name) {
        return Err(ClusterError::NoContext { context: name, known });
    }
    let options = KubeConfigOptions { context: Some(name.clone()), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let config = config.map_err(|error| ClusterError::Kubeconfig { problem: error.to_string() })?;
    Ok((name, config))
}

/// Why there is no kubeconfig at all; `None` for an error of one that is there.
fn absent(error: &KubeconfigError) -> Option<String> {
    match error {
        KubeconfigError::FindPath => Some("this user has no home folder".to_owned()),
        KubeconfigError::ReadConfig(error, path) if error.kind() == ErrorKind::NotFound => {
            Some(format!("{} is not there", path.display()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn kubeconfig(current: &str) -> Kubeconfig {
        let text = format!(
            "{{clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}],
               users: [{{name: u, user: {{}}}}],
               contexts: [{{name: team/a, context: {{cluster: c, user: u, namespace: prod}}}}, {{name: b, context: {{cluster: lost, user: u}}}}]
               {current}}}"
        );
        Kubeconfig::from_yaml(&text).unwrap()
    }

    #[tokio::test]
    async fn a_context_gives_its_cluster_and_its_namespace() {
        let current = from_kubeconfig(kubeconfig(", current-context: team/a"), None).await.unwrap();
        let named = from_kubeconfig(kubeconfig(""), Some("team/a")).await.unwrap();
        for (name, config) in [current, named] {
            assert_eq!((name.as_str(), config.default_namespace.as_str()), ("team/a", "prod"));
            assert_eq!(config.cluster_url.to_string(), "http://127.0.0.1:1/");
        }
    }

    #[tokio::test]
    async fn what_a_kubeconfig_lacks_is_named() {
        let error = |context: Option<&'static str>| async move {
            let error = from_kubeconfig(kubeconfig(""), context).await.unwrap_err();
            (error.exit(), error.to_string(), error.hint().unwrap_or_default())
        };
        let (exit, text, hint) = error(Some("typo")).await;
        assert_eq!((exit, text.as_str()), (Exit::NotFound, "the kubeconfig has no context `typo`"));
        assert_eq!(hint, "there are: team/a, b");
        let (exit, text, hint) = error(None).await;
        assert_eq!((exit, text.as_str()), (Exit::NotFound, "the kubeconfig names no current context"));
        assert!(hint.contains("--target kubernetes/CONTEXT") && hint.contains("team/a, b"), "{hint}");
        let (exit, text, _) = error(Some("b")).await;
        assert_eq!(exit, Exit::Invalid);
        assert!(text.contains("lost"), "{text}");
    }
}
