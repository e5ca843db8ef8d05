//! Records who opens a TCP connection to the gateway, and sends connections for the gateway's addresses to its listeners.
//!
//! Four programs. `weft_connect4` and `weft_connect6` run inside `connect(2)`, as the caller: they write down who that
//! is on the caller's socket. `weft_sock_ops` runs when the SYN is about to leave, and puts the record where the other
//! end finds it, under the connection's addresses and ports; and again when the connection stands at the other end,
//! where it moves the record to the new socket, before `accept(2)` can return it. User space reads it there by the
//! descriptor. `weft_steer` picks the gateway's listener for its addresses, whoever else listens on them.
//!
//! Invariants: a record is only ever found by the very connection it was made for, else there is none; no connection is
//! refused, changed or delayed because it could not be recorded; addresses that user space did not ask for cost a look
//! into one hash and nothing else.

#![no_std]
#![no_main]

use core::cell::UnsafeCell;
use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_map_def, bpf_sk_lookup, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_netns_cookie, bpf_get_socket_cookie,
    bpf_ktime_get_boot_ns, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::{cgroup_sock_addr, map, sk_lookup, sock_ops};
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray, SockMap};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};
use weft_ebpf_common::callers::{
    COUNT_KINDS, CallerRecord, Connection, Count, Endpoint, MAX_LISTENERS, RECORD_BYTES, mapped,
};

/// A map of socket storage; the library has none without BTF, which the loader brings itself.
#[repr(transparent)]
struct SocketStorage(UnsafeCell<bpf_map_def>);

// SAFETY: the kernel puts a map's address where the definition stands, and maps may be used from every CPU.
unsafe impl Sync for SocketStorage {}

#[unsafe(link_section = "maps")]
#[unsafe(export_name = "CALLERS")]
static CALLERS: SocketStorage = SocketStorage(UnsafeCell::new(bpf_map_def {
    type_: BPF_MAP_TYPE_SK_STORAGE,
    key_size: 4,
    value_size: RECORD_BYTES as u32,
    max_entries: 0,
    map_flags: BPF_F_NO_PREALLOC,
    id: 0,
    pinning: PIN_BY_NAME,
}));
// Sizes are set by the loader; these are for loading the object by hand.
#[map]
static DESTINATIONS: HashMap<Endpoint, u32> = HashMap::pinned(1024, BPF_F_NO_PREALLOC);
#[map]
static PENDING: LruHashMap<Connection, CallerRecord> = LruHashMap::pinned(16_384, 0);
#[map]
static STEERED: HashMap<Endpoint, u32> = HashMap::pinned(MAX_LISTENERS, BPF_F_NO_PREALLOC);
#[map]
static LISTENERS: SockMap = SockMap::pinned(MAX_LISTENERS, 0);
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::pinned(COUNT_KINDS, 0);

const BPF_MAP_TYPE_SK_STORAGE: u32 = 24;
const PIN_BY_NAME: u32 = 1;
const STORAGE_CREATE: u64 = 1;
const BPF_ANY: u64 = 0;

// Numbers of the kernel's headers.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
const BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: u32 = 5;

/// Lets `connect` go on.
const ALLOW: i32 = 1;
/// Leaves the reply of a sock_ops program as it is.
const SILENT: u32 = 1;
/// Lets the lookup go on, to the socket that was picked if there is one.
const SK_PASS: u32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn weft_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context, and the field is plain data.
    let address = mapped(unsafe { read(&raw const (*ctx.sock_addr).user_ip4) });
    connecting(&ctx, address);
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn weft_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context, and the fields are plain data.
    let address = unsafe { read_four((&raw const (*ctx.sock_addr).user_ip6).cast()) };
    connecting(&ctx, address);
    ALLOW
}

#[sock_ops]
pub fn weft_sock_ops(ctx: SockOpsContext) -> u32 {
    // SAFETY: the kernel passes a valid context, and the field is plain data.
    match unsafe { read(&raw const (*ctx.ops).op) } {
        BPF_SOCK_OPS_TCP_CONNECT_CB => leaving(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => arrived(&ctx),
        _ => {}
    }
    SILENT
}

#[sk_lookup]
pub fn weft_steer(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel passes a valid context, and the field is plain data.
    if unsafe { read(&raw const (*ctx.lookup).protocol) } == IPPROTO_TCP
        && let Some(endpoint) = looked_up(ctx.lookup)
        // SAFETY: user space replaces values as a whole, and an index is one word.
        && let Some(index) = unsafe { STEERED.get(endpoint) }
        && LISTENERS.redirect_sk_lookup(&ctx, *index, 0).is_ok()
    {
        count(Count::Steered);
    }
    SK_PASS
}

/// Writes down, on the socket, who connects it to one of our destinations.
#[inline(always)]
fn connecting(ctx: &SockAddrContext, address: [u32; 4]) {
    let raw: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context, and the fields are plain data.
    let (protocol, port) = unsafe { (read(&raw const (*raw).protocol), read(&raw const (*raw).user_port)) };
    if protocol != IPPROTO_TCP {
        return;
    }
    // SAFETY: the helper takes the context of this kind of program.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let port = u32::from(u16::from_be(port as u16));
    if !is_destination(Endpoint { netns, address, port, reserved: 0 }) {
        return;
    }
    count(Count::Connects);
    // SAFETY: the field of the context is a pointer to the socket, which is there while `connect` runs.
    let socket: *mut c_void = unsafe { read(&raw const (*raw).__bindgen_anon_1.sk) }.cast();
    // SAFETY: the map is one of socket storage, and the socket is the context's.
    let stored = unsafe { bpf_sk_storage_get(storage(), socket, core::ptr::null_mut(), STORAGE_CREATE) };
    if stored.is_null() {
        count(Count::Unrecorded);
        return;
    }
    let (ids, owner) = (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid());
    let record: *mut CallerRecord = stored.cast();
    // SAFETY: storage is as large as a record, aligned to eight bytes, and `connect` holds the socket's lock.
    unsafe {
        (*record).connected_at = bpf_ktime_get_boot_ns();
        (*record).cgroup = bpf_get_current_cgroup_id();
        (*record).netns = netns;
        (*record).socket = bpf_get_socket_cookie(ctx.as_ptr());
        (*record).pid = (ids >> 32) as u32;
        (*record).uid = owner as u32;
        (*record).gid = (owner >> 32) as u32;
        (*record).reserved = 0;
        bpf_get_current_comm((&raw mut (*record).comm).cast(), 16);
    }
}

/// The SYN is about to leave: puts the record where the other end finds it.
#[inline(always)]
fn leaving(ctx: &SockOpsContext) {
    let Some(ends) = ends(ctx) else { return };
    let server = Endpoint { netns: ends.netns, address: ends.remote, port: ends.remote_port, reserved: 0 };
    if !is_destination(server) {
        return;
    }
    let connection = Connection {
        netns: ends.netns,
        client: ends.local,
        server: ends.remote,
        client_port: ends.local_port,
        server_port: ends.remote_port,
    };
    // What a connection of the same addresses and ports may have left is not this one's.
    let forget = || PENDING.remove(connection).is_ok();
    // SAFETY: the field of the context is a pointer to the socket, or null.
    let socket: *mut c_void = unsafe { read(&raw const (*ctx.ops).__bindgen_anon_2.sk) }.cast();
    if socket.is_null() {
        forget();
        return;
    }
    // SAFETY: the map is one of socket storage, and the socket is the context's.
    let stored = unsafe { bpf_sk_storage_get(storage(), socket, core::ptr::null_mut(), 0) };
    if stored.is_null() {
        forget();
        return;
    }
    // SAFETY: storage is as large as a record; the socket's lock is held.
    let record: &CallerRecord = unsafe { &*stored.cast() };
    if PENDING.insert(connection, record, BPF_ANY).is_err() {
        forget();
        count(Count::Unrecorded);
    }
    // SAFETY: as above. A later `connect` of the same socket writes its own.
    unsafe { bpf_sk_storage_delete(storage(), socket) };
}

/// The connection stands at its other end: moves the record to the socket that `accept` will return.
#[inline(always)]
fn arrived(ctx: &SockOpsContext) {
    let Some(ends) = ends(ctx) else { return };
    let server = Endpoint { netns: ends.netns, address: ends.local, port: ends.local_port, reserved: 0 };
    if !is_destination(server) {
        return;
    }
    let connection = Connection {
        netns: ends.netns,
        client: ends.remote,
        server: ends.local,
        client_port: ends.remote_port,
        server_port: ends.local_port,
    };
    let moved = claim(ctx, connection);
    count(if moved { Count::Known } else { Count::Unknown });
}

#[inline(always)]
fn claim(ctx: &SockOpsContext, connection: Connection) -> bool {
    // SAFETY: the field of the context is a pointer to the socket, or null.
    let socket: *mut c_void = unsafe { read(&raw const (*ctx.ops).__bindgen_anon_2.sk) }.cast();
    if socket.is_null() {
        return false;
    }
    let Some(record) = PENDING.get_ptr_mut(connection) else { return false };
    // SAFETY: the map is one of socket storage, the socket is the context's, and the value is as large as a record.
    let stored = unsafe { bpf_sk_storage_get(storage(), socket, record.cast(), STORAGE_CREATE) };
    // A full map may give the entry to another connection while it is copied. It was still this one's if it can be
    // removed under this one's key now.
    let was_ours = PENDING.remove(connection).is_ok();
    if stored.is_null() {
        return false;
    }
    if !was_ours {
        // SAFETY: as above.
        unsafe { bpf_sk_storage_delete(storage(), socket) };
    }
    was_ours
}

/// Whether user space asked for this address, or for its port on every address.
#[inline(always)]
fn is_destination(endpoint: Endpoint) -> bool {
    let anywhere = Endpoint { address: [0; 4], ..endpoint };
    // Only whether there is an entry matters.
    DESTINATIONS.get_ptr(endpoint).is_some() || DESTINATIONS.get_ptr(anywhere).is_some()
}

/// Both ends of a connection as one of them sees it.
struct Ends {
    netns: u64,
    local: [u32; 4],
    remote: [u32; 4],
    local_port: u32,
    remote_port: u32,
}

#[inline(always)]
fn ends(ctx: &SockOpsContext) -> Option<Ends> {
    let raw: *mut bpf_sock_ops = ctx.ops;
    // Both families are read before one is picked: what is read must not depend on a branch, or the compiler computes its
    // address, which the verifier refuses.
    // SAFETY: the kernel passes a valid context, and the fields are plain data.
    let (v4, v6) = unsafe {
        let v4 = (mapped(read(&raw const (*raw).local_ip4)), mapped(read(&raw const (*raw).remote_ip4)));
        let local = read_four((&raw const (*raw).local_ip6).cast());
        (v4, (local, read_four((&raw const (*raw).remote_ip6).cast())))
    };
    // SAFETY: as above.
    let (local, remote) = match unsafe { read(&raw const (*raw).family) } {
        AF_INET => v4,
        AF_INET6 => v6,
        _ => return None,
    };
    // SAFETY: as above. The local port is in host byte order; the remote one lies in network order in a whole word.
    let (local_port, remote_port) =
        unsafe { (read(&raw const (*raw).local_port), u32::from_be(read(&raw const (*raw).remote_port))) };
    // SAFETY: the helper takes the context of this kind of program.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    Some(Ends { netns, local, remote, local_port, remote_port })
}

/// Where the connection that is looked up wants to go.
#[inline(always)]
fn looked_up(raw: *mut bpf_sk_lookup) -> Option<Endpoint> {
    // Both families before one is picked, as in `ends`.
    // SAFETY: the kernel passes a valid context, and the fields are plain data.
    let (v4, v6) =
        unsafe { (mapped(read(&raw const (*raw).local_ip4)), read_four((&raw const (*raw).local_ip6).cast())) };
    // SAFETY: as above.
    let address = match unsafe { read(&raw const (*raw).family) } {
        AF_INET => v4,
        AF_INET6 => v6,
        _ => return None,
    };
    // SAFETY: as above.
    let port = unsafe { read(&raw const (*raw).local_port) };
    Some(Endpoint { netns: 0, address, port, reserved: 0 })
}

/// One field of a context. Volatile, because the compiler must not merge or move what the verifier wants to see as it is.
///
/// # Safety
/// `field` is a field of a context that the kernel passed.
#[inline(always)]
unsafe fn read<T: Copy>(field: *const T) -> T {
    // SAFETY: by the contract above.
    unsafe { core::ptr::read_volatile(field) }
}

/// Four words of a context.
///
/// # Safety
/// As [`read`].
#[inline(always)]
unsafe fn read_four(first: *const u32) -> [u32; 4] {
    // SAFETY: by the contract above.
    unsafe { [read(first), read(first.add(1)), read(first.add(2)), read(first.add(3))] }
}

#[inline(always)]
fn storage() -> *mut c_void {
    CALLERS.0.get().cast()
}

#[inline(always)]
fn count(what: Count) {
    if let Some(number) = COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: the map's element of this CPU. An interrupt between reading and writing loses one of a statistic.
        unsafe { *number += 1 };
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
