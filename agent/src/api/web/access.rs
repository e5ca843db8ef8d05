//! Who may use the API: whoever presents the key, or a local caller that the kernel vouches for. Pure.
//!
//! Invariants: a wrong key is refused whoever presents it; what the kernel says counts only for a request that came straight
//! to us, names us, and was not made by a page of another origin; nobody is let in because there is no key.

use std::net::IpAddr;

use super::head::Facts;
use super::key::ApiKey;
use super::problem::{Code, Problem};
use crate::pm3::caller::Caller;

/// What a request was let in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    Key,
    /// The kernel's record of the caller: an authority that a page must not borrow.
    Local,
}

impl Grant {
    /// How it is written in logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Local => "kernel",
        }
    }
}

/// Decides about one request on a listener on `address`.
///
/// # Errors
/// The refusal, with what to do.
pub(super) fn judge(
    key: Option<&ApiKey>,
    address: IpAddr,
    caller: &Caller,
    facts: &Facts<'_>,
) -> Result<Grant, Problem> {
    if !facts.keys.is_empty() {
        return by_key(key, facts);
    }
    if let Some(name) = facts.foreign {
        let text = format!("{name} says that a page of another origin asks; such a page needs the API key");
        return Err(Problem::new(Code::PermissionDenied, text));
    }
    let why = match (&caller.reason, caller.uid) {
        _ if facts.is_forwarded => "it came through a proxy".to_owned(),
        _ if !facts.is_for(address) => "it does not name this listener as its one Host".to_owned(),
        _ if caller.is_internal() => return Ok(Grant::Local),
        (Some(reason), _) => reason.to_string(),
        (None, Some(uid)) => format!("uid {uid} is not trusted"),
        (None, None) => "the kernel does not vouch for the caller".to_owned(),
    };
    let remedy = match key {
        Some(_) => "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
        None => "set web.api_key_file and send the key, or have gateway.caller.users name the caller",
    };
    Err(Problem::new(Code::Unauthorized, format!("not authenticated: {why}; {remedy}")))
}

fn by_key(key: Option<&ApiKey>, facts: &Facts<'_>) -> Result<Grant, Problem> {
    let refuse = |text: &str| Err(Problem::new(Code::Unauthorized, text));
    let Some(key) = key else {
        return refuse("a key was sent, but this agent has none: set web.api_key_file");
    };
    // Each is compared, so that the time tells nothing about the first.
    let mut all_right = true;
    for presented in &facts.keys {
        let Some(bytes) = presented.bytes() else {
            return refuse("Authorization must be `Bearer KEY` or `ApiKey KEY`");
        };
        all_right &= key.is(bytes);
    }
    if all_right { Ok(Grant::Key) } else { refuse("the API key is wrong") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::Request;

    use super::*;
    use crate::pm3::caller::{Basis, Standing};

    const KEY: &str = "your-secret-api-key";

    fn root() -> Caller {
        Caller { standing: Standing::Internal, basis: Basis::Storage, uid: Some(0), ..Caller::unknown() }
    }

    fn nobody() -> Caller {
        let reason = Some(Arc::from("uid 65534 is not in gateway.caller.users"));
        Caller { uid: Some(65534), reason, ..Caller::unknown() }
    }

    fn ask(key: Option<&str>, caller: &Caller, headers: &[(&str, &str)]) -> Result<Grant, Problem> {
        let builder = headers.iter().fold(Request::get("/"), |builder, (name, value)| builder.header(*name, *value));
        let head = builder.body(()).expect("a request").into_parts().0;
        let key = key.map(|key| ApiKey::new(key).expect("a key"));
        judge(key.as_ref(), IpAddr::from([127, 0, 0, 1]), caller, &Facts::of(&head))
    }

    #[track_caller]
    fn refused(code: Code, said: &str, result: Result<Grant, Problem>) {
        let problem = result.expect_err("refused");
        assert!(problem.code == code && problem.message.contains(said), "{problem:?}");
    }

    const HOST: (&str, &str) = ("host", "localhost:9615");

    #[test]
    fn the_key_lets_anyone_in_from_anywhere() {
        let right = ("authorization", "Bearer your-secret-api-key");
        for extra in [("via", "nginx"), ("origin", "https://app.example"), ("host", "api.example")] {
            assert_eq!(ask(Some(KEY), &nobody(), &[right, extra]), Ok(Grant::Key), "{extra:?}");
        }
        assert_eq!(ask(Some(KEY), &nobody(), &[("x-api-key", KEY)]), Ok(Grant::Key));
    }

    #[test]
    fn a_wrong_key_is_refused_whoever_presents_it() {
        for headers in [
            &[HOST, ("x-api-key", "wrong")][..],
            &[HOST, ("authorization", "Bearer wrong"), ("x-api-key", KEY)],
            &[HOST, ("authorization", "Basic x"), ("x-api-key", KEY)],
        ] {
            refused(Code::Unauthorized, "", ask(Some(KEY), &root(), headers));
        }
        refused(Code::Unauthorized, "web.api_key_file", ask(None, &root(), &[HOST, ("x-api-key", KEY)]));
    }

    #[test]
    fn a_local_caller_that_the_kernel_vouches_for_needs_no_key() {
        assert_eq!(ask(Some(KEY), &root(), &[HOST]), Ok(Grant::Local));
        assert_eq!(ask(None, &root(), &[HOST, ("origin", "http://localhost:9615")]), Ok(Grant::Local));
    }

    #[test]
    fn others_are_told_what_to_do() {
        refused(Code::Unauthorized, "uid 65534", ask(None, &nobody(), &[HOST]));
        refused(Code::Unauthorized, "Authorization: Bearer", ask(Some(KEY), &nobody(), &[HOST]));
        refused(Code::Unauthorized, "does not vouch", ask(Some(KEY), &Caller::unknown(), &[HOST]));
    }

    #[test]
    fn the_authority_of_a_user_is_not_lent_to_pages_and_proxies() {
        for key in [None, Some(KEY)] {
            let foreign = ("origin", "https://evil.example");
            refused(Code::PermissionDenied, "Origin", ask(key, &root(), &[HOST, foreign]));
            refused(
                Code::PermissionDenied,
                "Sec-Fetch-Site",
                ask(key, &root(), &[HOST, ("sec-fetch-site", "cross-site")]),
            );
            refused(Code::Unauthorized, "proxy", ask(key, &root(), &[HOST, ("x-forwarded-for", "192.0.2.1")]));
            refused(Code::Unauthorized, "Host", ask(key, &root(), &[("host", "evil.example")]));
            refused(Code::Unauthorized, "Host", ask(key, &root(), &[]));
        }
    }
}
