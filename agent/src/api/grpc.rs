//! The gRPC service `weft.v1.Agent`.

pub mod store;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tonic::{Request, Response, Status as Refusal};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::agent_server::{Agent, AgentServer};

use super::error::{ApiError, ErrorCode};
use super::{Sources, http, view};
use crate::foundation::lifecycle::Stop;
use crate::model::Model;
use crate::model::mesh::Mesh;
use crate::{dns, ebpf, net, wireguard};

/// Milliseconds between two samples of `WatchCounters`.
const INTERVALS: std::ops::RangeInclusive<u32> = 100..=60_000;

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Refusal>> + Send>>;

/// The service, for the control socket. Its streams end when `stop` is requested.
pub(super) fn service(sources: Arc<Sources>, stop: Stop) -> AgentServer<Service> {
    AgentServer::new(Service { sources, stop }).max_decoding_message_size(http::MAX_BODY_BYTES)
}

pub(super) struct Service {
    sources: Arc<Sources>,
    stop: Stop,
}

impl Service {
    fn until_stop<T: Send + 'static>(&self, items: impl Stream<Item = T> + Send + 'static) -> Streaming<T> {
        let mut stop = self.stop.clone();
        let stopped = Box::pin(async move { stop.requested().await });
        Box::pin(items.take_until(stopped).map(Ok))
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn get_status(&self, _: Request<proto::GetStatusRequest>) -> Result<Response<proto::Status>, Refusal> {
        Ok(Response::new(view::status(&self.sources)))
    }

    type WatchStatusStream = Streaming<proto::Status>;

    async fn watch_status(
        &self,
        _: Request<proto::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Refusal> {
        Ok(Response::new(self.until_stop(statuses(Arc::clone(&self.sources)))))
    }

    async fn list_peers(&self, _: Request<proto::ListPeersRequest>) -> Result<Response<proto::PeerList>, Refusal> {
        let figures = self.sources.figures.read().await;
        let model = self.sources.model.borrow().clone();
        Ok(Response::new(view::peers(&model, &figures, SystemTime::now())))
    }

    type WatchCountersStream = Streaming<proto::CounterSample>;

    async fn watch_counters(
        &self,
        request: Request<proto::WatchCountersRequest>,
    ) -> Result<Response<Self::WatchCountersStream>, Refusal> {
        let interval_ms = request.into_inner().interval_ms;
        if !INTERVALS.contains(&interval_ms) {
            let text =
                format!("interval_ms {interval_ms} is not between {} and {}", INTERVALS.start(), INTERVALS.end());
            return Err(ApiError::new(ErrorCode::InvalidArgument, text).into());
        }
        let interval = Duration::from_millis(interval_ms.into());
        Ok(Response::new(self.until_stop(samples(Arc::clone(&self.sources), interval))))
    }
}

/// The status now and after each change of anything in it but its age.
fn statuses(sources: Arc<Sources>) -> impl Stream<Item = proto::Status> {
    let changes = Changes::of(&sources);
    stream::unfold((sources, changes, None), |(sources, mut changes, last)| async move {
        loop {
            let status = view::status(&sources);
            if last.as_ref().is_none_or(|last| differs(last, &status)) {
                return Some((status.clone(), (sources, changes, Some(status))));
            }
            changes.next().await;
        }
    })
}

fn differs(last: &proto::Status, status: &proto::Status) -> bool {
    proto::Status { uptime_seconds: status.uptime_seconds, ..last.clone() } != *status
}

/// One receiver of each part of the status.
struct Changes {
    model: watch::Receiver<Arc<Model>>,
    wireguard: watch::Receiver<Arc<wireguard::status::Status>>,
    net: watch::Receiver<Arc<net::status::Status>>,
    firewall: watch::Receiver<Arc<net::status::FirewallStatus>>,
    accounting: watch::Receiver<ebpf::status::Status>,
    dns: watch::Receiver<Arc<dns::status::Status>>,
    mesh: watch::Receiver<Arc<Mesh>>,
    readiness: watch::Receiver<BTreeSet<&'static str>>,
}

impl Changes {
    fn of(sources: &Sources) -> Self {
        Self {
            model: sources.model.clone(),
            wireguard: sources.wireguard.clone(),
            net: sources.net.clone(),
            firewall: sources.firewall.clone(),
            accounting: sources.accounting.clone(),
            dns: sources.dns.clone(),
            mesh: sources.mesh.clone(),
            readiness: sources.readiness.changes(),
        }
    }

    /// Waits for the next change of any part. A part that has ended does not change any more.
    async fn next(&mut self) {
        tokio::select! {
            () = changed(&mut self.model) => {}
            () = changed(&mut self.wireguard) => {}
            () = changed(&mut self.net) => {}
            () = changed(&mut self.firewall) => {}
            () = changed(&mut self.accounting) => {}
            () = changed(&mut self.dns) => {}
            () = changed(&mut self.mesh) => {}
            () = changed(&mut self.readiness) => {}
        }
    }
}

async fn changed<T>(part: &mut watch::Receiver<T>) {
    if part.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The counters now and once an interval. A slow reader gets fewer samples, never old ones.
fn samples(sources: Arc<Sources>, interval: Duration) -> impl Stream<Item = proto::CounterSample> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold((sources, ticks), |(sources, mut ticks): (Arc<Sources>, Interval)| async move {
        ticks.tick().await;
        let figures = sources.figures.read().await;
        let at_ms = u64::try_from(sources.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let model = sources.model.borrow().clone();
        let sample = view::sample(&model, &figures, at_ms);
        Some((sample, (sources, ticks)))
    })
}
