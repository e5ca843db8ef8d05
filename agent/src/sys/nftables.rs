//! Says that a nftables table has changed.
//!
//! In: the kernel's announcements of rule set changes, on a netlink socket in the network namespace of the thread that
//! starts it. Out: a [`Trigger`] for every message about one table, and for everything that cannot be read. Nothing
//! is parsed beyond the name of the table, so a host where containers rewrite their own tables costs a few
//! comparisons a message.

use std::io;

use bytes::BytesMut;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};

use crate::foundation::error::chain;
use crate::foundation::reconcile::Trigger;
use crate::foundation::task::{self, Task};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_NEWGEN`: a transaction has ended; it names no table.
const MESSAGE_NEW_GENERATION: u16 = 15;
/// The attribute with the name of the table, the same number for tables, chains, rules, sets and elements.
const ATTRIBUTE_TABLE: u16 = 1;
const HEADER_BYTES: usize = 16;
/// `struct nfgenmsg`.
const FAMILY_HEADER_BYTES: usize = 4;
/// Larger than any announcement.
const DATAGRAM_BYTES: usize = 64 * 1024;

/// Fires `trigger` when the table called `name` changes, in any family, for as long as the task is kept.
///
/// # Errors
/// The kernel refuses the socket or has no nftables.
pub fn watch_table(name: String, trigger: Trigger) -> io::Result<Task> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().add_membership(GROUP)?;
    Ok(task::spawn("nftables-monitor", run(socket, name, trigger)))
}

async fn run(socket: TokioSocket, name: String, trigger: Trigger) {
    let mut buffer = BytesMut::with_capacity(DATAGRAM_BYTES);
    loop {
        buffer.clear();
        match socket.recv_from(&mut buffer).await {
            // Only the kernel may tell us anything; a process may not.
            Ok(sender) if sender.port_number() != 0 => {}
            Ok(_kernel) if !concerns(&buffer, name.as_bytes()) => {}
            Ok(_kernel) => trigger.fire(),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => trigger.fire(),
            Err(error) => {
                tracing::warn!(error = chain(&error), "nftables events are lost: our table is only looked at slowly");
                return;
            }
        }
    }
}

/// Whether a message of the datagram is about the table called `name`, or cannot be read.
fn concerns(mut datagram: &[u8], name: &[u8]) -> bool {
    while !datagram.is_empty() {
        let Some((message, rest)) = split_message(datagram) else { return true };
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let is_about_a_table = kind >> 8 == SUBSYSTEM && kind & 0xff != MESSAGE_NEW_GENERATION;
        if is_about_a_table && table_of(message).is_none_or(|table| table == name) {
            return true;
        }
        datagram = rest;
    }
    false
}

/// The first message, of at least a header, and what follows it.
fn split_message(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(datagram.first_chunk().copied()?)).ok()?;
    let message = datagram.get(..length).filter(|message| message.len() >= HEADER_BYTES)?;
    Some((message, datagram.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The name of the table a message is about, without its terminator.
fn table_of(message: &[u8]) -> Option<&[u8]> {
    let mut attributes = message.get(HEADER_BYTES + FAMILY_HEADER_BYTES..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == ATTRIBUTE_TABLE {
            return value.split(|byte| *byte == 0).next();
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message with one text attribute.
    fn message(kind: u16, attribute: u16, text: &str) -> Vec<u8> {
        let value = [text.as_bytes(), &[0]].concat();
        let mut bytes = vec![0; HEADER_BYTES + FAMILY_HEADER_BYTES];
        bytes.extend(u16::try_from(4 + value.len()).expect("short").to_ne_bytes());
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(value);
        let length = u32::try_from(bytes.len()).expect("short");
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&(SUBSYSTEM << 8 | kind).to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_messages_about_the_table_concern() {
        let datagram = [message(0, 1, "docker"), message(3, 1, "weft_a_b")].concat();
        assert!(!concerns(&datagram, b"weft_a"));
        assert!(concerns(&datagram, b"weft_a_b"));
    }

    #[test]
    fn the_end_of_a_transaction_does_not_concern() {
        assert!(!concerns(&message(MESSAGE_NEW_GENERATION, 1, "x"), b"weft_a"));
    }

    #[test]
    fn what_cannot_be_read_concerns() {
        assert!(concerns(&message(0, 2, "docker"), b"weft_a"), "no name");
        let mut datagram = message(0, 1, "docker");
        datagram.truncate(12);
        assert!(concerns(&datagram, b"weft_a"), "cut");
    }

    proptest! {
        #[test]
        fn no_datagram_stops_the_reader(datagram in proptest::collection::vec(any::<u8>(), 0..256)) {
            concerns(&datagram, b"weft_a");
        }
    }
}
