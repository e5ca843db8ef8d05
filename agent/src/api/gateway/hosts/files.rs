//! Files of a directory: whole, in part, or not at all because the client has them.
//!
//! The kernel keeps every path below the directory (`openat2` with `RESOLVE_BENEATH`), symbolic links included, so neither a
//! name nor a link leads out of it. Names that begin with a dot are not served, but for `.well-known`.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::api::body::Body;
use crate::api::error::{ApiError, ErrorCode};
use crate::foundation::rfc3339;

/// What is read at once, and what is sent without a stream.
const CHUNK: u64 = 128 * 1024;
const INDEX: &str = "index.html";

/// A directory that is served.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

/// What a path leads to.
enum Found {
    File(Opened),
    /// A directory whose path lacks its slash.
    Directory,
}

struct Opened {
    file: File,
    length: u64,
    modified: SystemTime,
    tag: String,
    kind: &'static str,
}

impl Files {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Answers for `path`, decoded and below the directory.
    pub(super) async fn answer(&self, head: &Parts, path: &str) -> Result<Response<Body>, ApiError> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(ApiError::new(ErrorCode::MethodNotAllowed, format!("{} is not for files", head.method)));
        }
        let (directory, relative) = (self.directory.clone(), path.trim_start_matches('/').to_owned());
        let looked = tokio::task::spawn_blocking(move || look(&directory, &relative)).await;
        match looked {
            Ok(Ok(Found::File(opened))) => send(opened, head).await,
            Ok(Ok(Found::Directory)) => moved(&format!("{}/", head.uri.path())),
            Ok(Err(error)) => Err(missing(&error)),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

fn missing(error: &io::Error) -> ApiError {
    tracing::debug!(%error, "a file is not served");
    ApiError::new(ErrorCode::NotFound, "there is no such file")
}

fn moved(place: &str) -> Result<Response<Body>, ApiError> {
    let place = HeaderValue::from_str(place).map_err(|_wrong| missing(&io::ErrorKind::InvalidInput.into()))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, place);
    Ok(response)
}

fn look(directory: &Path, relative: &str) -> io::Result<Found> {
    let is_hidden = |segment: &str| segment.starts_with('.') && segment != ".well-known";
    if relative.contains('\0') || relative.split('/').any(is_hidden) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = open_below(directory, if relative.is_empty() { "." } else { relative })?;
    if !file.metadata()?.is_dir() {
        return if relative.ends_with('/') { Err(io::ErrorKind::NotFound.into()) } else { opened(file, relative) };
    }
    let index =
        if relative.is_empty() { INDEX.to_owned() } else { format!("{}/{INDEX}", relative.trim_end_matches('/')) };
    let file = open_below(directory, &index)?;
    if relative.is_empty() || relative.ends_with('/') { opened(file, &index) } else { Ok(Found::Directory) }
}

fn open_below(directory: &Path, relative: &str) -> io::Result<File> {
    let root = open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        // A pipe must not make us wait.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        match openat2(&root, relative, how) {
            Ok(file) => return Ok(File::from(file)),
            // Something was renamed meanwhile.
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn opened(file: File, name: &str) -> io::Result<Found> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let tag = format!("\"{:x}-{:x}-{:x}\"", metadata.mtime(), metadata.mtime_nsec(), metadata.len());
    let modified = metadata.modified()?;
    Ok(Found::File(Opened { file, length: metadata.len(), modified, tag, kind: kind(name) }))
}

/// The media type by the end of the name.
fn kind(name: &str) -> &'static str {
    let extension =
        name.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map_or("", |(_, extension)| extension);
    match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "txt" | "md" | "log" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "woff" => "font/woff",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        "gz" => "application/gzip",
        "zip" => "application/zip",
        _ => "application/octet-stream",
    }
}

/// What of a file is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part { first: u64, last: u64 },
    Nothing,
    Unsatisfiable,
}

async fn send(opened: Opened, head: &Parts) -> Result<Response<Body>, ApiError> {
    let dated = date(opened.modified);
    let wanted = wanted(&head.headers, &head.method, &opened.tag, &dated, opened.length);
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Digits and letters make values.
    let mut insert = |name, text: &str| HeaderValue::from_str(text).map(|value| headers.insert(name, value)).is_ok();
    insert(header::ETAG, &opened.tag);
    insert(header::LAST_MODIFIED, &dated);
    let (status, first, length) = match wanted {
        Wanted::Nothing => (StatusCode::NOT_MODIFIED, 0, 0),
        Wanted::Unsatisfiable => {
            insert(header::CONTENT_RANGE, &format!("bytes */{}", opened.length));
            (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0)
        }
        Wanted::Whole => (StatusCode::OK, 0, opened.length),
        Wanted::Part { first, last } => {
            insert(header::CONTENT_RANGE, &format!("bytes {first}-{last}/{}", opened.length));
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
    };
    if status != StatusCode::NOT_MODIFIED {
        insert(header::CONTENT_LENGTH, &length.to_string());
        insert(header::CONTENT_TYPE, opened.kind);
    }
    *response.status_mut() = status;
    if head.method == Method::GET && length > 0 {
        *response.body_mut() = body(opened.file, first, length).await.map_err(|error| missing(&error))?;
    }
    Ok(response)
}

fn wanted(headers: &HeaderMap, method: &Method, tag: &str, dated: &str, length: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_ours = |given: &str| given.trim() == "*" || given.trim().trim_start_matches("W/") == tag;
    let is_known = match text(header::IF_NONE_MATCH) {
        Some(tags) => tags.split(',').any(is_ours),
        None => text(header::IF_MODIFIED_SINCE) == Some(dated),
    };
    if is_known {
        return Wanted::Nothing;
    }
    let is_same = text(header::IF_RANGE).is_none_or(|given| given == tag || given == dated);
    match text(header::RANGE).filter(|_| is_same && *method == Method::GET) {
        Some(range) => part(range, length),
        None => Wanted::Whole,
    }
}

/// One range of bytes (RFC 9110 section 14); several, or what cannot be read, are answered with the whole.
fn part(range: &str, length: u64) -> Wanted {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Wanted::Whole;
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (number(first), number(last), first.is_empty(), last.is_empty()) {
        (_, Some(0), true, _) => Wanted::Unsatisfiable,
        (_, Some(count), true, _) if length > 0 => {
            Wanted::Part { first: length.saturating_sub(count), last: length - 1 }
        }
        (Some(first), _, _, true) if first < length => Wanted::Part { first, last: length - 1 },
        (Some(first), Some(last), ..) if first <= last && first < length => {
            Wanted::Part { first, last: last.min(length - 1) }
        }
        (Some(first), Some(last), ..) if first > last => Wanted::Whole,
        (Some(_), _, _, true) | (Some(_), Some(_), ..) | (_, Some(_), true, _) => Wanted::Unsatisfiable,
        _ => Wanted::Whole,
    }
}

async fn body(file: File, first: u64, length: u64) -> io::Result<Body> {
    let file = Arc::new(file);
    let chunk = read(Arc::clone(&file), first, length.min(CHUNK)).await?;
    if chunk.len() as u64 == length {
        return Ok(chunk.into());
    }
    let at = first + chunk.len() as u64;
    let rest = futures_util::stream::unfold((file, at), move |(file, at)| async move {
        let left = first + length - at;
        if left == 0 {
            return None;
        }
        let chunk = read(Arc::clone(&file), at, left.min(CHUNK)).await;
        let next = at + chunk.as_ref().map_or(left, |chunk| chunk.len() as u64);
        Some((chunk, (file, next)))
    });
    Ok(Body::Stream(futures_util::stream::once(async { Ok(chunk) }).chain(rest).boxed()))
}

/// So many bytes; an error if the file has become shorter.
async fn read(file: Arc<File>, at: u64, length: u64) -> io::Result<Bytes> {
    let read = move || {
        // At most one chunk.
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A time as HTTP writes it (RFC 9110 section 5.6.7).
fn date(time: SystemTime) -> String {
    let days = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() / 86_400;
    let text = rfc3339::format(time);
    let (day, clock) = (&text[..10], &text[11..19]);
    let month = day[5..7].parse::<usize>().unwrap_or(1);
    format!(
        "{}, {} {} {} {clock} GMT",
        WEEKDAYS[(days % 7) as usize],
        &day[8..10],
        MONTHS[(month + 11) % 12],
        &day[..4]
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::*;

    fn directory() -> tempfile::TempDir {
        let outer = tempfile::tempdir().expect("a directory");
        let site = outer.path().join("site");
        std::fs::create_dir_all(site.join("sub/.git")).expect("ours");
        for (name, text) in
            [("secret", "s"), ("site/a.txt", "0123456789"), ("site/sub/index.html", "<p>"), ("site/.env", "k")]
        {
            std::fs::write(outer.path().join(name), text).expect("ours");
        }
        std::fs::write(site.join("large"), vec![7; 300_000]).expect("ours");
        symlink("a.txt", site.join("inside")).expect("ours");
        symlink("../secret", site.join("outside")).expect("ours");
        symlink("/etc", site.join("etc")).expect("ours");
        symlink(outer.path().join("site/a.txt"), site.join("absolute")).expect("ours");
        outer
    }

    async fn ask(path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Vec<u8>) {
        let outer = directory();
        let builder = headers.iter().fold(Request::get("/x"), |request, (name, value)| request.header(*name, *value));
        let head = builder.body(()).expect("a request").into_parts().0;
        match Files::new(outer.path().join("site")).answer(&head, path).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                (head.status.as_u16(), head.headers, body.collect().await.expect("read").to_bytes().to_vec())
            }
            Err(error) => (error.code.mapping().http.as_u16(), HeaderMap::new(), Vec::new()),
        }
    }

    #[tokio::test]
    async fn nothing_outside_of_the_directory_is_served() {
        for path in [
            "/../secret",
            "/sub/../../secret",
            "/outside",
            "/etc/passwd",
            "/absolute",
            "//etc/passwd",
            "/.env",
            "/sub/.git",
            "/./a.txt",
            "/a.txt/",
            "/a.txt\0",
            "/none",
            "/sub\\..\\a.txt",
        ] {
            assert_eq!(ask(path, &[]).await.0, 404, "{path}");
        }
        assert_eq!(ask("/inside", &[]).await.2, b"0123456789", "a link that stays inside");
    }

    #[tokio::test]
    async fn files_come_whole_in_part_or_not_at_all() {
        let (status, headers, body) = ask("/a.txt", &[]).await;
        assert_eq!((status, body.as_slice()), (200, b"0123456789".as_slice()));
        assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
        assert!(headers["last-modified"].to_str().expect("text").ends_with(" GMT"));
        for (range, status, expected) in [
            ("bytes=2-4", 206, "234"),
            ("bytes=7-", 206, "789"),
            ("bytes=-3", 206, "789"),
            ("bytes=-99", 206, "0123456789"),
            ("bytes=5-99", 206, "56789"),
            ("bytes=10-", 416, ""),
            ("bytes=-0", 416, ""),
            ("bytes=4-2", 200, "0123456789"),
            ("bytes=1-2,4-5", 200, "0123456789"),
            ("items=1-2", 200, "0123456789"),
            ("bytes=--1", 200, "0123456789"),
            ("bytes=+1-2", 200, "0123456789"),
        ] {
            let (got, headers, body) = ask("/a.txt", &[("range", range)]).await;
            assert_eq!((got, String::from_utf8_lossy(&body).as_ref()), (status, expected), "{range}");
            assert_eq!(headers.contains_key("content-range"), status != 200, "{range}");
        }
        assert_eq!(ask("/large", &[]).await.2.len(), 300_000);
        assert_eq!(ask("/large", &[("range", "bytes=10-200009")]).await.2.len(), 200_000);
        assert_eq!(ask("/sub/", &[]).await.2, b"<p>");
        assert_eq!(ask("/sub", &[]).await.0, 301);
        assert_eq!(ask("/", &[]).await.0, 404, "no list");
        assert_eq!(ask("/a.txt", &[("if-none-match", "*")]).await.0, 304);
    }

    #[tokio::test]
    async fn what_the_client_has_is_not_sent_again() {
        let outer = directory();
        let files = Files::new(outer.path().join("site"));
        let get = async |headers: &[(&str, &HeaderValue)]| {
            let builder =
                headers.iter().fold(Request::get("/"), |request, (name, value)| request.header(*name, *value));
            let head = builder.body(()).expect("a request").into_parts().0;
            files.answer(&head, "/a.txt").await.expect("there")
        };
        let first = get(&[]).await;
        let (tag, dated) = (&first.headers()[header::ETAG], &first.headers()[header::LAST_MODIFIED]);
        assert_eq!(get(&[("if-none-match", tag)]).await.status(), 304);
        assert_eq!(get(&[("if-modified-since", dated)]).await.status(), 304);
        let old = HeaderValue::from_static("\"old\"");
        assert_eq!(get(&[("if-none-match", &old), ("if-modified-since", dated)]).await.status(), 200);
        let range = HeaderValue::from_static("bytes=0-1");
        assert_eq!(get(&[("range", &range), ("if-range", tag)]).await.status(), 206);
        assert_eq!(get(&[("range", &range), ("if-range", &old)]).await.status(), 200);
    }

    #[test]
    fn dates_are_written_as_http_wants_them() {
        let at = |seconds| date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    proptest! {
        #[test]
        fn any_range_lies_within_the_file(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", length in 0_u64..1000) {
            if let Wanted::Part { first, last } = part(&range, length) {
                prop_assert!(first <= last && last < length);
            }
        }
    }
}
