//! What is told while images are on their way.

use std::error::Error;
use std::time::Duration;

use crate::reference::Reference;

/// Something that happened. The bytes of an image are those of its configurations and layers.
#[derive(Debug)]
pub enum Event<'a> {
    /// An image's turn has come, or more of it has come to light.
    Begins { image: &'a Reference, bytes: u64 },
    /// Bytes went.
    Moved(u64),
    /// Bytes need not go: they are where they are to be.
    Spared(u64),
    /// Bytes that went have to go again.
    Again(u64),
    /// Something failed and is tried again after a while.
    Waits { wait: Duration, error: &'a (dyn Error + 'static) },
}

/// Whom it is told.
pub type Tell<'a> = &'a (dyn Fn(Event<'_>) + Send + Sync);
