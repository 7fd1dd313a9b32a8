//! The control interface: HTTP over a unix socket, for the command line and for programs.
//!
//! Knows the messages of `portcullis-api` and the [`window::Window`] on the running gateway; knows no tables. Called by `run.rs` (to
//! serve) and asked by `cli/client.rs`. Invariants: it only reads; whoever may open the socket may ask; a slow or silent asker costs
//! bounded memory and bounded time. Paths: `/v1/sessions`, `/v1/mappings` (JSON lines), `/v1/stats`, `/v1/version` (JSON).

mod convert;
mod dump;
pub(crate) mod http;
pub(crate) mod socket;
pub(crate) mod window;

#[cfg(test)]
pub(crate) mod tests;

use std::future::Future;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use portcullis_api as api;
use portcullis_nat::view::MappingView;

use crate::doors::commands::{Busy, Dump};
use window::Window;

type Filter = Result<Query<api::SessionFilter>, QueryRejection>;

/// Answers requests on `socket` until `stop` is done. **Errors:** the socket cannot be watched; nothing was served.
pub(crate) async fn serve(socket: socket::Socket, window: Arc<Window>, stop: impl Future<Output = ()>) -> std::io::Result<()> {
    let listener = socket.listener()?;
    http::serve(listener, router(window), http::CONTROL, stop).await;
    Ok(())
}

fn router(window: Arc<Window>) -> Router {
    Router::new()
        .route("/v1/sessions", get(sessions))
        .route("/v1/mappings", get(mappings))
        .route("/v1/stats", get(stats))
        .route("/v1/version", get(version))
        .fallback(unknown)
        .with_state(window)
}

async fn sessions(State(window): State<Arc<Window>>, filter: Filter) -> Response {
    let Query(filter) = match filter {
        Ok(filter) => filter,
        Err(rejection) => return bad_filter(&rejection),
    };
    let sessions = window.workers().iter().map(|worker| worker.commands.sessions()).collect();
    let others: dump::Ask<_> = Box::new(move || window.workers().iter().map(|worker| worker.commands.others()).collect());
    let others = dump::Part { dumps: others, convert: convert::other };
    stream(sessions, convert::session, Some(others), move |entry| filter.matches_session(entry))
}

async fn mappings(State(window): State<Arc<Window>>, filter: Filter) -> Response {
    let Query(filter) = match filter {
        Ok(filter) => filter,
        Err(rejection) => return bad_filter(&rejection),
    };
    let mappings = window.workers().iter().map(|worker| worker.commands.mappings()).collect();
    stream(mappings, convert::mapping, None::<NoOther>, move |entry| filter.matches_mapping(entry))
}

async fn stats(State(window): State<Arc<Window>>) -> Response {
    Json(window.stats()).into_response()
}

async fn version() -> Response {
    Json(api::Version { api: api::VERSION, portcullis: env!("CARGO_PKG_VERSION").to_owned() }).into_response()
}

async fn unknown() -> Response {
    let paths = "/v1/sessions, /v1/mappings, /v1/stats, /v1/version";
    error(StatusCode::NOT_FOUND, api::ErrorKind::BadRequest, format!("no such path; there are {paths}"))
}

fn bad_filter(rejection: &QueryRejection) -> Response {
    error(StatusCode::BAD_REQUEST, api::ErrorKind::BadRequest, rejection.body_text())
}

fn error(status: StatusCode, kind: api::ErrorKind, message: String) -> Response {
    (status, Json(api::Error { kind, message })).into_response()
}

/// Mappings are of one kind.
type NoOther = dump::Part<dump::Ask<MappingView>, MappingView, api::MappingEntry>;

/// The dumps, one after the other, as JSON lines; then those of another kind.
fn stream<V, O, E>(
    dumps: Result<Vec<Dump<V>>, Busy>,
    convert: fn(&V) -> E,
    then: Option<dump::Part<dump::Ask<O>, O, E>>,
    wanted: impl Fn(&E) -> bool + Send + Sync + 'static,
) -> Response
where
    V: Send + 'static,
    O: Send + 'static,
    E: serde::Serialize + Send + 'static,
{
    match dumps {
        Ok(dumps) => {
            let body = dump::body(dump::Part { dumps, convert }, then, wanted);
            ([(header::CONTENT_TYPE, "application/jsonl")], body).into_response()
        }
        Err(busy) => error(StatusCode::SERVICE_UNAVAILABLE, api::ErrorKind::Busy, busy.to_string()),
    }
}
