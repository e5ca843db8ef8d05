//! The web listener, 127.0.0.1:9615 by default: the web API of PMDaemon, `/metrics` for Prometheus, `/health` for supervisors.
//!
//! In: requests; what the domains publish ([`Sources`]); who connected (`pm3::caller::Classifier`). Out: answers in the
//! shapes of the spec "Web API", every failure in its one format ([`problem`]).
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | the `[web]` table and where the key comes from |
//! | [`key`] | the API key |
//! | [`cors`] | which pages of other origins may read answers |
//! | [`head`], [`host`] | what a request says about itself |
//! | [`access`] | who may |
//! | [`routes`] | every path; [`openapi`] writes the document from it |
//! | [`content`] | bodies and queries |
//! | [`endpoints`], [`processes`] | what each path does |
//! | [`list`] | the list of processes, written once for each state of it |
//! | [`pm2`] | the same in the shape of `pm2 jlist` |
//! | [`live`] | WebSocket subscribers |
//! | [`page`] | the page at `/` |
//! | [`redact`] | what of an environment is shown |
//! | [`listener`], [`connection`] | sockets |
//!
//! Invariants: nothing but `/metrics`, `/health`, the document and the page answers without a key or the kernel's word for
//! the caller, and those only under a name of ours: a page that points its own name at us gets nothing. The kernel's word is
//! never lent to a page of another origin. Connections, heads, bodies and times are bounded.

mod access;
mod answer;
pub mod config;
mod connection;
mod content;
mod cors;
mod endpoints;
pub mod exposition;
mod head;
mod host;
mod key;
mod list;
mod listener;
mod live;
mod openapi;
mod page;
mod pm2;
mod problem;
mod processes;
mod redact;
mod routes;
mod system;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::Sources;
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::{self, Task};
use crate::pm3::caller::Classifier;
use config::Settings;

/// Why the listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error(
        "web.listen {address} is in use by another program; stop that one, or choose another address for web.listen \
         (`ss -ltnp` shows who has it)"
    )]
    InUse {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen on web.listen {address}; is it an address of this host?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// What the listener serves and asks.
pub struct Inputs {
    pub settings: Settings,
    pub sources: Arc<Sources>,
    /// `None`: nobody is vouched for, and only the key lets in.
    pub classifier: Option<Arc<dyn Classifier>>,
}

/// The listener, not yet served.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// The running server; dropping it closes the listener.
#[must_use = "dropping the web listener closes it"]
pub struct Web {
    _tasks: [Task; 2],
    /// Callers are recorded while it lives.
    _watched: Option<Box<dyn Send + Sync>>,
}

/// What every connection shares.
struct Site {
    settings: Settings,
    sources: Arc<Sources>,
    classifier: Option<Arc<dyn Classifier>>,
    address: SocketAddr,
    list: list::List,
    live: live::Live,
    stop: Stop,
}

/// Listens on `address`. Needs a tokio runtime.
///
/// # Errors
/// [`WebError`], naming the key.
pub fn bind(address: SocketAddr) -> Result<Bound, WebError> {
    let listener = listener::open(address)?;
    let address = listener.local_addr().map_err(|source| WebError::Listen { address, source })?;
    Ok(Bound { listener, address })
}

impl Bound {
    /// The address in use; differs from the configured one where that had port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to answer.
    pub fn serve(self, inputs: Inputs, stop: Stop) -> Web {
        let Self { listener, address } = self;
        let Inputs { settings, sources, classifier } = inputs;
        let watched = classifier.as_ref().map(|classifier| classifier.watch(address));
        if watched.is_some() {
            listener::turn_away(&listener);
        }
        let (live, writer) = live::Live::start(sources.process.clone(), Arc::clone(&sources.pm3));
        let list = list::List::default();
        let site = Arc::new(Site { settings, sources, classifier, address, list, live, stop: stop.clone() });
        let accepting = task::spawn("web", listener::serve(listener, site, stop));
        Web { _tasks: [accepting, writer], _watched: watched }
    }
}
