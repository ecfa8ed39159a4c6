//! Bounds on the bytes that wait: whoever wants to add more waits until there is room.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of bytes, counted in KiB.
#[derive(Debug, Clone)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    kib: u32,
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Share {
    _permit: OwnedSemaphorePermit,
}

/// Both directions of a bridge. A message may be 32 MiB, so neither can be smaller; together they are the 64 MiB that a
/// bridge may hold.
#[derive(Debug, Clone)]
pub struct Buffers {
    /// What clients sent and the server has not read yet.
    pub requests: Budget,
    /// What the server wrote and clients have not read yet.
    pub answers: Budget,
}

impl Buffers {
    pub fn new() -> Self {
        Self { requests: Budget::new(32 << 20), answers: Budget::new(32 << 20) }
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new()
    }
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        Self { semaphore: Arc::new(Semaphore::new(kib as usize)), kib }
    }

    /// Waits for room for so many bytes, in the order of asking. More than there can ever be counts as all of it.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing was taken.
    pub async fn take(&self, bytes: usize) -> Option<Share> {
        let permit = self.semaphore.clone().acquire_many_owned(self.weight(bytes)).await;
        permit.ok().map(|permit| Share { _permit: permit })
    }

    /// A share, if there is room now.
    pub fn try_take(&self, bytes: usize) -> Option<Share> {
        let permit = self.semaphore.clone().try_acquire_many_owned(self.weight(bytes));
        permit.ok().map(|permit| Share { _permit: permit })
    }

    fn weight(&self, bytes: usize) -> u32 {
        u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.kib)
    }
}

impl Share {
    /// The bytes; the share is given back when the last copy of them is gone.
    pub fn hold(self, bytes: Vec<u8>) -> Bytes {
        struct Held {
            bytes: Vec<u8>,
            _share: Share,
        }
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Held { bytes, _share: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_with_the_last_copy_of_the_bytes() {
        let budget = Budget::new(4096);
        let bytes = budget.try_take(3000).unwrap().hold(vec![0; 3000]);
        let copy = bytes.slice(5..10);
        assert!(budget.try_take(3000).is_none());
        drop(bytes);
        assert!(budget.try_take(3000).is_none());
        drop(copy);
        assert!(budget.try_take(3000).is_some());
    }

    #[test]
    fn more_than_everything_is_everything() {
        let budget = Budget::new(4096);
        let all = budget.try_take(1 << 30).unwrap();
        assert!(budget.try_take(1).is_none());
        drop(all);
        assert!(budget.try_take(1).is_some());
    }
}
