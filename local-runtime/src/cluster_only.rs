//! Fields that mean something in a cluster only: a manifest that goes to both is taken, and status says so.

use mcp_hub_reconcile::lower::Degraded;
use mcp_hub_reconcile::workload::ServerWorkload;

pub(crate) fn fields(server: &ServerWorkload) -> Vec<Degraded> {
    let requests = server.resources.as_ref().is_some_and(|resources| resources.requests.is_some());
    let found = [
        (server.pod_template.is_some(), "spec.kubernetes.podTemplate", "applies in clusters only"),
        (requests, "spec.resources.requests", "one machine schedules nothing"),
    ];
    let set = found.into_iter().filter(|(is_set, ..)| *is_set);
    set.map(|(_, field, message)| Degraded { field: field.to_owned(), message: message.to_owned() }).collect()
}
