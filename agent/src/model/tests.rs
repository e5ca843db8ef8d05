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

fn with(model: &Model, edits: Vec<Edit>) -> Model {
    model.with(edits).expect("a consistent model")
}

#[test]
fn a_changed_peer_is_the_only_difference() {
    let older = model(&[], vec![peer("b", 1, &["10.0.0.2/32"]), peer("c", 2, &[])]).expect("a model");
    let newer = with(&older, vec![Edit::Set(peer("b", 1, &["10.0.0.3/32"]))]);
    let changes = newer.changes_since(&older);
    let [PeerChange { key, before, after }] = changes.as_slice() else { panic!("one: {changes:?}") };
    assert_eq!(*key, PublicKey::from_bytes([1; 32]));
    let prefix = |peer: &Option<Arc<Peer>>| peer.as_ref().map(|peer| peer.allowed_ips[0].to_string());
    assert_eq!((prefix(before), prefix(after)), (Some("10.0.0.2/32".to_owned()), Some("10.0.0.3/32".to_owned())));
    assert_eq!((newer.owner(&"10.0.0.2/32".parse().expect("a prefix")), newer.changes_since(&newer)), (None, vec![]));
}

#[test]
fn names_and_prefixes_may_change_hands_within_one_edit() {
    let older = model(&[], vec![peer("b", 1, &["10.0.0.2/32"]), peer("c", 2, &[])]).expect("a model");
    let newer = with(&older, vec![Edit::Set(peer("c", 1, &[])), Edit::Set(peer("b", 2, &["10.0.0.2/32"]))]);
    assert_eq!(newer.owner(&"10.0.0.2/32".parse().expect("a prefix")), Some(&PublicKey::from_bytes([2; 32])));
    let removed = with(&newer, vec![Edit::Remove(PublicKey::from_bytes([2; 32]))]);
    assert_eq!(removed.peers().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn an_edit_is_refused_like_a_whole_list() {
    let older = model(&[], vec![peer("b", 1, &["10.0.0.2/32"])]).expect("a model");
    let refusal = |edit: Peer| older.with([Edit::Set(edit)]).expect_err("refused").to_string();
    assert!(refusal(peer("b", 2, &[])).contains("called b"));
    assert!(refusal(peer("c", 2, &["10.0.0.2/32"])).contains("both peer b and peer c"));
    assert!(refusal(peer("c", 0xaa, &[])).contains("public_key of this node"));
}

#[test]
fn a_whole_list_shares_the_peers_that_stay() {
    let older = model(&[], vec![peer("b", 1, &[]), peer("c", 2, &[])]).expect("a model");
    let newer = model(&["10.0.0.1/24"], vec![peer("d", 3, &[]), peer("c", 2, &[])]).expect("a model");
    let shared = newer.clone().sharing(&older);
    let keys: Vec<u8> = shared.changes_since(&older).iter().map(|change| change.key.as_bytes()[0]).collect();
    assert_eq!((keys, &shared), (vec![1, 3], &newer));
    let kept = PublicKey::from_bytes([2; 32]);
    assert!(std::ptr::eq(shared.peer(&kept).expect("c"), older.peer(&kept).expect("c")));
}
