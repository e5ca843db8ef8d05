//! Who asked at first, as one node tells another: the header `p-caller`.
//!
//! It is believed on connections whose other end has proven to be a node of the mesh, and nowhere else.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderValue;

use super::Asker;
use crate::pm3::caller::{Basis, Caller, Standing};
use crate::pm3::params::decode_path;

/// Who asked at first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::api::gateway) struct Passport {
    /// Where the request began.
    pub(super) node: String,
    /// How often it was carried on.
    pub(super) hops: u8,
    /// Where the client was, as that node saw it.
    pub(in crate::api::gateway) from: Option<IpAddr>,
    pub(super) uid: Option<u32>,
    pid: Option<u32>,
    unit: Option<String>,
    executable: Option<String>,
}

/// What stands in a value as it is; every other byte as `%` and two digits.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-@/:+".contains(&byte)
}

impl Passport {
    /// The passport of a request that `asker` makes on `node`.
    pub(super) fn of(node: &str, asker: &Asker<'_>) -> Self {
        if let Some(given) = asker.passport {
            return Self { hops: given.hops.saturating_add(1), ..given.clone() };
        }
        let owned = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        Self {
            node: node.to_owned(),
            hops: 1,
            from: Some(asker.from),
            uid: asker.caller.uid,
            pid: asker.caller.pid,
            unit: owned(&asker.caller.unit),
            executable: owned(&asker.caller.executable),
        }
    }

    pub(super) fn to_header(&self) -> HeaderValue {
        let mut text = String::new();
        let mut put = |name: &str, value: Option<String>| {
            let Some(value) = value else { return };
            if !text.is_empty() {
                text.push(';');
            }
            text.push_str(name);
            text.push('=');
            for byte in value.bytes() {
                if is_plain(byte) {
                    text.push(char::from(byte));
                } else {
                    text.push_str(&format!("%{byte:02x}"));
                }
            }
        };
        put("node", Some(self.node.clone()));
        put("hops", Some(self.hops.to_string()));
        put("for", self.from.map(|address| address.to_string()));
        put("uid", self.uid.map(|uid| uid.to_string()));
        put("pid", self.pid.map(|pid| pid.to_string()));
        put("unit", self.unit.clone());
        put("exe", self.executable.clone());
        // Letters, digits and a few marks.
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("hops=255"))
    }

    /// What a node says; `None`: it says nothing that is understood.
    pub(in crate::api::gateway) fn read(header: &HeaderValue) -> Option<Self> {
        let mut passport = Self::default();
        for pair in header.to_str().ok()?.split(';') {
            let (name, value) = pair.split_once('=')?;
            let value = decode_path(value)?;
            match name {
                "node" => passport.node = value,
                "hops" => passport.hops = value.parse().ok()?,
                "for" => passport.from = Some(value.parse().ok()?),
                "uid" => passport.uid = Some(value.parse().ok()?),
                "pid" => passport.pid = Some(value.parse().ok()?),
                "unit" => passport.unit = Some(value),
                "exe" => passport.executable = Some(value),
                // A later version may say more.
                _ => {}
            }
        }
        (passport.hops > 0 && !passport.node.is_empty()).then_some(passport)
    }

    /// The caller, on the word of `member`.
    pub(in crate::api::gateway) fn caller(&self, member: &str) -> Caller {
        let node = &self.node;
        let unit = self.unit.as_ref().map_or_else(|| node.clone(), |unit| format!("{node}/{unit}"));
        Caller {
            standing: Standing::Internal,
            basis: Basis::Certificate,
            uid: self.uid,
            pid: self.pid,
            unit: Some(unit.into()),
            executable: self.executable.as_deref().map(Into::into),
            reason: Some(format!("carried here by {member}").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_one_node_writes_another_reads(
            unit in proptest::option::of("\\PC{1,40}"), executable in proptest::option::of("\\PC{1,40}"),
            uid in any::<Option<u32>>(), pid in any::<Option<u32>>(), from in any::<Option<IpAddr>>(), hops in 1..=u8::MAX,
        ) {
            let passport = Passport { node: "alpha".to_owned(), hops, from, uid, pid, unit, executable };
            prop_assert_eq!(Passport::read(&passport.to_header()), Some(passport));
        }

        #[test]
        fn any_header_is_read_without_a_panic(value in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                Passport::read(&value);
            }
        }
    }

    #[test]
    fn what_says_too_little_is_nothing() {
        for text in
            ["", "node=a", "hops=1", "node=a;hops=0", "node=a;hops=256", "node=a;hops=1;uid=x", "node=%zz;hops=1"]
        {
            assert_eq!(Passport::read(&HeaderValue::from_static(text)), None, "{text}");
        }
        let read = Passport::read(&HeaderValue::from_static("node=a;hops=1;later=1")).expect("more is no harm");
        assert_eq!((read.node.as_str(), read.hops), ("a", 1));
    }
}
