//! A link's two ends on a server's stdin and stdout.

use mcp_hub_mcp::framing::{LINE_MAX, Line, Lines};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};

use crate::link::{Link, Outgoing};

/// Takes over the server's pipes. The link is closed when either ends.
pub fn attach(link: &Link, outgoing: Outgoing, stdin: ChildStdin, stdout: ChildStdout) {
    tokio::spawn(write(link.clone(), stdin, outgoing));
    tokio::spawn(read(link.clone(), stdout));
}

async fn write(link: Link, mut stdin: ChildStdin, mut outgoing: Outgoing) {
    let pump = async {
        while let Some(mut queued) = outgoing.recv().await {
            let message = &mut queued.message;
            // A line break inside a message is legal JSON and would cut the line: it can only stand between tokens, where
            // a space means the same.
            for byte in message.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
                *byte = b' ';
            }
            message.push(b'\n');
            // Without its end a line is no message: what fails here was not seen by anybody.
            if stdin.write_all(message).await.is_err() || stdin.flush().await.is_err() {
                break;
            }
            queued.delivered();
        }
    };
    tokio::select! {
        () = pump => {}
        // A server that does not read must not keep its messages for ever.
        () = link.closed() => {}
    }
    link.close();
}

async fn read(link: Link, mut stdout: ChildStdout) {
    let mut lines = Lines::new(LINE_MAX);
    let mut buffer = vec![0; 16 << 10];
    let mut finished = Vec::new();
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        lines.feed(&buffer[..count], |line| finished.push(line));
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
