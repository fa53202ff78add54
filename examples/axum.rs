//! The kubelet's stack inside somebody else's axum application, with tower-http's layers around it.
//!
//! ```sh
//! cargo run --example axum
//! curl http://127.0.0.1:8080/healthz
//! ```
//!
//! Any client of a kubelet can now exec at `/exec/default/demo/shell` — over plain HTTP and unauthenticated, so this
//! listens on the loopback address only. **Commands run as plain processes of this host.**

use std::time::Duration;

use axum::{Router, routing::get};
use http::{StatusCode, header::AUTHORIZATION};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer, sensitive_headers::SetSensitiveRequestHeadersLayer, timeout::TimeoutLayer,
    trace::TraceLayer,
};
use tower_kube_streaming::{
    layers::danger::PermitAllLayer,
    runtime::{Main, ProcessRuntime},
    services::{Kubelet, StreamingServer},
    upgrade::Sessions,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();
    let sessions = Sessions::new();
    let shell = Main { command: vec!["sh".into()], tty: true, stdin: true };
    let runtime = ProcessRuntime::new().container("default", "demo", "shell", shell);
    // `PermitAllLayer` lets everybody in. Your own layer stands here, and hands out permits.
    let kubelet = Kubelet::new(sessions.clone(), PermitAllLayer, StreamingServer::new(runtime).offer_v5());

    let app = Router::new().route("/healthz", get(async || "ok")).fallback_service(kubelet).layer(
        ServiceBuilder::new()
            .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
            .layer(TraceLayer::new_for_http())
            // Bounds the handshake: a session begins where the response ends.
            .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(30)))
            .layer(CatchPanicLayer::new()),
    );

    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("listening on http://{}", listener.local_addr()?);
    // axum serves HTTP/1.1 upgrades; its graceful shutdown does not wait for them, so the sessions are drained behind it.
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    sessions.drain(Duration::from_secs(5), Duration::from_secs(20)).await;
    Ok(())
}
