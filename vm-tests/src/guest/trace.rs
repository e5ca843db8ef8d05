//! Which system calls of a traced program change the kernel's network, BPF or sysctl state. Reading is pure.
//!
//! In: what `strace -f` wrote. Out: the calls that write, by name. Counted: requests over rtnetlink, nftables and
//! WireGuard's generic netlink that set, make or delete; bpf(2) commands that change a map, attach or pin; files opened
//! for writing and directories changed below `/proc/sys` and `/sys`; and the address table of the accounting when it is
//! mapped writable, because stores to it are no calls. Not counted: what only asks, and BPF objects that
//! are loaded without being attached or pinned: they end with the process. A change of a map is told with the name the
//! map is pinned by.

use std::collections::BTreeMap;

/// The system calls to trace.
pub(crate) const CALLS: &str =
    "sendto,sendmsg,sendmmsg,bpf,openat,mkdir,mkdirat,rmdir,unlink,unlinkat,rename,renameat,renameat2,mount,mmap";

/// bpf(2) commands that leave something behind.
const BPF_WRITES: &[&str] = &[
    "BPF_MAP_UPDATE_ELEM",
    "BPF_MAP_DELETE_ELEM",
    "BPF_MAP_LOOKUP_AND_DELETE_ELEM",
    "BPF_MAP_UPDATE_BATCH",
    "BPF_MAP_DELETE_BATCH",
    "BPF_MAP_FREEZE",
    "BPF_OBJ_PIN",
    "BPF_PROG_ATTACH",
    "BPF_PROG_DETACH",
    "BPF_LINK_CREATE",
    "BPF_LINK_UPDATE",
    "BPF_LINK_DETACH",
];

/// The pinned map that is written through memory.
const WRITTEN_AS_MEMORY: &str = "V4_TABLE";

/// `WG_CMD_SET_DEVICE` as the first byte of the generic netlink header.
const WIREGUARD_SET: &str = "\\x01";

/// Every writing call with how often it was made.
pub(crate) fn writes(trace: &str) -> BTreeMap<String, usize> {
    let mut writes = BTreeMap::new();
    let mut maps = Maps::default();
    for line in trace.lines().filter(|line| !line.contains(" = -1 ")) {
        maps.note(line);
        for write in writes_of(line, &maps) {
            *writes.entry(write).or_default() += 1;
        }
    }
    writes
}

/// The pinned BPF objects that were opened, by their descriptors.
#[derive(Default)]
struct Maps {
    names: BTreeMap<u32, String>,
    /// Threads whose call had not returned when it was written, with the name they asked for.
    opening: BTreeMap<String, String>,
}

impl Maps {
    fn note(&mut self, line: &str) {
        if line.contains(" openat(")
            && let Some(file) = line.rsplit_once(" = ").and_then(|(_, descriptor)| descriptor.trim().parse().ok())
        {
            // The number is another object's now.
            self.names.remove(&file);
        }
        let process: String = line.chars().take_while(char::is_ascii_digit).collect();
        let resumed = line.contains("bpf resumed").then(|| self.opening.remove(&process)).flatten();
        let Some(name) = resumed.or_else(|| opened(line)) else { return };
        match line.rsplit_once(" = ").and_then(|(_, descriptor)| descriptor.trim().parse().ok()) {
            Some(descriptor) => drop(self.names.insert(descriptor, name)),
            None => drop(self.opening.insert(process, name)),
        }
    }

    fn of(&self, arguments: &str) -> Option<&str> {
        let descriptor = arguments.split_once("map_fd=")?.1.split([',', '}']).next()?.parse().ok()?;
        self.names.get(&descriptor).map(String::as_str)
    }

    /// Whether the arguments of mmap(2), whose fifth is the descriptor, make the written map writable.
    fn mapped_for_writing(&self, arguments: &str) -> bool {
        let words: Vec<&str> = arguments.split(", ").collect();
        let descriptor = words.get(4).and_then(|word| word.parse().ok());
        let name = descriptor.and_then(|descriptor: u32| self.names.get(&descriptor));
        name.is_some_and(|name| name == WRITTEN_AS_MEMORY) && words[2].contains("PROT_WRITE")
    }
}

/// The name of the object that a line opens.
fn opened(line: &str) -> Option<String> {
    let path = line.split_once("BPF_OBJ_GET, {pathname=\"")?.1.split('"').next()?;
    path.rsplit('/').next().map(str::to_owned)
}

fn writes_of(line: &str, maps: &Maps) -> Vec<String> {
    // `-f` puts the process id before the call.
    let call = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    let Some((name, arguments)) = call.split_once('(') else { return Vec::new() };
    match name {
        "sendto" | "sendmsg" | "sendmmsg" => netlink_writes(arguments),
        "bpf" => {
            let command = arguments.split([',', ' ', ')']).next().unwrap_or_default();
            let of_map = maps.of(arguments).map(|map| format!(" {map}")).unwrap_or_default();
            BPF_WRITES.iter().filter(|write| **write == command).map(|write| format!("{write}{of_map}")).collect()
        }
        "mmap" => {
            let written = maps.mapped_for_writing(arguments);
            written.then(|| format!("mmap {WRITTEN_AS_MEMORY}")).into_iter().collect()
        }
        "openat" => {
            let for_writing = arguments.contains("O_WRONLY") || arguments.contains("O_RDWR");
            kernel_path(arguments).filter(|_| for_writing).map(|path| format!("write to {path}")).into_iter().collect()
        }
        _ => kernel_path(arguments).map(|path| format!("{name} {path}")).into_iter().collect(),
    }
}

/// A netlink send may carry several messages.
fn netlink_writes(arguments: &str) -> Vec<String> {
    let messages = arguments.split("nlmsg_type=").skip(1);
    messages.filter_map(netlink_write).collect()
}

fn netlink_write(message: &str) -> Option<String> {
    let kind = message.split([',', ' ']).next().unwrap_or_default();
    if kind == "wireguard" {
        let command = message.split_once("}, \"").is_some_and(|(_, payload)| payload.starts_with(WIREGUARD_SET));
        return command.then(|| "WG_CMD_SET_DEVICE".to_owned());
    }
    let rtnetlink = ["RTM_NEW", "RTM_DEL", "RTM_SET"].iter().any(|prefix| kind.starts_with(prefix));
    let nftables = kind.split_once("NFT_MSG_").filter(|(_, operation)| !operation.starts_with("GET"));
    if let Some((_, operation)) = nftables {
        return Some(format!("NFT_MSG_{operation}"));
    }
    rtnetlink.then(|| kind.to_owned())
}

fn kernel_path(arguments: &str) -> Option<&str> {
    let path = arguments.split('"').nth(1)?;
    (path.starts_with("/proc/sys/") || path.starts_with("/sys/")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(trace: &str) -> Vec<String> {
        writes(trace).into_keys().collect()
    }

    #[test]
    fn a_dump_of_links_writes_nothing() {
        let trace = r#"115 sendto(3, [{nlmsg_len=40, nlmsg_type=RTM_GETLINK, nlmsg_flags=NLM_F_REQUEST|NLM_F_DUMP, nlmsg_seq=1, nlmsg_pid=0}, {ifi_family=AF_UNSPEC, ...}], 40, 0, NULL, 0) = 40"#;
        assert!(writes(trace).is_empty());
    }

    #[test]
    fn a_new_address_is_a_write() {
        let trace = r#"137   sendmsg(3, {msg_name={sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, msg_namelen=12, msg_iov=[{iov_base=[{nlmsg_len=40, nlmsg_type=RTM_NEWADDR, nlmsg_flags=NLM_F_REQUEST|NLM_F_ACK, nlmsg_seq=1, nlmsg_pid=0}, {ifa_family=AF_INET}], iov_len=40}], msg_iovlen=1}, 0) = 40"#;
        assert_eq!(names(trace), ["RTM_NEWADDR"]);
    }

    #[test]
    fn wireguard_is_read_and_set_by_different_commands() {
        let get = r#"126 sendto(3, [{nlmsg_len=28, nlmsg_type=wireguard, nlmsg_flags=NLM_F_REQUEST, nlmsg_seq=1, nlmsg_pid=0}, "\x00\x01\x00\x00"], 28, 0, NULL, 0) = 28"#;
        let set = get.replace(r"\x00\x01", r"\x01\x01");
        assert!(writes(get).is_empty());
        assert_eq!(names(&set), ["WG_CMD_SET_DEVICE"]);
    }

    #[test]
    fn every_message_of_a_batch_counts() {
        let trace = r"147 sendmsg(3, {msg_iov=[{iov_base=[[{nlmsg_len=20, nlmsg_type=NFNL_MSG_BATCH_BEGIN, nlmsg_seq=0}, {}], [{nlmsg_len=36, nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWTABLE, nlmsg_seq=1}], [{nlmsg_len=36, nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWTABLE, nlmsg_seq=2}], [{nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN, nlmsg_seq=3}]]}]}, 0) = 92";
        assert_eq!(writes(trace), BTreeMap::from([("NFT_MSG_NEWTABLE".to_owned(), 2)]));
    }

    #[test]
    fn the_table_counts_when_it_is_mapped_writable() {
        let opened = "7 bpf(BPF_OBJ_GET, {pathname=\"/sys/fs/bpf/weft/a/v2/V4_TABLE\"}, 16) = 9\n";
        let reading = "7 mmap(NULL, 262144, PROT_READ, MAP_SHARED, 9, 0) = 0x7f0000000000\n";
        let writing = "7 mmap(NULL, 262144, PROT_READ|PROT_WRITE, MAP_SHARED, 9, 0) = 0x7f0000000000\n";
        let other = "7 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 10, 0) = 0x7f0000000000\n";
        assert!(writes(&[opened, reading, other].concat()).is_empty());
        assert_eq!(names(&[opened, writing, other].concat()), ["mmap V4_TABLE"]);
    }

    #[test]
    fn bpf_objects_count_when_they_are_attached_changed_or_pinned() {
        let trace = "170 bpf(BPF_PROG_LOAD, {prog_type=BPF_PROG_TYPE_SCHED_CLS}, 64) = 3\n\
                     170 bpf(BPF_OBJ_GET, {pathname=\"/sys/fs/bpf/m\"}, 16) = 3\n\
                     170 bpf(BPF_LINK_CREATE, {link_create={prog_fd=3}}, 64) = -1 EINVAL (Invalid argument)\n\
                     180 bpf(BPF_MAP_UPDATE_ELEM, {map_fd=3}, 32) = 0\n\
                     181 bpf(BPF_OBJ_PIN, {pathname=\"/sys/fs/bpf/m\"}, 16 <unfinished ...>\n";
        assert_eq!(names(trace), ["BPF_MAP_UPDATE_ELEM m", "BPF_OBJ_PIN"]);
    }

    #[test]
    fn a_changed_map_is_told_by_its_pin_whichever_thread_opened_it() {
        let trace = "170 bpf(BPF_OBJ_GET, {pathname=\"/sys/fs/bpf/weft/a/v2/PEERS\", bpf_fd=0}, 144) = 14\n\
                     171 bpf(BPF_OBJ_GET, {pathname=\"/sys/fs/bpf/weft/a/v2/V4\"}, 144 <unfinished ...>\n\
                     170 bpf(BPF_MAP_UPDATE_ELEM, {map_fd=14, key=0x7f}, 32) = 0\n\
                     171 <... bpf resumed>)             = 15\n\
                     170 bpf(BPF_MAP_DELETE_ELEM, {map_fd=15, key=0x7f}, 32) = 0\n\
                     170 bpf(BPF_MAP_DELETE_ELEM, {map_fd=16}, 32) = 0\n";
        let wanted = ["BPF_MAP_DELETE_ELEM", "BPF_MAP_DELETE_ELEM V4", "BPF_MAP_UPDATE_ELEM PEERS"];
        assert_eq!(names(trace), wanted);
    }

    #[test]
    fn sysctls_and_pin_directories_count_other_files_do_not() {
        let trace = "1 openat(AT_FDCWD, \"/proc/sys/net/ipv4/ip_forward\", O_WRONLY|O_CLOEXEC) = 7\n\
                     1 openat(AT_FDCWD, \"/proc/sys/net/ipv4/ip_forward\", O_RDONLY|O_CLOEXEC) = 7\n\
                     1 openat(AT_FDCWD, \"/var/lib/weft/state\", O_WRONLY|O_CREAT, 0600) = 7\n\
                     1 mkdir(\"/sys/fs/bpf/weft\", 0700) = 0\n\
                     1 mkdir(\"/run/weft\", 0755) = 0\n";
        assert_eq!(names(trace), ["mkdir /sys/fs/bpf/weft", "write to /proc/sys/net/ipv4/ip_forward"]);
    }
}
