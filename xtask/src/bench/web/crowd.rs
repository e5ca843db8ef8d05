//! Many clients from one thread: connections that each ask once, and WebSocket subscribers that listen.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// How long one answer may take while everybody asks, and how long subscribers are listened to.
const PATIENCE: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_millis(100);

/// Open connections.
pub(super) struct Crowd {
    connections: Vec<TcpStream>,
}

impl Crowd {
    pub(super) fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let connect = |number| -> Result<TcpStream> {
            let stream = TcpStream::connect(address).with_context(|| format!("connection {number} to {address}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        Ok(Self { connections: (0..count).map(connect).collect::<Result<_>>()? })
    }

    /// Has every one ask, then reads every answer to its end; returns how many were right.
    pub(super) fn ask_all(&mut self, path: &str) -> Result<usize> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for stream in &mut self.connections {
            stream.write_all(request.as_bytes())?;
        }
        Ok(self.connections.iter_mut().filter_map(|stream| answer(stream).ok()).count())
    }
}

/// Reads one answer that names its length.
fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut answer = Vec::new();
    let mut buffer = [0; 32 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "closed instead of an answer");
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("HTTP/1.1 200"), "refused: {head}");
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .context("an answer names its length")?
            .parse()?;
        if body.len() >= length {
            return Ok(());
        }
    }
}

/// Sockets that were upgraded.
pub(super) struct Subscribers {
    sockets: Vec<(TcpStream, Vec<u8>)>,
}

impl Subscribers {
    pub(super) fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let subscribe = |number: usize| -> Result<(TcpStream, Vec<u8>)> {
            let mut stream = TcpStream::connect(address).with_context(|| format!("subscriber {number}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(
                b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )?;
            let mut heard = vec![0; 64 * 1024];
            let count = stream.read(&mut heard)?;
            heard.truncate(count);
            ensure!(heard.starts_with(b"HTTP/1.1 101"), "no upgrade: {}", String::from_utf8_lossy(&heard));
            stream.set_nonblocking(true)?;
            Ok((stream, heard))
        };
        Ok(Self { sockets: (0..count).map(subscribe).collect::<Result<_>>()? })
    }

    /// Listens until nothing comes any more and sums what `count` finds in the text of each.
    pub(super) fn hear(mut self, count: &dyn Fn(&str) -> usize) -> Result<usize> {
        let begun = Instant::now();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let mut was_quiet = true;
            for (stream, heard) in &mut self.sockets {
                match stream.read(&mut buffer) {
                    Ok(0) => continue,
                    Ok(read) => {
                        heard.extend_from_slice(&buffer[..read]);
                        was_quiet = false;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("a subscriber"),
                }
            }
            if was_quiet || begun.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(QUIET);
        }
        // Text frames of the server carry their text as it is.
        Ok(self.sockets.iter().map(|(_, heard)| count(&String::from_utf8_lossy(heard))).sum())
    }
}
