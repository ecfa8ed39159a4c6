//! What a server has to say to its one client outside of any call: kept until the client's stream takes it.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Messages kept for a client whose stream is not open (yet). A server that says more than this to nobody is refused.
const KEPT: usize = 64;

#[derive(Debug)]
pub struct Mailbox {
    sender: mpsc::Sender<Bytes>,
    /// Taken by the stream while it is open.
    receiver: Mutex<Option<mpsc::Receiver<Bytes>>>,
}

impl Mailbox {
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel(KEPT);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }

    /// Whether the message was kept.
    pub fn post(&self, message: Bytes) -> bool {
        self.sender.try_send(message).is_ok()
    }

    /// The messages; `None` while another stream has them.
    pub fn open(&self) -> Option<mpsc::Receiver<Bytes>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives the messages back when a stream ends.
    pub fn close(&self, receiver: mpsc::Receiver<Bytes>) {
        *self.receiver.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}
