//! Which queue a NIC puts a packet on: Toeplitz keys that hash only some fields, and what comes of them by an indirection table.
//!
//! Pure. Written from the definition, apart from the product's `steering`, so that the two can disagree. Called by the checks.
//! Invariant: a synthesised key's low hash bits do not change with the fields that do not count. Sources: Microsoft, "RSS hashing
//! functions"; docs/vm.md.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use portcullis_nat::policy::Endpoint;

/// The key of a virtio NIC. **Units:** bytes. **Source:** virtio 1.2, section 5.1.6.5.6.4 (`rss_max_key_size`).
const KEY_BYTES: usize = 40;
/// The low hash bits that choose from a table of 128 entries.
const TABLE_BITS: usize = 7;

/// What the queue shall depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    /// The source address only: the inside NIC.
    Source,
    /// The destination address and port only: the outside NIC.
    Destination,
}

impl Fields {
    /// Key bits that have to be zero, because the low hash bits of a field that must not count meet them. Input bit `i` meets key bits
    /// `i + 32 - TABLE_BITS` to `i + 31` for those:
    ///
    /// ```text
    /// input   source address 0-31 | destination address 32-63 | source port 64-79 | destination port 80-95
    /// ```
    fn zeros(self) -> &'static [RangeInclusive<usize>] {
        match self {
            Self::Source => &[64 - TABLE_BITS..=126],
            Self::Destination => &[32 - TABLE_BITS..=62, 96 - TABLE_BITS..=110],
        }
    }
}

/// A key of receive-side scaling.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key([u8; KEY_BYTES]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(f, "{}", bytes.join(":"))
    }
}

impl Key {
    /// A key that hashes all fields.
    pub(crate) fn random(numbers: &mut Numbers) -> Self {
        Self(std::array::from_fn(|_| numbers.next() as u8))
    }

    /// A key whose low hash bits depend on those fields only.
    pub(crate) fn synthesised(fields: Fields, numbers: &mut Numbers) -> Self {
        let mut key = Self::random(numbers);
        for bit in fields.zeros().iter().cloned().flatten() {
            key.0[bit / 8] &= !(0x80 >> (bit % 8));
        }
        key
    }

    fn bit(&self, bit: usize) -> u32 {
        u32::from(self.0[bit / 8] >> (7 - bit % 8) & 1)
    }

    /// The Toeplitz hash: the XOR of the key's 32 bits from `i` on, over all input bits `i` that are set.
    pub(crate) fn hash(&self, input: &[u8]) -> u32 {
        let set = (0..input.len() * 8).filter(|bit| input[bit / 8] >> (7 - bit % 8) & 1 == 1);
        set.fold(0, |hash, first| hash ^ (first..first + 32).fold(0, |window, bit| window << 1 | self.bit(bit)))
    }
}

/// A NIC's key and table.
pub(crate) struct Rss {
    pub(crate) key: Key,
    pub(crate) table: Vec<u32>,
}

impl Rss {
    /// Reads what `ethtool -x` prints.
    ///
    /// **Errors:** no key of the right length, or no table of the right length.
    pub(crate) fn from_ethtool(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let rows = lines.by_ref().skip(1).take_while(|line| !line.contains("key"));
        let entries = rows.filter_map(|row| row.split_once(':')).flat_map(|(_, queues)| queues.split_whitespace());
        let table: Vec<u32> = entries.map(str::parse).collect::<Result<_, _>>().context("the table")?;
        ensure!(table.len() == 1 << TABLE_BITS, "a table of {} entries", table.len());
        let bytes = lines.next().unwrap_or_default().trim().split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().context("the key")?;
        let length = bytes.len();
        let key = bytes.try_into().ok().with_context(|| format!("a key of {length} bytes"))?;
        Ok(Self { key: Key(key), table })
    }

    /// The queue of a TCP or UDP packet, by only the fields that shall count: the others are taken as zero.
    pub(crate) fn queue(&self, fields: Fields, flow: &Flow) -> u32 {
        let mut input = [0; 12];
        match fields {
            Fields::Source => input[..4].copy_from_slice(&flow.source.address.octets()),
            Fields::Destination => {
                input[4..8].copy_from_slice(&flow.destination.address.octets());
                input[10..].copy_from_slice(&flow.destination.port.to_be_bytes());
            }
        }
        self.table[self.key.hash(&input) as usize % self.table.len()]
    }
}

/// Two endpoints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
}

/// Numbers that look random and are the same in every run (splitmix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// An endpoint with the upper two bytes of `prefix`. **Invariant:** the port is not 0.
    pub(crate) fn endpoint(&mut self, prefix: [u8; 2]) -> Endpoint {
        let [a, b, c, d, ..] = self.next().to_be_bytes();
        Endpoint { address: Ipv4Addr::new(prefix[0], prefix[1], a, b), port: u16::from_be_bytes([c, d]).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Microsoft's sample key.
    const SAMPLE: Key = Key([
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
        0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ]);

    fn input(flow: &Flow) -> Vec<u8> {
        let Flow { source, destination } = flow;
        let addresses = [source.address.octets(), destination.address.octets()].concat();
        [addresses, source.port.to_be_bytes().to_vec(), destination.port.to_be_bytes().to_vec()].concat()
    }

    #[test]
    fn the_published_vectors_hold() {
        let flow = |source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)| Flow {
            source: Endpoint { address: source.0, port: source.1 },
            destination: Endpoint { address: destination.0, port: destination.1 },
        };
        let first = flow((Ipv4Addr::new(66, 9, 149, 187), 2794), (Ipv4Addr::new(161, 142, 100, 80), 1766));
        assert_eq!(SAMPLE.hash(&input(&first)), 0x51cc_c178);
        assert_eq!(SAMPLE.hash(&input(&first)[..8]), 0x323e_8fc2, "without ports");
        let second = flow((Ipv4Addr::new(199, 92, 111, 2), 14230), (Ipv4Addr::new(65, 69, 140, 83), 4739));
        assert_eq!(SAMPLE.hash(&input(&second)), 0xc626_b0ea);
    }

    #[test]
    fn a_synthesised_key_hashes_only_the_fields_that_count() {
        let mut numbers = Numbers::new(1);
        for fields in [Fields::Source, Fields::Destination] {
            let table = (0..1 << TABLE_BITS).collect();
            let rss = Rss { key: Key::synthesised(fields, &mut numbers), table };
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..2000 {
                let flow = Flow { source: numbers.endpoint([10, 1]), destination: numbers.endpoint([198, 51]) };
                let whole = rss.key.hash(&input(&flow)) & 127;
                assert_eq!(whole, rss.queue(fields, &flow), "{fields:?} {flow:?}");
                seen.insert(whole);
            }
            assert_eq!(seen.len(), 128, "{fields:?}: the key has not full rank");
        }
    }

    #[test]
    fn what_ethtool_prints_is_read() {
        let row = |row| format!("{row:5}:      0     1     2     3     0     1     2     3\n");
        let rows: String = (0..128).step_by(8).map(row).collect();
        let text = format!(
            "RX flow hash indirection table for eth0 with 4 RX ring(s):\n{rows}RSS hash key:\n{SAMPLE}\n\
             RSS hash function:\n    toeplitz: on\n    xor: off\n"
        );
        let rss = Rss::from_ethtool(&text).unwrap();
        assert!(rss.key == SAMPLE);
        assert!(rss.table.iter().zip(0..).all(|(&queue, entry)| queue == entry % 4) && rss.table.len() == 128);
        assert!(Rss::from_ethtool("Cannot get RX flow hash").is_err());
    }
}
