//! `/ipinfo`: what a table on this host knows about an address. Nothing is ever asked of the network.
//!
//! The table is the tab-separated iptoasn format: first address, last address, AS number, country, description.

use std::collections::HashMap;
use std::io::{self, BufRead as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::call::{Call, Outcome};
use super::failure::Failure;
use super::params::{self, Field, FieldKind};
use super::{Pm3, json};

/// Ranges a table may have; the whole Internet has about 600,000.
const MOST_RANGES: usize = 2_000_000;
/// Networks of Cloudflare, flag 2 of the answer.
const CLOUDFLARE: u32 = 13335;

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IpTableError {
    #[error("failed to read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} line {line}: expected first address, last address, AS number, country and description, parted by tabs", path.display())]
    Line { path: PathBuf, line: usize },
    #[error("{} has more than {MOST_RANGES} ranges", .0.display())]
    TooLong(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    asn: u32,
    country: [u8; 2],
    description: Arc<str>,
}

/// The ranges in order.
#[derive(Debug, Default)]
pub(super) struct IpTable {
    ranges: Vec<Range>,
}

impl IpTable {
    pub(super) fn load(path: &Path) -> Result<Self, IpTableError> {
        let failed = |source| IpTableError::Read { path: path.to_owned(), source };
        let file = io::BufReader::new(std::fs::File::open(path).map_err(failed)?);
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        let mut ranges = Vec::new();
        for (number, line) in file.lines().enumerate() {
            let line = line.map_err(failed)?;
            if line.trim().is_empty() {
                continue;
            }
            let range = parse(&line, &mut names)
                .ok_or_else(|| IpTableError::Line { path: path.to_owned(), line: number + 1 })?;
            ranges.push(range);
            if ranges.len() > MOST_RANGES {
                return Err(IpTableError::TooLong(path.to_owned()));
            }
        }
        ranges.sort_by_key(|range| range.first);
        Ok(Self { ranges })
    }

    fn find(&self, address: IpAddr) -> Option<&Range> {
        let wanted = number(address);
        let after = self.ranges.partition_point(|range| range.first <= wanted);
        self.ranges[..after].last().filter(|range| range.last >= wanted)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn parse(line: &str, names: &mut HashMap<String, Arc<str>>) -> Option<Range> {
    let mut columns = line.split('\t');
    let first: IpAddr = columns.next()?.parse().ok()?;
    let last: IpAddr = columns.next()?.parse().ok()?;
    let asn = columns.next()?.parse().ok()?;
    let country = match columns.next()?.as_bytes() {
        [a, b] => [*a, *b],
        _ => *b"XX",
    };
    let description = columns.next().unwrap_or_default();
    let description = Arc::clone(names.entry(description.to_owned()).or_insert_with(|| Arc::from(description)));
    let range = Range { first: number(first), last: number(last), asn, country, description };
    (first.is_ipv4() == last.is_ipv4() && range.first <= range.last).then_some(range)
}

#[derive(Debug, Deserialize)]
struct Arguments {
    ip: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Answer {
    ip: IpAddr,
    asn: u32,
    desc: String,
    country: String,
    flags: u32,
}

const FIELDS: &[Field] = &[Field { name: "ip", kind: FieldKind::Text }];

pub(super) fn look_up(pm3: &Pm3, call: &Call) -> Outcome {
    let arguments: Arguments = params::read("ipinfo", FIELDS, call)?;
    let ip: IpAddr =
        arguments.ip.trim().parse().map_err(|_not_one| Failure::invalid(format!("invalid ip {:?}", arguments.ip)))?;
    json(&answer(&pm3.ip_table, ip))
}

fn answer(table: &IpTable, ip: IpAddr) -> Answer {
    let found = table.find(ip.to_canonical()).filter(|range| range.asn != 0);
    let Some(range) = found else {
        return Answer { ip, asn: 0, desc: scope(ip).to_owned(), country: "XX".to_owned(), flags: 0 };
    };
    Answer {
        ip,
        asn: range.asn,
        desc: range.description.to_string(),
        country: String::from_utf8_lossy(&range.country).into_owned(),
        flags: if range.asn == CLOUDFLARE { 2 } else { 0 },
    }
}

/// What the address itself says.
fn scope(ip: IpAddr) -> &'static str {
    let private = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    match (ip.to_canonical().is_loopback(), private) {
        (true, _) => "loopback",
        (false, true) => "private",
        (false, false) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_between_the_ends_of_its_range() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("table.tsv");
        let text = "1.0.0.0\t1.0.0.255\t13335\tUS\tCLOUDFLARENET\n2001:db8::\t2001:db8::ff\t7\tNone\tx y\n1.0.1.0\t1.0.3.255\t0\tNone\tNot routed\n";
        std::fs::write(&path, text).expect("written");
        let table = IpTable::load(&path).expect("right");
        let ask = |ip: &str| answer(&table, ip.parse().expect("an address"));
        let row = ask("1.0.0.7");
        assert_eq!((row.asn, row.country.as_str(), row.desc.as_str(), row.flags), (13335, "US", "CLOUDFLARENET", 2));
        assert_eq!(ask("::ffff:1.0.0.7").asn, 13335);
        assert_eq!((ask("2001:db8::1").asn, ask("2001:db8::1").country.as_str()), (7, "XX"));
        for unknown in ["1.0.1.1", "1.0.4.0", "0.0.0.0", "2001:db8::100"] {
            assert_eq!((ask(unknown).asn, ask(unknown).country.as_str()), (0, "XX"), "{unknown}");
        }
        assert_eq!((ask("127.0.0.1").desc.as_str(), ask("10.1.1.1").desc.as_str()), ("loopback", "private"));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("table.tsv");
        std::fs::write(&path, "1.0.0.0\t1.0.0.255\t1\tUS\tx\n2.0.0.0\t1.0.0.0\t1\tUS\tx\n").expect("written");
        let error = IpTable::load(&path).expect_err("the range is backwards").to_string();
        assert!(error.contains("table.tsv line 2"), "{error}");
    }
}
