//! Separates Rust code from comments and from the content of literals, line by line.
//!
//! Not a parser: just enough lexis (nested block comments, raw strings, character literals against lifetimes) that a word
//! in a text is not mistaken for code. Both halves keep the line numbers of the source.

/// A file in two halves of the same shape.
#[derive(Debug, Default)]
pub(super) struct Lexed {
    /// The code; comments and the content of literals are blank.
    pub(super) code: String,
    /// The comments; all else is blank.
    pub(super) comments: String,
}

impl Lexed {
    fn push(&mut self, character: char, is_code: bool, is_comment: bool) {
        let keep = |wanted| if wanted || character == '\n' { character } else { ' ' };
        self.code.push(keep(is_code));
        self.comments.push(keep(is_comment));
    }

    fn code(&mut self, text: &[char]) {
        text.iter().for_each(|character| self.push(*character, true, false));
    }

    fn comment(&mut self, text: &[char]) {
        text.iter().for_each(|character| self.push(*character, false, true));
    }

    fn literal(&mut self, text: &[char]) {
        text.iter().for_each(|character| self.push(*character, false, false));
    }
}

/// Splits `text`.
pub(super) fn split(text: &str) -> Lexed {
    let source: Vec<char> = text.chars().collect();
    let mut lexed = Lexed::default();
    let mut rest = &source[..];
    let mut in_word = false;
    while let [first, ..] = rest {
        let length = if rest.starts_with(&['/', '/']) {
            let length = rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
            lexed.comment(&rest[..length]);
            length
        } else if rest.starts_with(&['/', '*']) {
            let length = block_comment(rest);
            lexed.comment(&rest[..length]);
            length
        } else if let Some(length) = literal(rest, in_word) {
            lexed.literal(&rest[..length]);
            length
        } else {
            lexed.code(&rest[..1]);
            1
        };
        in_word = length == 1 && (first.is_alphanumeric() || *first == '_');
        rest = &rest[length..];
    }
    lexed
}

fn block_comment(text: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// The length of the string or character literal that `text` begins with.
fn literal(text: &[char], in_word: bool) -> Option<usize> {
    match text {
        ['"', ..] => Some(quoted(text, 1, '"')),
        ['r' | 'b' | 'c', ..] if !in_word => prefixed_literal(text),
        ['\'', '\\', ..] => Some(quoted(text, 1, '\'')),
        // A lifetime has no closing quote after one character.
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// `r"…"`, `r#"…"#`, `b"…"`, `br#"…"#`, `c"…"`, `b'…'`; a raw identifier (`r#type`) is none.
fn prefixed_literal(text: &[char]) -> Option<usize> {
    let letters = text.iter().take_while(|c| matches!(c, 'r' | 'b' | 'c')).count();
    let hashes = text[letters..].iter().take_while(|c| **c == '#').count();
    let open = letters + hashes;
    let is_raw = text[..letters].contains(&'r');
    match text.get(open) {
        Some('"') if letters <= 2 && is_raw => Some(raw_string(text, open + 1, hashes)),
        Some('"') if letters == 1 && hashes == 0 => Some(quoted(text, open + 1, '"')),
        Some('\'') if letters == 1 && hashes == 0 && text[0] == 'b' => Some(quoted(text, open + 1, '\'')),
        _ => None,
    }
}

fn raw_string(text: &[char], start: usize, hashes: usize) -> usize {
    let mut end = vec!['"'];
    end.resize(hashes + 1, '#');
    let length = text[start..].windows(end.len()).position(|window| window == end);
    length.map_or(text.len(), |length| start + length + end.len())
}

fn quoted(text: &[char], start: usize, end: char) -> usize {
    let mut at = start;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            c if c == end => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}
