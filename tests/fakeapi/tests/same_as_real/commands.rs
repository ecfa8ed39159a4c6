//! What people and programs ask of an API server.

use proptest::prelude::*;

use crate::kinds::KINDS;

pub(crate) const NAMES: [&str; 2] = ["a", "b"];
pub(crate) const MANAGERS: [&str; 2] = ["one", "two"];

#[derive(Debug, Clone)]
pub(crate) enum Command {
    Create {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
    },
    Apply {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
        manager: usize,
        force: bool,
    },
    ApplyStatus {
        kind: usize,
        name: usize,
        bits: u16,
        manager: usize,
        force: bool,
    },
    /// A full update, with the version that it is based on: the newest, none, or the first one.
    Update {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
        based_on: u8,
    },
    UpdateStatus {
        kind: usize,
        name: usize,
        bits: u16,
    },
    Patch {
        kind: usize,
        name: usize,
        bits: u16,
        meta: u16,
    },
    Finalizers {
        kind: usize,
        name: usize,
        set: bool,
    },
    Delete {
        kind: usize,
        name: usize,
        policy: u8,
    },
    DeleteAll {
        kind: usize,
        tier: bool,
    },
    List {
        kind: usize,
        query: u8,
    },
}

pub(crate) fn commands() -> impl Strategy<Value = Vec<Command>> {
    // A case is about few kinds, so that the commands meet.
    (0..KINDS.len(), 0..KINDS.len()).prop_flat_map(|(first, second)| {
        let kind = prop_oneof![3 => Just(first), 1 => Just(second)];
        let name = 0..NAMES.len();
        let bits = prop_oneof![3 => any::<u16>().prop_map(|bits| bits & 0x7fff), 1 => any::<u16>()];
        // Two bits in a row are rare things.
        let meta = any::<u16>().prop_map(|bits| bits & 0b0_0100_1111 | if bits > 0xf000 { bits & 0x1f0 } else { 0 });
        let at = (kind, name);
        let body = (bits, meta);
        let command = prop_oneof![
            2 => (at.clone(), body.clone()).prop_map(|((kind, name), (bits, meta))| Command::Create { kind, name, bits, meta }),
            8 => (at.clone(), body.clone(), 0..2_usize, any::<bool>()).prop_map(
                |((kind, name), (bits, meta), manager, force)| Command::Apply { kind, name, bits, meta, manager, force }),
            3 => (at.clone(), any::<u16>(), 0..2_usize, any::<bool>()).prop_map(
                |((kind, name), bits, manager, force)| Command::ApplyStatus { kind, name, bits, manager, force }),
            3 => (at.clone(), body.clone(), 0..3_u8).prop_map(
                |((kind, name), (bits, meta), based_on)| Command::Update { kind, name, bits, meta, based_on }),
            2 => (at.clone(), any::<u16>()).prop_map(|((kind, name), bits)| Command::UpdateStatus { kind, name, bits }),
            2 => (at.clone(), body).prop_map(|((kind, name), (bits, meta))| Command::Patch { kind, name, bits, meta }),
            2 => (at.clone(), any::<bool>()).prop_map(|((kind, name), set)| Command::Finalizers { kind, name, set }),
            2 => (at.clone(), 0..4_u8).prop_map(|((kind, name), policy)| Command::Delete { kind, name, policy }),
            1 => (at.clone(), any::<bool>()).prop_map(|((kind, _), tier)| Command::DeleteAll { kind, tier }),
            2 => (at, 0..5_u8).prop_map(|((kind, _), query)| Command::List { kind, query }),
        ];
        prop::collection::vec(command, 4..24)
    })
}

impl Command {
    pub(crate) fn place(&self) -> (usize, usize) {
        match self {
            Self::Create { kind, name, .. }
            | Self::Apply { kind, name, .. }
            | Self::ApplyStatus { kind, name, .. }
            | Self::Update { kind, name, .. }
            | Self::UpdateStatus { kind, name, .. }
            | Self::Patch { kind, name, .. }
            | Self::Finalizers { kind, name, .. }
            | Self::Delete { kind, name, .. } => (*kind, *name),
            Self::DeleteAll { kind, .. } | Self::List { kind, .. } => (*kind, 0),
        }
    }
}
