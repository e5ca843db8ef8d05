use proptest::prelude::*;

use super::*;
use crate::foundation::mutate::edited;

fn hosts(text: &str) -> Hosts {
    #[derive(serde::Deserialize)]
    struct Table {
        host: BTreeMap<String, HostConfig>,
    }
    let table: Table = toml::from_str(text).expect("it parses");
    Hosts::new(&table.host, "alpha").expect("it is right")
}

const TWO: &str = "[[host.\"example.org\".route]]\nfiles = \"/a\"\n[[host.\"*.example.org\".route]]\nfiles = \"/b\"\n\
                   [[host.\"*.deep.example.org\".route]]\nfiles = \"/c\"\n";

#[test]
fn a_host_is_found_in_every_spelling_of_its_name_and_no_other() {
    let hosts = hosts(TWO);
    let directory = |authority: &str| {
        let host = hosts.find(authority)?;
        let Action::Files(files) = &host.routes[0].action else { panic!("files") };
        Some(format!("{files:?}"))
    };
    for (authority, expected) in [
        ("example.org", Some("/a")),
        ("EXAMPLE.org:8080", Some("/a")),
        ("example.org.", Some("/a")),
        ("www.example.org", Some("/b")),
        ("x.deep.example.org", Some("/c")),
        ("deep.example.org", Some("/b")),
        ("evilexample.org", None),
        ("example.org.evil.example", None),
        (".example.org:", None),
        ("example.org:x", None),
        ("user@example.org", None),
        ("example.org/x", None),
        ("", None),
        (".", None),
    ] {
        let found = directory(authority);
        assert_eq!(found.is_some(), expected.is_some(), "{authority}: {found:?}");
        assert!(expected.is_none_or(|expected| found.is_some_and(|found| found.contains(expected))), "{authority}");
    }
}

#[test]
fn a_path_is_matched_as_any_server_would_read_it_or_refused() {
    let check = |path: &str, expected: Option<&str>| {
        assert_eq!(match_path(path).ok().as_deref(), expected, "{path}");
    };
    check("/a/b", Some("/a/b"));
    check("/%61dmin", Some("/admin"));
    check("//admin///x", Some("/admin/x"));
    check("/a%2Fb", Some("/a/b"));
    for two_ways in [
        "/a/../b",
        "/a/%2e%2e/b",
        "/a/.%2E/b",
        "/./a",
        "/a/..",
        "/..;/a",
        "/a\\..\\b",
        "/a%5c..%5cb",
        "/%00",
        "/%ff",
        "/%zz",
    ] {
        check(two_ways, None);
    }
}

#[test]
fn a_route_is_for_its_path_and_what_is_below() {
    let config: HostConfig =
        toml::from_str("[[route]]\npath = \"/admin\"\nfiles = \"/a\"\ninternal = true\n[[route]]\nfiles = \"/b\"\n")
            .expect("it parses");
    let routes: Vec<Route> = config.check("a").expect("right").into_iter().map(Route::new).collect();
    let is_internal = |path: &str| {
        let path = match_path(path).expect("plain");
        routes.iter().find(|route| route.is_for(&path)).expect("one is for everything").is_internal
    };
    for inside in ["/admin", "/admin/", "/admin/x", "/%61dmin/x", "//admin", "/admin%2fx"] {
        assert!(is_internal(inside), "{inside}");
    }
    for outside in ["/", "/administrator", "/x/admin"] {
        assert!(!is_internal(outside), "{outside}");
    }
}

#[test]
fn a_redirect_stays_where_it_was_written() {
    let place = |target: &str, uri: &str| {
        let head = axum::http::Request::get(uri).body(()).expect("a request").into_parts().0;
        let response = redirect(target, StatusCode::FOUND, &head).expect("a redirect");
        response.headers()[header::LOCATION].to_str().expect("text").to_owned()
    };
    assert_eq!(place("https://example.org{uri}", "/a?b=c"), "https://example.org/a?b=c");
    assert_eq!(place("/new{uri}", "/a"), "/new/a");
    assert_eq!(place("{uri}", "/a"), "/a");
    assert_eq!(place("/{uri}", "//evil.example/a"), "/evil.example/a");
}

const PATHS: &[&[u8]] =
    &[b"/a/b%20c/../d;x=1/./e", b"/%2e%2e/%2fetc//passwd", b"/\xc3\xa9/%C3%A9/%ff?query#part", b"http://pm3:80/a/b"];

proptest! {
    #[test]
    fn edited_paths_are_read_without_a_panic(bytes in edited(PATHS)) {
        let Ok(path) = std::str::from_utf8(&bytes) else { return Ok(()) };
        if let Ok(matched) = match_path(path) {
            let climbs = matched.split('/').any(|part| part == "..");
            prop_assert!(matched.starts_with('/') && !matched.contains("//") && !climbs, "{matched}");
        }
        host_name(path);
    }

    #[test]
    fn any_path_and_any_name_is_read_without_a_panic(path in "/[/.%2eE5cf\\\\a;]{0,30}", name in "\\PC{0,30}") {
        if let Ok(matched) = match_path(&path) {
            prop_assert!(matched.starts_with('/') && !matched.contains("//") && !matched.contains("/../"));
        }
        host_name(&name);
    }
}
