//! `/debug/pprof/`: what the agent spends its time on, in the format of pprof (`profile.proto`, compressed).
//!
//! One CPU profile at a time: the timer signal belongs to the process. The allocator keeps no account of the heap, so there is
//! no heap profile, and the answer says so.

use std::sync::Mutex;
use std::time::Duration;

use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use pprof::protos::Message as _;

use super::{Body, TEXT, response};
use crate::foundation::error::chain;
use crate::pm3::failure::{Failure, Kind};

/// Samples a second of CPU time; the unwinder is not cheap.
const FREQUENCY: i32 = 99;
const SECONDS: std::ops::RangeInclusive<u64> = 1..=300;
const DEFAULT_SECONDS: u64 = 30;
/// Where the unwinder must not be interrupted.
const BLOCKED: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

static RUNNING: Mutex<()> = Mutex::new(());

const INDEX: &str = "/debug/pprof/\n\nprofile?seconds=30  CPU, in the format of pprof\nthreads             the threads, a line each\n\
                     cmdline             the command line\n";

pub(super) async fn answer(name: &str, query: &str) -> Result<Response<Body>, Failure> {
    match name {
        "" => Ok(response(TEXT, INDEX.to_owned().into())),
        "profile" => {
            let profile = cpu(seconds(query)?).await?;
            Ok(response(HeaderValue::from_static("application/octet-stream"), profile.into()))
        }
        "cmdline" => Ok(response(TEXT, cmdline().into())),
        "threads" | "threadcreate" | "goroutine" => Ok(response(TEXT, threads().into())),
        "heap" | "allocs" | "block" | "mutex" | "trace" => {
            let text = format!("this build keeps no {name} profile; there is /debug/pprof/profile");
            Err(Failure::new(Kind::Unavailable, text))
        }
        other => Err(Failure::new(Kind::NotFound, format!("there is no profile {other:?}; see /debug/pprof/"))),
    }
}

fn seconds(query: &str) -> Result<u64, Failure> {
    let given = query.split('&').find_map(|pair| pair.strip_prefix("seconds="));
    let seconds = given.map_or(Some(DEFAULT_SECONDS), |text| text.parse().ok());
    seconds
        .filter(|seconds| SECONDS.contains(seconds))
        .ok_or_else(|| Failure::invalid(format!("seconds must lie between {} and {}", SECONDS.start(), SECONDS.end())))
}

async fn cpu(seconds: u64) -> Result<Bytes, Failure> {
    let busy = || Failure::new(Kind::Busy, "another profile is being taken; try again after it");
    let failed = |error: &pprof::Error| Failure::failed(format!("no profile: {}", chain(error)));
    // The guard of the profiler ends it when the caller goes away; a second one is refused by the profiler itself.
    let guard = {
        let _one = RUNNING.try_lock().map_err(|_taken| busy())?;
        let builder = pprof::ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&BLOCKED);
        match builder.build() {
            Ok(guard) => guard,
            Err(pprof::Error::Running) => return Err(busy()),
            Err(error) => return Err(failed(&error)),
        }
    };
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let work = move || -> Result<Bytes, Failure> {
        let report = guard.report().build().map_err(|error| failed(&error))?;
        let profile = report.pprof().map_err(|error| failed(&error))?;
        drop(guard);
        let written = |error: std::io::Error| Failure::failed(format!("no profile: {error}"));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        std::io::Write::write_all(&mut encoder, &profile.encode_to_vec()).map_err(written)?;
        encoder.finish().map(Bytes::from).map_err(written)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_ended| Failure::new(Kind::Unavailable, "the agent is stopping"))?
}

/// Arguments parted by zero bytes, as pprof expects them. They hold no secret: keys are named by file.
fn cmdline() -> String {
    std::env::args().collect::<Vec<_>>().join("\0")
}

/// Name, state and CPU time of every thread.
fn threads() -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let [state, user, system] = [0, 11, 12].map(|at| fields.get(at).copied().unwrap_or("?"));
        let (id, name) = (entry.file_name().to_string_lossy().into_owned(), read("comm"));
        text.push_str(&format!("{id} {} state={state} user_ticks={user} system_ticks={system}\n", name.trim()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_cannot_be_is_refused() {
        assert_eq!(seconds("").expect("a default"), DEFAULT_SECONDS);
        assert_eq!(seconds("debug=1&seconds=2").expect("two"), 2);
        for wrong in ["seconds=0", "seconds=x", "seconds=301", "seconds=-1"] {
            assert!(seconds(wrong).expect_err(wrong).text.contains("between 1 and 300"));
        }
    }

    #[tokio::test]
    async fn what_is_not_kept_is_refused_and_not_made_up() {
        let refused = |name| async move { answer(name, "").await.map(|_| ()).expect_err("none").kind };
        assert_eq!(refused("heap").await, Kind::Unavailable);
        assert_eq!(refused("nonsense").await, Kind::NotFound);
    }
}
