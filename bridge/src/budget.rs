//! Bounds on the bytes that wait: whoever wants to add more waits until there is room.

use std::sync::{Arc, Mutex, PoisonError};

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
    /// Where the memory of answers goes that clients have read.
    pub spares: Spares,
}

/// Memory of long messages, for the next ones: musl maps each of their blocks anew, and the kernel clears every page of it.
#[derive(Debug, Clone, Default)]
pub struct Spares(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    blocks: Vec<Vec<u8>>,
    bytes: usize,
    /// What the next long message is likely to need.
    expected: usize,
}

/// Bytes of the smallest block and of the largest that are worth it, and of all that are kept.
const SPARE_LEAST: usize = 32 << 10;
const SPARE_MOST: usize = 256 << 10;
const SPARES_MAX: usize = 768 << 10;

impl Spares {
    /// An empty block for the next message; without memory of its own while messages are short.
    pub fn take(&self) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let block = kept.blocks.pop();
        kept.bytes -= block.as_ref().map_or(0, Vec::capacity);
        block.unwrap_or_else(|| Vec::with_capacity(kept.expected))
    }

    fn put(&self, mut block: Vec<u8>) {
        if !(SPARE_LEAST..=SPARE_MOST).contains(&block.capacity()) {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Grown from nothing it would be copied on its way, and be larger than it need be.
        kept.expected = (block.len() + block.len() / 16).clamp(SPARE_LEAST, SPARE_MOST);
        if kept.bytes + block.capacity() <= SPARES_MAX {
            block.clear();
            kept.bytes += block.capacity();
            kept.blocks.push(block);
        }
    }
}

impl Buffers {
    pub fn new() -> Self {
        Self { requests: Budget::new(32 << 20), answers: Budget::new(32 << 20), spares: Spares::default() }
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
    /// The bytes; the share is given back when the last copy of them is gone, and their memory to the spares.
    pub fn hold(self, bytes: Vec<u8>, spares: Spares) -> Bytes {
        struct Held {
            bytes: Vec<u8>,
            spares: Spares,
            _share: Share,
        }
        impl Drop for Held {
            fn drop(&mut self) {
                self.spares.put(std::mem::take(&mut self.bytes));
            }
        }
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Held { bytes, spares, _share: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_with_the_last_copy_of_the_bytes() {
        let budget = Budget::new(4096);
        let bytes = budget.try_take(3000).unwrap().hold(vec![0; 3000], Spares::default());
        let copy = bytes.slice(5..10);
        assert!(budget.try_take(3000).is_none());
        drop(bytes);
        assert!(budget.try_take(3000).is_none());
        drop(copy);
        assert!(budget.try_take(3000).is_some());
    }

    #[test]
    fn the_memory_of_long_messages_is_used_again_and_only_so_much_of_it_is_kept() {
        let (budget, spares) = (Budget::new(1 << 30), Spares::default());
        let hold = |bytes: usize| budget.try_take(bytes).unwrap().hold(vec![b'x'; bytes], spares.clone());
        for wrong in [200, 32 << 20] {
            drop(hold(wrong));
            assert_eq!(spares.take().capacity(), 0, "{wrong}");
        }
        drop((0..20).map(|_| hold(100_000)).collect::<Vec<Bytes>>());
        assert_eq!(spares.0.lock().unwrap().blocks.len(), SPARES_MAX / 100_000);
        let blocks: Vec<Vec<u8>> = (0..20).map(|_| spares.take()).collect();
        assert!(blocks.iter().all(|block| block.is_empty() && (100_000..120_000).contains(&block.capacity())));
        assert_eq!(spares.0.lock().unwrap().bytes, 0);
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
