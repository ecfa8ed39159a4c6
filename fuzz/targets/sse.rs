//! However a stream is cut, its events are the same; what is encoded is decoded; no more is held than the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_hub_mcp::sse::{Decoder, TooLarge, event};

fn decode(chunks: &[&[u8]], limit: usize) -> Result<Vec<Vec<u8>>, TooLarge> {
    let (mut decoder, mut events) = (Decoder::new(limit), Vec::new());
    for chunk in chunks {
        decoder.feed(chunk, |data| events.push(data))?;
    }
    Ok(events)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, stream)) = data.split_first() else { return };
    let (a, b) = stream.split_at(usize::from(*cut).min(stream.len()));
    let whole = decode(&[stream], 1 << 20).expect("it is small");
    assert_eq!(decode(&[a, b], 1 << 20).expect("it is small"), whole);
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(decode(&bytes, 1 << 20).expect("it is small"), whole);
    if let Ok(events) = decode(&bytes, 16) {
        assert!(events.iter().all(|event| event.len() <= 16));
    }
    // A lone carriage return ends a line, too, and stands in no message.
    if !stream.contains(&b'\r') {
        assert_eq!(decode(&[&event(stream)], 1 << 20).expect("it is small"), [stream.to_vec()]);
    }
});
