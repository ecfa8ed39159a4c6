//! Who wrote what, from the API server's audit log.

use std::cell::{Cell, RefCell};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde_json::Value;

/// The writes of operators since this value was made, leases apart.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    read: Cell<u64>,
    writes: RefCell<Vec<Write>>,
}

/// One request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) verb: String,
    /// With the subresource, such as `mcpservers/status`.
    pub(crate) resource: String,
    pub(crate) name: String,
    pub(crate) code: u64,
}

impl Audit {
    pub(crate) fn of(path: PathBuf) -> Self {
        let read = Cell::new(std::fs::metadata(&path).map_or(0, |file| file.len()));
        Self { path, read, writes: RefCell::default() }
    }

    pub(crate) fn writes(&self) -> Vec<Write> {
        let mut file = std::fs::File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.read.get())).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read.set(self.read.get() + u64::try_from(whole).unwrap());
        let new = text[..whole].lines().filter_map(|line| operators_write(&serde_json::from_str(line).unwrap()));
        self.writes.borrow_mut().extend(new);
        self.writes.borrow().clone()
    }
}

fn operators_write(entry: &Value) -> Option<Write> {
    let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (resource, below) = (text("/objectRef/resource"), text("/objectRef/subresource"));
    let ours = text("/userAgent").starts_with("mcp-hub-operator/") && text("/stage") == "ResponseComplete";
    (ours && resource != "leases").then(|| Write {
        verb: text("/verb"),
        resource: if below.is_empty() { resource } else { format!("{resource}/{below}") },
        name: text("/objectRef/name"),
        code: entry.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default(),
    })
}

/// Writes of each kind, for messages.
pub(crate) fn tally(writes: &[Write]) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for Write { verb, resource, code, .. } in writes {
        *counts.entry(format!("{verb} {resource} {code}")).or_default() += 1;
    }
    format!("{counts:#?}")
}
