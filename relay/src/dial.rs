//! Names to addresses, addresses to connections.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mcp_hub_dataplane_api::egress::{self, HostName};
use mcp_hub_dataplane_api::permit::Permit;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::refusal::Refusal;
use crate::slots::{Holder, Slots};
use crate::wish::{Destination, Host};
use crate::{Bounds, judge};

/// The network as the relay needs it.
///
/// # Cancel safety
/// Both methods may be dropped at any time.
#[async_trait]
pub trait Network: Debug + Send + Sync {
    /// Addresses of a name, best first; an error if there are none.
    async fn lookup(&self, host: &HostName) -> io::Result<Vec<IpAddr>>;

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

/// The network of this machine.
#[derive(Debug, Clone, Copy)]
pub struct System;

#[async_trait]
impl Network for System {
    async fn lookup(&self, host: &HostName) -> io::Result<Vec<IpAddr>> {
        // With a dot at its end a name is whole: search domains would let the owner of a namespace `com` answer for others.
        let found = tokio::net::lookup_host((format!("{host}."), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

/// More addresses of one name are not tried.
const ADDRESSES: usize = 8;
/// A first address that is silent leaves time for the next.
const ONE_ADDRESS: Duration = Duration::from_secs(4);

/// Addresses of a name. A lookup that nobody waits for any more holds its place until the system is done with it, so that
/// names of a server that are slow to look up delay that server alone.
async fn lookup(
    network: &Arc<dyn Network>,
    slots: &Slots,
    bounds: &Bounds,
    permit: &Permit,
    name: &HostName,
) -> Result<io::Result<Vec<IpAddr>>, Refusal> {
    let most = bounds.lookups;
    let slot = slots.take(Holder::Lookup(permit.server.clone()), most);
    let slot = slot.ok_or_else(|| Refusal::TooManyLookups { server: permit.server.clone(), most })?;
    let (network, asked) = (network.clone(), name.clone());
    let found = tokio::spawn(async move {
        let found = network.lookup(&asked).await;
        drop(slot);
        found
    });
    match timeout(bounds.lookup, found).await {
        Ok(found) => Ok(found.unwrap_or_else(|error| Err(io::Error::other(error)))),
        Err(_) => Ok(Err(io::ErrorKind::TimedOut.into())),
    }
}

/// A connection to where a permit lets its server go.
pub(crate) async fn dial(
    network: &Arc<dyn Network>,
    slots: &Slots,
    bounds: &Bounds,
    local: &[egress::Network],
    permit: &Permit,
    destination: &Destination,
) -> Result<TcpStream, Refusal> {
    judge::admit(permit, destination)?;
    let to = || destination.to_string();
    let found = match &destination.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => match lookup(network, slots, bounds, permit, name).await? {
            Ok(found) if found.is_empty() => {
                let source = io::Error::new(io::ErrorKind::NotFound, "the answer is empty");
                return Err(Refusal::NotFound { destination: to(), source });
            }
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Refusal::SlowLookup { destination: to(), within: bounds.lookup });
            }
            Err(source) => return Err(Refusal::NotFound { destination: to(), source }),
        },
    };
    let end = Instant::now() + bounds.connect;
    let mut failure = None;
    for address in judge::choose(permit, destination, &found, local)?.into_iter().take(ADDRESSES) {
        let connecting = network.connect(SocketAddr::new(address, destination.port));
        failure = Some(match timeout_at(end.min(Instant::now() + ONE_ADDRESS), connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) => Refusal::NotReached { destination: to(), address, source },
            Err(_) => Refusal::SlowConnect { destination: to(), address, within: bounds.connect.min(ONE_ADDRESS) },
        });
        if Instant::now() >= end {
            break;
        }
    }
    // There was one address at least.
    Err(failure.unwrap_or(Refusal::NoHost))
}
