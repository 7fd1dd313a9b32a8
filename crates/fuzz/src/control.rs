//! Messages of the control socket, both ways: the query of a request, the lines and documents of an answer.
//!
//! What can be read is written, read again and comes out the same; what cannot is refused with a reason. The first byte says what the
//! rest is taken for.

use std::fmt::Debug;

use axum::extract::Query;
use portcullis_api::{EndpointFilter, Line, MappingEntry, SessionEntry, SessionFilter, Stats, Version};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) fn run(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => query(rest),
        1 => endpoint(rest),
        2 => document::<Line<SessionEntry>>(rest),
        3 => document::<Line<MappingEntry>>(rest),
        4 => document::<Stats>(rest),
        _ => document::<Version>(rest),
    }
}

/// As the gateway reads a request's path: a legal URI, then the filter in it.
fn query(bytes: &[u8]) {
    let uri = [b"/v1/sessions?", bytes].concat();
    let Ok(uri) = axum::http::Uri::try_from(uri) else { return };
    let Ok(Query(filter)) = Query::<SessionFilter>::try_from_uri(&uri) else { return };
    let again = format!("/v1/sessions?{}", filter.to_query()).parse().expect("a query is a legal part of a URI");
    let Query(read) = Query::<SessionFilter>::try_from_uri(&again).expect("its own query is legal");
    assert_eq!(read, filter);
}

fn endpoint(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    match text.parse::<EndpointFilter>() {
        Ok(filter) => assert_eq!(filter.to_string().parse(), Ok(filter)),
        Err(error) => assert!(error.to_string().contains(text), "the text at fault is named"),
    }
}

fn document<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_string(&message).expect("messages are plain data");
    assert_eq!(serde_json::from_str::<T>(&text).expect("what was written can be read"), message);
}
