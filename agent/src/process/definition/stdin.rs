//! `stdin`: what a process reads as its standard input. Nobody sits before it, so it is nothing unless something is named.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Standard input.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Stdin {
    /// `/dev/null`: the end of the input at once.
    #[default]
    Null,
    /// A pipe that stays open as long as the process lives; `weft send` writes into it.
    Pipe,
    /// A file, from its beginning at every start.
    File(PathBuf),
}

impl TryFrom<String> for Stdin {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "null" => Ok(Self::Null),
            "pipe" => Ok(Self::Pipe),
            path if path.starts_with('/') && !path.contains('\0') => Ok(Self::File(path.into())),
            other => Err(format!("stdin: {other:?} is not \"null\", \"pipe\" or the absolute path of a file")),
        }
    }
}

impl From<Stdin> for String {
    fn from(stdin: Stdin) -> String {
        match stdin {
            Stdin::Null => "null".to_owned(),
            Stdin::Pipe => "pipe".to_owned(),
            Stdin::File(path) => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_a_pipe_and_a_file_are_taken_and_anything_else_is_refused_by_name() {
        for (text, stdin) in
            [("null", Stdin::Null), ("pipe", Stdin::Pipe), ("/srv/in put", Stdin::File("/srv/in put".into()))]
        {
            let read: Stdin = serde_json::from_value(text.into()).expect("accepted");
            assert_eq!((&read, serde_json::to_value(&read).ok()), (&stdin, Some(text.into())));
        }
        for wrong in ["inherit", "tty", "", "input.txt", "/a\0b"] {
            let error = Stdin::try_from(wrong.to_owned()).expect_err("refused");
            assert!(error.starts_with("stdin: ") && error.contains("\"pipe\""), "{error}");
        }
    }
}
