//! The paths (`a::b::C`) that a file names, those inside `use` trees spelled out.

/// One path and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) line: usize,
    pub(super) segments: Vec<String>,
}

impl Named {
    /// Whether the path is `prefix` or below it.
    pub(super) fn is_below(&self, prefix: &[&str]) -> bool {
        self.segments.len() >= prefix.len() && self.segments.iter().zip(prefix).all(|(a, b)| a == b)
    }
}

/// Every path of two segments or more in `code`, which holds no comment and no literal.
pub(super) fn find(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let mut named = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = match tokens[at].1 {
            "use" => tree(&tokens, at + 1, &[], &mut named),
            word if is_word(word) => plain(&tokens, at, &mut named),
            _ => at + 1,
        };
    }
    named
}

type Token<'a> = (usize, &'a str);

/// Words, `::`, and every other character by itself, each with its line.
fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                length => length,
            };
            tokens.push((number + 1, &rest[..length]));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
}

/// A path in an expression or a type. Returns the index after it.
fn plain(tokens: &[Token<'_>], start: usize, named: &mut Vec<Named>) -> usize {
    let mut segments = vec![tokens[start].1.to_owned()];
    let mut at = start + 1;
    while let [(_, "::"), (_, next), ..] = tokens[at..]
        && is_word(next)
    {
        segments.push(next.to_owned());
        at += 2;
    }
    if segments.len() > 1 {
        named.push(Named { line: tokens[start].0, segments });
    }
    at
}

/// One branch of a `use` tree below `prefix`. Returns the index after it.
fn tree(tokens: &[Token<'_>], start: usize, prefix: &[String], named: &mut Vec<Named>) -> usize {
    let mut segments = prefix.to_vec();
    let mut at = start;
    while let Some((line, token)) = tokens.get(at) {
        match *token {
            "{" => return branches(tokens, at + 1, &segments, named),
            "::" => at += 1,
            "as" => at += 2,
            "*" | "self" if !segments.is_empty() => at += 1,
            word if is_word(word) => {
                segments.push(word.to_owned());
                at += 1;
            }
            _ => {
                named.push(Named { line: *line, segments });
                return at;
            }
        }
    }
    at
}

fn branches(tokens: &[Token<'_>], start: usize, prefix: &[String], named: &mut Vec<Named>) -> usize {
    let mut at = start;
    while let Some((_, token)) = tokens.get(at) {
        match *token {
            "}" => return at + 1,
            "," => at += 1,
            _ => {
                let next = tree(tokens, at, prefix, named);
                at = next.max(at + 1);
            }
        }
    }
    at
}
