//! Sessions and mappings, one entry each.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A protocol that the NAT translates. In messages and filters its name, or its number where it has none here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// ICMP queries; the identifier stands where the others have a port.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Another one, by its number: translated by address, without ports.
    Other(u8),
}

/// The names of other protocols than the three. **Source:** IANA, "Assigned Internet Protocol Numbers".
const OTHERS: [(&str, u8); 9] = [
    ("dccp", 33),
    ("esp", 50),
    ("etherip", 97),
    ("gre", 47),
    ("ipip", 4),
    ("ipv6", 41),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

impl Protocol {
    /// The protocol of an IPv4 header's protocol number.
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Icmp,
            6 => Self::Tcp,
            17 => Self::Udp,
            other => Self::Other(other),
        }
    }

    /// The IPv4 header's protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Other(number) => number,
        }
    }

    /// The name in lines, filters and metric labels, where it has one.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Icmp => Some("icmp"),
            Self::Tcp => Some("tcp"),
            Self::Udp => Some("udp"),
            Self::Other(number) => OTHERS.iter().find(|(_, known)| *known == number).map(|&(name, _)| name),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&self.number().to_string()),
        }
    }
}

impl FromStr for Protocol {
    type Err = crate::FilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let other = OTHERS.map(|(_, number)| Self::Other(number));
        let named = [Self::Icmp, Self::Tcp, Self::Udp].into_iter().chain(other);
        let by_name = named.into_iter().find(|protocol| protocol.name().is_some_and(|name| text.eq_ignore_ascii_case(name)));
        by_name.or_else(|| text.parse().ok().map(Self::from_number)).ok_or_else(|| crate::FilterError::Protocol(text.to_owned()))
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'d> Deserialize<'d> for Protocol {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// An address with a port, or with an ICMP identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
    pub address: Ipv4Addr,
    /// The port, or the ICMP identifier.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.address, self.port))
    }
}

/// What the connection tracking of a session says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Not TCP: packets went one way only.
    Unreplied,
    /// Not TCP: packets went both ways.
    Replied,
    /// TCP: a SYN went from inside to outside.
    SynSent,
    /// TCP: a SYN came from outside.
    SynReceived,
    /// TCP: SYNs went both ways.
    Established,
    /// TCP: the inside has sent its FIN.
    FinSent,
    /// TCP: the outside has sent its FIN.
    FinReceived,
    /// TCP: FINs went both ways.
    Closing,
    /// TCP: a RST was seen.
    Reset,
}

/// Which way a session's first packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From inside to outside.
    Outbound,
    /// From outside to inside.
    Inbound,
}

/// One session: a mapping's external endpoint with one remote; or a translation of a protocol without ports, whose endpoints have port zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// The protocol.
    pub protocol: Protocol,
    /// Its state.
    pub state: SessionState,
    /// Which way its first packet went.
    pub direction: Direction,
    /// The internal endpoint.
    pub internal: Endpoint,
    /// The external endpoint.
    pub external: Endpoint,
    /// The remote endpoint; of an ICMP query the port is zero.
    pub remote: Endpoint,
    /// Time until it ends if nothing more comes.
    pub expires_in_milliseconds: u32,
    /// Packets from the inside.
    pub packets_out: u64,
    /// Packets from the outside.
    pub packets_in: u64,
}

/// One mapping: an internal endpoint's external endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingEntry {
    /// The protocol.
    pub protocol: Protocol,
    /// The internal endpoint.
    pub internal: Endpoint,
    /// The external endpoint.
    pub external: Endpoint,
    /// Of an endpoint-dependent mapping, the remote endpoint or address (port zero) that it is for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remote: Option<Endpoint>,
    /// Live sessions under it, without guests; none under a bare one.
    pub sessions: u32,
    /// Of a bare mapping, what others have sessions for. Its fields stand beside those above.
    #[serde(flatten, default)]
    pub bare: Option<Bare>,
}

/// What a bare mapping says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bare {
    /// Time until it ends if nothing more comes that keeps it.
    pub expires_in_milliseconds: u32,
    /// Packets from the inside.
    pub packets_out: u64,
    /// Packets to it, from the outside or from other hosts inside.
    pub packets_in: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8, port: u16) -> Endpoint {
        Endpoint { address: Ipv4Addr::new(192, 0, 2, last), port }
    }

    #[test]
    fn a_session_keeps_its_form() {
        let session = SessionEntry {
            protocol: Protocol::Tcp,
            state: SessionState::SynSent,
            direction: Direction::Outbound,
            internal: endpoint(1, 1000),
            external: endpoint(2, 2000),
            remote: endpoint(3, 80),
            expires_in_milliseconds: 240_000,
            packets_out: 1,
            packets_in: 0,
        };
        let json = concat!(
            r#"{"protocol":"tcp","state":"syn_sent","direction":"outbound","#,
            r#""internal":{"address":"192.0.2.1","port":1000},"external":{"address":"192.0.2.2","port":2000},"#,
            r#""remote":{"address":"192.0.2.3","port":80},"expires_in_milliseconds":240000,"packets_out":1,"packets_in":0}"#
        );
        assert_eq!(serde_json::to_string(&session).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<SessionEntry>(json).expect("readable"), session);
    }

    #[test]
    fn a_mapping_keeps_its_form_with_and_without_a_remote() {
        let mut mapping = MappingEntry {
            protocol: Protocol::Icmp,
            internal: endpoint(1, 7),
            external: endpoint(2, 8),
            remote: None,
            sessions: 3,
            bare: None,
        };
        let json = concat!(
            r#"{"protocol":"icmp","internal":{"address":"192.0.2.1","port":7},"#,
            r#""external":{"address":"192.0.2.2","port":8},"sessions":3}"#
        );
        assert_eq!(serde_json::to_string(&mapping).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<MappingEntry>(json).expect("readable"), mapping);
        mapping.remote = Some(endpoint(3, 0));
        let json = serde_json::to_string(&mapping).expect("plain data");
        assert_eq!(serde_json::from_str::<MappingEntry>(&json).expect("readable"), mapping);
    }

    #[test]
    fn a_bare_mapping_has_three_fields_more() {
        let mapping = MappingEntry {
            protocol: Protocol::Udp,
            internal: endpoint(1, 7),
            external: endpoint(2, 8),
            remote: None,
            sessions: 0,
            bare: Some(Bare { expires_in_milliseconds: 300_000, packets_out: 1 << 40, packets_in: 2 }),
        };
        let json = concat!(
            r#"{"protocol":"udp","internal":{"address":"192.0.2.1","port":7},"external":{"address":"192.0.2.2","port":8},"#,
            r#""sessions":0,"expires_in_milliseconds":300000,"packets_out":1099511627776,"packets_in":2}"#
        );
        assert_eq!(serde_json::to_string(&mapping).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<MappingEntry>(json).expect("readable"), mapping);
    }

    #[test]
    fn every_state_goes_through_json_and_back() {
        use SessionState::{Closing, Established, FinReceived, FinSent, Replied, Reset, SynReceived, SynSent, Unreplied};
        for state in [Unreplied, Replied, SynSent, SynReceived, Established, FinSent, FinReceived, Closing, Reset] {
            let json = serde_json::to_string(&state).expect("plain data");
            assert_eq!(serde_json::from_str::<SessionState>(&json).expect("readable"), state);
        }
    }

    #[test]
    fn a_protocol_is_read_by_name_and_by_number() {
        for protocol in (0..=u8::MAX).map(Protocol::from_number) {
            assert_eq!(protocol.number().to_string().parse(), Ok(protocol));
            assert_eq!(protocol.to_string().to_uppercase().parse(), Ok(protocol));
            let json = serde_json::to_string(&protocol).expect("plain data");
            assert_eq!(json, format!("\"{protocol}\""));
            assert_eq!(serde_json::from_str::<Protocol>(&json).expect("readable"), protocol);
        }
        assert_eq!("gre".parse(), Ok(Protocol::Other(47)));
        assert_eq!((Protocol::Other(47).to_string(), Protocol::Other(253).to_string()), ("gre".to_owned(), "253".to_owned()));
        for text in ["", "256", "-1", "ggp"] {
            assert_eq!(text.parse::<Protocol>(), Err(crate::FilterError::Protocol(text.to_owned())));
        }
    }
}
