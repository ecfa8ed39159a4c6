//! Questions put to legacy clients on their response streams, until they post their answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mcp_hub_mcp::envelope::write_request;
use tokio::sync::mpsc;

use crate::Inner;
use crate::peers::Home;
use crate::seal::Seal;
use crate::upstream::Owner;

/// Questions of one call that are open at a time.
pub(crate) const OPEN_MAX: usize = 64;

/// A response that a client posted, and its raw id.
#[derive(Debug)]
struct Answer {
    id: String,
    message: Bytes,
}

/// Who waits for which answer: client session and raw id to the call.
#[derive(Debug)]
pub(crate) struct Asked {
    seal: Seal,
    /// Where answers have to go, sealed, at the end of each id: clients post them to any replica.
    home: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<(Owner, String), mpsc::Sender<Answer>>>,
}

/// What the homes in ids are bound to.
const HOME: &[u8] = b"mcp-hub question";

impl Asked {
    pub(crate) fn new(seal: Seal, home: Option<&Home>) -> Self {
        let home = home.and_then(|home| seal.close(&home.to_string(), HOME));
        let home = home.map_or_else(String::new, |home| format!("-{home}"));
        Self { seal, home, next: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// The replica that asked under this raw id.
    pub(crate) fn home(&self, id: &str) -> Option<Home> {
        let (_, home) = id.strip_prefix("\"hub-")?.strip_suffix('"')?.split_once('-')?;
        self.seal.open(home, HOME)?.text.parse().ok()
    }

    /// Questions that are open.
    pub(crate) fn count(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Hands a client's answer to the call that asked; whether there is one.
    pub(crate) fn answer(&self, owner: Owner, id: &str, message: &Bytes) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&(owner, id.to_owned()));
        // There is room for each open question's answer.
        waiting.is_some_and(|call| call.try_send(Answer { id: id.to_owned(), message: message.clone() }).is_ok())
    }
}

/// The open questions of one call; they are taken back when it ends.
#[derive(Debug)]
pub(crate) struct Asking {
    inner: Arc<Inner>,
    owner: Owner,
    sender: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
    /// Our id, raw, to how the server knows the question.
    open: HashMap<String, String>,
}

impl Asking {
    pub(crate) fn new(inner: &Arc<Inner>, owner: Owner) -> Self {
        let (sender, answers) = mpsc::channel(OPEN_MAX);
        Self { inner: inner.clone(), owner, sender, answers, open: HashMap::new() }
    }

    /// The request for the client; `None` if too many are open. `known_as` comes back with the answer.
    pub(crate) fn ask(&mut self, known_as: &str, method: &str, params: Option<&str>) -> Option<Vec<u8>> {
        if self.open.len() >= OPEN_MAX {
            return None;
        }
        let asked = &self.inner.asked;
        let id = format!("\"hub-{}{}\"", asked.next.fetch_add(1, Ordering::Relaxed), asked.home);
        let mut waiting = asked.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert((self.owner, id.clone()), self.sender.clone());
        drop(waiting);
        let request = write_request(Some(&id), method, params);
        self.open.insert(id, known_as.to_owned());
        Some(request)
    }

    /// The next answer, and how the server knows what it answers; never without open questions.
    ///
    /// # Cancel safety
    /// Dropped before it returns, it loses nothing.
    pub(crate) async fn answered(&mut self) -> (String, Bytes) {
        loop {
            match self.answers.recv().await {
                Some(Answer { id, message }) => {
                    if let Some(known_as) = self.open.remove(&id) {
                        return (known_as, message);
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut waiting = self.inner.asked.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for id in self.open.keys() {
            waiting.remove(&(self.owner, id.clone()));
        }
    }
}
