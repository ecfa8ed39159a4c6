//! Ports that a test can count on until its process ends.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which systems take the ports of outgoing connections (32,768 and up on Linux, 49,152 and up
/// elsewhere): a port that was free is otherwise some connection's own a moment later.
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

/// A TCP port of 127.0.0.1 that nobody listens on and that no other caller gets as long as this process lives.
///
/// The claim is the UDP port of the same number, which the system takes back by itself, however the process ends.
///
/// # Errors
/// If all ports are taken.
pub fn free_port() -> io::Result<u16> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    // Processes that start together begin at different places.
    let start = std::process::id().wrapping_mul(97) % u32::from(COUNT);
    for _ in 0..COUNT {
        let offset = (start + u32::from(TRIED.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).unwrap_or_default();
        let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            // Kept until the process ends.
            std::mem::forget(claim);
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port between 18000 and 32000"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_callers_get_one_port_and_each_can_be_listened_on() {
        let threads: Vec<_> =
            (0..8).map(|_| std::thread::spawn(|| [(); 8].map(|()| free_port().unwrap_or_default()))).collect();
        let ports: Vec<u16> = threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 64, "{ports:?}");
        for port in ports {
            assert!((FIRST..FIRST + COUNT).contains(&port), "{port}");
            assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok(), "{port}");
        }
    }
}
