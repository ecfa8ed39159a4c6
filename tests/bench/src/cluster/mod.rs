//! What people and pods do to an operator: many servers made, one changed, its children taken away; and the same writes
//! without any operator.

pub(crate) mod bridges;
mod replay;
mod servers;
mod touch;

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

use k8s_openapi::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Requests under way at a time: as many as the operator has passes.
const AT_ONCE: usize = 32;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Create servers `sFIRST…` and wait until they are Ready
    Create {
        #[arg(long, default_value_t = 0)]
        first: usize,
        #[arg(long)]
        count: usize,
        #[arg(long, default_value = "default")]
        namespace: String,
    },
    /// Delete all servers of the namespace `default`, and wait until nothing of them is left
    Clear,
    /// Change a server again and again, then delete a child again and again: milliseconds until the cluster shows it
    Touch {
        #[arg(long)]
        server: String,
        #[arg(long, default_value_t = 9)]
        rounds: usize,
    },
    /// Create servers and write for each what the operator wrote for one
    Replay {
        #[arg(long)]
        count: usize,
        /// The operator's writes for the server `model` of namespace `model-namespace`, from the audit log
        #[arg(long)]
        writes: PathBuf,
    },
}

/// Does it and tells what it took.
pub(crate) async fn run(verb: Verb) -> io::Result<Value> {
    let config = Config::infer().await.map_err(io::Error::other)?;
    let client = Client::try_from(config).map_err(io::Error::other)?;
    match verb {
        Verb::Create { first, count, namespace } => servers::create(&client, &namespace, first, count).await,
        Verb::Clear => servers::clear(&client).await,
        Verb::Touch { server, rounds } => touch::touch(&client, &server, rounds).await,
        Verb::Replay { count, writes } => replay::replay(&client, count, &writes).await,
    }
}

/// Objects of one kind in a namespace as they come and change, those that are there first.
fn follow<K>(api: Api<K>, selector: &str) -> impl futures::Stream<Item = K> + Send + use<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    use futures::StreamExt;
    let events = watcher(api, watcher::Config::default().labels(selector)).default_backoff();
    events.filter_map(|event| async {
        match event {
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => Some(object),
            // The watcher goes on by itself after an error.
            Ok(_) | Err(_) => None,
        }
    })
}

fn millis(since: std::time::Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
