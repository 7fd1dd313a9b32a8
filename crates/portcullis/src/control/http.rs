//! An HTTP server with limits, for the unix socket and for the metrics port.
//!
//! Knows connections and time, not what is asked. One request a connection. Invariants: at most [`Limits::connections`] at once, the
//! next waits; a request head is small and comes soon; no connection outlives [`Limits::lifetime`].

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;

/// What a server puts up with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at once.
    pub(crate) connections: usize,
    /// From the connection to the end of the request's head.
    pub(crate) head: Duration,
    /// The longest that a connection lasts.
    pub(crate) lifetime: Duration,
}

/// The control socket: few askers, dumps that may be long.
pub(crate) const CONTROL: Limits = Limits { connections: 32, head: Duration::from_secs(5), lifetime: Duration::from_hours(1) };

/// The metrics port: short answers, anybody may connect.
pub(crate) const METRICS: Limits = Limits { connections: 16, head: Duration::from_secs(5), lifetime: Duration::from_secs(30) };

/// The longest request head. **Units:** bytes; the least that hyper takes.
const HEAD_MOST: usize = 8192;

/// Answers connections with `router` until `stop` is done; then drops those that are open.
pub(crate) async fn serve<L: Listener>(mut listener: L, router: Router, limits: Limits, stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = &mut stop => return,
            Some(_) = connections.join_next() => {}
            (stream, _) = listener.accept(), if connections.len() < limits.connections => {
                connections.spawn(connection(stream, router.clone(), limits));
            }
        }
    }
}

async fn connection<S>(stream: S, router: Router, limits: Limits)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .max_buf_size(HEAD_MOST)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Either way the connection is over, and whose fault it was interests nobody.
    let _ = tokio::time::timeout(limits.lifetime, connection).await;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const TIGHT: Limits = Limits { connections: 1, head: Duration::from_millis(100), lifetime: Duration::from_millis(300) };

    async fn read_all(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        // A reset is an end like any other here.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn who_says_nothing_or_waits_for_ever_holds_others_up_for_a_bounded_time() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router =
            Router::new().route("/", get(async || "here")).route("/never", get(async || std::future::pending::<&str>().await));
        let server = tokio::spawn(serve(listener, router, TIGHT, std::future::pending()));
        let ask = async |request: &str| {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(request.as_bytes()).await.expect("sent");
            stream
        };
        let start = Instant::now();
        // Each takes the only place, one after the other.
        let silent = ask("").await;
        let half = ask("GET / HTTP/1.1\r\nHost:").await;
        let waiting = ask("GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let good = ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(read_all(good).await.ends_with("here"));
        assert!(start.elapsed() >= TIGHT.lifetime, "the others had their time");
        for stream in [silent, half, waiting] {
            assert!(!read_all(stream).await.contains("200"), "none of them was answered");
        }
        server.abort();
    }
}
