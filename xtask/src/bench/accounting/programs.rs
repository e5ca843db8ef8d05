//! The committed objects in the kernel: ours with filled maps, and what it is compared with.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, MapData, PerCpuHashMap, PerCpuValues};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use weft_ebpf_common::V4_TABLE;
use weft_ebpf_common::table::{Bucket, bucket_of, slot};

use super::PEERS;
use super::traffic::SERVER;
use crate::repo;

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Has the kernel time every run of every program while it lives.
pub(super) struct Stats {
    before: String,
}

impl Stats {
    pub(super) fn enable() -> Result<Self> {
        let before = std::fs::read_to_string(STATISTICS).with_context(|| format!("failed to read {STATISTICS}"))?;
        std::fs::write(STATISTICS, "1").with_context(|| format!("failed to write {STATISTICS}"))?;
        Ok(Self { before })
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        std::fs::write(STATISTICS, &self.before).ok();
    }
}

/// A program whose runs are timed on the egress side.
pub(super) trait Measured {
    fn egress(&mut self) -> Result<&mut SchedClassifier>;
}

/// Nanoseconds a run under this traffic.
pub(super) fn timed(measured: &mut dyn Measured, link: &str, traffic: impl Fn() -> Result<()>) -> Result<f64> {
    let program = measured.egress()?;
    let _attached = attach(program, link, TcAttachType::Egress)?;
    let before = program.info()?;
    traffic()?;
    let after = program.info()?;
    let runs = after.run_count() - before.run_count();
    ensure!(runs > 1000, "only {runs} packets passed the program; is the traffic elsewhere?");
    Ok((after.run_time() - before.run_time()).as_nanos() as f64 / runs as f64)
}

fn attach(program: &mut SchedClassifier, link: &str, side: TcAttachType) -> Result<SchedClassifierLink> {
    let id = program.attach_with_options(link, side, TcAttachOptions::TcxOrder(LinkOrder::first()))?;
    Ok(program.take_link(id)?)
}

fn loaded<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn object(name: &str) -> Result<Vec<u8>> {
    let path = repo::root().join("agent/ebpf").join(name);
    std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))
}

/// The address of a peer by its number; one of them is the server's.
fn addresses() -> impl Iterator<Item = (u32, Ipv4Addr)> {
    let server = SERVER.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    (1..=PEERS).map(move |number| {
        let address = Ipv4Addr::from(0x0a5d_0000 + number);
        (number, if number == PEERS / 2 { server } else { address })
    })
}

/// Networks of many lengths, as routed ones are; the server's own is among them.
fn networks() -> impl Iterator<Item = (u32, Key<[u8; 4]>)> {
    addresses().map(|(index, address)| {
        let length = if address.to_string() == SERVER { 24 } else { 20 + index % 11 };
        (index, Key::new(length, address.octets()))
    })
}

/// A program that does less.
pub(super) struct Comparison {
    ebpf: Ebpf,
    name: &'static str,
}

impl Comparison {
    pub(super) fn load(name: &'static str) -> Result<Self> {
        let mut ebpf = Ebpf::load(&object("comparison.bpf.o")?)?;
        loaded(&mut ebpf, name)?.load()?;
        let cpus = aya::util::nr_cpus().map_err(|(_file, error)| error)?;
        let mut bare =
            PerCpuHashMap::<_, [u8; 4], u64>::try_from(ebpf.map_mut("BARE").context("the object has BARE")?)?;
        for (_number, address) in addresses() {
            bare.insert(address.octets(), PerCpuValues::try_from(vec![0_u64; cpus])?, 0)?;
        }
        Ok(Self { ebpf, name })
    }
}

impl Measured for Comparison {
    fn egress(&mut self) -> Result<&mut SchedClassifier> {
        loaded(&mut self.ebpf, self.name)
    }
}

/// Where the server's address stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    Addresses,
    Networks,
}

/// Our programs with maps of their own.
pub(super) struct Accounting(Ebpf);

impl Accounting {
    pub(super) fn load(bpffs: &Path, name: &str, place: Where) -> Result<Self> {
        let pins = bpffs.join(name);
        std::fs::create_dir(&pins)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .override_global("L2_LENGTH", &14_u32, true)
            .load(&object("weft.bpf.o")?)?;
        for name in ["weft_ingress", "weft_egress"] {
            loaded(&mut ebpf, name)?.load()?;
        }
        let mut accounting = Self(ebpf);
        match place {
            Where::Addresses => accounting.add_addresses()?,
            Where::Networks => accounting.add_networks()?,
        }
        Ok(accounting)
    }

    fn add_addresses(&mut self) -> Result<()> {
        let map = self.0.map_mut(V4_TABLE).context("the object has its table")?;
        let mut table = Array::<_, Bucket>::try_from(map)?;
        for (index, address) in addresses() {
            let address = u32::from_ne_bytes(address.octets());
            let mut bucket = table.get(&bucket_of(address), 0)?;
            let free = bucket.iter_mut().find(|slot| **slot == 0).context("a bucket is full")?;
            *free = slot(address, index);
            table.set(bucket_of(address), bucket, 0)?;
        }
        Ok(())
    }

    fn trie(&mut self) -> Result<LpmTrie<&mut MapData, [u8; 4], u32>> {
        let map = self.0.map_mut("V4_PREFIXES").context("the object has V4_PREFIXES")?;
        Ok(LpmTrie::try_from(map)?)
    }

    /// One network a peer.
    pub(super) fn add_networks(&mut self) -> Result<()> {
        let mut trie = self.trie()?;
        for (index, network) in networks() {
            trie.insert(&network, index, 0)?;
        }
        Ok(())
    }

    /// Takes them away again.
    pub(super) fn remove_networks(&mut self) -> Result<()> {
        let mut trie = self.trie()?;
        let present: Vec<Key<[u8; 4]>> = trie.keys().collect::<Result<_, _>>()?;
        for network in present {
            trie.remove(&network)?;
        }
        Ok(())
    }

    /// Both programs at once, until the links are dropped.
    pub(super) fn attach_both(&mut self, link: &str) -> Result<[SchedClassifierLink; 2]> {
        let ingress = attach(loaded(&mut self.0, "weft_ingress")?, link, TcAttachType::Ingress)?;
        let egress = attach(loaded(&mut self.0, "weft_egress")?, link, TcAttachType::Egress)?;
        Ok([ingress, egress])
    }
}

impl Measured for Accounting {
    fn egress(&mut self) -> Result<&mut SchedClassifier> {
        loaded(&mut self.0, "weft_egress")
    }
}
