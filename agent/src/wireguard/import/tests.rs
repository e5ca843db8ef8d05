use super::*;
use crate::model::peer::Peer;
use crate::wireguard::config::{Config, PeerConfig};

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PEER_A: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const PEER_B: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const PSK: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";

fn import(text: &str) -> Result<Import, ImportError> {
    let link = "wg0".parse().expect("a link name");
    parse(text, Options { link: &link, key_directory: Path::new("/var/lib/weft/keys") })
}

fn imported(text: &str) -> Import {
    import(text).expect("a good file")
}

/// `text` with `PRIVATE`, `A`, `B` and `PSK` in braces put in.
fn filled(text: &str) -> String {
    [("{PRIVATE}", PRIVATE), ("{A}", PEER_A), ("{B}", PEER_B), ("{PSK}", PSK)]
        .iter()
        .fold(text.to_owned(), |text, (mark, key)| text.replace(mark, key))
}

/// A file with these lines in `[Interface]`.
fn with_interface(lines: &str) -> String {
    filled(&format!("[Interface]\nPrivateKey = {{PRIVATE}}\n{lines}\n"))
}

/// A file with these lines in a `[Peer]`.
fn with_peer(lines: &str) -> String {
    filled(&format!("[Interface]\nPrivateKey = {{PRIVATE}}\n[Peer]\nPublicKey = {{A}}\n{lines}\n"))
}

fn refusal(text: &str) -> String {
    crate::foundation::error::chain(&import(text).expect_err("refused"))
}

/// The names of the peers, read back from the TOML.
fn names(text: &str) -> Vec<String> {
    tables(&imported(&filled(text)).toml).peer.iter().map(|peer| peer.name.to_string()).collect()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    wireguard: Config,
    #[serde(default)]
    network: Network,
    dns: Option<Dns>,
    #[serde(default)]
    peer: Vec<PeerConfig>,
}

/// The keys of `[network]` that an import may write.
#[derive(Debug, PartialEq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    mtu: Option<u16>,
    routes: Option<bool>,
    table: Option<u32>,
}

/// The keys of `[dns]` that an import may write.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Dns {
    upstream: Vec<std::net::IpAddr>,
}

/// What the agent makes of the TOML.
fn tables(toml: &str) -> Tables {
    toml::from_str(toml).expect("the agent reads what the import writes")
}

/// A client of a commercial provider.
const PROVIDER: &str = "\
[Interface]
PrivateKey = {PRIVATE}
Address = 10.66.14.3/32,fc00:bbbb:bbbb:bb01::3:e02/128
DNS = 10.64.0.1

[Peer]
PublicKey = {A}
AllowedIPs = 0.0.0.0/0,::0/0
Endpoint = 193.32.126.66:51820
";

/// A server as the common installer script leaves it.
const INSTALLER: &str = "\
[Interface]
Address = 10.66.66.1/24,fd42:42:42::1/64
ListenPort = 53117
PrivateKey = {PRIVATE}
PostUp = iptables -I INPUT -p udp --dport 53117 -j ACCEPT
PostUp = iptables -I FORWARD -i eth0 -o wg0 -j ACCEPT
PostUp = iptables -I FORWARD -i wg0 -j ACCEPT
PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE
PostDown = iptables -D INPUT -p udp --dport 53117 -j ACCEPT
PostDown = iptables -t nat -D POSTROUTING -o eth0 -j MASQUERADE

### Client phone
[Peer]
PublicKey = {A}
PresharedKey = {PSK}
AllowedIPs = 10.66.66.2/32,fd42:42:42::2/128

### Client Bob's Laptop
[Peer]
PublicKey = {B}
AllowedIPs = 10.66.66.3/32,fd42:42:42::3/128
";

#[test]
fn a_provider_client_becomes_these_tables() {
    let import = imported(&filled(PROVIDER));
    let expected = format!(
        r#"[wireguard]
link = "wg0"
listen_port = 0
addresses = ["10.66.14.3/32", "fc00:bbbb:bbbb:bb01::3:e02/128"]
private_key_file = "/var/lib/weft/keys/wg0.key"

[dns]
upstream = ["10.64.0.1"]

[[peer]]
name = "peer-xtiba5rb"
public_key = "{PEER_A}"
endpoint = "193.32.126.66:51820"
allowed_ips = ["0.0.0.0/0", "::/0"]
"#
    );
    assert_eq!(import.toml, expected);
    assert!(import.hooks.is_empty());
    assert!(import.notes.iter().any(|note| note.contains("line 6") && note.contains("ip rule")), "{:?}", import.notes);
}

#[test]
fn an_installer_server_becomes_these_tables_keys_and_advice() {
    let import = imported(&filled(INSTALLER));
    let expected = format!(
        r#"[wireguard]
link = "wg0"
listen_port = 53117
addresses = ["10.66.66.1/24", "fd42:42:42::1/64"]
private_key_file = "/var/lib/weft/keys/wg0.key"

[[peer]]
name = "phone"
public_key = "{PEER_A}"
preshared_key_file = "/var/lib/weft/keys/phone.psk"
allowed_ips = ["10.66.66.2/32", "fd42:42:42::2/128"]

[[peer]]
name = "bob-s-laptop"
public_key = "{PEER_B}"
allowed_ips = ["10.66.66.3/32", "fd42:42:42::3/128"]
"#
    );
    assert_eq!(import.toml, expected);
    let keys: Vec<_> = import.keys.iter().map(|key| (key.path.to_str().expect("UTF-8"), key.content.trim())).collect();
    assert_eq!(keys, [("/var/lib/weft/keys/phone.psk", PSK), ("/var/lib/weft/keys/wg0.key", PRIVATE)]);
    let advice: Vec<(usize, &str)> = import.hooks.iter().map(|hook| (hook.line, hook.instead.as_str())).collect();
    let undo = "leave it out: `weft down` takes away exactly what Weft made";
    let masquerade = "set masquerade in [firewall] to the networks behind the tunnel, such as [\"10.0.0.0/24\"]";
    assert_eq!(
        advice,
        [
            (5, "set open_port = true in [firewall]"),
            (6, "set forward = true in [firewall]"),
            (7, "set forward = true in [firewall]"),
            (8, masquerade),
            (9, undo),
            (10, undo),
        ]
    );
}

#[test]
fn no_key_gets_into_the_toml_the_notes_or_debug() {
    let import = imported(&filled(INSTALLER));
    let shown = format!("{}{:?}{:?}", import.toml, import.notes, import);
    for secret in [PRIVATE, PSK] {
        assert!(!shown.contains(secret) && !shown.contains(&secret[..20]));
    }
}

#[test]
fn every_key_is_read_whatever_its_case_spaces_and_comments() {
    let text = filled(
        "\u{feff}# office\r\n[interface]\r\nPRIVATEKEY={PRIVATE} # secret\r\nlistenport =51821\r\nFwMark=0xca6c\r\n\
         Address=10.0.0.1/24\r\naddress = 10.0.1.1\r\nDns = 1.1.1.1, corp.example.org ,2606:4700:4700::1111\r\n\
         mtu=1420\r\nTable = 1234\r\nSaveConfig=false\r\n\
         [PEER]\r\npublickey={A}\r\npresharedkey = {PSK}\r\nallowedips = 10.0.0.2/24\r\nAllowedIPs = 10.2.0.0/16,\r\n\
         endpoint=[2001:db8::1]:51820\r\npersistentKeepalive = 25\r\n",
    );
    let import = imported(&text);
    let Tables { wireguard, network, dns, peer } = tables(&import.toml);
    assert_eq!((wireguard.listen_port, wireguard.fwmark), (51821, 0xca6c));
    let addresses: Vec<String> = wireguard.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1/24", "10.0.1.1/32"]);
    assert_eq!(network, Network { mtu: Some(1420), routes: None, table: Some(1234) });
    assert_eq!(dns.map(|dns| dns.upstream.len()), Some(2));
    assert_eq!(import.notes.len(), 1, "{:?}", import.notes);
    assert!(import.notes[0].contains("corp.example.org") && import.notes[0].contains("line 8"));
    let peer: Peer = Peer::clone(&PeerConfig { preshared_key_file: None, ..peer[0].clone() }.peer().expect("a peer"));
    let prefixes: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.0.0.0/24", "10.2.0.0/16"]);
    assert_eq!(
        (peer.persistent_keepalive, peer.endpoint.map(String::from)),
        (Some(25), Some("[2001:db8::1]:51820".into()))
    );
}

#[test]
fn table_off_means_no_routes() {
    assert_eq!(tables(&imported(&with_interface("Table = off")).toml).network.routes, Some(false));
    assert_eq!(tables(&imported(&with_interface("Table = auto")).toml).network, Network::default());
}

#[test]
fn save_config_is_named() {
    let notes = imported(&with_interface("SaveConfig = true")).notes;
    assert!(notes[0].contains("line 3: SaveConfig"), "{notes:?}");
}

#[test]
fn an_mtu_below_that_of_ipv6_is_left_out_by_name() {
    let import = imported(&with_interface("MTU = 1200"));
    assert!(import.notes[0].contains("line 3: MTU 1200") && !import.toml.contains("mtu"), "{:?}", import.notes);
}

#[test]
fn the_key_command_of_the_manual_becomes_the_key_file() {
    let import = imported("[Interface]\nPostUp = wg set %i private-key /etc/wireguard/wg0.key\n");
    assert!(import.hooks.is_empty() && import.keys.is_empty());
    assert!(import.toml.contains("private_key_file = \"/etc/wireguard/wg0.key\""), "{}", import.toml);
}

#[test]
fn a_zero_preshared_key_is_none() {
    let import = imported(&with_peer(&format!("PresharedKey = {}=", "A".repeat(43))));
    assert!(!import.toml.contains("preshared"), "{}", import.toml);
}

#[test]
fn off_and_zero_keepalives_are_left_out() {
    for value in ["off", "0"] {
        assert!(!imported(&with_peer(&format!("PersistentKeepalive = {value}"))).toml.contains("keepalive"));
    }
}

#[test]
fn masquerade_with_a_source_is_advised_literally() {
    let import = imported(&with_interface("PostUp = iptables -t nat -A POSTROUTING -s 10.0.0.0/24 -j MASQUERADE"));
    assert_eq!(import.hooks[0].instead, "set masquerade = [\"10.0.0.0/24\"] in [firewall]");
    assert!(import.hooks[0].to_string().starts_with("line 3: PostUp = iptables"), "{}", import.hooks[0]);
}

#[test]
fn several_commands_in_one_hook_get_one_advice_each() {
    let line =
        "PostUp = sysctl -w net.ipv4.ip_forward=1; iptables -A FORWARD -i %i -j ACCEPT; /usr/local/bin/notify up";
    let instead = &imported(&with_interface(line)).hooks[0].instead;
    for part in ["/etc/sysctl.d", "forward = true", "After=weft.service"] {
        assert!(instead.contains(part), "{instead}");
    }
}

#[test]
fn peers_are_named_by_their_comments() {
    let file = |comment: &str| format!("[Interface]\nPrivateKey = {{PRIVATE}}\n{comment}\n[Peer]\nPublicKey = {{A}}\n");
    for (comment, name) in [
        ("# Name = Office Gateway", "office-gateway"),
        ("# friendly_name=db.example.org", "db-example-org"),
        ("# BEGIN_PEER alice", "alice"),
        ("# Client: Alice (5d9b)", "alice"),
        ("### Client phone", "phone"),
        ("# Bob", "bob"),
        ("# AllowedIPs = 10.0.0.0/8", "peer-xtiba5rb"),
        ("# this one is only here until summer", "peer-xtiba5rb"),
        ("", "peer-xtiba5rb"),
    ] {
        assert_eq!(names(&file(comment)), [name], "{comment}");
    }
    assert_eq!(names(&with_peer("# friendly_name = inside")), ["inside"]);
    assert_eq!(names(&with_peer("AllowedIPs = 10.0.0.2/32\n# the office")), ["peer-xtiba5rb"]);
    assert_eq!(names(&with_peer("Endpoint = vpn.example.org:51820")), ["vpn-example-org"]);
}

#[test]
fn equal_names_are_numbered() {
    let text = "[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\n# gw\nPublicKey = {A}\n[Peer]\n# gw\nPublicKey = {B}\n";
    assert_eq!(names(text), ["gw", "gw-2"]);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_what_is_accepted() {
    let text = refusal(&with_peer("AlowedIPs = 10.0.0.0/8"));
    assert!(text.starts_with("line 5: AlowedIPs is not a key of [Peer]") && text.contains("AllowedIPs"), "{text}");
    assert!(refusal(&with_interface("Jc = 4")).contains("line 3: Jc is not a key of [Interface]"));
}

#[test]
fn wrong_values_are_refused_with_their_line() {
    for (text, part) in [
        (with_interface("ListenPort = 70000"), "line 3: ListenPort = \"70000\" is not a port"),
        (with_interface("FwMark = red"), "line 3: FwMark"),
        (with_interface("Table = 255"), "line 3: Table"),
        (with_interface("SaveConfig = maybe"), "line 3: SaveConfig"),
        (with_interface("MTU = big"), "line 3: MTU"),
        (with_interface("Address = 10.0.0.1/33"), "line 3: Address = \"10.0.0.1/33\""),
        (with_interface("Address"), "line 3: this is not KEY = VALUE"),
        (with_interface("[Pear]"), "line 3: [Pear] is not a section"),
        (with_peer("Endpoint = 192.0.2.1"), "line 5: Endpoint is wrong"),
        (with_peer("PersistentKeepalive = often"), "line 5: PersistentKeepalive"),
        (with_peer("AllowedIPs = 10.0.0.0/8 10.1.0.0/16"), "line 5: AllowedIPs"),
        ("ListenPort = 1\n[Interface]".to_owned(), "line 1: this stands before"),
        ("[Peer]\nPublicKey = {A}".replace("{A}", PEER_A), "no [Interface] section"),
        ("[Interface]\nListenPort = 1".to_owned(), "no PrivateKey"),
        (with_interface("[Peer]\nAllowedIPs = 10.0.0.0/8"), "line 3: this [Peer] has no PublicKey"),
        (
            with_peer(&format!("[Peer]\nPublicKey = {PEER_A}")),
            "line 5: this PublicKey is also that of the [Peer] in line 3",
        ),
        (
            with_peer(&format!("AllowedIPs = 10.0.0.2/32\n[Peer]\nPublicKey = {PEER_B}\nAllowedIPs = 10.0.0.2/32")),
            "line 6: AllowedIPs 10.0.0.2/32 is also given to the [Peer] in line 3",
        ),
    ] {
        let refused = refusal(&text);
        assert!(refused.contains(part), "{part:?} is not in {refused:?}");
    }
}

#[test]
fn a_wrong_key_is_refused_without_showing_it() {
    let text = refusal("[Interface]\nPrivateKey = c2VjcmV0c2VjcmV0\n");
    assert!(text.contains("line 2: PrivateKey") && text.contains("12 bytes"), "{text}");
    assert!(!text.contains("c2Vj"), "{text}");
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in "(?s)(\\[(Interface|Peer)\\]\n|[ -~]{0,20}(=|#)[ -~]{0,30}\n|.{0,20}){0,12}") {
        drop(import(&text));
    }
}
