use super::*;
use crate::model::Node;
use crate::model::key::PublicKey;
use crate::model::peer::Peer;

/// `alpha` with peers `n0000`, `n0001`, … at 10.80.x.y and fd80::x:y.
pub(in crate::dns) fn mesh(peers: u16) -> Model {
    let peers = (0..peers).map(|index| peer(&format!("n{index:04}"), index)).collect();
    let node = Node {
        id: "alpha".parse().expect("a label"),
        addresses: ["10.80.0.1/16", "fd80::1/64"].map(|text| text.parse().expect("an address")).to_vec(),
        public_key: PublicKey::from_bytes([0xaa; 32]),
    };
    Model::new(node, "weft.internal".to_owned(), peers).expect("consistent")
}

fn peer(name: &str, index: u16) -> Peer {
    let [high, low] = (index + 2).to_be_bytes();
    let mut key = [7; 32];
    key[..2].copy_from_slice(&[high, low]);
    let addresses =
        [format!("10.80.{high}.{low}/32"), format!("fd80::{:x}/128", index + 2), "192.168.7.0/24".to_owned()];
    let routed = if index == 0 { &addresses[..] } else { &addresses[..2] };
    Peer {
        name: name.parse().expect("a label"),
        public_key: PublicKey::from_bytes(key),
        preshared_key: None,
        endpoint: None,
        allowed_ips: routed.iter().map(|text| text.parse().expect("a prefix")).collect(),
        persistent_keepalive: None,
    }
}

pub(in crate::dns) fn zone(peers: u16) -> Zone {
    Zone::build(&mesh(peers), Ipv4Addr::new(127, 0, 3, 3), 1).expect("built")
}

fn resolve<'z>(zone: &'z Zone, name: &str, rtype: u16) -> Resolution<'z> {
    let name = WireName::parse(name).expect("a name");
    zone.resolve(name.as_bytes(), rtype)
}

fn records(name: &str, rtype: u16) -> Vec<Data> {
    match resolve(&zone(3), name, rtype) {
        Resolution::Answer(set) => set.records.clone(),
        Resolution::NoData { .. } | Resolution::NoName { .. } | Resolution::Elsewhere => Vec::new(),
    }
}

fn v4(text: &str) -> Data {
    Data::A(text.parse().expect("an address"))
}

fn apex_of(name: &str, rtype: u16) -> String {
    let zone = zone(3);
    let name = WireName::parse(name).expect("a name");
    let (kind, apex_len) = match zone.resolve(name.as_bytes(), rtype) {
        Resolution::NoData { apex_len } => ("nodata", apex_len),
        Resolution::NoName { apex_len } => ("nxdomain", apex_len),
        Resolution::Answer(_) => return "answer".to_owned(),
        Resolution::Elsewhere => return "elsewhere".to_owned(),
    };
    let labels: Vec<String> = super::super::wire::labels(&name.as_bytes()[name.as_bytes().len() - apex_len..])
        .map(|label| label.escape_ascii().to_string())
        .collect();
    format!("{kind} {}", labels.join("."))
}

#[test]
fn self_and_peers_have_their_addresses() {
    assert_eq!(records("alpha.weft.internal", rtype::A), [v4("10.80.0.1")]);
    assert_eq!(records("n0001.weft.internal", rtype::A), [v4("10.80.0.3")]);
    let v6 = Data::Aaaa("fd80::3".parse().expect("an address"));
    assert_eq!(records("n0001.weft.internal", rtype::AAAA), [v6]);
}

#[test]
fn a_routed_network_of_a_peer_is_not_its_address() {
    assert_eq!(records("n0000.weft.internal", rtype::A), [v4("10.80.0.2")]);
    assert_eq!(apex_of("1.7.168.192.in-addr.arpa", rtype::PTR), "elsewhere");
}

#[test]
fn text_tells_the_id_and_the_public_key() {
    let key = PublicKey::from_bytes([0xaa; 32]);
    let expected = Data::Txt(vec!["id=alpha".to_owned(), format!("key={key}")]);
    assert_eq!(records("alpha.weft.internal", rtype::TXT), [expected]);
}

#[test]
fn addresses_point_back_to_names() {
    let name = |text| Data::Ptr(WireName::parse(text).expect("a name"));
    assert_eq!(records("3.0.80.10.in-addr.arpa", rtype::PTR), [name("n0001.weft.internal")]);
    let v6 = WireName::reverse("fd80::1".parse().expect("an address")).to_string();
    assert_eq!(records(&v6, rtype::PTR), [name("alpha.weft.internal")]);
    assert_eq!(records("3.3.0.127.in-addr.arpa", rtype::PTR), [name("pm3")]);
    assert_eq!(records("1.0.0.127.in-addr.arpa", rtype::PTR), [name("localhost")]);
}

#[test]
fn pm3_is_the_host_and_a_node_below_it_is_that_node() {
    assert_eq!(records("pm3", rtype::A), [v4("127.0.3.3")]);
    assert_eq!(records("n0001.pm3", rtype::A), [v4("10.80.0.3")]);
    assert_eq!(records("alpha.pm3", rtype::A), [v4("10.80.0.1")]);
    assert_eq!(apex_of("pm3", rtype::AAAA), "nodata pm3");
    assert_eq!(apex_of("nobody.pm3", rtype::A), "nxdomain pm3");
}

#[test]
fn a_name_without_the_type_is_nodata_and_an_unknown_name_nxdomain() {
    assert_eq!(apex_of("alpha.weft.internal", rtype::PTR), "nodata weft.internal");
    assert_eq!(apex_of("nobody.weft.internal", rtype::A), "nxdomain weft.internal");
    assert_eq!(apex_of("www.alpha.weft.internal", rtype::A), "nxdomain weft.internal");
    assert_eq!(apex_of("9.9.80.10.in-addr.arpa", rtype::PTR), "nxdomain 80.10.in-addr.arpa");
    assert_eq!(apex_of("0.80.10.in-addr.arpa", rtype::PTR), "nodata 80.10.in-addr.arpa");
}

#[test]
fn every_apex_has_soa_and_ns() {
    for apex in ["weft.internal", "pm3", "80.10.in-addr.arpa", "localhost", "invalid"] {
        assert_eq!(apex_of(apex, rtype::SOA), "answer", "{apex}");
        assert_eq!(apex_of(apex, rtype::NS), "answer", "{apex}");
        assert!(apex_of(apex, rtype::TXT).starts_with("nodata"), "{apex}");
    }
}

#[test]
fn any_gets_the_minimal_answer_where_something_exists() {
    assert_eq!(records("alpha.weft.internal", rtype::ANY), [Data::Rfc8482]);
    assert_eq!(apex_of("nobody.weft.internal", rtype::ANY), "nxdomain weft.internal");
}

#[test]
fn special_names_stay_on_the_host() {
    assert_eq!(records("localhost", rtype::A), [v4("127.0.0.1")]);
    assert_eq!(records("www.localhost", rtype::A), [v4("127.0.0.1")]);
    assert_eq!(apex_of("www.localhost", rtype::TXT), "nodata localhost");
    assert_eq!(apex_of("printer.local", rtype::A), "nxdomain local");
    assert_eq!(apex_of("abc.onion", rtype::A), "nxdomain onion");
    assert_eq!(apex_of("1.1.254.169.in-addr.arpa", rtype::PTR), "nxdomain 254.169.in-addr.arpa");
}

#[test]
fn what_is_not_ours_is_elsewhere() {
    for name in ["example.com", "internal", "xweft.internal", "1.0.81.10.in-addr.arpa", "pm3.example.com"] {
        assert_eq!(apex_of(name, rtype::A), "elsewhere", "{name}");
    }
}

#[test]
fn a_label_that_looks_like_the_end_of_a_name_is_no_zone() {
    // One label whose bytes end in the wire form of `pm3.`: the zone begins at label boundaries only.
    assert_eq!(zone(1).resolve(b"\x06xx\x03pm3\x00", rtype::A), Resolution::Elsewhere);
}

#[test]
fn the_leader_and_the_voters_have_names() {
    let mut model = mesh(2);
    let address = |name: &str, model: &crate::model::Model| {
        let zone = Zone::build(model, Ipv4Addr::LOCALHOST, 1).expect("built");
        match resolve(&zone, name, rtype::A) {
            Resolution::Answer(set) => set.records.len(),
            Resolution::NoData { .. } | Resolution::NoName { .. } | Resolution::Elsewhere => 0,
        }
    };
    assert_eq!((address("leader.weft.internal", &model), address("voters.weft.internal", &model)), (0, 0));
    model.roles.leader = Some("n0000".parse().expect("an id"));
    model.roles.voters = ["n0000", "n0001"].map(|name| name.parse().expect("an id")).into();
    assert_eq!((address("leader.weft.internal", &model), address("voters.weft.internal", &model)), (1, 2));
}

#[test]
fn a_mesh_domain_below_a_special_name_is_ours() {
    let mut model = mesh(1);
    model.domain = "mesh.test".to_owned();
    let zone = Zone::build(&model, Ipv4Addr::LOCALHOST, 1).expect("built");
    assert!(matches!(resolve(&zone, "n0000.mesh.test", rtype::A), Resolution::Answer(_)));
    assert_eq!(resolve(&zone, "other.test", rtype::A), Resolution::NoName { apex_len: 6 });
}

#[test]
fn a_new_serial_shows_in_the_soa() {
    let zone = Zone::build(&mesh(1), Ipv4Addr::LOCALHOST, 77).expect("built");
    let Resolution::Answer(set) = resolve(&zone, "weft.internal", rtype::SOA) else { panic!("no SOA") };
    assert!(matches!(&set.records[..], [Data::Soa(soa)] if soa.serial == 77));
}

#[test]
fn a_domain_that_is_no_name_is_refused() {
    let mut model = mesh(0);
    model.domain = "weft..internal".to_owned();
    assert!(Zone::build(&model, Ipv4Addr::LOCALHOST, 1).is_err());
}

#[test]
fn the_host_and_the_mesh_may_forward_and_nobody_else() {
    let zone = zone(3);
    let may = |text: &str| zone.may_forward(text.parse().expect("an address"));
    assert!(may("127.0.0.1") && may("::1") && may("10.80.200.1") && may("fd80::99") && may("::ffff:127.0.0.1"));
    assert!(!may("192.168.7.9") && !may("203.0.113.1") && !may("fd81::1"));
}
