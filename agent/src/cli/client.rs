//! The client of the control socket: HTTP/1.1 for single answers, gRPC for streams.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};
use weft_proto::weft::v1::agent_client::AgentClient;

use super::Exit;
use crate::api::control;
use crate::api::error::{ApiError, ErrorCode};
use crate::foundation::task::{self, Task};

/// No answer is larger: 10,000 peers are about 8 MB of JSON.
pub(super) const LARGEST_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "no agent answers at {}: start it with `systemctl start weft` or `weft agent`; an agent with another \
         configuration is found with --config or --run-dir", .0.display()
    )]
    NotRunning(PathBuf),
    #[error("{} may not be used by this user: become root, or join group weft and log in again", .0.display())]
    Denied(PathBuf),
    #[error("failed to connect to {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to ask the agent for {what}")]
    Exchange {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the agent's answer to {what} is not what this version of weft reads")]
    Answer {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the agent refused: {0}")]
    Refused(ApiError),
    #[error("the agent refused: {}", .0.message())]
    Status(Box<tonic::Status>),
    #[error("the stream from the agent broke off")]
    Stream(#[source] Box<tonic::Status>),
}

impl ClientError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::NotRunning(_) => Exit::NotRunning,
            Self::Refused(error) => Exit::from_code(error.code.mapping().exit),
            Self::Status(status) => Exit::from_code(exit_of(status.code())),
            Self::Denied(_) | Self::Connect { .. } | Self::Exchange { .. } | Self::Answer { .. } | Self::Stream(_) => {
                Exit::Failed
            }
        }
    }
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// The exit code of a gRPC status, by the one table of failures.
fn exit_of(code: tonic::Code) -> u8 {
    let known = [ErrorCode::InvalidArgument, ErrorCode::NotReady].map(ErrorCode::mapping);
    known.iter().find(|mapping| mapping.grpc == code).map_or(1, |mapping| mapping.exit)
}

/// What a command answers.
#[derive(Debug, Deserialize, serde::Serialize)]
pub(super) struct Done {
    pub(super) schema: u32,
    pub(super) done: Vec<String>,
}

/// One agent, by its socket.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// The agent that has `run_dir`.
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { socket: control::path(run_dir) }
    }

    /// The answer to `GET path`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path).await
    }

    /// Has a command carried out and waits for it.
    pub(super) async fn command(&self, path: &str) -> Result<Done, ClientError> {
        self.ask(Method::POST, path).await
    }

    /// The answer to `method path` with `body`; none is sent for `null`.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, ClientError> {
        let what = path.trim_start_matches('/').to_owned();
        let stream = self.connect().await?;
        let body = if body.is_null() { Body::empty() } else { body.to_string().into() };
        let (status, body) = exchange(stream, method, path, body)
            .await
            .map_err(|source| ClientError::Exchange { what: what.clone(), source })?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|source| ClientError::Answer { what, source });
        }
        Err(refusal(&what, status, &body))
    }

    /// The lines that answer `POST path` with `body`, as they come.
    pub(super) async fn lines(&self, path: &str, body: &serde_json::Value) -> Result<Lines, ClientError> {
        self.read_lines(Method::POST, path, body.to_string().into()).await
    }

    /// The lines that answer `GET path`, as they come.
    pub(super) async fn get_lines(&self, path: &str) -> Result<Lines, ClientError> {
        self.read_lines(Method::GET, path, Body::empty()).await
    }

    async fn read_lines(&self, method: Method, path: &str, body: Body) -> Result<Lines, ClientError> {
        let stream = self.connect().await?;
        let request = Asked { host: "weft", method, path };
        Lines::of(stream, request, body).await
    }

    /// A gRPC client over the socket.
    pub(super) async fn grpc(&self) -> Result<AgentClient<Channel>, ClientError> {
        Ok(AgentClient::new(self.channel().await?).max_decoding_message_size(LARGEST_ANSWER_BYTES))
    }

    /// A gRPC connection over the socket, for any service.
    pub(super) async fn channel(&self) -> Result<Channel, ClientError> {
        // Connected once by hand first: tonic buries the cause.
        drop(self.connect().await?);
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let failed = |source: tonic::transport::Error| ClientError::Exchange {
            what: "a stream".to_owned(),
            source: source.into(),
        };
        Endpoint::from_static("http://weft").connect_with_connector(connector).await.map_err(failed)
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let path = self.socket.clone();
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ClientError::NotRunning(path)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(ClientError::NotRunning(path)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(ClientError::Denied(path)),
            Err(source) => Err(ClientError::Connect { path, source }),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, ClientError> {
        self.send(method, path, &serde_json::Value::Null).await
    }
}

fn refusal(what: &str, status: StatusCode, body: &[u8]) -> ClientError {
    ClientError::Refused(serde_json::from_slice(body).unwrap_or_else(|_not_ours| {
        ApiError::new(ErrorCode::Failed, format!("{what}: HTTP {status}: {}", String::from_utf8_lossy(body)))
    }))
}

/// Lines of an answer that does not end by itself.
pub(super) struct Lines {
    what: String,
    body: Incoming,
    buffer: Vec<u8>,
    _connection: Task<Option<()>>,
}

impl Lines {
    /// Those that answer `POST path` with `body` at the gateway of this host, or `GET path` if `body` is empty.
    pub(super) async fn from_gateway(address: SocketAddr, path: &str, body: &str) -> Result<Self, ClientError> {
        let failed =
            |source: io::Error| ClientError::Exchange { what: format!("{path} at {address}"), source: source.into() };
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        Self::of(stream, Asked { host: "pm3", method, path }, body.to_owned().into()).await
    }

    async fn of<S>(stream: S, asked: Asked<'_>, body: Body) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let what = asked.path.trim_start_matches('/').to_owned();
        let failed = |source| ClientError::Exchange { what: what.clone(), source };
        let (connection, response) = begin(stream, asked, body).await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            let body = Limited::new(response.into_body(), LARGEST_ANSWER_BYTES).collect().await.map_err(failed)?;
            return Err(refusal(&what, status, &body.to_bytes()));
        }
        Ok(Self { what, body: response.into_body(), buffer: Vec::new(), _connection: connection })
    }

    /// The next line without its end; `None` when the agent has ended the answer.
    pub(super) async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let failed =
                |source: hyper::Error| ClientError::Exchange { what: self.what.clone(), source: source.into() };
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.map_err(failed)?;
                    self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes));
                }
                None => return Ok(None),
            }
        }
    }
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

struct Asked<'a> {
    host: &'static str,
    method: Method,
    path: &'a str,
}

async fn begin<S>(stream: S, asked: Asked<'_>, body: Body) -> Result<(Task<Option<()>>, Response<Incoming>), Boxed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Asked { host, method, path } = asked;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // An error of the connection arrives at the request too.
    let connection = task::spawn("http", async move { connection.await.ok() });
    let request = Request::builder().method(method).uri(path).header(header::HOST, host).body(body)?;
    let response = sender.send_request(request).await?;
    Ok((connection, response))
}

async fn exchange(stream: UnixStream, method: Method, path: &str, body: Body) -> Result<(StatusCode, Bytes), Boxed> {
    let (_connection, response) = begin(stream, Asked { host: "weft", method, path }, body).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST_ANSWER_BYTES).collect().await?.to_bytes();
    Ok((status, body))
}
