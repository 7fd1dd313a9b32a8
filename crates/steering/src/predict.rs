//! The queue that a NIC puts a frame into, foretold from the frame and from what the NIC is known to do.
//!
//! Knows hashes, tables and flow rules, no packets: a caller fills in [`HashedPacket`]. Asked for received frames, to learn whether the NIC
//! does what it was told, and by [`crate::classes`]. Invariant: linear over XOR as far as it hashes. IPv4 only, since only that is
//! redirected. Tests: below and tests/predict.rs.

use core::net::Ipv4Addr;

use crate::fields::{HashFields, Layout, Side};
use crate::table::{TableError, check_size, reduced};
use crate::toeplitz::{ByteTable, Key};

/// Bytes of the IPv4 input.
const INPUT: usize = 12;

/// What a NIC tells apart when it chooses the fields to hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `tcp4`.
    Tcp,
    /// `udp4`.
    Udp,
    /// ICMP and whatever else the NIC sees no ports in.
    Other,
}

/// What a NIC's hash can see of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashedPacket {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source and destination port, where the packet has them.
    pub ports: Option<(u16, u16)>,
    /// The protocol.
    pub transport: Transport,
    /// Whether it is a fragment: also the first, although that has ports.
    pub is_fragment: bool,
}

/// How a NIC hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashing {
    /// The key.
    pub key: Key,
    /// The places of fields.
    pub layout: Layout,
    /// The fields for TCP.
    pub tcp: HashFields,
    /// The fields for UDP.
    pub udp: HashFields,
    /// The fields for all else, fragments too. [`HashFields::NONE`] where that is not known.
    pub others: HashFields,
}

/// Flow rules that come before the hash: the queue by the low bits of the source address inside, of the destination port outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slices {
    /// Which field.
    pub side: Side,
    /// By slice. A power of two long.
    pub queues: Vec<u16>,
}

/// Where a NIC puts received frames.
#[derive(Clone)]
pub struct Placement {
    /// By key byte.
    tables: Box<[ByteTable; INPUT]>,
    tcp: Places,
    udp: Places,
    others: Places,
    /// The queue by the low bits of the hash.
    table: Vec<u16>,
    slices: Option<Slices>,
}

/// The input bytes that change the index, and the key bytes that they meet.
#[derive(Clone, Copy)]
struct Places {
    /// **Shape:** (byte of the input, byte of the key). The first `length` count.
    pairs: [(u8, u8); INPUT],
    length: u8,
    /// False where the NIC does not hash, or nobody knows what.
    known: bool,
}

impl Placement {
    /// What a NIC does that hashes like that and has that table. **Errors:** [`TableError::Size`].
    pub fn by_hash(hashing: &Hashing, table: &[u16]) -> Result<Self, TableError> {
        check_size(table.len())?;
        let table = reduced(table).to_vec();
        let tables = Box::new(core::array::from_fn(|byte| ByteTable::new(&hashing.key, byte)));
        let places = |fields| Places::new(hashing.layout, fields, &tables, table.len());
        let (tcp, udp) = (places(hashing.tcp), places(hashing.udp));
        let others = places(hashing.others.without_ports());
        Ok(Self { tcp, udp, others, tables, table, slices: None })
    }

    /// What a NIC does that has such flow rules for TCP and UDP. What they do not match is unknown. **Errors:** [`TableError::Size`].
    pub fn by_rules(slices: Slices) -> Result<Self, TableError> {
        check_size(slices.queues.len())?;
        let zeros = Box::new(core::array::from_fn(|_| ByteTable::linear(|_| 0)));
        let unknown = Places { pairs: [(0, 0); INPUT], length: 0, known: false };
        Ok(Self { tables: zeros, tcp: unknown, udp: unknown, others: unknown, table: vec![0], slices: Some(slices) })
    }

    /// The queue that the packet is put into. None where that cannot be known. **Cost:** hot; a load for each byte that counts.
    #[inline]
    pub fn predicted_queue(&self, packet: &HashedPacket) -> Option<u16> {
        match (&self.slices, packet.whole_ports()) {
            (Some(slices), Some((_, port))) => Some(slices.queue(packet.source, port)),
            _ => self.index(packet).map(|index| self.table[index]),
        }
    }

    /// The entry of the table that the packet's hash leads to. None where nothing is hashed, or nobody knows what.
    #[inline]
    pub(crate) fn index(&self, packet: &HashedPacket) -> Option<usize> {
        let places = match (packet.transport, packet.whole_ports()) {
            (Transport::Tcp, Some(_)) => &self.tcp,
            (Transport::Udp, Some(_)) => &self.udp,
            _ => &self.others,
        };
        let input = packet.input();
        let hash = places.each().fold(0, |hash, &(byte, key)| hash ^ self.tables[usize::from(key)].of(input[usize::from(byte)]));
        places.known.then(|| usize::from(hash) & (self.table.len() - 1))
    }

    /// The queue by index. Shorter than what the NIC has where that repeats itself.
    pub fn table(&self) -> &[u16] {
        &self.table
    }
}

impl core::fmt::Debug for Placement {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Placement").field("table", &self.table).field("slices", &self.slices).finish_non_exhaustive()
    }
}

impl Places {
    fn new(layout: Layout, fields: HashFields, tables: &[ByteTable; INPUT], entries: usize) -> Self {
        let mut all = Self { pairs: [(0, 0); INPUT], length: 0, known: fields != HashFields::NONE };
        for (byte, key) in layout.places(fields) {
            if tables[key].reaches(entries) {
                all.pairs[usize::from(all.length)] = (byte as u8, key as u8);
                all.length += 1;
            }
        }
        all
    }

    #[inline]
    fn each(&self) -> core::slice::Iter<'_, (u8, u8)> {
        self.pairs[..usize::from(self.length)].iter()
    }
}

impl Slices {
    #[inline]
    fn queue(&self, source: Ipv4Addr, destination_port: u16) -> u16 {
        let value = match self.side {
            Side::Inside => u32::from(source) as usize,
            Side::Outside => usize::from(destination_port),
        };
        self.queues[value & (self.queues.len() - 1)]
    }
}

impl HashedPacket {
    /// The ports, unless NICs take no notice of them.
    #[inline]
    fn whole_ports(&self) -> Option<(u16, u16)> {
        self.ports.filter(|_| !self.is_fragment && self.transport != Transport::Other)
    }

    #[inline]
    fn input(&self) -> [u8; INPUT] {
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (self.source.octets(), self.destination.octets());
        let (source_port, destination_port) = self.ports.unwrap_or((0, 0));
        let ([f0, f1], [n0, n1]) = (source_port.to_be_bytes(), destination_port.to_be_bytes());
        [s0, s1, s2, s3, d0, d1, d2, d3, f0, f1, n0, n1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toeplitz::LONGEST_KEY;

    const PACKET: HashedPacket = HashedPacket {
        source: Ipv4Addr::new(66, 9, 149, 187),
        destination: Ipv4Addr::new(161, 142, 100, 80),
        ports: Some((2794, 1766)),
        transport: Transport::Tcp,
        is_fragment: false,
    };

    /// Microsoft's sample key, as far as IPv4 goes, and a table that shows the index.
    fn sample() -> Hashing {
        let key = [0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0];
        let key = Key::from_slice(&key).expect("16 bytes are a key");
        Hashing {
            key,
            layout: Layout::Kept,
            tcp: HashFields::FOUR_TUPLE,
            udp: HashFields::TWO_TUPLE,
            others: HashFields::TWO_TUPLE,
        }
    }

    fn placement(hashing: &Hashing) -> Placement {
        Placement::by_hash(hashing, &(0..2048).collect::<Vec<u16>>()).expect("2048 is a power of two")
    }

    /// 0x51ccc178 with ports, 0x323e8fc2 without.
    #[test]
    fn published_hashes_are_predicted() {
        let of = |packet| placement(&sample()).predicted_queue(&packet);
        assert_eq!(of(PACKET), Some(0x178));
        assert_eq!(of(HashedPacket { transport: Transport::Udp, ..PACKET }), Some(0x7c2));
        assert_eq!(of(HashedPacket { transport: Transport::Other, ..PACKET }), Some(0x7c2));
        assert_eq!(of(HashedPacket { is_fragment: true, ..PACKET }), Some(0x7c2), "the first fragment too");
        assert_eq!(of(HashedPacket { ports: None, ..PACKET }), Some(0x7c2));
    }

    #[test]
    fn what_is_not_hashed_or_not_known_is_not_predicted() {
        let hashing = Hashing { udp: HashFields::NONE, others: HashFields::NONE, ..sample() };
        let of = |packet| placement(&hashing).predicted_queue(&packet);
        assert_eq!(of(HashedPacket { transport: Transport::Udp, ..PACKET }), None);
        assert_eq!(of(HashedPacket { is_fragment: true, ..PACKET }), None);
        assert!(Placement::by_hash(&sample(), &[0; 96]).is_err());
    }

    #[test]
    fn a_key_of_zeros_puts_all_into_the_first_entry() {
        let hashing = Hashing { key: Key::new([0; LONGEST_KEY]), ..sample() };
        assert_eq!(placement(&hashing).predicted_queue(&PACKET), Some(0));
    }

    #[test]
    fn rules_go_by_port_and_address_and_leave_fragments_open() {
        let by = |side| Placement::by_rules(Slices { side, queues: vec![5, 6, 7, 8] }).expect("4 is a power of two");
        assert_eq!(by(Side::Outside).predicted_queue(&PACKET), Some(7), "1766 % 4 = 2");
        assert_eq!(by(Side::Inside).predicted_queue(&PACKET), Some(8), "187 % 4 = 3");
        assert_eq!(by(Side::Inside).predicted_queue(&HashedPacket { is_fragment: true, ..PACKET }), None);
    }
}
