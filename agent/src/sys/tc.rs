//! Filters on the clsact hook of a link, read and removed over a socket of their own.
//!
//! In: a link and a side. Out: the filters there, ours or not. Only [`remove`] changes anything, and exactly one filter.
#![expect(clippy::wildcard_enum_match_arm, reason = "the message enums of the netlink library are open")]

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::bpf::Side;

/// A filter on clsact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub priority: u16,
    pub handle: u32,
    /// The id of its eBPF program, if it is of that kind.
    pub program_id: Option<u32>,
    /// The name an eBPF program was attached by; tools that give none have the object's file and section here.
    pub name: String,
}

/// Every filter on one side of a link.
///
/// # Errors
/// The socket or the kernel refuses; a link without clsact has no filters and is no error.
pub fn filters(ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
    let message = RouteNetlinkMessage::GetTrafficFilter(header(ifindex, side)?);
    let mut found = Vec::new();
    let outcome = exchange(message, NLM_F_DUMP, |answer| {
        if let RouteNetlinkMessage::NewTrafficFilter(message) = answer {
            found.extend(filter(&message));
        }
    });
    match outcome {
        // No qdisc there, or the link is gone.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// Removes one eBPF filter.
///
/// # Errors
/// There is no such filter, or CAP_NET_ADMIN is missing.
pub fn remove(ifindex: u32, side: Side, filter: &Filter) -> io::Result<()> {
    let mut message = header(ifindex, side)?;
    message.header.handle = TcHandle::from(filter.handle);
    message.header.info = u32::from(filter.priority) << 16;
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    exchange(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK, |_nothing| ())
}

fn header(ifindex: u32, side: Side) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(i32::try_from(ifindex).map_err(io::Error::other)?);
    let minor = match side {
        Side::Ingress => TcHandle::MIN_INGRESS,
        Side::Egress => TcHandle::MIN_EGRESS,
    };
    message.header.parent = TcHandle { major: 0xffff, minor };
    Ok(message)
}

/// `None` for the line that only names the priority.
fn filter(message: &TcMessage) -> Option<Filter> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let (mut program_id, mut name) = (None, String::new());
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program_id = Some(*id),
            TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name.clone_from(text),
            _ => {}
        }
    }
    let priority = u16::try_from(message.header.info >> 16).ok()?;
    Some(Filter { priority, handle: message.header.handle.into(), program_id, name })
}

/// Sends one request and hands every answer to `each`, until the kernel says that it is done.
fn exchange(message: RouteNetlinkMessage, flags: u16, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    loop {
        let (answers, _kernel) = socket.recv_from_full()?;
        let mut rest = answers.as_slice();
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?.length() as usize;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return error.code.map_or(Ok(()), |_code| Err(error.to_io())),
                NetlinkPayload::InnerMessage(inner) => each(inner),
                _ => {}
            }
            // Messages begin at multiples of four.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_clsact_has_no_filters() {
        assert_eq!(filters(1, Side::Ingress).expect("loopback exists"), []);
    }
}
