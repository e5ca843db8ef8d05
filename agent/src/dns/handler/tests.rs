use hickory_proto::op::Message;
use proptest::prelude::*;

use super::*;
use crate::dns::answer::Outcome;
use crate::dns::zone::tests::zone;

fn handler() -> Handler {
    let metrics = Metrics::new(&crate::foundation::metrics::Metrics::default());
    let forwarder = Forwarder::new(Vec::new(), 16, metrics.clone()).expect("no upstream to prepare");
    let shared = Shared { zone: ArcSwap::from_pointee(zone(3)), forwarder: ArcSwap::from_pointee(forwarder), metrics };
    Handler::new(Arc::new(shared))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn slow_reply(query: &[u8], client: &str, transport: Transport) -> Option<Vec<u8>> {
    let client = SocketAddr::new(client.parse().expect("an address"), 5353);
    block_on(handler().reply(query.to_vec(), client, transport))
}

/// A query of the kind that clients and tools send, more or less sensible.
#[derive(Debug, Clone)]
struct Asked {
    name: String,
    rtype: u16,
    class: u16,
    opcode: u8,
    flags: u8,
    edns: Option<(u16, u8, bool)>,
}

impl Asked {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            vec![0xab, 0xcd, (self.opcode << 3) | 1, self.flags, 0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())];
        for label in self.name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).expect("a short label"));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&self.rtype.to_be_bytes());
        bytes.extend_from_slice(&self.class.to_be_bytes());
        if let Some((payload, version, dnssec_ok)) = self.edns {
            bytes.extend_from_slice(&[0, 0, 41]);
            bytes.extend_from_slice(&payload.to_be_bytes());
            bytes.extend_from_slice(&[0, version, u8::from(dnssec_ok) << 7, 0, 0, 0]);
        }
        bytes
    }
}

fn name() -> impl Strategy<Value = String> {
    let known = prop_oneof![
        Just("alpha.weft.internal"),
        Just("N0001.weft.Internal"),
        Just("weft.internal"),
        Just("pm3"),
        Just("n0002.pm3"),
        Just("3.0.80.10.in-addr.arpa"),
        Just("0.80.10.in-addr.arpa"),
        Just("80.10.IN-ADDR.arpa"),
        Just("localhost"),
        Just("a.b.localhost"),
        Just("1.0.0.127.in-addr.arpa"),
        Just("printer.local"),
        Just("3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.d.f.ip6.arpa"),
    ];
    prop_oneof![
        3 => known.prop_map(str::to_owned),
        1 => "[a-zA-Z0-9-]{1,20}".prop_map(|label| format!("{label}.weft.internal")),
        1 => "([a-z0-9]{1,4}\\.){0,5}(in-addr|ip6)\\.arpa",
        1 => "([a-z]{1,5}\\.){0,3}(pm3|test|invalid|onion)",
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let rtype = prop_oneof![
        5 => prop::sample::select(vec![rtype::A, rtype::AAAA, rtype::PTR, rtype::TXT, rtype::SOA, rtype::NS, rtype::ANY]),
        1 => any::<u16>(),
    ];
    let class = prop_oneof![8 => Just(1_u16), 1 => Just(3), 1 => any::<u16>()];
    let opcode = prop_oneof![9 => Just(0_u8), 1 => 1..16_u8];
    let edns = prop::option::of((any::<u16>(), prop_oneof![4 => Just(0_u8), 1 => any::<u8>()], any::<bool>()));
    // AD and CD; the other bits of this byte are the server's.
    (name(), rtype, class, opcode, prop::sample::select(vec![0_u8, 0x10, 0x20]), edns)
        .prop_map(|(name, rtype, class, opcode, flags, edns)| Asked { name, rtype, class, opcode, flags, edns })
}

proptest! {
    #[test]
    fn the_fast_path_and_hickory_say_the_same(asked in asked(), tcp in any::<bool>()) {
        let query = asked.bytes();
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let mut output = vec![0; 65_535];
        let fast = answer::answer(&query, &zone(3), transport, &mut output);
        let slow = slow_reply(&query, "127.0.0.1", transport);
        match fast {
            Outcome::Ignore => prop_assert!(slow.is_none()),
            Outcome::Reply { length, .. } => {
                let slow = slow.expect("hickory replies where the fast path does");
                let (fast, slow) = (Message::from_vec(&output[..length]), Message::from_vec(&slow));
                prop_assert_eq!(fast.expect("well-formed"), slow.expect("well-formed"));
            }
            // Without upstreams, what is not ours fails.
            Outcome::Elsewhere => prop_assert_eq!(slow.map(|reply| reply[3] & 15), Some(2)),
        }
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), tcp in any::<bool>()) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        if let Some(reply) = slow_reply(&bytes, "127.0.0.1", transport) {
            prop_assert!(reply.len() >= answer::HEADER);
        }
    }
}

#[test]
fn strangers_may_ask_for_the_mesh_and_for_nothing_else() {
    let asked = |name: &str| {
        let asked = Asked { name: name.to_owned(), rtype: 1, class: 1, opcode: 0, flags: 0, edns: None };
        slow_reply(&asked.bytes(), "203.0.113.9", Transport::Tcp).map(|reply| reply[3] & 15)
    };
    assert_eq!(asked("alpha.weft.internal"), Some(0));
    assert_eq!(asked("example.com"), Some(5));
}
