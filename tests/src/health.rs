//! A gRPC service of health (grpc.health.v1) for the kubelet's probes: `rtc-tests payload health PORT FILE`. It serves
//! until the file is there. The one message that it knows is written by hand.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Context, Result};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// Serves on all addresses, for good.
pub(crate) fn serve(port: u16, sick: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("0.0.0.0", port)).await.context("listen")?;
        loop {
            let (stream, _) = listener.accept().await?;
            let sick = sick.to_owned();
            let answer = service_fn(move |_: Request<Incoming>| {
                let sick = sick.clone();
                async move { Ok::<_, Infallible>(check(&sick)) }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    })
}

type Frames = StreamBody<tokio_stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>>;

/// HealthCheckResponse: its field 1 is 1 (SERVING) or 2.
fn check(sick: &Path) -> Response<Frames> {
    let status = if sick.exists() { 2 } else { 1 };
    let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 0x08, status]);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(tokio_stream::iter(frames)));
    let kind = hyper::header::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}
