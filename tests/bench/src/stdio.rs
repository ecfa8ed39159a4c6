//! The echo server on its pipes. Answers wait for nothing but the next request's absence, as with any buffered writer.

use std::io::{self, BufRead, BufReader, BufWriter, Write};

use crate::echo::Echo;

pub(crate) fn serve(tools: usize) -> io::Result<()> {
    let echo = Echo::new(tools);
    let mut input = BufReader::with_capacity(64 << 10, io::stdin().lock());
    let mut output = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if let Some(answer) = echo.answer(&line) {
            for part in &answer.parts {
                output.write_all(part)?;
            }
            output.write_all(b"\n")?;
        }
        if memchr::memchr(b'\n', input.buffer()).is_none() {
            output.flush()?;
        }
    }
}
