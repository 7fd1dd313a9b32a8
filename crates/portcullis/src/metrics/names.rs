//! The names of all metrics, with their help: the one list that the collector, its tests and docs/counters.md go by.
//!
//! Knows words only. The NAT's own counters are not repeated here: [`nat_counter`] makes their names. Invariant: the prefix, base
//! units, `_total` on counters, no label that grows with hosts.

#[cfg(test)]
use portcullis_nat::counters::Counter;

/// A metric's name and help.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    /// The full name.
    pub(crate) name: &'static str,
    /// What it is, for people.
    pub(crate) help: &'static str,
}

macro_rules! names {
    ($($constant:ident = $name:literal: $help:literal,)+) => {
        $(pub(super) const $constant: Name = Name { name: concat!("portcullis_", $name), help: $help };)+

        /// All of them but the NAT's counters.
        #[cfg(test)]
        pub(crate) const ALL: &[Name] = &[$($constant,)+];
    };
}

names! {
    BUILD_INFO = "build_info": "The version that runs, as a label; the value is always 1.",
    START_TIME = "start_time_seconds": "When the gateway started, in seconds since 1970.",
    HEALTHY = "healthy": "Whether /healthz says ok: 1 or 0.",
    RELOAD_SUCCESSFUL = "config_last_reload_successful": "Whether the last attempt to load the configuration succeeded: 1 or 0.",
    RELOAD_TIME = "config_last_reload_success_timestamp_seconds":
        "When the configuration was last loaded with success, in seconds since 1970.",
    GENERATION = "snapshot_generation": "How often rules or network were published to the workers.",
    DROPS = "drops_total": "Packets dropped, by reason.",
    XDP = "xdp_packets_total": "Packets that the XDP program has seen, by what it did with them and why.",
    MAPPINGS = "mappings": "Live mappings.",
    MAPPINGS_LIMIT = "mappings_limit": "Mappings that fit.",
    SESSIONS = "sessions": "Live sessions.",
    SESSIONS_LIMIT = "sessions_limit": "Sessions that fit.",
    SUBSCRIBERS = "subscribers": "Internal addresses with mappings.",
    FRAGMENTS = "fragmented_packets_followed": "Fragmented packets whose later fragments are followed.",
    OTHER_TRANSLATIONS = "other_translations": "Live translations of protocols without ports.",
    OTHER_TRANSLATIONS_LIMIT = "other_translations_limit": "Translations of protocols without ports that fit.",
    PORTS = "ports_in_use": "External ports taken by mappings; by address where the pools are small.",
    PORTS_RESTING = "ports_resting": "External ports whose mappings ended not long ago, and that are not given yet; by address where the pools are small.",
    PORTS_LIMIT = "ports_limit": "External ports that mappings may take; by address where the pools are small.",
    INTERFACE_UP = "interface_up": "Whether frames can be sent through the interface: 1 or 0.",
    INTERFACE_INFO = "interface_info": "What the interface was granted, as labels; the value is always 1.",
    STEERING_INFO = "interface_steering_info": "How the interface's frames come to their owners, as a label; the value is always 1.",
    STEERING_SHARE = "interface_steering_expected_share":
        "The part of the interface's TCP and UDP packets that is expected to be handed over, 0 to 1.",
    STEERING_TRUSTED = "interface_steering_trusted":
        "Whether the device puts frames where their owners look, as it was told: 1 or 0; absent where nothing is expected of it.",
    QUEUE_RECEIVED = "queue_received_frames_total": "Frames received, by queue.",
    QUEUE_MISPLACED = "queue_misplaced_frames_total": "Frames of other workers, by the queue that they came on.",
    XSK_RX_DROPPED = "xsk_rx_dropped_total": "Frames that the kernel dropped for other reasons than a full ring.",
    XSK_RX_INVALID = "xsk_rx_invalid_descriptors_total": "Fill-ring descriptors that the kernel did not accept.",
    XSK_TX_INVALID = "xsk_tx_invalid_descriptors_total": "Transmit descriptors that the kernel did not accept.",
    XSK_RX_FULL = "xsk_rx_ring_full_total": "Frames that the kernel dropped because the rx ring was full.",
    XSK_FILL_EMPTY = "xsk_rx_fill_ring_empty_total": "Times that the fill ring had nothing to receive into.",
    XSK_TX_EMPTY = "xsk_tx_ring_empty_total": "Times that the tx ring had nothing to send.",
    FRAMES = "frames": "Frames of packet memory, by where they are.",
    FRAMES_LIMIT = "frames_limit": "All frames of packet memory.",
    FRAMES_MISSING = "frames_missing": "Frames that are nowhere (positive) or in two places (negative): a bug unless it is 0.",
    WORKER_BURSTS = "worker_bursts_total": "Bursts with packets.",
    WORKER_IDLE = "worker_idle_loops_total": "Rounds of the worker that found no packet.",
    WORKER_BUSY = "worker_busy_seconds_total": "Time that the worker spent on bursts.",
    WORKER_HANDED_OFF = "worker_handed_off_packets_total": "Packets that the worker handed to their owners, by cause.",
    WORKER_HANDED_IN = "worker_handed_in_packets_total": "Packets that other workers handed to the worker.",
    WORKER_REFUSED = "worker_hand_off_refused_packets_total":
        "Packets that other workers could not hand to the worker because it was too far behind; they dropped them as hand_off_full.",
    WORKER_DROPS = "worker_drops_total": "Packets that the worker dropped, for whatever reason.",
    WORKER_MAPPINGS = "worker_mappings": "Live mappings of the worker.",
    WORKER_SESSIONS = "worker_sessions": "Live sessions of the worker.",
    WORKER_FRAMES = "worker_frames": "Frames of packet memory that the worker has at the moment.",
    WORKER_GENERATION = "worker_snapshot_generation": "The generation of rules and network that the worker goes by.",
    EVENTS_LOST = "worker_events_lost_total": "News for the control plane that did not fit its queue.",
    BURST_PACKETS = "burst_packets": "Packets in a burst.",
    PACKET_SECONDS = "burst_packet_seconds": "What a packet takes from receive to dispose: its burst's time by its burst's size.",
}

/// The metric of a NAT counter.
pub(super) fn nat_counter(label: &str) -> String {
    format!("portcullis_{label}_total")
}

/// The metrics of all NAT counters.
#[cfg(test)]
pub(crate) fn nat_counters() -> impl Iterator<Item = String> {
    Counter::ALL.iter().map(|counter| nat_counter(counter.label()))
}
