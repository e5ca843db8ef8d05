//! How a connection between members is proven and sealed: given from outside, because certificates are another room's.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::foundation::id::NodeId;

/// A sealed connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Seals connections and proves who is at their other end.
pub trait Secure: Debug + Send + Sync + 'static {
    /// The calling side; fails unless the other end proves that it is `node`.
    fn connect(&self, node: &NodeId, stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// The accepting side; who the other end proved to be. A node that was revoked is an error.
    fn accept(&self, stream: TcpStream) -> BoxFuture<'static, io::Result<(NodeId, Box<dyn Stream>)>>;
}

/// Where a member listens and how.
#[derive(Debug, Clone)]
pub struct Network {
    pub listen: SocketAddr,
    /// What the others are told to connect to: `host:port`; port 0 stands for the one that was bound.
    pub advertise: String,
    /// The others must be told this address; else it is only a guess for those who know no better one.
    pub is_fixed: bool,
    pub secure: Arc<dyn Secure>,
}
