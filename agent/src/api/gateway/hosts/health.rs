//! Asks servers again and again whether they work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::{Request, header};
use tokio::time::timeout;

use super::link::{Link, Upload};
use super::pool::{Pool, Server};
use crate::foundation::task::{self, Task};

const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);
/// So many bad answers in a row take a server out; one good one brings it back.
const BAD: u32 = 3;

/// Watches the servers of `pool` if it has a path to ask for, each by itself.
pub(super) fn watch(pool: &Arc<Pool>) -> Vec<Task> {
    let Some(path) = pool.spec.health.clone() else { return Vec::new() };
    let one = |place: usize| {
        let (pool, path) = (Arc::clone(pool), path.clone());
        task::spawn("health", async move {
            let mut bad = 0;
            let mut ticks = tokio::time::interval(INTERVAL);
            loop {
                ticks.tick().await;
                let server = &pool.servers[place];
                let is_good = timeout(TIMEOUT, works(server, &path)).await.unwrap_or(false);
                bad = if is_good { 0 } else { bad + 1 };
                tell(server, is_good, bad);
            }
        })
    };
    (0..pool.servers.len()).map(one).collect()
}

fn tell(server: &Server, is_good: bool, bad: u32) {
    let was = server.is_healthy.load(Ordering::Relaxed);
    let is = is_good || (was && bad < BAD);
    if is != was {
        server.is_healthy.store(is, Ordering::Relaxed);
        if is {
            tracing::info!(server = server.address, "a server of the gateway works again");
        } else {
            tracing::warn!(server = server.address, "a server of the gateway fails its health checks");
        }
    }
}

async fn works(server: &Server, path: &str) -> bool {
    let request = Request::get(path).header(header::HOST, server.address.as_str()).body(Upload::Nothing);
    let (Ok(request), Ok(mut link)) = (request, Link::open(&server.address).await) else { return false };
    link.ask(request).await.is_ok_and(|answer| answer.status().is_success() || answer.status().is_redirection())
}
