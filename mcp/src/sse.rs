//! Server-Sent Events (WHATWG HTML, "Server-sent events"), as Streamable HTTP uses them.

use bytes::{Bytes, BytesMut};

/// One comment line; keeps proxies and clients from giving up on a silent stream.
pub const COMMENT: &[u8] = b":\n\n";

/// A `message` event with these data, which hold no line break (a compact JSON message never does).
pub fn event(data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 24);
    out.extend_from_slice(b"event: message\n");
    // Pretty-printed JSON is legal input and would end the event early: each line becomes a data line.
    for line in data.split(|byte| *byte == b'\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        out.extend_from_slice(b"\n");
    }
    out.extend_from_slice(b"\n");
    out.freeze()
}

/// An event larger than the decoder's limit. The stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is larger than {limit} bytes")]
pub struct TooLarge {
    pub limit: usize,
}

/// Takes bytes as they come and gives the data of each finished event. Event names and ids have no meaning in MCP
/// beyond resumption, which ends with a connection here, and are skipped.
#[derive(Debug)]
pub struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed right after it belongs to it.
    after_return: bool,
    at_start: bool,
    limit: usize,
}

impl Decoder {
    /// `limit` bounds one event, in bytes.
    pub fn new(limit: usize) -> Self {
        Self { line: Vec::new(), data: Vec::new(), has_data: false, after_return: false, at_start: true, limit }
    }

    /// Feeds `bytes`; `on_event` gets the data of each event that they finish.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(Vec<u8>)) -> Result<(), TooLarge> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            match memchr::memchr2(b'\n', b'\r', bytes) {
                None => {
                    self.line.extend_from_slice(bytes);
                    bytes = &[];
                }
                Some(end) => {
                    self.line.extend_from_slice(&bytes[..end]);
                    self.after_return = bytes[end] == b'\r';
                    bytes = &bytes[end + 1..];
                    self.end_line(&mut on_event);
                }
            }
            if self.line.len() + self.data.len() > self.limit {
                return Err(TooLarge { limit: self.limit });
            }
        }
        Ok(())
    }

    fn end_line(&mut self, on_event: &mut impl FnMut(Vec<u8>)) {
        let line = std::mem::take(&mut self.line);
        let mut text = &line[..];
        if std::mem::take(&mut self.at_start) {
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        if text.is_empty() {
            if std::mem::take(&mut self.has_data) {
                on_event(std::mem::take(&mut self.data));
            }
            return;
        }
        let (field, value) = match memchr::memchr(b':', text) {
            Some(colon) => (&text[..colon], &text[colon + 1..]),
            None => (text, &b""[..]),
        };
        if field == b"data" {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(chunks: &[&[u8]]) -> Vec<String> {
        let mut events = Vec::new();
        let mut decoder = Decoder::new(1 << 20);
        for chunk in chunks {
            decoder.feed(chunk, |data| events.push(String::from_utf8(data).unwrap())).unwrap();
        }
        events
    }

    #[test]
    fn events_are_read_with_every_line_end_and_comments_are_skipped() {
        let stream = b"\xef\xbb\xbfdata: a\n\n: comment\r\nid: 3\r\ndata:b\r\ndata: c\r\n\r\nevent: x\rdata\r\r";
        assert_eq!(decode(&[stream]), ["a", "b\nc", ""]);
    }

    #[test]
    fn an_unfinished_event_is_not_given() {
        assert_eq!(decode(&[b"data: a\n"]), Vec::<String>::new());
    }

    #[test]
    fn an_endless_event_is_refused_before_it_fills_the_memory() {
        let mut decoder = Decoder::new(10);
        assert_eq!(decoder.feed(b"data: 0123456789", |_| ()), Err(TooLarge { limit: 10 }));
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_events_are_the_same(
            lines in proptest::collection::vec("(data: [a-z]{0,4}|:|id: 1|)", 0..20),
            end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            cut in 0..100_usize,
        ) {
            let stream: String = lines.iter().map(|line| format!("{line}{end}")).collect();
            let cut = cut.min(stream.len());
            let (a, b) = stream.as_bytes().split_at(cut);
            prop_assert_eq!(decode(&[a, b]), decode(&[stream.as_bytes()]));
        }

        #[test]
        fn what_is_encoded_is_decoded(data in "[^\r\n]*(\n[^\r\n]*)?") {
            prop_assert_eq!(decode(&[&event(data.as_bytes())]), vec![data]);
        }
    }
}
