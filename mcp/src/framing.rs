//! Newline framing of MCP over stdio (MCP specification, "Transports: stdio").

/// Largest line, in bytes: answers with embedded images reach tens of megabytes.
pub const LINE_MAX: usize = 32 << 20;

/// A line of a stdio stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Without its line end; never empty.
    Whole(Vec<u8>),
    /// A line longer than the limit: its first bytes and its last ones, between which the rest was dropped. The id of a
    /// response stands in one of the two.
    Oversize { head: Vec<u8>, tail: Vec<u8>, bytes: u64 },
}

/// Bytes kept of each end of an oversize line.
const KEPT: usize = 256;

/// Bytes by which a line may grow in its memory.
const SLACK: usize = 48;

/// A line that fills less than this part of its memory is copied out of it.
const ROOMY: usize = 8;

/// Cuts a byte stream into lines, in memory bounded by the limit.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    limit: usize,
    /// Length of an oversize line so far, whose beginning is `head` and whose end is in `buffer`.
    skipping: Option<(Vec<u8>, u64)>,
}

impl Lines {
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), limit: limit.max(2 * KEPT), skipping: None }
    }

    /// Feeds `bytes`; `on_line` gets each line that they finish.
    pub fn feed(&mut self, bytes: &[u8], on_line: impl FnMut(Line)) {
        self.feed_into(bytes, Vec::new, on_line);
    }

    /// The same, with empty memory of the caller's for a line that begins.
    pub fn feed_into(&mut self, mut bytes: &[u8], spare: impl Fn() -> Vec<u8>, mut on_line: impl FnMut(Line)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            self.take(&bytes[..end], &spare);
            bytes = &bytes[end + 1..];
            self.end_line(&mut on_line);
        }
        self.take(bytes, &spare);
    }

    fn take(&mut self, bytes: &[u8], spare: impl Fn() -> Vec<u8>) {
        if self.skipping.is_none() && self.buffer.len() + bytes.len() > self.limit {
            // What the line took so far is given back: both ends are copies.
            let line = std::mem::take(&mut self.buffer);
            let head = line.iter().chain(bytes).take(KEPT).copied().collect();
            self.buffer = line[line.len().saturating_sub(KEPT)..].to_vec();
            self.skipping = Some((head, line.len() as u64));
        }
        match &mut self.skipping {
            None => {
                if self.buffer.capacity() == 0 && !bytes.is_empty() {
                    self.buffer = spare();
                    // Whoever gets the line can put a longer id into it.
                    self.buffer.reserve_exact(bytes.len() + SLACK);
                }
                self.buffer.extend_from_slice(bytes);
            }
            Some((_, length)) => {
                *length += bytes.len() as u64;
                self.buffer.extend_from_slice(&bytes[bytes.len().saturating_sub(KEPT)..]);
                let surplus = self.buffer.len().saturating_sub(KEPT);
                self.buffer.drain(..surplus);
            }
        }
    }

    fn end_line(&mut self, on_line: &mut impl FnMut(Line)) {
        if let Some((head, bytes)) = self.skipping.take() {
            return on_line(Line::Oversize { head, tail: std::mem::take(&mut self.buffer), bytes });
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        if self.buffer.trim_ascii().is_empty() {
            return self.buffer.clear();
        }
        if self.buffer.len() < self.buffer.capacity() / ROOMY {
            // A short line must not take a long one's memory with it.
            let mut line = Vec::with_capacity(self.buffer.len() + SLACK);
            line.extend_from_slice(&self.buffer);
            on_line(Line::Whole(line));
            return self.buffer.clear();
        }
        on_line(Line::Whole(std::mem::take(&mut self.buffer)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(limit: usize, chunks: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, |line| found.push(line));
        }
        found
    }

    #[test]
    fn blank_lines_and_carriage_returns_are_dropped() {
        assert_eq!(cut(1000, &[b"a\r\n\n \nb\nc"]), [Line::Whole(b"a".to_vec()), Line::Whole(b"b".to_vec())]);
    }

    #[test]
    fn a_callers_memory_holds_a_long_line_and_is_not_given_away_with_a_short_one() {
        let (mut lines, mut found) = (Lines::new(1 << 20), Vec::new());
        let lent = std::cell::Cell::new(0);
        let spare = || {
            lent.set(lent.get() + 1);
            Vec::with_capacity(1000)
        };
        let text = [&b"short\nshort\n"[..], &[b'x'; 900], b"\nshort\nrest"].concat();
        lines.feed_into(&text, spare, |line| found.push(line));
        let Line::Whole(long) = &found[2] else { panic!("{found:?}") };
        assert_eq!((long.capacity(), long.len(), lent.get()), (1000, 900, 2));
        for short in [0, 1, 3] {
            assert_eq!(found[short], Line::Whole(b"short".to_vec()));
        }
    }

    #[test]
    fn of_an_oversize_line_both_ends_are_kept_and_the_next_line_is_whole() {
        let long = format!("start{}end\nnext\n", "x".repeat(5000));
        for size in [1, 7, 600, 10_000] {
            let chunks: Vec<&[u8]> = long.as_bytes().chunks(size).collect();
            let lines = cut(1000, &chunks);
            let Line::Oversize { head, tail, bytes } = &lines[0] else { panic!("{lines:?}") };
            assert!(head.starts_with(b"start") && tail.ends_with(b"end"), "{size}");
            assert_eq!((*bytes, head.len(), tail.len()), (5008, KEPT, KEPT), "{size}");
            assert_eq!(lines[1], Line::Whole(b"next".to_vec()));
        }
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_lines_are_the_same(text in "([a-z]{0,900}\n?){0,6}", at in 0..2000_usize) {
            let at = at.min(text.len());
            let (a, b) = text.as_bytes().split_at(at);
            prop_assert_eq!(cut(600, &[a, b]), cut(600, &[text.as_bytes()]));
        }
    }
}
