//! How an error reads when it leaves the program: the whole chain of causes on one line.

use std::error::Error;

/// `error` and every cause below it, joined by `: `.
///
/// Our error types never repeat their cause in their own text (STYLE, Errors), so each link is said once. Links
/// that a library repeats literally are left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to read the key")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn chain_names_every_cause_once() {
        let error = Outer(std::io::Error::other("permission denied"));
        assert_eq!(chain(&error), "failed to read the key: permission denied");
    }
}
