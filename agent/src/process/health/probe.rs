//! Asks an instance whether it is well: a TCP connection, or the first line of an HTTP answer.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The status line is at the beginning; nothing after it is read.
const MOST_BYTES: u64 = 512;

/// `http://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// `HOST:PORT`.
    address: String,
    authority: String,
    path: String,
}

impl Url {
    /// Reads `text`.
    ///
    /// # Errors
    /// What is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not http://HOST[:PORT][/PATH]; for TLS use a script");
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        if authority.is_empty()
            || text.contains(|c: char| c.is_whitespace() || c.is_control())
            || authority.contains('@')
        {
            return Err(wrong());
        }
        let has_port =
            authority.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let is_bare = !authority.contains(':') || authority.ends_with(']');
        if !has_port && !is_bare {
            return Err(wrong());
        }
        let address = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self { address, authority: authority.to_owned(), path: path.to_owned() })
    }
}

/// Checks that `text` is `HOST:PORT`.
///
/// # Errors
/// What is accepted.
pub fn check_address(text: &str) -> Result<(), String> {
    let is_fine = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_fine { Ok(()) } else { Err(format!("{text:?} is not HOST:PORT")) }
}

/// Healthy: something accepts a connection.
///
/// # Errors
/// Why it is not.
pub async fn tcp(address: &str, limit: Duration) -> Result<(), String> {
    in_time(limit, async { TcpStream::connect(address).await.map(drop) }).await
}

/// Healthy: the answer's status is 2xx.
///
/// # Errors
/// Why it is not.
pub async fn http(url: &str, limit: Duration) -> Result<(), String> {
    let url = Url::parse(url)?;
    let status = in_time(limit, ask(&url)).await;
    match status? {
        status if status.starts_with("HTTP/1.") && status.as_bytes().get(9) == Some(&b'2') => Ok(()),
        status => Err(format!("it answered {:?}", status.chars().take(64).collect::<String>())),
    }
}

async fn ask(url: &Url) -> io::Result<String> {
    let mut stream = TcpStream::connect(&url.address).await?;
    let (path, host) = (&url.path, &url.authority);
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weft-health\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut reader = stream.take(MOST_BYTES);
    while !answer.contains(&b'\n') {
        if reader.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).trim_end().to_owned())
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn server(answer: &'static str) -> (String, crate::foundation::task::Task) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let serving = crate::foundation::task::spawn("server", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.expect("a request") > 0);
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        });
        (address, serving)
    }

    #[tokio::test]
    async fn only_2xx_is_healthy() {
        for (answer, is_healthy) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.0 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
            ("HTTP/1.1 302 Found\r\n\r\n", false),
            ("SSH-2.0-x\r\n", false),
            ("", false),
        ] {
            let (address, _serving) = server(answer).await;
            let result = http(&format!("http://{address}/health"), LIMIT).await;
            assert_eq!(result.is_ok(), is_healthy, "{answer:?}: {result:?}");
        }
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_is_unhealthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        assert_eq!(tcp(&address, LIMIT).await, Ok(()));
        drop(listener);
        assert!(tcp(&address, LIMIT).await.is_err());
    }

    #[test]
    fn urls_are_read() {
        assert_eq!(
            Url::parse("http://localhost").map(|url| (url.address, url.path)),
            Ok(("localhost:80".to_owned(), "/".to_owned()))
        );
        assert_eq!(Url::parse("http://[::1]:8080/a?b").map(|url| url.address), Ok("[::1]:8080".to_owned()));
        for wrong in ["localhost", "https://x", "http://", "http://a b", "http://x:y/", "http://u@h/"] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
    }
}
