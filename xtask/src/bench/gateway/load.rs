//! A closed loop over many connections from one thread: as soon as a reply is whole, the next request leaves.
//!
//! A protocol is bytes here: one request, and how long its reply is, learnt from the first exchange and the same ever
//! after. So the generator costs the same for every server and every protocol, and a reply of another length is noticed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How long a first exchange may take, and how long a quiet stream tells that a reply was whole.
const PATIENCE: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(200);
const EVENTS: usize = 256;

/// What is said on a connection.
#[derive(Debug, Clone)]
pub(super) struct Protocol {
    /// Said once, answered by a head that ends with an empty line.
    pub(super) hello: Option<Vec<u8>>,
    pub(super) request: Vec<u8>,
    /// What every first reply holds.
    pub(super) proof: &'static str,
}

impl Protocol {
    /// `GET PATH` with keep-alive.
    pub(super) fn http(host: &str, path: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
        Self { hello: None, request, proof: "\"alpha\"" }
    }

    /// `/ping` as a JSON-RPC call in a masked text frame.
    pub(super) fn web_socket() -> Self {
        let hello = "GET /connect HTTP/1.1\r\nHost: pm3\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let call = br#"{"id":1,"method":"/ping","params":[]}"#;
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut request = vec![0x81, 0x80 | call.len() as u8];
        request.extend_from_slice(&mask);
        request.extend(call.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        Self { hello: Some(hello.into()), request, proof: "\"alpha\"" }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) replies: u64,
    pub(super) per_second: f64,
    /// Connections that never got a reply.
    pub(super) starved: usize,
}

struct Connection {
    stream: TcpStream,
    received: usize,
    replies: u64,
}

/// Open connections that are ready to be asked.
pub(super) struct Crowd {
    connections: Vec<Connection>,
    protocol: Protocol,
    reply_bytes: usize,
}

impl Crowd {
    /// Opens `count` connections and has the first one answer once.
    pub(super) fn open(address: SocketAddr, protocol: &Protocol, count: usize) -> Result<Self> {
        let mut connections = Vec::with_capacity(count);
        let mut reply_bytes = 0;
        for number in 0..count {
            let mut stream =
                TcpStream::connect(address).with_context(|| format!("connection {number} to {address}"))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            if let Some(hello) = &protocol.hello {
                stream.write_all(hello)?;
                agreed(&mut stream)?;
            }
            if number == 0 {
                reply_bytes = first_exchange(&mut stream, protocol)?;
            }
            stream.set_nonblocking(true)?;
            connections.push(Connection { stream, received: 0, replies: 0 });
        }
        Ok(Self { connections, protocol: protocol.clone(), reply_bytes })
    }

    /// Keeps `in_flight` requests under way on every connection for `duration`.
    pub(super) fn run(&mut self, in_flight: usize, duration: Duration) -> Result<Outcome> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let burst = self.protocol.request.repeat(in_flight);
        for (number, connection) in self.connections.iter_mut().enumerate() {
            (connection.received, connection.replies) = (0, 0);
            epoll.add(&connection.stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
            connection.stream.write_all(&burst).context("the first requests")?;
        }
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = vec![0; 256 * 1024];
        let started = Instant::now();
        while started.elapsed() < duration {
            let count = epoll.wait(&mut events, EpollTimeout::from(100_u16))?;
            for event in &events[..count] {
                let connection = &mut self.connections[event.data() as usize];
                let answered = connection.read(&mut buffer, self.reply_bytes)?;
                connection.stream.write_all(&burst[..answered * self.protocol.request.len()])?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let replies = self.connections.iter().map(|connection| connection.replies).sum();
        let starved = self.connections.iter().filter(|connection| connection.replies == 0).count();
        self.settle(in_flight, &mut buffer)?;
        Ok(Outcome { replies, per_second: replies as f64 / seconds, starved })
    }

    /// Takes what is still under way, so that another run begins clean.
    fn settle(&mut self, in_flight: usize, buffer: &mut [u8]) -> Result<()> {
        for connection in &mut self.connections {
            let wanted = (connection.replies as usize + in_flight) * self.reply_bytes;
            connection.stream.set_nonblocking(false)?;
            let mut total = connection.replies as usize * self.reply_bytes + connection.received;
            while total < wanted {
                let count = connection.stream.read(buffer).context("the last replies")?;
                ensure!(count > 0, "a connection was closed with replies under way");
                total += count;
            }
            ensure!(total == wanted, "a reply had another length");
            connection.stream.set_nonblocking(true)?;
        }
        Ok(())
    }
}

impl Connection {
    /// How many replies became whole.
    fn read(&mut self, buffer: &mut [u8], reply_bytes: usize) -> Result<usize> {
        let count = match self.stream.read(buffer) {
            Ok(0) => bail!("a connection was closed after {} replies", self.replies),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error).context("a reply"),
        };
        self.received += count;
        let whole = self.received / reply_bytes;
        self.received %= reply_bytes;
        self.replies += whole as u64;
        Ok(whole)
    }
}

fn agreed(stream: &mut TcpStream) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(stream.read(&mut byte)? == 1, "closed during the handshake: {}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "no upgrade: {}", String::from_utf8_lossy(&head));
    Ok(())
}

fn first_exchange(stream: &mut TcpStream, protocol: &Protocol) -> Result<usize> {
    stream.write_all(&protocol.request)?;
    let mut reply = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => bail!("closed instead of a reply: {}", String::from_utf8_lossy(&reply)),
            Ok(count) => reply.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => return Err(error.into()),
        }
        stream.set_read_timeout(Some(QUIET))?;
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let text = String::from_utf8_lossy(&reply);
    ensure!(text.contains(protocol.proof), "another reply than expected: {text}");
    Ok(reply.len())
}
