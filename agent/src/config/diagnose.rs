//! Turns a parser's complaint into one line: where, what, and the nearest key.

/// `origin:line:column: what is wrong`.
pub(super) fn explain(origin: &str, text: &str, error: &toml::de::Error) -> String {
    let message = explain_message(error.message());
    let Some(span) = error.span() else {
        return format!("{origin}: {message}");
    };
    let before = &text[..span.start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{origin}:{line}:{column}: {message}")
}

/// The message of serde, with the nearest key in place of the list of all keys.
pub(super) fn explain_message(message: &str) -> String {
    let message = message.trim().replace('\n', ": ");
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message;
    };
    let Some((unknown, expected)) = rest.split_once('`') else {
        return message;
    };
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    match nearest(unknown, &known) {
        Some(nearest) => format!("unknown key {unknown:?}; did you mean {nearest:?}?"),
        None => format!("unknown key {unknown:?}; accepted here: {}", known.join(", ")),
    }
}

/// The known key that is closest in spelling, if any is close enough to be meant.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let best = known.iter().map(|key| (distance(unknown, key), *key)).min()?;
    let close_enough = best.0 <= (unknown.len() / 3).max(2) && best.0 < unknown.len();
    close_enough.then_some(best.1)
}

/// The number of single-character edits between two words (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("listen_port", "lisen_port"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn a_far_key_lists_what_is_accepted() {
        let text = explain_message("unknown field `zebra`, expected one of `link`, `backend`");
        assert_eq!(text, "unknown key \"zebra\"; accepted here: link, backend");
    }
}
