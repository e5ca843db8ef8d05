//! A connection must get on: one that is neither answering nor asking anything, or does not read its answers, is cut.
//!
//! A look at the clock every few seconds compares what the connection has done since the last one. A request then costs
//! two counters; arming a timer for each head that is awaited would cost more than reading it.
//!
//! Invariants: without a whole request and without one in work a connection lives [`LOOK`] × the idle looks of its
//! [`Patience`] to one look more; one whose client takes nothing of what is written, [`LOOK`] × [`STALLED_LOOKS`]; HTTP/2 has pings of its own once
//! its preface is whole.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

const LOOK: Duration = Duration::from_secs(5);
const STALLED_LOOKS: u32 = 6;
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a listener treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) struct Patience {
    /// Looks that a connection may be idle for.
    pub(in crate::api) idle_looks: u32,
    /// Whether heads and bodies are written from where they lie. Small answers are better copied behind their heads: one
    /// buffer costs the kernel less than two.
    pub(in crate::api) writes_vectored: bool,
}

/// What a connection has to do, counted by whoever answers on it.
#[derive(Debug, Default)]
pub(in crate::api) struct Work {
    begun: AtomicU64,
    running: AtomicUsize,
    is_upgraded: AtomicBool,
}

impl Work {
    /// A request was answered at once.
    pub(in crate::api) fn done(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection is no longer one of requests: whoever has it now looks after it.
    pub(in crate::api) fn upgraded(&self) {
        self.is_upgraded.store(true, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0 || self.is_upgraded.load(Ordering::Relaxed)
    }

    /// A request is in work while the guard lives.
    pub(in crate::api) fn begin(self: &Arc<Self>) -> Running {
        self.done();
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }
}

/// A request in work, its streamed answer included.
#[derive(Debug)]
pub(in crate::api) struct Running(Arc<Work>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that fails once its connection does not get on.
#[derive(Debug)]
pub(in crate::api) struct Patient<S> {
    stream: S,
    work: Arc<Work>,
    patience: Patience,
    /// How much of [`PREFACE`] came; more than its length: something else came.
    preface: usize,
    written: u64,
    is_stalled: bool,
    seen: (u64, u64),
    quiet_looks: u32,
    next_look: Pin<Box<Sleep>>,
}

impl<S> Patient<S> {
    pub(in crate::api) fn new(stream: S, work: Arc<Work>, patience: Patience) -> Self {
        Self {
            stream,
            work,
            patience,
            preface: 0,
            written: 0,
            is_stalled: false,
            seen: (0, 0),
            quiet_looks: 0,
            next_look: Box::pin(tokio::time::sleep_until(Instant::now() + LOOK)),
        }
    }

    /// What it was made of, without patience.
    pub(in crate::api) fn into_inner(self) -> S {
        self.stream
    }

    /// Whether it is time to give up. Called where the stream makes the task wait.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.next_look.as_mut().poll(cx).is_ready() {
            self.next_look.as_mut().reset(Instant::now() + LOOK);
            let seen = (self.work.begun.load(Ordering::Relaxed), self.written);
            let is_working = self.work.goes_on() || self.preface == PREFACE.len();
            let gets_on = seen != self.seen || (is_working && !self.is_stalled);
            self.seen = seen;
            self.quiet_looks = if gets_on { 0 } else { self.quiet_looks + 1 };
            let patience = if self.is_stalled { STALLED_LOOKS } else { self.patience.idle_looks };
            if self.quiet_looks >= patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    fn follow_preface(&mut self, bytes: &[u8]) {
        let left = &PREFACE[self.preface..];
        let length = bytes.len().min(left.len());
        let is_preface = bytes[..length] == left[..length];
        self.preface = if is_preface { self.preface + length } else { PREFACE.len() + 1 };
    }

    fn took(&mut self, polled: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Pending => {
                self.is_stalled = true;
                self.look(cx)?;
            }
            Poll::Ready(Ok(count)) => {
                self.is_stalled = false;
                self.written += count as u64;
            }
            Poll::Ready(Err(_)) => {}
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if polled.is_pending() {
            self.look(cx)?;
        } else if self.preface < PREFACE.len() {
            self.follow_preface(&buffer.filled()[before..]);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.took(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.took(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.patience.writes_vectored
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const PATIENCE: Patience = Patience { idle_looks: 2, writes_vectored: false };

    async fn lives_for(work: &Arc<Work>, first: &[u8]) -> Duration {
        let (mut client, server) = duplex(64);
        client.write_all(first).await.expect("there is room");
        let mut patient = Patient::new(server, Arc::clone(work), PATIENCE);
        let started = Instant::now();
        let read = async { while patient.read_u8().await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(3600), read).await.ok();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_cut_and_who_is_answered_is_not() {
        let work = Arc::default();
        assert_eq!(lives_for(&work, b"").await.as_secs(), 10);
        assert_eq!(lives_for(&work, b"GET / HT").await.as_secs(), 10);
        assert_eq!(lives_for(&work, b"PRI * HTTP/2.0\r\n").await.as_secs(), 10);
        assert_eq!(lives_for(&work, PREFACE).await.as_secs(), 3600, "its pings tell");
        let running = work.begin();
        assert_eq!(lives_for(&work, b"").await.as_secs(), 3600);
        drop(running);
        assert!((10..=15).contains(&lives_for(&work, b"").await.as_secs()));
        work.upgraded();
        assert_eq!(lives_for(&work, b"").await.as_secs(), 3600, "an upgraded connection may be quiet");
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_no_answer_is_cut_although_it_is_in_work() {
        let work: Arc<Work> = Arc::default();
        let _running = work.begin();
        let (_client, server) = duplex(64);
        let mut patient = Patient::new(server, work, PATIENCE);
        let started = Instant::now();
        assert!(patient.write_all(&[0; 1000]).await.is_err());
        assert!((30..=35).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    }
}
