//! However a stream is cut, its lines are the same; of what is too long, both ends are kept.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_hub_mcp::framing::{Line, Lines};

/// The smallest there is, so that lines over it are found.
const LIMIT: usize = 512;

fn cut(chunks: &[&[u8]]) -> Vec<Line> {
    let (mut lines, mut found) = (Lines::new(LIMIT), Vec::new());
    for chunk in chunks {
        lines.feed(chunk, |line| found.push(line));
    }
    found
}

fuzz_target!(|data: &[u8]| {
    let Some((cut_at, stream)) = data.split_first_chunk::<2>() else { return };
    let (a, b) = stream.split_at(usize::from(u16::from_be_bytes(*cut_at)).min(stream.len()));
    let whole = cut(&[stream]);
    assert_eq!(cut(&[a, b]), whole);
    assert_eq!(cut(&stream.chunks(1).collect::<Vec<_>>()), whole);
    let ended = &stream[..stream.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)];
    let wanted = ended.split_inclusive(|byte| *byte == b'\n').filter_map(|line| {
        let line = &line[..line.len() - 1];
        if line.len() > LIMIT {
            return Some((line, true));
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        (!line.trim_ascii().is_empty()).then_some((line, false))
    });
    let wanted: Vec<(&[u8], bool)> = wanted.collect();
    assert_eq!(whole.len(), wanted.len());
    for (line, (wanted, is_oversize)) in whole.iter().zip(wanted) {
        match line {
            Line::Whole(line) => assert_eq!((&line[..], false), (wanted, is_oversize)),
            Line::Oversize { head, tail, bytes } => {
                assert!(is_oversize && wanted.starts_with(head) && wanted.ends_with(tail));
                assert!(head.len() == 256 && tail.len() == 256 && *bytes == wanted.len() as u64);
            }
        }
    }
});
