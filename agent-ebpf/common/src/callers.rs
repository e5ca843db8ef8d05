//! What the caller programs and user space agree on.
//!
//! | map | key | value | written by |
//! |---|---|---|---|
//! | [`DESTINATIONS`] | [`Endpoint`] | 1 | user space |
//! | [`PENDING`] | [`Connection`] | [`CallerRecord`] | the programs |
//! | [`CALLERS`] | a socket | [`CallerRecord`] | the programs |
//! | [`STEERED`] | [`Endpoint`] with netns 0 | index into [`LISTENERS`] | user space |
//! | [`LISTENERS`] | index | a listening socket | user space |
//! | [`COUNTS`] | [`Count`] | number, one per CPU | the programs |
//!
//! Addresses are in network byte order, IPv4 ones mapped into IPv6; everything else is in host byte order. Whoever
//! changes a shape here raises [`LAYOUT`]: pinned maps of another layout are never opened.

/// The version of everything in this file; part of the pin directory's name.
pub const LAYOUT: u32 = 1;

/// Whose connections are recorded: the addresses the gateway listens on.
pub const DESTINATIONS: &str = "DESTINATIONS";
/// Who is connecting, from `connect` until the connection stands.
pub const PENDING: &str = "PENDING";
/// Socket storage: who is calling, first on the caller's socket, then on the accepted one.
pub const CALLERS: &str = "CALLERS";
/// Which addresses are sent to which listener.
pub const STEERED: &str = "STEERED";
/// The listeners.
pub const LISTENERS: &str = "LISTENERS";
/// What the programs did.
pub const COUNTS: &str = "COUNTS";

/// The program at `connect` to an IPv4 address.
pub const CONNECT4: &str = "weft_connect4";
/// The program at `connect` to an IPv6 address.
pub const CONNECT6: &str = "weft_connect6";
/// The program at the two ends of a TCP handshake.
pub const SOCK_OPS: &str = "weft_sock_ops";
/// The program that picks the listener.
pub const STEER: &str = "weft_steer";

/// How many addresses can be steered at once.
pub const MAX_LISTENERS: u32 = 64;

/// An address and port in a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Endpoint {
    /// The namespace's cookie.
    pub netns: u64,
    pub address: [u32; 4],
    pub port: u32,
    pub reserved: u32,
}

/// A TCP connection in a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Connection {
    /// The cookie of the namespace both ends are in.
    pub netns: u64,
    pub client: [u32; 4],
    pub server: [u32; 4],
    pub client_port: u32,
    pub server_port: u32,
}

/// Who called `connect`, as the kernel saw it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct CallerRecord {
    /// Nanoseconds since boot, suspend included.
    pub connected_at: u64,
    /// Id of the cgroup2 group, which is the inode of its directory.
    pub cgroup: u64,
    /// The network namespace's cookie.
    pub netns: u64,
    /// Cookie of the caller's socket.
    pub socket: u64,
    /// The process (not the thread), as the first pid namespace counts.
    pub pid: u32,
    /// As the first user namespace counts.
    pub uid: u32,
    pub gid: u32,
    pub reserved: u32,
    /// Name of the thread, ended by zeros.
    pub comm: [u8; 16],
}

/// Bytes of a [`CallerRecord`].
pub const RECORD_BYTES: usize = 64;

/// What is counted; an index into [`COUNTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Calls of `connect` to a destination.
    Connects = 0,
    /// Of these, the ones the kernel had no memory to record.
    Unrecorded = 1,
    /// Connections that reached a destination with a record.
    Known = 2,
    /// Connections that reached a destination without one.
    Unknown = 3,
    /// Connections sent to another listener.
    Steered = 4,
}

/// The number of counts.
pub const COUNT_KINDS: u32 = 5;

/// An IPv4 address in network byte order, mapped into IPv6.
#[inline(always)]
pub const fn mapped(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

impl CallerRecord {
    /// The record that lies in memory as these bytes.
    pub const fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let mut comm = [0; 16];
        let mut at = 0;
        while at < comm.len() {
            comm[at] = bytes[48 + at];
            at += 1;
        }
        Self {
            connected_at: long(bytes, 0),
            cgroup: long(bytes, 8),
            netns: long(bytes, 16),
            socket: long(bytes, 24),
            pid: word(bytes, 32),
            uid: word(bytes, 36),
            gid: word(bytes, 40),
            reserved: word(bytes, 44),
            comm,
        }
    }
}

const fn word(bytes: &[u8; RECORD_BYTES], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

const fn long(bytes: &[u8; RECORD_BYTES], at: usize) -> u64 {
    let (low, high) = (word(bytes, at) as u64, word(bytes, at + 4) as u64);
    if cfg!(target_endian = "little") { low | (high << 32) } else { high | (low << 32) }
}

impl Endpoint {
    /// How the endpoint lies in memory.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.netns.to_ne_bytes());
        for (at, part) in self.address.iter().enumerate() {
            bytes[8 + 4 * at..12 + 4 * at].copy_from_slice(&part.to_ne_bytes());
        }
        bytes[24..28].copy_from_slice(&self.port.to_ne_bytes());
        bytes[28..].copy_from_slice(&self.reserved.to_ne_bytes());
        bytes
    }
}

// Without padding: every byte belongs to a field.
const _: () = assert!(size_of::<CallerRecord>() == RECORD_BYTES && align_of::<CallerRecord>() == 8);
const _: () = assert!(core::mem::offset_of!(CallerRecord, pid) == 32);
const _: () = assert!(core::mem::offset_of!(CallerRecord, comm) == 48);
const _: () = assert!(size_of::<Endpoint>() == 8 + 16 + 4 + 4 && core::mem::offset_of!(Endpoint, port) == 24);
const _: () = assert!(size_of::<Connection>() == 8 + 16 + 16 + 4 + 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_lies_in_memory() {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&1_u64.to_ne_bytes());
        bytes[8..16].copy_from_slice(&0x1_0000_0002_u64.to_ne_bytes());
        bytes[16..24].copy_from_slice(&3_u64.to_ne_bytes());
        bytes[24..32].copy_from_slice(&4_u64.to_ne_bytes());
        for (number, at) in (5_u32..).zip([32, 36, 40, 44]) {
            bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        bytes[48..52].copy_from_slice(b"curl");
        let comm = *b"curl\0\0\0\0\0\0\0\0\0\0\0\0";
        let record = CallerRecord {
            connected_at: 1,
            cgroup: 0x1_0000_0002,
            netns: 3,
            socket: 4,
            pid: 5,
            uid: 6,
            gid: 7,
            reserved: 8,
            comm,
        };
        assert_eq!(CallerRecord::from_bytes(&bytes), record);
    }

    #[test]
    fn an_endpoint_is_written_as_it_lies_in_memory() {
        let endpoint = Endpoint { netns: 1, address: mapped(0x7f00_0001_u32.to_be()), port: 80, reserved: 0 };
        let bytes = endpoint.to_bytes();
        assert_eq!(bytes[..8], 1_u64.to_ne_bytes());
        assert_eq!(bytes[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]);
        assert_eq!(bytes[24..28], 80_u32.to_ne_bytes());
        assert_eq!(bytes[28..], [0; 4]);
    }
}
