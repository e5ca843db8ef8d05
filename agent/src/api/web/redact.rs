//! What of an environment may be shown: names always, values unless they look like secrets. Pure.

use serde_json::{Map, Value};

const HIDDEN: &str = "***";
/// Parts of names whose values are secrets as a rule.
const SECRET_WORDS: [&str; 12] = [
    "SECRET",
    "TOKEN",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "PRIVATE",
    "APIKEY",
    "API_KEY",
    "ACCESS_KEY",
    "AUTH",
    "COOKIE",
];
/// The same, where they are a whole word between underscores.
const SECRET_PARTS: [&str; 4] = ["KEY", "PASS", "PWD", "DSN"];

/// Hides the values of `environment` that look like secrets.
pub(super) fn environment(environment: &mut Map<String, Value>) {
    for (name, value) in environment {
        let is_secret = is_secret_name(name) || value.as_str().is_some_and(has_password);
        if is_secret {
            *value = HIDDEN.into();
        }
    }
}

fn is_secret_name(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    SECRET_WORDS.iter().any(|word| upper.contains(word)) || upper.split('_').any(|part| SECRET_PARTS.contains(&part))
}

/// A URL with a password in it (RFC 3986, section 3.2.1).
fn has_password(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, value: &str, is_hidden: bool) {
        let mut map = Map::from_iter([(name.to_owned(), Value::from(value))]);
        environment(&mut map);
        assert_eq!(map[name] == HIDDEN, is_hidden, "{name}={value}");
    }

    #[test]
    fn secrets_are_hidden_and_the_rest_is_shown() {
        for name in ["API_KEY", "db_password", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "SESSION_KEY", "PGPASS_PWD"] {
            check(name, "x", true);
        }
        for name in ["NODE_ENV", "PORT", "KEYBOARD", "MONKEY", "COMPASS"] {
            check(name, "production", false);
        }
        check("DATABASE_URL", "postgres://user:pass@host/db", true);
        check("BASE_URL", "https://host/a:b@c", false);
    }
}
