//! What a worker counts: packets on their way, each outcome, the slow path's work.
//!
//! Knows plain numbers of one worker; how they reach the outside is the door "counters out". Invariant: every packet of a
//! configured interface is, over all workers, in exactly one of outbound, inbound, hairpin, punted or dropped, however often it was
//! handed off; what the worker drops after the verdict is counted again, under the reasons that only it gives.

use crate::verdict::{DropReason, HandOffCause};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+) => {
        /// A counter other than a drop.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            /// All counters, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The counter's name, without prefix and `_total`.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What it counts, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

counters! {
    /// Packets received from inside interfaces.
    InsideReceived = "inside_received_packets",
    /// Bytes received from inside interfaces, from the Ethernet header on.
    InsideReceivedBytes = "inside_received_bytes",
    /// Packets received from outside interfaces.
    OutsideReceived = "outside_received_packets",
    /// Bytes received from outside interfaces, from the Ethernet header on.
    OutsideReceivedBytes = "outside_received_bytes",
    /// Packets translated and forwarded from inside to outside.
    Outbound = "outbound_packets",
    /// Packets translated and forwarded from outside to inside.
    Inbound = "inbound_packets",
    /// Packets translated twice and forwarded from inside to inside.
    Hairpin = "hairpin_packets",
    /// Of the packets forwarded, those that the fast path forwarded: of sessions whose ways were known, and plain first ones.
    FastPath = "fast_path_packets",
    /// ICMP errors that were translated and forwarded.
    IcmpErrorsTranslated = "icmp_errors_translated",
    /// ICMP errors that the gateway itself sent.
    IcmpErrorsSent = "icmp_errors_sent",
    /// ICMP errors that the gateway did not send because of its rate limit.
    IcmpErrorsLimited = "icmp_errors_limited",
    /// Packets split because the next link's MTU is smaller.
    Fragmented = "fragmented_packets",
    /// Fragments translated.
    Fragments = "fragments_translated",
    /// Fragments that came before the first of their datagram, and waited for it.
    EarlyFragments = "fragments_early",
    /// Packets that waited for a next hop's link-layer address.
    Held = "held_packets",
    /// Packets left to the kernel because nothing claimed them on an address that the box shares.
    Punted = "punted_packets",
    /// Packets handed to their owner because the device had put them into another worker's queue.
    HandedOffMisplaced = "handed_off_misplaced_packets",
    /// ICMP errors handed to the owner of the packet that they quote.
    HandedOffIcmpError = "handed_off_icmp_error_packets",
    /// Answers to ICMP queries handed to their owner.
    HandedOffIcmpQuery = "handed_off_icmp_query_packets",
    /// Fragments handed to their owner, or to the worker that puts their datagram in order.
    HandedOffFragment = "handed_off_fragment_packets",
    /// Hairpinned packets handed to the owner of the subscriber that they go to.
    HandedOffHairpin = "handed_off_hairpin_packets",
    /// Packets to forwarded ports handed to the owner of their server.
    HandedOffForward = "handed_off_forward_packets",
    /// Packets of protocols without ports, handed to the owner of their remote address.
    HandedOffOtherProtocol = "handed_off_other_protocol_packets",
    /// Packets whose maximum segment size was lowered.
    MssClamped = "mss_clamped_packets",
    /// Packets whose partial checksum was completed.
    ChecksumsCompleted = "checksums_completed",
    /// Mappings made.
    MappingsCreated = "mappings_created",
    /// Mappings ended.
    MappingsRemoved = "mappings_removed",
    /// Sessions made.
    SessionsCreated = "sessions_created",
    /// Sessions ended, by time or because their external address went away.
    SessionsRemoved = "sessions_removed",
}

impl Counter {
    /// The counter of packets handed off for a cause.
    pub const fn handed_off(cause: HandOffCause) -> Self {
        match cause {
            HandOffCause::Misplaced => Self::HandedOffMisplaced,
            HandOffCause::IcmpError => Self::HandedOffIcmpError,
            HandOffCause::IcmpQuery => Self::HandedOffIcmpQuery,
            HandOffCause::Fragment => Self::HandedOffFragment,
            HandOffCause::Hairpin => Self::HandedOffHairpin,
            HandOffCause::Forward => Self::HandedOffForward,
            HandOffCause::OtherProtocol => Self::HandedOffOtherProtocol,
        }
    }
}

/// One worker's counts.
#[derive(Clone, Debug)]
pub struct Counters {
    counts: [u64; Counter::ALL.len()],
    drops: [u64; DropReason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self { counts: [0; Counter::ALL.len()], drops: [0; DropReason::ALL.len()] }
    }
}

impl Counters {
    /// The count of `counter`.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// The packets dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// All packets dropped.
    pub fn dropped_in_all(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Counts one.
    #[inline]
    pub fn count(&mut self, counter: Counter) {
        self.counts[counter as usize] += 1;
    }

    /// Counts `amount`.
    #[inline]
    pub fn add(&mut self, counter: Counter, amount: u64) {
        self.counts[counter as usize] += amount;
    }

    /// Counts a dropped packet.
    #[inline]
    pub fn drop_packet(&mut self, reason: DropReason) {
        self.drop_packets(reason, 1);
    }

    /// Counts dropped packets. The only place that does.
    #[inline]
    pub fn drop_packets(&mut self, reason: DropReason, count: u64) {
        self.drops[reason as usize] += count;
    }
}
