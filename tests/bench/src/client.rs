//! The smallest HTTP/1.1 client: one connection, one request at a time, no more than is needed to find an answer's end.

use std::io;
use std::net::SocketAddr;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// What was read; a response begins at 0.
    buffer: Vec<u8>,
    /// The body of a response that came in chunks.
    joined: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Response<'a> {
    pub(crate) status: u16,
    pub(crate) session: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

/// What a response's head says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Bytes up to the body.
    length: usize,
    body: usize,
    chunked: bool,
    /// Where in the head the session id stands.
    session: Option<std::ops::Range<usize>>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(64 << 10), joined: Vec::new() })
    }

    /// Sends a whole request and reads the whole response.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<Response<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            self.read().await?;
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                break head(&self.buffer[..end + 4]).ok_or_else(|| broken("a response's head"))?;
            }
        };
        let body = if head.chunked {
            self.chunks(head.length).await?;
            &self.joined[..]
        } else {
            while self.buffer.len() < head.length + head.body {
                self.read().await?;
            }
            &self.buffer[head.length..head.length + head.body]
        };
        let session = head.session.and_then(|place| std::str::from_utf8(&self.buffer[place]).ok());
        Ok(Response { status: head.status, session, body })
    }

    async fn read(&mut self) -> io::Result<()> {
        self.buffer.reserve(16 << 10);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn chunks(&mut self, mut at: usize) -> io::Result<()> {
        self.joined.clear();
        loop {
            let Some(line) = memmem::find(&self.buffer[at..], b"\r\n") else {
                self.read().await?;
                continue;
            };
            let digits = std::str::from_utf8(&self.buffer[at..at + line]).unwrap_or_default();
            let digits = digits.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(digits, 16).map_err(|_| broken("a chunk's length"))?;
            at += line + 2;
            while self.buffer.len() < at + size + 2 {
                self.read().await?;
            }
            self.joined.extend_from_slice(&self.buffer[at..at + size]);
            at += size + 2;
            if size == 0 {
                return Ok(());
            }
        }
    }
}

fn head(bytes: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut head = Head { status, length: bytes.len(), ..Head::default() };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.body = value.parse().ok()?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("mcp-session-id") {
            let start = value.as_ptr() as usize - text.as_ptr() as usize;
            head.session = Some(start..start + value.len());
        }
    }
    Some(head)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client reads from a server that writes these pieces, one after the other.
    async fn read(pieces: &'static [&'static str]) -> (u16, Option<String>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut connection = Connection::open(address).await.unwrap();
        let response = connection.exchange(b"ping").await.unwrap();
        let session = response.session.map(str::to_owned);
        let read = (response.status, session, String::from_utf8(response.body.to_vec()).unwrap());
        server.await.unwrap();
        read
    }

    #[tokio::test]
    async fn a_response_of_known_length_is_read_to_its_end() {
        let pieces = &["HTTP/1.1 200 OK\r\nMcp-Session-Id: abc\r\ncontent-", "length: 5\r\n\r\nhel", "lo"];
        assert_eq!(read(pieces).await, (200, Some("abc".to_owned()), "hello".to_owned()));
    }

    #[tokio::test]
    async fn chunks_are_joined() {
        let pieces =
            &["HTTP/1.1 404 No\r\ntransfer-encoding: chunked\r\n\r\n3\r", "\nhel\r\n2;x\r\nl", "o\r\n0\r\n\r\n"];
        assert_eq!(read(pieces).await, (404, None, "hello".to_owned()));
    }
}
