//! Servers as they change.

use std::collections::BTreeSet;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube::ResourceExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt, watcher};
use mcp_hub_crds::MCPServer;

use super::{Cluster, ClusterError, resource_of};
use crate::error::Error;
use crate::target::Scope;

/// All servers of the scope, once each of its namespaces was listed and after each change. A connection that breaks is
/// made again; what will not mend by itself ends the stream with its error.
pub(super) fn servers(cluster: &Cluster, scope: &Scope) -> BoxStream<'static, Result<Vec<MCPServer>, Error>> {
    let namespaces = cluster.namespaces(scope);
    let writers: Vec<Writer<MCPServer>> = namespaces.iter().map(|_| Writer::default()).collect();
    let unlisted: BTreeSet<usize> = (0..namespaces.len()).collect();
    let events = stream::select_all(namespaces.into_iter().enumerate().map(|(at, namespace)| {
        let api = cluster.api(namespace.as_deref());
        watcher(api, watcher::Config::default())
            .default_backoff()
            .map(move |event| (at, namespace.clone(), event))
            .boxed()
    }));
    let start = (cluster.clone(), events, writers, unlisted);
    stream::try_unfold(start, |(cluster, mut events, mut writers, mut unlisted)| async move {
        while let Some((at, namespace, event)) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => match lasting(&cluster, namespace.as_deref(), error) {
                    Some(error) => return Err(error.into()),
                    None => continue,
                },
            };
            if matches!(event, watcher::Event::InitDone) {
                unlisted.remove(&at);
            }
            let shows = !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
            if let Some(writer) = writers.get_mut(at) {
                writer.apply_watcher_event(&event);
            }
            if shows && unlisted.is_empty() {
                let stores = writers.iter().flat_map(|writer| writer.as_reader().state());
                let mut servers: Vec<MCPServer> = stores.map(|server| MCPServer::clone(&server)).collect();
                servers.sort_by_key(|server| (server.namespace(), server.name_any()));
                return Ok(Some((servers, (cluster, events, writers, unlisted))));
            }
        }
        Ok(None)
    })
    .boxed()
}

/// The error of a watch that waiting does not mend.
fn lasting(cluster: &Cluster, namespace: Option<&str>, error: watcher::Error) -> Option<ClusterError> {
    let request = |verb| cluster.request(verb, &resource_of::<MCPServer>(), namespace);
    let is_final = |code: u16| matches!(code, 401 | 403 | 404);
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if is_final(status.code) => {
            Some(request("list").refused(&status))
        }
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) if is_final(status.code) => {
            Some(request("watch").refused(&status))
        }
        watcher::Error::WatchError(status) if is_final(status.code) => Some(request("watch").refused(&status)),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}
