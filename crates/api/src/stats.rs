//! Everything that is counted or measured, at one moment.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::Protocol;

/// The answer to `/v1/stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The version of the messages.
    pub api: u32,
    /// The daemon's version.
    pub portcullis: String,
    /// Since the daemon started.
    pub uptime_seconds: f64,
    /// Why the gateway is not healthy, or none.
    pub unhealthy: Option<String>,
    /// The configuration in force.
    pub config: Config,
    /// The interfaces and what they were granted.
    pub interfaces: Vec<Interface>,
    /// How full the tables are.
    pub gauges: Gauges,
    /// The use of the external addresses.
    pub ports: Vec<PortUse>,
    /// Counters other than drops, all workers together.
    pub counters: Vec<Named>,
    /// Dropped packets by reason, all workers together.
    pub drops: Vec<Named>,
    /// What the XDP program did with packets, by reason.
    pub xdp: Vec<Named>,
    /// The `AF_XDP` queues.
    pub queues: Vec<Queue>,
    /// Where the packet memory's frames are.
    pub frames: Frames,
    /// The workers.
    pub workers: Vec<Worker>,
}

/// The configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The file that it came from.
    pub path: String,
    /// How UDP is kept.
    #[serde(default)]
    pub udp_tracking: UdpTracking,
    /// Whether the last attempt to load it succeeded.
    pub last_reload_successful: bool,
    /// When it was last loaded with success, in seconds since 1970.
    pub last_success_unix_seconds: f64,
    /// How often rules or network changed since start, this time included.
    pub generation: u64,
}

/// How UDP is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UdpTracking {
    /// By sessions, as the other protocols.
    #[default]
    Sessions,
    /// By bare mappings; under forwards by sessions.
    Mappings,
}

/// A number with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The name in metrics, tables and docs.
    pub name: String,
    /// What it means, for people.
    pub meaning: String,
    /// The number.
    pub value: u64,
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// Live mappings.
    pub mappings: u64,
    /// Mappings that fit.
    pub mappings_limit: u64,
    /// Live sessions.
    pub sessions: u64,
    /// Sessions that fit.
    pub sessions_limit: u64,
    /// Internal addresses with mappings.
    pub subscribers: u64,
    /// Fragmented packets whose later fragments are followed.
    pub fragments: u64,
    /// Live translations of protocols without ports.
    #[serde(default)]
    pub other_translations: u64,
    /// Translations of protocols without ports that fit.
    #[serde(default)]
    pub other_translations_limit: u64,
}

/// Use of one external address for one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortUse {
    /// The pool that the address is in.
    pub pool: String,
    /// The address.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// Ports taken by mappings.
    pub used: u64,
    /// Ports that rest, since their mappings ended not long ago.
    #[serde(default)]
    pub resting: u64,
    /// Ports that mappings may take.
    pub limit: u64,
}

/// Which way an interface looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Towards the subscribers.
    Inside,
    /// Towards the remote hosts.
    Outside,
}

/// Where the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's generic receive path, for drivers without XDP: slow.
    Generic,
}

/// How packets reach the packet memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyMode {
    /// The device writes into it.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

/// How a device's frames come to the workers that own them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Steering {
    /// The way: `key synthesis`, `field selection`, `flow rules`, `software`, or `one worker`.
    pub way: String,
    /// The part of TCP and UDP packets that is expected to be handed over, 0 to 1.
    pub expected_share: f64,
    /// Why no better way.
    pub why: String,
    /// Whether frames come where they are expected; none where nothing is expected of the device. A device that is not trusted costs
    /// hand-offs and loses nothing.
    pub trusted: Option<bool>,
}

/// An interface, with what the driver granted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// The kernel's name.
    pub name: String,
    /// Which way it looks.
    pub side: Side,
    /// Whether frames can be sent through it.
    pub up: bool,
    /// Its VLAN, where it has one.
    pub vlan: Option<u16>,
    /// Its link-layer address.
    pub mac: String,
    /// Its addresses with prefix lengths, the primary first.
    pub addresses: Vec<String>,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Where the XDP program runs; none while the device is not attached.
    pub mode: Option<XdpMode>,
    /// How packets reach the packet memory.
    pub copy: Option<CopyMode>,
    /// How many queues are bound.
    pub queues: u32,
    /// Whether the packet memory is on huge pages.
    pub huge_pages: bool,
    /// Whether the kernel lets the worker drive the device (preferred busy polling).
    pub busy_poll: bool,
    /// How its frames come to their owners.
    #[serde(default)]
    pub steering: Option<Steering>,
}

/// An `AF_XDP` queue's statistics as the kernel keeps them, and what its worker counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// The interface.
    pub interface: String,
    /// The queue's number.
    pub queue: u32,
    /// Frames dropped for other reasons than a full ring.
    pub rx_dropped: u64,
    /// Fill-ring descriptors that the kernel did not accept.
    pub rx_invalid_descs: u64,
    /// Transmit descriptors that the kernel did not accept.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times that the fill ring had nothing to receive into.
    pub rx_fill_ring_empty: u64,
    /// Times that the tx ring had nothing to send.
    pub tx_ring_empty: u64,
    /// Frames received.
    #[serde(default)]
    pub received: u64,
    /// Those that another worker owns.
    #[serde(default)]
    pub misplaced: u64,
}

/// Where the packet memory's frames are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Frames {
    /// All there are; of a worker, those that it has now.
    pub total: u64,
    /// Free.
    pub pool: u64,
    /// In rings or in the kernel's hands.
    pub in_flight: u64,
    /// With packets that wait for a next hop, or for the first fragment of their datagram.
    pub held: u64,
    /// On their way from worker to worker. The workers' numbers are not of the same moment, so this is about right while packets are
    /// handed over. Of a worker always 0.
    pub handed_over: u64,
    /// Nowhere: zero unless there is a bug.
    pub missing: i64,
}

/// A queue of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueName {
    /// The interface.
    pub interface: String,
    /// The queue's number.
    pub queue: u32,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// The worker's number.
    pub worker: u32,
    /// Bursts with packets.
    pub bursts: u64,
    /// Rounds without any.
    pub idle_loops: u64,
    /// Packets in all bursts, from its queues and from other workers.
    pub packets: u64,
    /// Time spent on bursts.
    pub busy_seconds: f64,
    /// Bursts by size: number `i` counts those from 2^i packets on, the last one all that are larger.
    pub burst_sizes: Vec<u64>,
    /// The generation of rules and network that it goes by.
    pub generation: u64,
    /// News for the control plane that did not fit its queue.
    pub events_lost: u64,
    /// What a packet takes, from receive to dispose.
    pub packet_times: PacketTimes,
    /// Its queues.
    pub queues: Vec<QueueName>,
    /// Packets handed to their owners, by cause.
    pub handed_off: Vec<Named>,
    /// Packets that other workers handed to it.
    pub handed_in: u64,
    /// Packets that other workers could not hand to it, because it was too far behind; they are among the drops of those.
    pub hand_off_refused: u64,
    /// Packets that it dropped.
    pub drops: u64,
    /// How full its tables are.
    pub gauges: Gauges,
    /// Its frames of packet memory.
    pub frames: Frames,
}

/// Nanoseconds a packet, over all packets since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketTimes {
    /// Half of the packets took at most this.
    pub p50: u64,
    /// 90 % of them.
    pub p90: u64,
    /// 99 % of them.
    pub p99: u64,
    /// 99.9 % of them.
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_go_through_json_and_back() {
        let named = |name: &str| Named { name: name.to_owned(), meaning: "What.".to_owned(), value: 1 << 60 };
        let stats = Stats {
            api: 1,
            portcullis: "0.1.0".to_owned(),
            uptime_seconds: 1.5,
            unhealthy: Some("eth0 is down".to_owned()),
            config: Config {
                path: "/etc/portcullis/portcullis.toml".to_owned(),
                udp_tracking: UdpTracking::Mappings,
                last_reload_successful: true,
                last_success_unix_seconds: 1e9,
                generation: 3,
            },
            interfaces: vec![Interface {
                name: "eth0".to_owned(),
                side: Side::Outside,
                up: true,
                vlan: Some(7),
                mac: "02:00:00:00:00:01".to_owned(),
                addresses: vec!["203.0.113.10/24".to_owned()],
                mtu: 1500,
                mode: Some(XdpMode::Generic),
                copy: Some(CopyMode::ZeroCopy),
                queues: 1,
                huge_pages: true,
                busy_poll: false,
                steering: Some(Steering { way: "software".to_owned(), expected_share: 0.5, ..Steering::default() }),
            }],
            gauges: Gauges {
                mappings: 1,
                mappings_limit: 2,
                sessions: 3,
                sessions_limit: 4,
                subscribers: 5,
                fragments: 6,
                other_translations: 7,
                other_translations_limit: 8,
            },
            ports: vec![PortUse {
                pool: "default".to_owned(),
                address: Ipv4Addr::new(203, 0, 113, 10),
                protocol: Protocol::Udp,
                used: 1,
                resting: 2,
                limit: 64512,
            }],
            counters: vec![named("held_packets")],
            drops: vec![named("no_route")],
            xdp: vec![named("not_ipv4")],
            queues: vec![Queue { interface: "eth0".to_owned(), rx_dropped: 9, ..Queue::default() }],
            frames: Frames { total: 10, pool: 5, in_flight: 3, held: 2, handed_over: 1, missing: -1 },
            workers: vec![Worker {
                worker: 0,
                burst_sizes: vec![1, 2, 3],
                queues: vec![QueueName { interface: "eth0".to_owned(), queue: 1 }],
                handed_off: vec![named("misplaced")],
                ..Worker::default()
            }],
        };
        let json = serde_json::to_string(&stats).expect("plain data");
        assert_eq!(serde_json::from_str::<Stats>(&json).expect("readable"), stats);
        let older = r#"{"worker":3,"bursts":1,"packets":2}"#;
        let older: Worker = serde_json::from_str(older).expect("an older gateway's answer");
        assert_eq!((older.worker, older.packets, older.handed_in), (3, 2, 0));
        assert!(json.contains(r#""udp_tracking":"mappings","#), "{json}");
        let older = r#"{"path":"x","last_reload_successful":true,"last_success_unix_seconds":0.0,"generation":1}"#;
        let older: Config = serde_json::from_str(older).expect("an older gateway's answer");
        assert_eq!(older.udp_tracking, UdpTracking::Sessions);
        assert!(json.contains(r#""side":"outside","up":true"#) && json.contains(r#""copy":"zero_copy""#), "{json}");
    }
}
