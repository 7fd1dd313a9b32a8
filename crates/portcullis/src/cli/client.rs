//! Asks the gateway: a blocking HTTP client over its unix socket.
//!
//! Knows paths, messages and lines. Called by the subcommands and by the control interface's tests. Invariants: a streamed answer
//! that was cut off is an error, never a shorter answer; a gateway that accepts and says nothing is given up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use portcullis_api as api;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::exit::Failure;

/// The longest silence. The gateway answers in milliseconds, and tells of a silent worker after two seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest line, or answer as a whole, that is taken. **Units:** bytes. A line is some hundred; stats are some kilobytes, and
/// 200 more for each external address and protocol.
const ANSWER_MOST: usize = 64 << 20;

/// Asks the gateway at one socket.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the gateway at `socket`. Connects when it asks.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Hands every session that matches to `each`, as they come. Returns how many.
    pub(crate) fn sessions(
        &self,
        filter: &api::SessionFilter,
        each: impl FnMut(api::SessionEntry) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        self.stream(&format!("/v{}/sessions?{}", api::VERSION, filter.to_query()), each)
    }

    /// Hands every mapping that matches to `each`, as they come. Returns how many.
    pub(crate) fn mappings(
        &self,
        filter: &api::SessionFilter,
        each: impl FnMut(api::MappingEntry) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        self.stream(&format!("/v{}/mappings?{}", api::VERSION, filter.to_query()), each)
    }

    /// Everything that is counted.
    pub(crate) fn stats(&self) -> Result<api::Stats, Failure> {
        self.get(&format!("/v{}/stats", api::VERSION))
    }

    /// The gateway's version.
    pub(crate) fn version(&self) -> Result<api::Version, Failure> {
        self.get(&format!("/v{}/version", api::VERSION))
    }

    /// An answer that is one message.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        block_on(async {
            let answer = self.ask(path).await?;
            let body = whole(answer.into_body()).await?;
            serde_json::from_slice(&body).map_err(|error| Failure::Answer(error.to_string()))
        })?
    }

    fn stream<T: DeserializeOwned>(&self, path: &str, each: impl FnMut(T) -> Result<(), Failure>) -> Result<u64, Failure> {
        block_on(async { lines(self.ask(path).await?.into_body(), each).await })?
    }

    /// The answer to a GET, once its head is there. **Errors:** [`Failure::Refused`] where the gateway says why not.
    async fn ask(&self, path: &str) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| Failure::of_connection(error, &self.socket))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("cannot talk to the gateway")?;
        // It drives the bytes; how it ends shows in the answer.
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(hyper::header::HOST, "portcullis")
            .body(Empty::<Bytes>::new())
            .context("cannot make the request")?;
        let answer = patiently(sender.send_request(request)).await?.context("the gateway did not answer")?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let status = answer.status();
        let body = whole(answer.into_body()).await?;
        let error = serde_json::from_slice(&body).map_err(|_| Failure::Answer(format!("status {status}")))?;
        Err(Failure::Refused(error))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start to ask")?;
    Ok(runtime.block_on(future))
}

async fn patiently<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    timeout(PATIENCE, future)
        .await
        .map_err(|_| Failure::Other(anyhow::anyhow!("the gateway said nothing for {} s; see its log", PATIENCE.as_secs())))
}

/// The next piece of the body, or none at its end.
async fn piece(body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
    loop {
        match patiently(body.frame()).await? {
            None => return Ok(None),
            Some(Err(error)) => return Err(Failure::Answer(error.to_string())),
            Some(Ok(frame)) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn whole(mut body: Incoming) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    while let Some(data) = piece(&mut body).await? {
        extend(&mut all, &data)?;
    }
    Ok(all)
}

/// Hands the entries of a streamed answer to `each`. Returns how many, when the stream's last line says that it is whole.
async fn lines<T: DeserializeOwned>(mut body: Incoming, mut each: impl FnMut(T) -> Result<(), Failure>) -> Result<u64, Failure> {
    let mut rest = Vec::new();
    while let Some(data) = piece(&mut body).await? {
        extend(&mut rest, &data)?;
        let Some(last) = rest.iter().rposition(|&byte| byte == b'\n') else { continue };
        for line in rest[..last].split(|&byte| byte == b'\n') {
            match serde_json::from_slice(line).map_err(|error| Failure::Answer(error.to_string()))? {
                api::Line::Entry(entry) => each(entry)?,
                api::Line::End { entries } => return Ok(entries),
                api::Line::Error(error) => return Err(Failure::Refused(error)),
            }
        }
        rest.drain(..=last);
    }
    Err(Failure::Answer("it was cut off".to_owned()))
}

fn extend(all: &mut Vec<u8>, data: &[u8]) -> Result<(), Failure> {
    if all.len() + data.len() > ANSWER_MOST {
        return Err(Failure::Answer(format!("longer than {ANSWER_MOST} bytes")));
    }
    all.extend_from_slice(data);
    Ok(())
}
