//! The control socket `<run_dir>/weft.sock`: HTTP/1.1, HTTP/2 and gRPC for the command line and for tools of this host.
//!
//! Who may call is decided from what the kernel recorded at `connect()` ([`caller`]); nobody is asked for a password.
//! Methods carry the names of the pm3 API where it has them: `/ping`, `/version`, `/peers`, `/reload`, `/shutdown`.
//! [`bind`] comes early in the start of the agent, because it is what a second instance stumbles over;
//! [`socket::Socket::serve`]
//! comes when there is something to tell.

pub mod caller;
mod routes;
pub mod socket;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::UnixStream;
use tower::ServiceExt as _;

use super::{Sources, http};
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::{self, Task};
use caller::{Access, Caller, Policy};
use socket::{Socket, SocketFile};

#[cfg(test)]
pub(super) use routes::refused as refused_for_tests;
pub use socket::{SocketError, bind, path};

/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 32;
/// A dead HTTP/2 client is noticed by its missing answer to a ping.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(20);

/// The running server; dropping it closes the socket and removes its file.
#[derive(Debug)]
#[must_use = "dropping the control socket closes it"]
pub struct Control {
    _task: Task,
    _file: SocketFile,
}

impl Socket {
    /// Begins to answer; connections made since [`bind`] were waiting in the kernel's queue.
    pub fn serve(self, sources: Arc<Sources>, stop: Stop) -> Control {
        let Self { listener, file, policy } = self;
        let server = Server { granted: routes::granted(sources, stop.clone()), refused: routes::refused(), policy };
        let task = task::spawn("control", async move {
            let accept = || async { listener.accept().await.map(|(stream, _address)| stream) };
            http::accept_loop("control", accept, server, stop).await;
        });
        Control { _task: task, _file: file }
    }
}

/// Serves connections; cheap to share, one a listener.
struct Server {
    granted: Router,
    refused: Router,
    policy: Policy,
}

impl http::AsyncServe<UnixStream> for Server {
    fn serve(&self, stream: UnixStream, stop: Stop) -> impl Future<Output = ()> + Send + 'static {
        let (router, caller) = match Caller::of(&stream) {
            Ok(caller) => match self.policy.access(&caller) {
                Access::Granted => (self.granted.clone(), Some(caller)),
                Access::Refused => (self.refused.clone(), Some(caller)),
            },
            Err(error) => {
                tracing::warn!(%error, "the kernel does not tell who called; refused");
                (self.refused.clone(), None)
            }
        };
        connection(stream, router, caller, stop)
    }
}

async fn connection(stream: UnixStream, router: Router, caller: Option<Caller>, mut stop: Stop) {
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(caller) = &caller {
            request.extensions_mut().insert(caller.clone());
        }
        let router = router.clone();
        async move { http::Answer::Ok(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let builder = builder();
    let serving = builder.serve_connection(TokioIo::new(http::Prompt::new(stream)), service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.requested() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    http::log_end("control", result);
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(http::HEAD_TIMEOUT).max_buf_size(http::MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(http::MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(http::HEAD_TIMEOUT);
    builder
}
