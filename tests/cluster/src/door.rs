//! A door into a cluster's network: a port of 127.0.0.1 whose connections continue inside the namespace.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::Error;
use crate::namespace::Namespace;

/// Connections through one door at a time; more are closed at once. A client keeps one, or one for each watch, so that
/// this many mean a leak.
const CONNECTIONS: usize = 1024;
/// Inside a namespace a connection is made at once or never.
const CONNECT: Duration = Duration::from_secs(5);

/// Open until it is dropped; connections that were made by then go on until an end closes them.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Listens on this port of 127.0.0.1 for connections to `target` in the namespace.
    pub(crate) fn open(namespace: &Namespace, port: u16, target: SocketAddr) -> Result<Self, Error> {
        let failed = |source| Error::Door { target: target.to_string(), source };
        // Made out here, so it is a port of the machine although a thread inside accepts its connections.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let closed = Arc::new(AtomicBool::new(false));
        let (told, answer) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn({
            let (namespace, closed) = (namespace.clone(), Arc::clone(&closed));
            move || {
                let entered = namespace.enter();
                let inside = entered.is_ok();
                if told.send(entered).is_ok() && inside {
                    accept(&listener, target, &closed);
                }
            }
        });
        let ended = |_| failed(io::Error::other("its thread ended"));
        answer.recv().map_err(ended)??;
        Ok(Self { address, closed, thread: Some(thread) })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stays open until the process ends.
    pub fn hold(mut self) {
        if let Some(thread) = self.thread.take() {
            // It has nothing to return, and does not panic.
            thread.join().unwrap_or_default();
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Wakes `accept`; if that fails, it is not waiting any more.
            drop(TcpStream::connect(self.address));
            thread.join().unwrap_or_default();
        }
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, closed: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    for outer in listener.incoming() {
        if closed.load(Ordering::Acquire) {
            return;
        }
        // A client that left before it was accepted.
        let Ok(outer) = outer else { continue };
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let open = Arc::clone(&open);
        // A thread begins in the namespace of the one that started it.
        std::thread::spawn(move || {
            // The client sees its connection end when the inner one cannot be made or ends.
            join(&outer, target).unwrap_or_default();
            open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// Copies both ways until both ends have closed.
fn join(outer: &TcpStream, target: SocketAddr) -> io::Result<()> {
    let inner = TcpStream::connect_timeout(&target, CONNECT)?;
    // Small messages go back and forth; waiting for more would cost each 40 ms.
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| copy(outer, &inner));
        copy(&inner, outer);
    });
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let outcome = io::copy(&mut from, &mut to);
    // The other end learns that no more comes; after an error nothing can come from there either.
    to.shutdown(Shutdown::Write).unwrap_or_default();
    if outcome.is_err() {
        from.shutdown(Shutdown::Both).unwrap_or_default();
    }
}
