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

/// Takes bytes as they come and gives the data of each finished event. Ids have no meaning in MCP beyond resumption, which
/// ends with a connection here, and are skipped.
#[derive(Debug)]
pub struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    name: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed right after it belongs to it.
    after_return: bool,
    at_start: bool,
    limit: usize,
}

impl Decoder {
    /// `limit` bounds one event, in bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            name: Vec::new(),
            has_data: false,
            after_return: false,
            at_start: true,
            limit,
        }
    }

    /// Feeds `bytes`; `on_event` gets the data of each event that they finish. In MCP all of them are messages, whatever
    /// they are called, but for the first of [`http_sse`](crate::http_sse).
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Vec<u8>)) -> Result<(), TooLarge> {
        self.feed_named(bytes, |_, data| on_event(data))
    }

    /// The same with the name of each event, empty for one without.
    pub fn feed_named(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(&[u8], Vec<u8>)) -> Result<(), TooLarge> {
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
            if self.line.len() + self.data.len() + self.name.len() > self.limit {
                return Err(TooLarge { limit: self.limit });
            }
        }
        Ok(())
    }

    fn end_line(&mut self, on_event: &mut impl FnMut(&[u8], Vec<u8>)) {
        let line = std::mem::take(&mut self.line);
        let mut text = &line[..];
        if std::mem::take(&mut self.at_start) {
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        if text.is_empty() {
            let name = std::mem::take(&mut self.name);
            if std::mem::take(&mut self.has_data) {
                on_event(&name, std::mem::take(&mut self.data));
            }
            return;
        }
        let (field, value) = match memchr::memchr(b':', text) {
            Some(colon) => (&text[..colon], &text[colon + 1..]),
            None => (text, &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => value.clone_into(&mut self.name),
            _ => {}
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
    fn an_event_has_the_name_that_was_given_last_and_leaves_none_to_the_next() {
        let mut events = Vec::new();
        let stream = b"event: a\nevent:b\ndata: 1\n\nevent: lost\n\ndata: 2\n\n";
        Decoder::new(100).feed_named(stream, |name, data| events.push((name.to_vec(), data))).unwrap();
        assert_eq!(events, [(b"b".to_vec(), b"1".to_vec()), (Vec::new(), b"2".to_vec())]);
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
