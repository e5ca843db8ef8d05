//! `v1.WebRTC`: data channels are not offered by this agent, and it says so.

use tokio_stream::Empty;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1;
use weft_proto::v1::web_rtc_server::WebRtc;

pub(super) struct Service;

/// The answer to every method about data channels.
pub(super) fn unimplemented() -> Status {
    Status::unimplemented("data channels are not offered by this version of weft; reach the node through the tunnel")
}

#[tonic::async_trait]
impl WebRtc for Service {
    type StartDataChannelStream = Empty<Result<v1::DataChannelOffer, Status>>;

    async fn start_data_channel(
        &self,
        _: Request<Streaming<v1::StartDataChannelRequest>>,
    ) -> Result<Response<Self::StartDataChannelStream>, Status> {
        Err(unimplemented())
    }
}
