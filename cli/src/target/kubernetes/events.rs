//! Events that the operator published.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use mcp_hub_crds::ResourceKind;
use mcp_hub_local_runtime::store::RecordedEvent;

use super::{Cluster, ClusterError};
use crate::target::Scope;

/// Events of servers and hubs, oldest first.
pub(super) async fn list(cluster: &Cluster, scope: &Scope) -> Result<Vec<RecordedEvent>, ClusterError> {
    let mut found: Vec<(Timestamp, RecordedEvent)> = Vec::new();
    for kind in ResourceKind::ALL {
        let params = ListParams::default().fields(&format!("regarding.kind={kind}"));
        let events: Vec<Event> = cluster.list(scope, &params).await?;
        found.extend(events.into_iter().map(|event| recorded(kind, event)));
    }
    found.sort_by_key(|(at, _)| *at);
    Ok(found.into_iter().map(|(_, event)| event).collect())
}

fn recorded(kind: ResourceKind, event: Event) -> (Timestamp, RecordedEvent) {
    let last = event.series.as_ref().map(|series| series.last_observed_time.0);
    let made = event.creation_timestamp().map(|time| time.0);
    let at = last.or(event.event_time.map(|time| time.0)).or(made).unwrap_or(Timestamp::UNIX_EPOCH);
    let regarding = event.regarding.unwrap_or_default();
    let object = format!("{kind} {}/{}", regarding.namespace.unwrap_or_default(), regarding.name.unwrap_or_default());
    let count = event.series.map_or(1, |series| u32::try_from(series.count).unwrap_or(1));
    let recorded = RecordedEvent {
        at: at.to_string(),
        object,
        kind: event.type_.unwrap_or_default(),
        reason: event.reason.unwrap_or_default(),
        message: event.note.unwrap_or_default(),
        count,
    };
    (at, recorded)
}
