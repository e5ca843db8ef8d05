//! A program that connects and says who it is, for the tests that tell callers apart.
//!
//! `connector say ADDRESS COUNT` connects that often, one after the other; each time it writes its process id and user id
//! as one line and waits for the end. `connector from PORT ADDRESS` does it once, from that port. `connector hold ADDRESS
//! COUNT` begins so many connections at once and keeps them until it is ended. With `CONNECTOR_CGROUP` set it first moves
//! into that cgroup. Every connection ends with a reset, so that its port is free again at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

fn main() -> Result<()> {
    if let Some(cgroup) = std::env::var_os("CONNECTOR_CGROUP") {
        let procs = std::path::Path::new(&cgroup).join("cgroup.procs");
        std::fs::write(&procs, std::process::id().to_string()).with_context(|| format!("{}", procs.display()))?;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["say", address, count] => say(address.parse()?, count.parse()?),
        ["from", port, address] => tell(&from(port.parse()?, address.parse()?)?),
        ["hold", address, count] => hold(address.parse()?, count.parse()?),
        other => bail!("not understood: {other:?}"),
    }
}

fn say(address: SocketAddr, count: usize) -> Result<()> {
    for number in 0..count {
        let stream = TcpStream::connect(address).with_context(|| format!("connection {number} to {address}"))?;
        tell(&stream)?;
    }
    Ok(())
}

fn from(port: u16, address: SocketAddr) -> Result<TcpStream> {
    let socket = tcp_socket(&address, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address.ip(), port)))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(TcpStream::from(socket))
}

fn tell(mut stream: &TcpStream) -> Result<()> {
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    writeln!(stream, "{} {}", std::process::id(), nix::unistd::geteuid())?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn hold(address: SocketAddr, count: usize) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..count {
        let socket = tcp_socket(&address, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
            Ok(()) | Err(Errno::EINPROGRESS) => held.push(socket),
            Err(error) => return Err(error.into()),
        }
    }
    writeln!(std::io::stdout(), "holding {}", held.len())?;
    // Until it is ended.
    loop {
        nix::unistd::pause();
    }
}

fn tcp_socket(address: &SocketAddr, flags: SockFlag) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, flags, None)?)
}
