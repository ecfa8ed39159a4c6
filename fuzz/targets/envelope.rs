//! Any bytes are a message or are refused; of a message that is one, splicing changes what it is to change and no byte else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_hub_mcp::envelope::{Envelope, Params, splice, string, write_request};
use mcp_hub_mcp::object::RawObject;

fuzz_target!(|data: &[u8]| {
    let Ok(envelope) = Envelope::parse(data) else { return };
    let method = envelope.method();
    let params = Params::of(envelope.params);
    let meta = params.meta();
    for raw in [params.name, params.uri, params.cursor, params.request_id, meta.progress_token].into_iter().flatten() {
        string(raw);
        replaced(data, raw.get().as_bytes(), splice(data, &[(raw, b"\"new\"")]));
    }
    if let Some(id) = envelope.id {
        let spliced = splice(data, &[(id, b"\"new\"")]);
        replaced(data, id.get().as_bytes(), spliced.clone());
        let again = Envelope::parse(&spliced).expect("a message with another id is a message");
        assert_eq!(again.id.map(|id| id.get()), Some("\"new\""));
        assert_eq!(again.kind(), envelope.kind());
        assert_eq!(again.method(), method);
    }
    if let Some(object) = envelope.params.and_then(|raw| RawObject::parse(raw.get())) {
        let written = object.to_string();
        assert_eq!(RawObject::parse(&written).expect("what was written is read").to_string(), written);
    }
    if !method.is_empty() {
        let (id, params) = (envelope.id.map(|raw| raw.get()), envelope.params.map(|raw| raw.get()));
        let written = write_request(id, &method, params);
        let read = Envelope::parse(&written).expect("what was written is read");
        assert_eq!((read.id.map(|raw| raw.get()), read.method()), (id, method));
        assert_eq!(read.params.map(|raw| raw.get()), params);
    }
});

/// Holds a splice of one part, which lies in `data`, against what it should be.
fn replaced(data: &[u8], part: &[u8], spliced: Vec<u8>) {
    let at = part.as_ptr() as usize - data.as_ptr() as usize;
    assert_eq!(spliced, [&data[..at], b"\"new\"", &data[at + part.len()..]].concat());
}
