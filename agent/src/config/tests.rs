use super::*;

fn parse_error(text: &str) -> String {
    parse("weft.toml", text, &[]).expect_err("refused").to_string()
}

fn with(text: &str, flags: &[&str]) -> Result<Config, String> {
    let overrides: Vec<Override> = flags.iter().map(|flag| Override::from_flag(flag).expect("KEY=VALUE")).collect();
    parse("weft.toml", text, &overrides).map_err(|error| error.to_string())
}

fn environment(pairs: &[(&str, &str)]) -> Vec<Override> {
    let pairs = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    Override::from_environment(pairs).expect("UTF-8")
}

#[test]
fn an_empty_file_gives_the_defaults() {
    assert_eq!(parse("weft.toml", "", &[]).expect("parsed"), Config::default());
}

#[test]
fn the_documented_file_parses() {
    let text = r#"
        instance = "default"
        state_dir = "/var/lib/weft"
        run_dir = "/run/weft"
        [node]
        id = "alpha"
        [wireguard]
        link = "weft0"
        listen_port = 51820
        backend = "auto"
        addresses = ["10.80.0.1/24", "fd80::1/64"]
        private_key_file = "/etc/weft/key"
        [[peer]]
        name = "beta"
        public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
        preshared_key_file = "/etc/weft/beta.psk"
        endpoint = "192.0.2.7:51820"
        allowed_ips = ["10.80.0.2/32"]
        persistent_keepalive = 25
        [dns]
        listen = ["127.0.3.3:53"]
        domain = "weft.internal"
        upstream = ["192.0.2.53"]
        hook = "off"
        [web]
        listen = "127.0.0.1:9615"
        [log]
        level = "info"
    "#;
    let config = parse("weft.toml", text, &[]).expect("parsed");
    assert_eq!(config.peer.len(), 1);
    assert_eq!(config.wireguard.addresses.len(), 2);
}

#[test]
fn an_unknown_key_names_file_line_and_the_nearest_key() {
    let text = parse_error("[wireguard]\nlisen_port = 1\n");
    assert_eq!(text, "weft.toml:2:1: unknown key \"lisen_port\"; did you mean \"listen_port\"?");
}

#[test]
fn a_wrong_value_names_its_line() {
    let text = parse_error("[wireguard]\n\nlisten_port = 70000\n");
    assert!(text.starts_with("weft.toml:3:") && text.contains("70000"), "{text}");
}

#[test]
fn a_wrong_key_names_its_line_and_what_a_key_is() {
    let text = parse_error("[[peer]]\nname = \"b\"\npublic_key = \"AAAA\"\n");
    assert!(text.starts_with("weft.toml:3:") && text.contains("44 characters"), "{text}");
}

#[test]
fn a_truncated_file_is_refused_with_its_line() {
    let text = parse_error("[wireguard]\nlink = \"weft");
    assert!(text.starts_with("weft.toml:2:"), "{text}");
}

#[test]
fn flags_go_over_the_file_and_keep_what_they_do_not_name() {
    let config = with("[log]\nlevel = \"warn\"\nformat = \"json\"", &["log.level=debug"]).expect("parsed");
    assert_eq!((config.log.level.as_str(), config.log.format), ("debug", telemetry::Format::Json));
}

#[test]
fn a_number_may_be_text_where_text_is_wanted() {
    let config = with("", &["instance=7", "wireguard.listen_port=7"]).expect("parsed");
    assert_eq!((config.instance.as_str(), config.wireguard.listen_port), ("7", 7));
}

#[test]
fn a_wrong_override_names_itself() {
    let text = with("", &["wireguard.lisen_port=7"]).expect_err("refused");
    assert_eq!(text, "--set wireguard.lisen_port: unknown key \"lisen_port\"; did you mean \"listen_port\"?");
}

#[test]
fn the_environment_goes_over_the_file() {
    let overrides = environment(&[("WEFT_LOG__LEVEL", "trace"), ("WEFT_TESTS_STRICT", "1"), ("HOME", "/")]);
    let config = parse("weft.toml", "[log]\nlevel = \"warn\"", &overrides).expect("parsed");
    assert_eq!(config.log.level, "trace");
}

#[test]
fn an_unknown_variable_is_refused_by_name() {
    let text = parse("weft.toml", "", &environment(&[("WEFT_LGO__LEVEL", "x")])).expect_err("refused").to_string();
    assert_eq!(text, "WEFT_LGO__LEVEL: unknown key \"lgo\"; did you mean \"log\"?");
}

#[test]
fn a_missing_file_is_refused_only_when_it_was_named() {
    let missing = Path::new("/nonexistent/weft.toml");
    let error = load(Source::File(missing), &[]).expect_err("refused").to_string();
    assert!(error.contains("/nonexistent/weft.toml") && error.contains("--config"), "{error}");
}
