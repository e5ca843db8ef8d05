//! `weft send`: words, or what comes on standard input, for the standard input of a process.

use std::io::{self, Read as _};

use axum::http::Method;
use serde_json::json;

use super::args::SendArgs;
use super::{finish, path};
use crate::api::process::List;
use crate::cli::client::Client;
use crate::cli::{Exit, Failure};
use crate::process::handle::MOST_INPUT_BYTES;

pub(super) async fn run(client: &Client, args: &SendArgs) -> Result<Exit, Failure> {
    let input = input(&args.words, io::stdin().lock())?;
    let list: List = client.send(Method::POST, &path(&args.name, "send"), &json!({ "input": input })).await?;
    if args.json { finish(list.processes, true) } else { Ok(Exit::Ok) }
}

fn input(words: &[String], from: impl io::Read) -> Result<String, Failure> {
    if !words.is_empty() {
        return Ok(words.join(" ") + "\n");
    }
    let mut text = String::new();
    let most = u64::try_from(MOST_INPUT_BYTES).unwrap_or(u64::MAX);
    // One more than is taken, so that the agent refuses it instead of its end being lost here.
    let read = from.take(most + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::Usage(format!("the input cannot be read: {error}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_a_line_and_standard_input_is_as_it_is() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(input(&words(&["say", "good bye"]), &b"not read"[..]).ok().as_deref(), Some("say good bye\n"));
        assert_eq!(input(&[], &b"a\nb"[..]).ok().as_deref(), Some("a\nb"));
        assert_eq!(input(&[], &[b'x'; 9000][..]).map(|text| text.len()).ok(), Some(MOST_INPUT_BYTES + 1));
        assert!(input(&[], &[0xff][..]).is_err());
    }
}
