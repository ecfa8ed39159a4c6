//! Places that are counted by whose they are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Whose a connection is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// Nobody's yet that is known.
    Peer(IpAddr),
    /// `NAMESPACE.NAME`
    Server(String),
    /// A server's names that are looked up: a lookup goes on when nobody waits for it any more.
    Lookup(String),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Slots(Arc<Mutex<HashMap<Holder, usize>>>);

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) holder: Holder,
    slots: Slots,
}

impl Slots {
    /// `None` if the holder has `most` already.
    pub(crate) fn take(&self, holder: Holder, most: usize) -> Option<Slot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(holder.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Slot { holder, slots: self.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_has_its_own_places_and_gets_them_back() {
        let slots = Slots::default();
        let a = || Holder::Server("team.a".to_owned());
        let first = slots.take(a(), 2).unwrap();
        let second = slots.take(a(), 2).unwrap();
        assert!(slots.take(a(), 2).is_none());
        assert!(slots.take(Holder::Server("team.b".to_owned()), 2).is_some());
        drop(first);
        assert!(slots.take(a(), 2).is_some());
        drop(second);
        assert!(slots.0.lock().unwrap().is_empty());
    }
}
