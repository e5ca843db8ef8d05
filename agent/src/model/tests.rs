use super::*;

fn peer(name: &str, key: u8, allowed: &[&str]) -> Peer {
    Peer {
        name: name.parse().expect("a label"),
        public_key: PublicKey::from_bytes([key; 32]),
        preshared_key: None,
        endpoint: None,
        allowed_ips: allowed.iter().map(|text| text.parse().expect("a prefix")).collect(),
        persistent_keepalive: None,
    }
}

fn model(addresses: &[&str], peers: Vec<Peer>) -> Result<Model, ModelError> {
    let node = Node {
        id: "alpha".parse().expect("a label"),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        public_key: PublicKey::from_bytes([0xaa; 32]),
    };
    Model::new(node, "weft.internal".to_owned(), peers)
}

fn refusal(addresses: &[&str], peers: Vec<Peer>) -> String {
    model(addresses, peers).expect_err("refused").to_string()
}

#[test]
fn a_more_specific_prefix_of_another_peer_is_fine() {
    let peers = vec![peer("b", 1, &["10.0.0.0/24"]), peer("c", 2, &["10.0.0.7/32"])];
    assert_eq!(model(&["10.0.0.1/24"], peers).map(|model| model.peers().len()), Ok(2));
}

#[test]
fn the_same_prefix_on_two_peers_names_both() {
    let text = refusal(&[], vec![peer("b", 1, &["10.0.0.2/32"]), peer("c", 2, &["10.0.0.2/32"])]);
    assert!(text.contains("10.0.0.2/32") && text.contains("peer b") && text.contains("peer c"), "{text}");
}

#[test]
fn two_peers_with_one_key_are_refused() {
    let text = refusal(&[], vec![peer("b", 1, &[]), peer("c", 1, &[])]);
    assert!(text.contains("same public_key"), "{text}");
}

#[test]
fn two_peers_with_one_name_are_refused() {
    assert!(refusal(&[], vec![peer("b", 1, &[]), peer("b", 2, &[])]).contains("called b"));
}

#[test]
fn a_peer_that_is_this_node_is_refused() {
    assert!(refusal(&[], vec![peer("b", 0xaa, &[])]).contains("public_key of this node"));
    assert!(refusal(&[], vec![peer("alpha", 1, &[])]).contains("own name"));
    assert!(refusal(&["10.0.0.1/24"], vec![peer("b", 1, &["10.0.0.1/32"])]).contains("own address"));
}

#[test]
fn overlapping_address_networks_are_refused() {
    assert!(refusal(&["10.0.0.1/16", "10.0.5.1/24"], vec![]).contains("overlapping networks"));
    assert!(model(&["10.0.0.1/24", "10.0.0.2/24", "fd00::1/64"], vec![]).is_ok());
}
