//! The registry over a real store of one: tokens, addresses, two at once.

use std::sync::Arc;

use super::*;
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::foundation::metrics::Metrics;
use crate::mesh::schema::SCHEMA;
use crate::mesh::tests::id;
use crate::model::key::PublicKey;
use crate::model::mesh::Ports;
use crate::store::{self, Formation};

const HOUR: Duration = Duration::from_secs(3600);
const AUTHORITY: Fingerprint = Fingerprint::from_bytes([0xab; 32]);

pub(in crate::mesh) struct World {
    pub(in crate::mesh) registry: Registry,
    _shutdown: Shutdown,
    _directory: tempfile::TempDir,
}

impl World {
    pub(in crate::mesh) fn store(&self) -> &Store {
        &self.registry.store
    }
}

/// A mesh that alpha founded in this range.
pub(in crate::mesh) async fn world(range: &str) -> World {
    let directory = tempfile::tempdir().expect("a directory");
    let (shutdown, readiness) = (Shutdown::default(), Readiness::default());
    let inputs = store::Inputs {
        config: store::config::Config::default(),
        node: id("alpha"),
        directory: directory.path().join("store"),
        schemas: vec![SCHEMA],
        formation: Formation::Alone,
        network: None,
    };
    let store = store::start(inputs, &Metrics::default(), readiness.block("store"), shutdown.stop());
    store.ready().await;
    let registry = Registry::new(store);
    let prefix = allocate::prefix(AUTHORITY.as_bytes());
    let range = range.parse().expect("a network");
    registry.found(&facts("alpha", 1), key(1), AUTHORITY, (range, prefix), SystemTime::now()).await.expect("founded");
    World { registry, _shutdown: shutdown, _directory: directory }
}

pub(in crate::mesh) fn key(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn facts(name: &str, number: u8) -> Facts {
    Facts {
        id: id(name),
        public_key: PublicKey::from_bytes([number; 32]),
        ports: Ports { raft: 0, grpc: 8443, wireguard: 51820 },
        endpoint: None,
        interfaces: vec![at(number)],
        addresses: Vec::new(),
        seat: None,
        raft_address: None,
    }
}

fn at(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

impl World {
    async fn token(&self) -> Token {
        self.registry.create_token(AUTHORITY, HOUR, SystemTime::now()).await.expect("a token").token
    }

    async fn enrol(&self, token: &Token, name: &str, number: u8) -> Result<Member, RegistryError> {
        let now = SystemTime::now();
        let contents = self.registry.enrol(token, &facts(name, number), key(number), at(number), now).await?;
        let row = contents.nodes.into_iter().find(|row| row.member.id == id(name)).expect("it is in");
        Ok(row.member)
    }
}

#[tokio::test]
async fn a_token_asked_for_while_the_mesh_is_founded_is_kept() {
    let world = world("10.80.0.0/16").await;
    let other = Fingerprint::from_bytes([0xcd; 32]);
    let asked = async {
        world.registry.founded(other).await;
        world.registry.create_token(other, HOUR, SystemTime::now()).await.expect("a token")
    };
    let founding = async {
        // The token is asked for first, as by who is faster than the first start.
        tokio::task::yield_now().await;
        let range = ("10.80.0.0/16".parse().expect("a network"), allocate::prefix(other.as_bytes()));
        world.registry.found(&facts("alpha", 1), key(1), other, range, SystemTime::now()).await.expect("founded");
    };
    let (made, ()) = tokio::join!(biased; asked, founding);
    let kept = world.registry.tokens(SystemTime::now()).await.expect("read");
    assert_eq!(kept.iter().map(|token| &token.id).collect::<Vec<_>>(), [&made.token.id.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_used_by_two_at_once_lets_one_in() {
    let world = Arc::new(world("10.80.0.0/16").await);
    let token = world.token().await;
    let attempts = (2..10).map(|number| {
        let (world, token) = (Arc::clone(&world), token.clone());
        async move { world.enrol(&token, &format!("n{number}"), number).await }
    });
    let results = futures_util::future::join_all(attempts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let refusals = results.into_iter().filter_map(Result::err);
    assert!(refusals.into_iter().all(|error| matches!(error, RegistryError::Token(Refusal::Spent))));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_join_at_once_get_addresses_of_their_own() {
    let world = Arc::new(world("10.80.0.0/16").await);
    let attempts = (2..12).map(|number| {
        let world = Arc::clone(&world);
        async move {
            let token = world.token().await;
            world.enrol(&token, &format!("n{number}"), number).await
        }
    });
    let joined = futures_util::future::join_all(attempts).await;
    let joined: Vec<Member> = joined.into_iter().collect::<Result<_, _>>().expect("all are in");
    let ipv4: BTreeSet<_> = joined.iter().map(|member| member.ipv4).collect();
    let ipv6: BTreeSet<_> = joined.iter().map(|member| member.ipv6).collect();
    assert_eq!((ipv4.len(), ipv6.len()), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets_void_a_token() {
    let world = world("10.80.0.0/16").await;
    let right = world.token().await;
    for _attempt in 0..ATTEMPTS {
        let forged = Token::new(AUTHORITY).expect("a token").called(right.id);
        let error = world.enrol(&forged, "beta", 2).await.expect_err("wrong");
        assert!(matches!(error, RegistryError::Token(Refusal::Wrong)), "{error}");
    }
    let error = world.enrol(&right, "beta", 2).await.expect_err("void");
    assert!(matches!(error, RegistryError::Token(Refusal::Exhausted)), "{error}");
    let unknown = Token::new(AUTHORITY).expect("a token");
    let error = world.enrol(&unknown, "beta", 2).await.expect_err("unknown");
    assert!(matches!(error, RegistryError::Token(Refusal::Wrong)), "the same as a wrong one: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_keeps_its_addresses_and_frees_them_when_it_goes() {
    let world = world("10.80.0.0/29").await;
    let first = world.enrol(&world.token().await, "beta", 2).await.expect("in");
    let again = world.enrol(&world.token().await, "beta", 2).await.expect("the same id and key");
    assert_eq!((first.ipv4, first.ipv6, first.created_at), (again.ipv4, again.ipv6, again.created_at));
    let taken = world.enrol(&world.token().await, "beta", 3).await.expect_err("another key");
    assert!(matches!(taken, RegistryError::IdTaken(_)), "{taken}");
    let copied = world.enrol(&world.token().await, "gamma", 2).await.expect_err("beta's key");
    assert!(matches!(copied, RegistryError::KeyTaken(_)), "{copied}");
    world.registry.remove(&id("beta"), SystemTime::now()).await.expect("removed");
    let contents = world.registry.contents(Consistency::Linearizable).await.expect("contents");
    assert!(contents.revoked.contains(&key(2)) && contents.nodes.len() == 1);
    let next = world.enrol(&world.token().await, "delta", 4).await.expect("in");
    assert_eq!(next.ipv4, first.ipv4, "it is free again");
    let gone = world.registry.announce(&facts("beta", 2), key(2), None, SystemTime::now()).await.expect_err("removed");
    assert!(matches!(gone, RegistryError::UnknownNode(_)), "it does not come back by itself: {gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_choice_are_given_or_refused_with_the_reason() {
    let world = world("10.80.0.0/24").await;
    let token = world.token().await;
    let wanted = |text: &str| Facts { addresses: vec![text.parse().expect("an address")], ..facts("beta", 2) };
    let ask = async |text: &str| world.registry.enrol(&token, &wanted(text), key(2), at(2), SystemTime::now()).await;
    let error = ask("10.80.0.1/24").await.expect_err("alpha has it").to_string();
    assert!(error.contains("belongs to another node"), "{error}");
    let error = ask("10.81.0.9/24").await.expect_err("not of this mesh").to_string();
    assert!(error.contains("10.80.0.0/24"), "{error}");
    let contents = ask("10.80.0.99/24").await.expect("free");
    let beta = contents.nodes.iter().find(|row| row.member.id == id("beta")).expect("in");
    assert_eq!(beta.member.ipv4, Some(Ipv4Addr::new(10, 80, 0, 99)));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_finds_nothing_of_the_mesh_before() {
    let world = world("10.80.0.0/24").await;
    world.enrol(&world.token().await, "beta", 2).await.expect("in");
    let range = "10.90.0.0/24".parse().expect("a network");
    let heads = (range, allocate::prefix(&[1; 32]));
    world.registry.found(&facts("alpha", 1), key(9), key(7), heads, SystemTime::now()).await.expect("founded anew");
    let contents = world.registry.contents(Consistency::Linearizable).await.expect("contents");
    assert_eq!((contents.nodes.len(), contents.ipv4), (1, Some(range)));
    assert!(contents.revoked.is_empty() && world.registry.tokens(SystemTime::now()).await.expect("tokens").is_empty());
}
