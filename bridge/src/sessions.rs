//! Sessions of the legacy era towards clients (2025-11-25, "Streamable HTTP: Session Management"), while they share one
//! server process: an id, and when it was last used.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

/// A session id that cannot be guessed.
pub fn new_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

#[derive(Debug)]
pub struct Sessions {
    max: usize,
    last_used: Mutex<HashMap<String, Instant>>,
}

impl Sessions {
    pub fn new(max: u32) -> Self {
        Self { max: max as usize, last_used: Mutex::default() }
    }

    /// A new session; the one unused for longest makes room for it.
    pub fn open(&self) -> Result<String, getrandom::Error> {
        let id = new_id()?;
        let mut sessions = self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= self.max
            && let Some(oldest) = sessions.iter().min_by_key(|(_, used)| **used).map(|(id, _)| id.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(id.clone(), Instant::now());
        Ok(id)
    }

    /// Whether the session is known; notes its use.
    pub fn touch(&self, id: &str) -> bool {
        let mut sessions = self.last_used.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get_mut(id).map(|used| *used = Instant::now()).is_some()
    }

    pub fn close(&self, id: &str) -> bool {
        self.last_used.lock().unwrap_or_else(PoisonError::into_inner).remove(id).is_some()
    }

    pub fn count(&self) -> usize {
        self.last_used.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_unused_for_longest_makes_room() {
        let sessions = Sessions::new(2);
        let (a, b) = (sessions.open().unwrap(), sessions.open().unwrap());
        assert!(sessions.touch(&a));
        let c = sessions.open().unwrap();
        assert!(sessions.touch(&a) && sessions.touch(&c) && !sessions.touch(&b));
        assert!(sessions.close(&a) && !sessions.close(&a));
        assert_eq!(sessions.count(), 1);
    }
}
