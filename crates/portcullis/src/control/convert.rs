//! From the NAT's values to the messages.

use portcullis_api as api;
use portcullis_config::UdpTracking;
use portcullis_nat::policy;
use portcullis_nat::view::{self, MappingView, OtherView, SessionView};

/// A session as a message.
pub(super) fn session(view: &SessionView) -> api::SessionEntry {
    api::SessionEntry {
        protocol: protocol(view.protocol),
        state: state(view.state),
        direction: if view.outbound { api::Direction::Outbound } else { api::Direction::Inbound },
        internal: endpoint(view.internal),
        external: endpoint(view.external),
        remote: endpoint(view.remote),
        expires_in_milliseconds: view.expires_in,
        packets_out: u64::from(view.packets_out),
        packets_in: u64::from(view.packets_in),
    }
}

/// A translation of a protocol without ports as a message: a session whose endpoints have no port. The inside always speaks first.
pub(super) fn other(view: &OtherView) -> api::SessionEntry {
    let without_port = |address| api::Endpoint { address, port: 0 };
    api::SessionEntry {
        protocol: api::Protocol::from_number(view.protocol),
        state: state(view.state),
        direction: api::Direction::Outbound,
        internal: without_port(view.internal),
        external: without_port(view.external),
        remote: without_port(view.remote),
        expires_in_milliseconds: view.expires_in,
        packets_out: u64::from(view.packets_out),
        packets_in: u64::from(view.packets_in),
    }
}

/// A mapping as a message.
pub(super) fn mapping(view: &MappingView) -> api::MappingEntry {
    api::MappingEntry {
        protocol: protocol(view.protocol),
        internal: endpoint(view.internal),
        external: endpoint(view.external),
        remote: view.scope.map(endpoint),
        sessions: view.sessions,
        bare: view.bare.map(|bare| api::Bare {
            expires_in_milliseconds: bare.expires_in,
            packets_out: u64::from(bare.packets_out),
            packets_in: u64::from(bare.packets_in),
        }),
    }
}

/// A protocol as a message.
pub(super) const fn protocol(protocol: policy::Protocol) -> api::Protocol {
    match protocol {
        policy::Protocol::Icmp => api::Protocol::Icmp,
        policy::Protocol::Tcp => api::Protocol::Tcp,
        policy::Protocol::Udp => api::Protocol::Udp,
    }
}

/// How UDP is kept as a message.
pub(super) const fn udp_tracking(tracking: UdpTracking) -> api::UdpTracking {
    match tracking {
        UdpTracking::Sessions => api::UdpTracking::Sessions,
        UdpTracking::Mappings => api::UdpTracking::Mappings,
    }
}

/// A side as a message.
pub(super) const fn side(side: policy::Side) -> api::Side {
    match side {
        policy::Side::Inside => api::Side::Inside,
        policy::Side::Outside => api::Side::Outside,
    }
}

const fn endpoint(endpoint: policy::Endpoint) -> api::Endpoint {
    api::Endpoint { address: endpoint.address, port: endpoint.port }
}

const fn state(state: view::SessionState) -> api::SessionState {
    use view::SessionState as From;
    match state {
        From::Unreplied => api::SessionState::Unreplied,
        From::Replied => api::SessionState::Replied,
        From::SynSent => api::SessionState::SynSent,
        From::SynReceived => api::SessionState::SynReceived,
        From::Established => api::SessionState::Established,
        From::FinSent => api::SessionState::FinSent,
        From::FinReceived => api::SessionState::FinReceived,
        From::Closing => api::SessionState::Closing,
        From::Reset => api::SessionState::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_has_the_name_that_the_configuration_has_for_it() {
        for (name, number) in portcullis_config::PROTOCOLS {
            assert_eq!(name.parse(), Ok(api::Protocol::Other(number)));
            assert_eq!(api::Protocol::from_number(number).name(), Some(name));
        }
    }
}
