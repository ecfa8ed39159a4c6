//! A link's two ends on a server's stdin and stdout.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use mcp_hub_mcp::framing::{LINE_MAX, Line, Lines};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};

use crate::link::{Link, Outgoing, Queued};

/// Messages that are written with one call.
const AT_ONCE: usize = 16;
/// A pipe holds as much on Linux, so that one call empties it; untouched, the memory is not used.
const READ_AHEAD: usize = 64 << 10;

/// Takes over the server's pipes. The link is closed when either ends.
pub fn attach(link: &Link, outgoing: Outgoing, stdin: ChildStdin, stdout: ChildStdout) {
    tokio::spawn(write(link.clone(), stdin, outgoing));
    tokio::spawn(read(link.clone(), stdout));
}

async fn write(link: Link, mut stdin: ChildStdin, mut outgoing: Outgoing) {
    let pump = async {
        let mut waiting = VecDeque::new();
        while let Some(queued) = outgoing.recv().await {
            waiting.push_back(as_line(queued));
            while waiting.len() < AT_ONCE
                && let Ok(queued) = outgoing.try_recv()
            {
                waiting.push_back(as_line(queued));
            }
            if write_lines(&mut stdin, &mut waiting).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = pump => {}
        // A server that does not read must not keep its messages for ever.
        () = link.closed() => {}
    }
    link.close();
}

/// The message with its line end. A line break inside is legal JSON and would cut the line: it can only stand between
/// tokens, where a space means the same.
fn as_line(mut queued: Queued) -> Queued {
    let mut rest = &mut queued.message[..];
    while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
        rest[at] = b' ';
        rest = &mut rest[at + 1..];
    }
    queued.message.push(b'\n');
    queued
}

/// Writes the lines with as few calls as the pipe lets it. Each is delivered with its end, without which it is no message:
/// what fails before was not seen by anybody.
async fn write_lines(stdin: &mut ChildStdin, waiting: &mut VecDeque<Queued>) -> io::Result<()> {
    // How much of the first has been written.
    let mut written = 0;
    while !waiting.is_empty() {
        let mut parts = [IoSlice::new(&[]); AT_ONCE];
        for (part, queued) in parts.iter_mut().zip(&*waiting) {
            *part = IoSlice::new(&queued.message);
        }
        parts[0].advance(written);
        match stdin.write_vectored(&parts[..waiting.len().min(AT_ONCE)]).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => written += count,
        }
        while let Some(first) = waiting.pop_front_if(|first| first.message.len() <= written) {
            written -= first.message.len();
            first.delivered();
        }
    }
    Ok(())
}

async fn read(link: Link, mut stdout: ChildStdout) {
    let mut lines = Lines::new(LINE_MAX);
    let mut buffer = vec![0; READ_AHEAD];
    let mut finished = Vec::new();
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        lines.feed_into(&buffer[..count], || link.spare(), |line| finished.push(line));
        for line in finished.drain(..) {
            match line {
                // Not read on while clients do not take what was written: the server's writes wait then.
                Line::Whole(bytes) => link.on_message(bytes).await,
                Line::Oversize { head, tail, bytes } => link.on_oversize(&head, &tail, bytes),
            }
        }
    }
    link.close();
}
