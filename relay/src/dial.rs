//! Names to addresses, addresses to connections.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use mcp_hub_dataplane_api::egress::HostName;
use mcp_hub_dataplane_api::permit::Permit;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::refusal::Refusal;
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

/// A connection to where a permit lets its server go.
pub(crate) async fn dial(
    network: &dyn Network,
    bounds: &Bounds,
    permit: &Permit,
    destination: &Destination,
) -> Result<TcpStream, Refusal> {
    judge::admit(permit, destination)?;
    let to = || destination.to_string();
    let found = match &destination.host {
        Host::Address(address) => vec![*address],
        Host::Name(name) => match timeout(bounds.lookup, network.lookup(name)).await {
            Ok(Ok(found)) if found.is_empty() => {
                let source = io::Error::new(io::ErrorKind::NotFound, "the answer is empty");
                return Err(Refusal::NotFound { destination: to(), source });
            }
            Ok(found) => found.map_err(|source| Refusal::NotFound { destination: to(), source })?,
            Err(_) => return Err(Refusal::SlowLookup { destination: to(), within: bounds.lookup }),
        },
    };
    let end = Instant::now() + bounds.connect;
    let mut failure = None;
    for address in judge::choose(permit, destination, &found)?.into_iter().take(ADDRESSES) {
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
