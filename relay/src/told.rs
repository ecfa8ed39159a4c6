//! Refusals in the log: enough of each server's to see what is wrong, and never a flood.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::refusal::Refusal;

const WINDOW: Duration = Duration::from_secs(60);
/// Lines for each server, or address without a permit, in a window.
const OF_ONE: u32 = 10;
/// Lines of all.
const OF_ALL: u32 = 300;

#[derive(Debug)]
pub(crate) struct Told(Mutex<Window>);

#[derive(Debug)]
struct Window {
    since: Instant,
    told: u32,
    untold: u64,
    /// No longer than [`OF_ALL`].
    of: HashMap<String, u32>,
}

impl Window {
    fn new() -> Self {
        Self { since: Instant::now(), told: 0, untold: 0, of: HashMap::new() }
    }

    fn has_room(&mut self, who: &str) -> bool {
        if self.told >= OF_ALL || self.of.get(who).is_some_and(|told| *told >= OF_ONE) {
            self.untold += 1;
            return false;
        }
        self.told += 1;
        *self.of.entry(who.to_owned()).or_default() += 1;
        true
    }
}

impl Default for Told {
    fn default() -> Self {
        Self(Mutex::new(Window::new()))
    }
}

impl Told {
    /// `who`: a server of a valid permit, or the address of somebody without.
    pub(crate) fn refused(&self, who: &str, destination: Option<&str>, refusal: &Refusal) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.elapsed() > WINDOW {
            if window.untold > 0 {
                tracing::warn!(refusals = window.untold, "more refusals than are told one by one");
            }
            *window = Window::new();
        }
        if window.has_room(who) {
            let reason = refusal.reason();
            tracing::warn!(server = who, destination, reason, "{refusal}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_noisy_server_leaves_room_for_others() {
        let mut window = Window::new();
        assert_eq!((0..1000).filter(|_| window.has_room("team.noisy")).count(), OF_ONE as usize);
        assert!(window.has_room("team.quiet"));
        assert_eq!(window.untold, 1000 - u64::from(OF_ONE));
        assert!((0..10_000).filter(|n| window.has_room(&n.to_string())).count() < OF_ALL as usize);
        assert!(window.of.len() <= OF_ALL as usize);
    }
}
