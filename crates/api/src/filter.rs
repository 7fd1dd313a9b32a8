//! Which sessions or mappings are asked for. The same text in a command's option and in a request's query.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Endpoint, MappingEntry, Protocol, SessionEntry};

/// What an entry has to match; a part that is none matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFilter {
    /// The protocol.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub protocol: Option<Protocol>,
    /// The internal endpoint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub internal: Option<EndpointFilter>,
    /// The external endpoint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub external: Option<EndpointFilter>,
    /// The remote endpoint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remote: Option<EndpointFilter>,
}

impl SessionFilter {
    /// Whether `session` is asked for.
    pub fn matches_session(&self, session: &SessionEntry) -> bool {
        self.matches(session.protocol, session.internal, session.external)
            && self.remote.is_none_or(|filter| filter.matches(session.remote))
    }

    /// Whether `mapping` is asked for. A mapping for all remotes matches any remote.
    pub fn matches_mapping(&self, mapping: &MappingEntry) -> bool {
        let remote = self.remote.zip(mapping.remote);
        self.matches(mapping.protocol, mapping.internal, mapping.external)
            && remote.is_none_or(|(filter, remote)| filter.matches(remote))
    }

    fn matches(&self, protocol: Protocol, internal: Endpoint, external: Endpoint) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.internal.is_none_or(|filter| filter.matches(internal))
            && self.external.is_none_or(|filter| filter.matches(external))
    }

    /// The filter as a request's query, without the question mark; empty when it matches everything.
    pub fn to_query(&self) -> String {
        let part = |name, filter: Option<EndpointFilter>| filter.map(|filter| format!("{name}={filter}"));
        let parts = [
            self.protocol.map(|protocol| format!("protocol={protocol}")),
            part("internal", self.internal),
            part("external", self.external),
            part("remote", self.remote),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("&")
    }
}

/// Endpoints to match: `ADDRESS`, `ADDRESS/LENGTH`, either followed by `:PORT`, or `:PORT` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointFilter {
    address: Ipv4Addr,
    length: u8,
    port: Option<u16>,
}

/// Text that is no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterError {
    /// Not a protocol.
    Protocol(String),
    /// Not an endpoint.
    Endpoint(String),
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(text) => {
                write!(f, "'{text}' is no protocol: icmp, tcp, udp, gre, esp, sctp or another name, or a number from 0 to 255")
            }
            Self::Endpoint(text) => write!(
                f,
                "'{text}' is no endpoint: ADDRESS, ADDRESS/0 to ADDRESS/32, each with or without :PORT (0 to 65535), or :PORT"
            ),
        }
    }
}

impl std::error::Error for FilterError {}

impl EndpointFilter {
    /// Whether `endpoint` is meant.
    pub fn matches(self, endpoint: Endpoint) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
        let differing = self.address.to_bits() ^ endpoint.address.to_bits();
        differing & mask == 0 && self.port.is_none_or(|port| port == endpoint.port)
    }
}

impl FromStr for EndpointFilter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || FilterError::Endpoint(text.to_owned());
        let (prefix, port) = match text.split_once(':') {
            Some((prefix, port)) => (prefix, Some(port.parse().map_err(|_| error())?)),
            None => (text, None),
        };
        if prefix.is_empty() && port.is_some() {
            return Ok(Self { address: Ipv4Addr::UNSPECIFIED, length: 0, port });
        }
        let (address, length) = prefix.split_once('/').unwrap_or((prefix, "32"));
        let address = address.parse().map_err(|_| error())?;
        let length = length.parse().ok().filter(|&length| length <= 32).ok_or_else(error)?;
        Ok(Self { address, length, port })
    }
}

impl fmt::Display for EndpointFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Serialize for EndpointFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'d> Deserialize<'d> for EndpointFilter {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, address: [u8; 4], port: u16) -> bool {
        filter.parse::<EndpointFilter>().expect("a filter").matches(Endpoint { address: address.into(), port })
    }

    #[test]
    fn a_filter_matches_by_address_prefix_and_port() {
        assert!(matches("10.0.0.1", [10, 0, 0, 1], 5));
        assert!(!matches("10.0.0.1", [10, 0, 0, 2], 5));
        assert!(matches("10.0.0.77/24", [10, 0, 0, 2], 5));
        assert!(!matches("10.0.0.0/24", [10, 0, 1, 2], 5));
        assert!(matches("10.0.0.1:80", [10, 0, 0, 1], 80) && !matches("10.0.0.1:80", [10, 0, 0, 1], 81));
        assert!(matches(":443", [1, 2, 3, 4], 443) && !matches(":443", [1, 2, 3, 4], 80));
        assert!(matches("0.0.0.0/0", [255, 0, 0, 1], 0));
    }

    #[test]
    fn text_that_is_no_endpoint_is_refused() {
        for text in ["", ":", ":65536", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "/8", "10.0.0.1:", "fe80::1", "host"] {
            assert_eq!(text.parse::<EndpointFilter>(), Err(FilterError::Endpoint(text.to_owned())));
        }
    }

    #[test]
    fn a_filter_goes_through_json_and_its_query_names_its_parts() {
        let filter = SessionFilter {
            protocol: Some(Protocol::Tcp),
            internal: "10.0.0.0/8".parse().ok(),
            external: None,
            remote: ":443".parse().ok(),
        };
        let json = serde_json::to_string(&filter).expect("plain data");
        assert_eq!(json, r#"{"protocol":"tcp","internal":"10.0.0.0/8","remote":"0.0.0.0/0:443"}"#);
        assert_eq!(serde_json::from_str::<SessionFilter>(&json).expect("readable"), filter);
        assert_eq!(filter.to_query(), "protocol=tcp&internal=10.0.0.0/8&remote=0.0.0.0/0:443");
        assert_eq!(SessionFilter::default().to_query(), "");
        assert!(serde_json::from_str::<SessionFilter>(r#"{"extrenal":"10.0.0.1"}"#).is_err(), "a typo is no filter");
    }

    #[test]
    fn a_mapping_for_all_remotes_matches_any_remote() {
        let endpoint = Endpoint { address: Ipv4Addr::new(10, 0, 0, 1), port: 1 };
        let mut mapping =
            MappingEntry { protocol: Protocol::Udp, internal: endpoint, external: endpoint, remote: None, sessions: 0, bare: None };
        let filter = SessionFilter { remote: "192.0.2.1".parse().ok(), ..SessionFilter::default() };
        assert!(filter.matches_mapping(&mapping));
        mapping.remote = Some(endpoint);
        assert!(!filter.matches_mapping(&mapping));
    }
}
