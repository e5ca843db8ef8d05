//! Votes: applying what is planned again and again ends where nothing is left to do, and ends right.

use super::*;
use crate::identity::certificate::Fingerprint;
use crate::mesh::tests::{id, member as mesh_member};
use crate::model::mesh::Member as MeshMember;

fn node(name: &str, number: u8, seat: Seat) -> NodeRow {
    let member = MeshMember::clone(&mesh_member(name, number, Some("192.0.2.1")));
    let certificate_key = Fingerprint::from_bytes([number; 32]);
    NodeRow { member, certificate_key, is_founder: number == 1, seat, raft_address: Some(format!("{name}:9443")) }
}

fn member(name: &str, voter: bool) -> Member {
    Member { raft_id: 1, node: id(name), address: format!("{name}:9443"), voter }
}

fn acl(pattern: &str, action: i32) -> Acl {
    Acl::parse("it".to_owned(), vec![pattern.to_owned()], action).expect("right")
}

/// The voters when nothing is left to do; `leader` leads, and the first other voter after it hands over.
fn settle(mut members: Vec<Member>, leader: &str, nodes: &[NodeRow], acls: &[Acl], most: usize) -> Vec<String> {
    let mut leader = id(leader);
    for _step in 0..50 {
        let Some(change) = change(&members, &leader, nodes, acls, most) else {
            let voters = members.iter().filter(|member| member.voter);
            return voters.map(|member| member.node.to_string()).collect();
        };
        let find = |members: &[Member], node: &NodeId| {
            members.iter().position(|member| member.node == *node).expect("a member")
        };
        match change {
            Change::Remove(node) => members.retain(|member| member.node != node),
            Change::Demote(node) => {
                let at = find(&members, &node);
                members[at].voter = false;
            }
            Change::Readdress(new) => {
                let at = find(&members, &new.node);
                members[at] = new;
            }
            Change::Promote(nodes) => {
                let at = find(&members, &nodes[0]);
                members[at].voter = true;
            }
            Change::HandOver => {
                let next = members.iter().find(|member| member.voter && member.node != leader);
                leader = next.expect("another voter").node.clone();
            }
        }
    }
    panic!("it goes on for ever");
}

fn all(names: &[&str], seat: Seat) -> Vec<NodeRow> {
    (1..).zip(names).map(|(number, name)| node(name, number, seat)).collect()
}

/// Alpha votes, the others hold the log.
fn first_votes(names: &[&str]) -> Vec<Member> {
    names.iter().map(|name| member(name, *name == "alpha")).collect()
}

#[test]
fn votes_are_given_in_odd_numbers_up_to_the_wanted_one() {
    let names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"];
    for (count, most, expected) in
        [(1, 3, 1), (2, 3, 1), (3, 3, 3), (4, 3, 3), (4, 5, 3), (5, 5, 5), (6, 5, 5), (6, 1, 1)]
    {
        let (names, nodes) = (&names[..count], all(&names[..count], Seat::Auto));
        assert_eq!(settle(first_votes(names), "alpha", &nodes, &[], most).len(), expected, "{count} nodes, {most}");
    }
}

#[test]
fn who_asks_for_a_vote_gets_it_even_as_the_second() {
    let nodes = [node("alpha", 1, Seat::Auto), node("beta", 2, Seat::Voter)];
    assert_eq!(settle(first_votes(&["alpha", "beta"]), "alpha", &nodes, &[], 3), ["alpha", "beta"]);
}

#[test]
fn an_acl_takes_votes_and_the_leaders_too() {
    let names = ["alpha", "beta", "gamma"];
    let nodes = all(&names, Seat::Auto);
    let voting: Vec<Member> = names.iter().map(|name| member(name, true)).collect();
    let after = settle(voting.clone(), "alpha", &nodes, &[acl("alpha", 0), acl("*", 1)], 3);
    assert!(!after.contains(&"alpha".to_owned()) && !after.is_empty(), "{after:?}");
    assert_eq!(settle(voting, "alpha", &nodes, &[acl("nobody", 1)], 3).len(), 1, "somebody must lead");
}

#[test]
fn what_left_the_mesh_leaves_the_store_and_what_moved_is_found() {
    let nodes = [node("alpha", 1, Seat::Auto), node("beta", 2, Seat::Edge)];
    let members = [member("alpha", true), member("beta", false), member("gone", false)];
    assert_eq!(change(&members, &id("alpha"), &nodes, &[], 3), Some(Change::Remove(id("beta"))));
    assert_eq!(settle(members.to_vec(), "alpha", &nodes, &[], 3), ["alpha"]);
    let moved = [Member { address: "elsewhere:1".to_owned(), ..member("alpha", true) }];
    assert_eq!(change(&moved, &id("alpha"), &nodes, &[], 3), Some(Change::Readdress(member("alpha", true))));
    assert_eq!(change(&moved, &id("alpha"), &[], &[], 3), None, "before the mesh is founded");
}

#[test]
fn a_node_comes_to_its_part_and_gives_it_up_in_order() {
    let own = Own {
        seat: Seat::Auto,
        standing: Standing::Alone,
        issues: false,
        is_member: true,
        has_told: false,
        is_lost: false,
    };
    let votes = |votes| Standing::Member { votes };
    for (standing, issues, has_told, expected) in [
        (Standing::Alone, true, false, Step::Nothing),
        (Standing::Alone, false, false, Step::Knock),
        (Standing::Waiting, false, false, Step::Ask),
        (votes(false), false, true, Step::Nothing),
        (votes(true), false, true, Step::Fetch),
        (votes(true), true, true, Step::Nothing),
        (votes(false), true, true, Step::GiveUp),
        (Standing::LeftOut, true, true, Step::GiveUp),
        (Standing::LeftOut, false, true, Step::Knock),
        (Standing::Closed, false, false, Step::Nothing),
    ] {
        assert_eq!(step(Own { standing, issues, has_told, ..own }), expected, "{standing:?} {issues} {has_told}");
    }
    let edge = Own { seat: Seat::Edge, ..own };
    assert_eq!(step(edge), Step::Ask, "it says so once");
    assert_eq!(step(Own { has_told: true, ..edge }), Step::Nothing);
    assert_eq!(step(Own { has_told: true, standing: Standing::LeftOut, ..edge }), Step::BeginAlone);
    assert_eq!(step(Own { is_member: false, ..own }), Step::Nothing);
    assert_eq!(step(Own { issues: true, is_lost: true, standing: votes(true), ..own }), Step::Probe);
}
