use super::*;

#[track_caller]
fn check(uri: &str, expected: Option<(&str, &str, &str)>) {
    let target = Target::of(&uri.parse().expect("a URI")).ok();
    let seen = target.as_ref().map(|target| (target.peer.as_str(), target.host.as_str(), target.path.as_str()));
    assert_eq!(seen, expected, "{uri}");
}

#[test]
fn the_path_of_a_hop_is_taken_apart_and_the_rest_kept_as_it_is() {
    check("/hop/beta/pm3/ping", Some(("beta", "pm3", "/ping")));
    check("/hop/BETA/pm3", Some(("beta", "pm3", "/")));
    check("/hop/beta/app.example:8080/a%2Fb//c?d=e%20f", Some(("beta", "app.example:8080", "/a%2Fb//c?d=e%20f")));
    check("/hop/0000002a/pm3/hop/alpha/pm3/ping", Some(("0000002a", "pm3", "/hop/alpha/pm3/ping")));
    for wrong in [
        "/hop",
        "/hop/",
        "/hop/beta",
        "/hop/beta/",
        "/hop//pm3/ping",
        "/hop/beta//ping",
        "/hop/b/a%20b/x",
        "/hop/b/%ff/x",
    ] {
        check(wrong, None);
    }
}

#[test]
fn a_signature_of_the_hop_is_not_carried_on() {
    let (mut head, ()) = Request::get("/").header("x-psn", "a").body(()).expect("a request").into_parts();
    let path = unsigned(&mut head, &"/x?a=1&psn=token&b=2".parse().expect("a path")).expect("a path");
    assert_eq!((path.as_str(), head.headers.len()), ("/x?a=1&b=2", 0));
}
