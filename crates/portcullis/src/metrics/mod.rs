//! Prometheus: `/metrics` and `/healthz` on a TCP port.
//!
//! Knows the window and HTTP; `collector.rs` makes the text's content, `names.rs` lists it. Called by `run.rs`, scraped by anybody who
//! reaches the port, so it says nothing about single hosts. Invariant: a scrape costs the worker nothing.

mod collector;
pub(crate) mod names;

#[cfg(test)]
mod docs;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TextEncoder};

use crate::control::http;
use crate::control::window::Window;
use collector::WindowCollector;

/// How often health is looked at, asked or not: a worker's silence counts from the last look that saw it publish.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// The port cannot be had.
    #[error("cannot listen for metrics at {address}: {source}; choose another address in [metrics], or stop who listens there")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The registry refuses the collector: a bug.
    #[error("cannot register the metrics: {0}")]
    Register(#[from] prometheus::Error),
    /// The port cannot be watched.
    #[error("cannot watch the metrics port: {0}")]
    Watch(#[from] io::Error),
}

/// A port to serve metrics on, at `address`. To be called before privileges are dropped.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    TcpListener::bind(address).map_err(|source| MetricsError::Listen { address, source })
}

/// Answers scrapes on `listener` until `stop` is done. **Errors:** nothing was served.
pub(crate) async fn serve(listener: TcpListener, window: Arc<Window>, stop: impl Future<Output = ()>) -> Result<(), MetricsError> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = router(Arc::clone(&window))?;
    tokio::select! {
        () = http::serve(listener, router, http::METRICS, stop) => Ok(()),
        () = look(window) => Ok(()),
    }
}

/// Looks at health for ever.
async fn look(window: Arc<Window>) {
    let mut interval = tokio::time::interval(LOOK_EVERY);
    let mut before = None;
    loop {
        interval.tick().await;
        let now = window.unhealthy(Instant::now());
        if now != before {
            if let Some(reason) = &now {
                tracing::warn!(reason, "the gateway is not healthy");
            } else {
                tracing::info!("the gateway is healthy again");
            }
        }
        before = now;
    }
}

#[derive(Clone)]
struct Shared {
    window: Arc<Window>,
    registry: Registry,
}

fn router(window: Arc<Window>) -> Result<Router, MetricsError> {
    let registry = Registry::new();
    registry.register(Box::new(WindowCollector::new(Arc::clone(&window))?))?;
    Ok(Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(Shared { window, registry }))
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match TextEncoder::new().encode_to_string(&shared.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.window.unhealthy(Instant::now()) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
