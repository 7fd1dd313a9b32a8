//! What a stream of packets looks like, and every packet of it as bytes, built slowly from scratch.
//!
//! Pure. Describes the packets to generate.bpf.c (template, sums) and is the oracle that it is compared with; tests that need a
//! wrong packet build a right one here and spoil it. Invariant: packet `i` belongs to flow `i % flows`, and the flow's addresses
//! and ports are its digits in mixed radix: source address first, then source port, destination address, destination port.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::address::{AddressRange, Mac, PortRange};
use crate::checksum::{Sum, pseudo_header};
use crate::stamp::{self, Stamp};
use crate::tally::MAX_FLOWS;

pub(crate) const ETHERNET_LEN: usize = 14;
pub(crate) const IPV4_LEN: usize = 20;
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const TIME_TO_LIVE: u8 = 64;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// The SYN's initial sequence number. Chosen: near the wrap, so that whoever tracks it meets the wrap.
const TCP_INITIAL: u32 = 0xffff_ff00;
/// The largest frame. **Units:** bytes without FCS: an Ethernet MTU of 1500.
pub const MAX_SIZE: usize = ETHERNET_LEN + 1500;

/// The upper layer of the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// UDP datagrams.
    Udp,
    /// TCP SYNs, the same initial sequence number every time.
    TcpSyn,
    /// TCP segments with ACK whose sequence and acknowledgement numbers go on.
    TcpAck,
    /// ICMP echo requests; the source port is the identifier, there is no destination port.
    IcmpEcho,
}

impl Protocol {
    /// The protocol's number. **Source:** RFC 1700.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::TcpSyn | Self::TcpAck => 6,
            Self::IcmpEcho => 1,
        }
    }

    fn header_len(self) -> usize {
        match self {
            Self::Udp | Self::IcmpEcho => 8,
            Self::TcpSyn | Self::TcpAck => 20,
        }
    }

    fn checksum_offset(self) -> usize {
        match self {
            Self::Udp => 6,
            Self::TcpSyn | Self::TcpAck => 16,
            Self::IcmpEcho => 2,
        }
    }
}

/// What the upper layer's checksum field carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Checksum {
    /// The right checksum.
    #[default]
    Right,
    /// Zero: UDP without checksum.
    Zero,
    /// The pseudo header's sum only, as a virtual NIC's sender leaves it for the hardware.
    Partial,
}

/// In which order the flows' packets come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// One flow after the other: neighbours in time are neighbours in address and port.
    #[default]
    InTurn,
    /// Far apart: neighbours in time have nothing in common, and each pass still meets every flow once.
    Scattered,
}

impl Order {
    /// From a packet's flow to the next packet's, modulo `flows`: near the golden section of it, and without a common divisor.
    pub(crate) fn step(self, flows: u32) -> u32 {
        if self == Self::InTurn || flows < 4 {
            return 1;
        }
        let wanted = (u64::from(flows) * 618_034 / 1_000_000) as u32;
        (wanted..flows).find(|step| greatest_common_divisor(*step, flows) == 1).unwrap_or(1)
    }
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The packets to send.
#[derive(Args, Clone, Debug)]
pub struct Stream {
    /// Where the frames go: the Ethernet address of the next hop.
    #[arg(long = "dst-mac", value_name = "MAC")]
    pub destination_mac: Mac,
    /// Where they claim to come from; the interface's own address unless given.
    #[arg(long = "src-mac", value_name = "MAC")]
    pub source_mac: Option<Mac>,
    /// Source addresses: A, A-B or A/LENGTH.
    #[arg(long = "src", value_name = "ADDRESSES")]
    pub sources: AddressRange,
    /// Destination addresses: A, A-B or A/LENGTH.
    #[arg(long = "dst", value_name = "ADDRESSES")]
    pub destinations: AddressRange,
    /// Source ports: P or P-Q; for icmp-echo the identifiers.
    #[arg(long = "sport", value_name = "PORTS", default_value = "1024-65535")]
    pub source_ports: PortRange,
    /// Destination ports: P or P-Q; icmp-echo has none.
    #[arg(long = "dport", value_name = "PORTS", default_value = "9")]
    pub destination_ports: PortRange,
    /// The upper layer.
    #[arg(long, value_enum, default_value = "udp")]
    pub protocol: Protocol,
    /// How many flows; each pass over them sends one packet of each.
    #[arg(long, default_value_t = 1)]
    pub flows: u32,
    /// In which order a pass goes over them.
    #[arg(long, value_enum, default_value = "in-turn")]
    pub order: Order,
    /// The number of the first flow, so that several generators can feed one sink.
    #[arg(long, default_value_t = 0)]
    pub first_flow: u32,
    /// Frame length in bytes, without FCS: 64 (TCP: 76) to 1514.
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// What the upper layer's checksum field carries.
    #[arg(long, value_enum, default_value = "right")]
    pub checksum: Checksum,
}

impl Stream {
    /// One UDP flow of 64-byte frames to port 9 (discard), to change by its fields.
    pub fn new(destination_mac: Mac, sources: impl Into<AddressRange>, destinations: impl Into<AddressRange>) -> Self {
        Self {
            destination_mac,
            source_mac: None,
            sources: sources.into(),
            destinations: destinations.into(),
            source_ports: 1024.into(),
            destination_ports: 9.into(),
            protocol: Protocol::Udp,
            flows: 1,
            order: Order::InTurn,
            first_flow: 0,
            size: ETHERNET_LEN + IPV4_LEN + 8 + stamp::LEN,
            checksum: Checksum::Right,
        }
    }

    fn validate(&self) -> Result<()> {
        let least = ETHERNET_LEN + IPV4_LEN + self.protocol.header_len() + stamp::LEN;
        ensure!((least..=MAX_SIZE).contains(&self.size), "size {}: {least} to {MAX_SIZE} for this protocol", self.size);
        let distinct = [self.sources.count(), self.source_ports.count(), self.destinations.count(), self.destination_ports.count()]
            .into_iter()
            .fold(1_u64, |product, count| product.saturating_mul(count.into()));
        let flows = u64::from(self.flows);
        ensure!(flows > 0 && flows <= distinct, "flows {flows}: 1 to {distinct}, as many as the ranges can tell apart");
        let last = u64::from(self.first_flow) + flows;
        ensure!(last <= u64::from(MAX_FLOWS), "flows up to number {last}: the sink tells {MAX_FLOWS} apart");
        let zero_not_udp = self.checksum == Checksum::Zero && self.protocol != Protocol::Udp;
        ensure!(!zero_not_udp, "checksum zero: only UDP may go without one (RFC 768)");
        let partial_icmp = self.checksum == Checksum::Partial && self.protocol == Protocol::IcmpEcho;
        ensure!(!partial_icmp, "checksum partial: ICMP has no pseudo header");
        Ok(())
    }
}

/// A legal stream, ready to be built.
#[derive(Clone, Debug)]
pub struct Template {
    stream: Stream,
    /// A frame with every field that differs between packets zero, checksums too.
    blank: Vec<u8>,
}

/// The one's complement sums of a template. **Units:** folded, words in the machine's own byte order, as memory holds them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// The IPv4 header without addresses.
    pub(crate) ip: u16,
    /// The upper layer with its pseudo header without addresses.
    pub(crate) l4: u16,
    /// The pseudo header without addresses.
    pub(crate) pseudo: u16,
}

impl Template {
    /// The template of `stream`, sent from `source_mac` unless the stream names another.
    ///
    /// **Errors:** when the stream's settings contradict each other; says which and what is legal.
    pub fn new(stream: &Stream, source_mac: Mac) -> Result<Self> {
        stream.validate()?;
        let mut blank = vec![0; stream.size];
        blank[..6].copy_from_slice(&stream.destination_mac.0);
        blank[6..12].copy_from_slice(&stream.source_mac.unwrap_or(source_mac).0);
        blank[12..ETHERNET_LEN].copy_from_slice(&0x0800_u16.to_be_bytes());
        let ip = &mut blank[ETHERNET_LEN..];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&((stream.size - ETHERNET_LEN) as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&IPV4_DONT_FRAGMENT.to_be_bytes());
        ip[8] = TIME_TO_LIVE;
        ip[9] = stream.protocol.number();
        let l4_len = (stream.size - ETHERNET_LEN - IPV4_LEN) as u16;
        let l4 = &mut ip[IPV4_LEN..];
        match stream.protocol {
            Protocol::Udp => l4[4..6].copy_from_slice(&l4_len.to_be_bytes()),
            Protocol::TcpSyn => fill_tcp(l4, TCP_INITIAL, TCP_SYN),
            Protocol::TcpAck => fill_tcp(l4, 0, TCP_ACK),
            Protocol::IcmpEcho => l4[0] = 8,
        }
        let stamp = stream.protocol.header_len();
        l4[stamp..stamp + 2].copy_from_slice(&stamp::MAGIC.to_be_bytes());
        Ok(Self { stream: stream.clone(), blank })
    }

    /// The stream that it was made of.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(crate) fn blank(&self) -> &[u8] {
        &self.blank
    }

    /// Whether its packets are another template's but for what tells flows apart, and their order.
    pub(crate) fn differs_in_flows_only(&self, other: &Self) -> bool {
        let of = |stream: &Stream| (stream.protocol, stream.checksum);
        self.blank == other.blank && of(&self.stream) == of(&other.stream)
    }

    pub(crate) fn headers_len(&self) -> usize {
        ETHERNET_LEN + IPV4_LEN + self.stream.protocol.header_len()
    }

    pub(crate) fn sums(&self) -> Sums {
        let l4 = &self.blank[ETHERNET_LEN + IPV4_LEN..];
        let pseudo = self.pseudo_header([0; 4], [0; 4]);
        let native = |sum: Sum| sum.fold().to_be();
        Sums {
            ip: native(Sum::default().bytes(&self.blank[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN])),
            l4: native(pseudo.bytes(l4)),
            pseudo: native(pseudo),
        }
    }

    fn pseudo_header(&self, source: [u8; 4], destination: [u8; 4]) -> Sum {
        if self.stream.protocol == Protocol::IcmpEcho {
            return Sum::default();
        }
        pseudo_header(source, destination, self.stream.protocol.number(), self.blank.len() - ETHERNET_LEN - IPV4_LEN)
    }

    /// Packet `index` of the stream, stamped as sent at `sent`, with its checksums summed from scratch.
    ///
    /// **Units:** `sent` in nanoseconds of `CLOCK_MONOTONIC`. **Cost:** cold: allocates; the oracle, not the generator.
    pub fn frame(&self, index: u64, sent: u64) -> Vec<u8> {
        let stream = &self.stream;
        let turn = index % u64::from(stream.flows);
        let flow = (turn * u64::from(stream.order.step(stream.flows)) % u64::from(stream.flows)) as u32;
        let sequence = index / u64::from(stream.flows);
        let mut rest = flow;
        let mut digit = |radix: u32| {
            let digit = rest % radix;
            rest /= radix;
            digit
        };
        let source = (u32::from(stream.sources.first()) + digit(stream.sources.count())).to_be_bytes();
        let source_port = (u32::from(stream.source_ports.first()) + digit(stream.source_ports.count())) as u16;
        let destination = (u32::from(stream.destinations.first()) + digit(stream.destinations.count())).to_be_bytes();
        let destination_port = (u32::from(stream.destination_ports.first()) + digit(stream.destination_ports.count())) as u16;

        let mut frame = self.blank.clone();
        let headers = self.headers_len();
        let stamp = Stamp { flow: stream.first_flow + flow, sequence, sent };
        frame[headers..headers + stamp::LEN].copy_from_slice(&stamp.to_bytes());
        let (ip, l4) = frame[ETHERNET_LEN..].split_at_mut(IPV4_LEN);
        ip[12..16].copy_from_slice(&source);
        ip[16..20].copy_from_slice(&destination);
        let ip_checksum = Sum::default().bytes(ip).checksum();
        ip[10..12].copy_from_slice(&ip_checksum.to_be_bytes());
        match stream.protocol {
            Protocol::IcmpEcho => {
                l4[4..6].copy_from_slice(&source_port.to_be_bytes());
                l4[6..8].copy_from_slice(&(sequence as u16).to_be_bytes());
            }
            Protocol::Udp | Protocol::TcpSyn | Protocol::TcpAck => {
                l4[..2].copy_from_slice(&source_port.to_be_bytes());
                l4[2..4].copy_from_slice(&destination_port.to_be_bytes());
            }
        }
        if stream.protocol == Protocol::TcpAck {
            let payload_len = (self.blank.len() - headers) as u32;
            l4[4..8].copy_from_slice(&(sequence as u32).wrapping_mul(payload_len).to_be_bytes());
            l4[8..12].copy_from_slice(&(sequence as u32).to_be_bytes());
        }
        let pseudo = self.pseudo_header(source, destination);
        let checksum = match stream.checksum {
            Checksum::Right => nonzero(stream.protocol, pseudo.bytes(l4).checksum()),
            Checksum::Zero => 0,
            Checksum::Partial => pseudo.fold(),
        };
        let at = stream.protocol.checksum_offset();
        l4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        frame
    }
}

fn fill_tcp(header: &mut [u8], sequence: u32, flags: u8) {
    const HEADER_WORDS: u8 = 5;
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[12] = HEADER_WORDS << 4;
    header[13] = flags;
    header[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
}

/// RFC 768: "If the computed checksum is zero, it is transmitted as all ones". For TCP and ICMP both say the same sum; TCP is
/// sent as UDP is, so that the program has one way.
fn nonzero(protocol: Protocol, checksum: u16) -> u16 {
    if checksum == 0 && protocol != Protocol::IcmpEcho { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::inspect::{Check, Seen, inspect};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn stream() -> Stream {
        Stream::new(MAC, Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(198, 51, 100, 2))
    }

    #[test]
    fn every_protocol_is_built_with_right_checksums_in_every_size() {
        for protocol in [Protocol::Udp, Protocol::TcpSyn, Protocol::TcpAck, Protocol::IcmpEcho] {
            for size in [76, 77, 100, 1513, 1514] {
                let template = Template::new(&Stream { protocol, size, ..stream() }, MAC).unwrap();
                for index in 0..100 {
                    let frame = template.frame(index, index * 0x1234_5678_9abc);
                    let Seen::Ours(seen) = inspect(&frame, false) else { panic!("{protocol:?} {size}: not recognised") };
                    assert_eq!((seen.ip_checksum, seen.l4_checksum), (Check::Right, Check::Right), "{protocol:?} {size}");
                    assert_eq!((seen.stamp.flow, seen.stamp.sequence), (0, index));
                }
            }
        }
    }

    #[test]
    fn flows_differ_in_their_endpoints_and_packets_come_in_turn() {
        let stream = Stream {
            sources: "10.0.0.2-10.0.0.4".parse().unwrap(),
            source_ports: "1000-1001".parse().unwrap(),
            destinations: "198.51.100.0/31".parse().unwrap(),
            destination_ports: "53-54".parse().unwrap(),
            flows: 24,
            first_flow: 100,
            ..stream()
        };
        let template = Template::new(&stream, MAC).unwrap();
        let endpoints: HashSet<_> = (0..24).map(|index| template.frame(index, 0)[26..38].to_vec()).collect();
        assert_eq!(endpoints.len(), 24);
        let Seen::Ours(seen) = inspect(&template.frame(24 * 7 + 5, 0), false) else { panic!("not recognised") };
        assert_eq!((seen.stamp.flow, seen.stamp.sequence), (105, 7));
        assert!(Template::new(&Stream { flows: 25, ..stream }, MAC).is_err());
    }

    #[test]
    fn scattered_flows_come_once_a_pass_and_neighbours_are_far_apart() {
        for flows in [1_u32, 2, 3, 4, 7, 1000, 1024, 50_000, 1 << 20] {
            let step = Order::Scattered.step(flows);
            assert_eq!(greatest_common_divisor(step, flows), 1, "{flows}");
            assert_eq!(Order::InTurn.step(flows), 1);
            assert!(flows < 7 || (flows / 4..flows * 3 / 4).contains(&step), "{flows}: {step}");
        }
        let sources = "10.0.0.2-10.0.0.4".parse().unwrap();
        let stream = Stream { sources, source_ports: "1-8".parse().unwrap(), flows: 24, order: Order::Scattered, ..stream() };
        let template = Template::new(&stream, MAC).unwrap();
        let pass: HashSet<_> = (24..48).map(|index| template.frame(index, 0)[26..38].to_vec()).collect();
        assert_eq!(pass.len(), 24);
    }

    #[test]
    fn a_zero_checksum_stays_zero_and_a_partial_one_is_the_pseudo_header_only() {
        let zero = Template::new(&Stream { checksum: Checksum::Zero, ..stream() }, MAC).unwrap();
        assert_eq!(zero.frame(0, 7)[40..42], [0, 0]);
        let partial = Template::new(&Stream { checksum: Checksum::Partial, ..stream() }, MAC).unwrap();
        let sum = pseudo_header([10, 0, 0, 2], [198, 51, 100, 2], 17, 30).fold();
        assert_eq!(partial.frame(0, 7)[40..42], sum.to_be_bytes());
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for wrong in [
            Stream { size: 63, ..stream() },
            Stream { size: 75, protocol: Protocol::TcpSyn, ..stream() },
            Stream { size: 1515, ..stream() },
            Stream { flows: 0, ..stream() },
            Stream { flows: 2, ..stream() },
            Stream { first_flow: MAX_FLOWS, ..stream() },
            Stream { size: 100, protocol: Protocol::TcpSyn, checksum: Checksum::Zero, ..stream() },
            Stream { protocol: Protocol::IcmpEcho, checksum: Checksum::Partial, ..stream() },
        ] {
            assert!(Template::new(&wrong, MAC).is_err(), "{wrong:?}");
        }
    }
}
