//! Servers of which nothing runs for want of calls: when one is put to rest, and when it is woken.
//!
//! A bridge puts its server's program to sleep by itself. Where a bridge's place costs something (a pod), it goes as well,
//! as soon as every gateway that offers the server says that nobody calls it. That a server is at rest is kept in its
//! status, so that who comes next wakes nobody.

use std::time::Duration;

use mcp_hub_crds::server::LifecycleMode;
use mcp_hub_crds::status::{Phase, condition};
use mcp_hub_crds::{MCPServer, MCPServerStatus};

use crate::accept;
use crate::gateway;
use crate::owner::OwnerKey;
use crate::ports::{Demand, Ports};
use crate::status::reason;
use crate::workload::{idle_timeout, is_stopped};

/// A server that sleeps and cannot be put to rest yet is looked at again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Whether nothing of a server is to run for want of calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) rests: bool,
    /// When time alone may decide otherwise.
    pub(crate) look_again: Option<Duration>,
    /// Why a server that nobody calls is not put to rest.
    pub(crate) obstacle: Option<String>,
}

/// Whether status says that the server is at rest, and speaks of the spec as it is: another one is to be tried.
pub fn is_at_rest(server: &MCPServer) -> bool {
    let of_this_spec = |status: &&MCPServerStatus| status.observed_generation == server.metadata.generation;
    is_on_demand(server) && !is_stopped(server) && server.status.as_ref().filter(of_this_spec).is_some_and(says_rest)
}

/// Whether calls to the server are held until something of it runs: it is at rest, or was and is being woken.
pub(crate) fn holds_calls(server: &MCPServer) -> bool {
    let Some(status) = &server.status else { return false };
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == condition::READY);
    says_rest(status) || ready.is_some_and(|ready| ready.reason == reason::WAKING)
}

/// A program that sleeps in its pod has the same phase.
fn says_rest(status: &MCPServerStatus) -> bool {
    status.phase == Some(Phase::Asleep) && status.replicas == Some(0)
}

fn is_on_demand(server: &MCPServer) -> bool {
    server.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.mode) == Some(LifecycleMode::OnDemand)
}

/// `sleeps`: whether all that runs of the server sleeps.
pub(crate) async fn decide(server: &MCPServer, owner: &OwnerKey, sleeps: bool, ports: &Ports) -> Rest {
    if !is_on_demand(server) || is_stopped(server) {
        return Rest::default();
    }
    let hubs = hubs_of(server, ports).await;
    let mut rest = weigh(is_at_rest(server), sleeps, idle_timeout(server), ports.sink.demand(&owner.uid, &hubs).await);
    if rest.rests && !is_at_rest(server) {
        let stays = |obstacle| Rest { rests: false, look_again: Some(LOOK_AGAIN), obstacle };
        // A gateway that starts in the meantime is told what the server offers.
        if let Err(error) = ports.sink.keep_definitions(&owner.uid, &hubs).await {
            rest = stays(Some(error.message));
        } else if !ports.runtime.sleeps_now(owner).await {
            // A call came since its bridge was last asked, by a gateway that is no more.
            rest = stays(None);
        }
    }
    rest
}

fn weigh(at_rest: bool, sleeps: bool, limit: Duration, demand: Demand) -> Rest {
    let rests = match demand {
        Demand::Unwakeable | Demand::Called => false,
        Demand::Unknown => at_rest,
        Demand::Idle(idle) => at_rest || (sleeps && idle >= limit),
    };
    let look_again = match demand {
        _ if rests || !sleeps => None,
        Demand::Unwakeable => None,
        Demand::Called | Demand::Unknown => Some(LOOK_AGAIN),
        Demand::Idle(idle) => Some(limit.saturating_sub(idle)),
    };
    Rest { rests, look_again, obstacle: None }
}

/// The hubs whose gateways may call the server.
async fn hubs_of(server: &MCPServer, ports: &Ports) -> Vec<OwnerKey> {
    let hubs = ports.store.hubs();
    // Hubs that are not listed yet are not gone. A store that was dropped lists nothing more, and its controller is ending.
    hubs.wait_until_ready().await.ok();
    let state = hubs.state();
    let served = state.iter().filter(|hub| {
        hub.metadata.deletion_timestamp.is_none()
            && accept::unimplemented_in_hub(&hub.spec).is_empty()
            && gateway::selects(hub, server)
    });
    served.filter_map(|hub| OwnerKey::of_hub(ports.installation.id(), hub).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    fn rests(at_rest: bool, sleeps: bool, demand: Demand) -> (bool, Option<u64>) {
        let rest = weigh(at_rest, sleeps, LIMIT, demand);
        (rest.rests, rest.look_again.map(|time| time.as_secs()))
    }

    #[test]
    fn a_server_that_sleeps_is_put_to_rest_when_nobody_called_it_for_its_idle_time() {
        let long = Demand::Idle(LIMIT);
        assert_eq!(rests(false, true, long), (true, None));
        assert_eq!(rests(false, false, long), (false, None), "its own word counts too");
        assert_eq!(rests(false, true, Demand::Idle(Duration::from_secs(590))), (false, Some(10)));
        assert_eq!(rests(false, true, Demand::Called), (false, Some(60)));
        assert_eq!(rests(false, true, Demand::Unknown), (false, Some(60)), "who says nothing may be calling it");
        assert_eq!(rests(false, true, Demand::Unwakeable), (false, None));
    }

    #[test]
    fn a_server_at_rest_stays_there_until_it_is_called_or_nobody_could_wake_it() {
        for quiet in [Demand::Unknown, Demand::Idle(Duration::ZERO), Demand::Idle(LIMIT)] {
            assert_eq!(rests(true, false, quiet), (true, None), "{quiet:?}");
        }
        assert_eq!(rests(true, false, Demand::Called), (false, None));
        assert_eq!(rests(true, false, Demand::Unwakeable), (false, None));
    }
}
