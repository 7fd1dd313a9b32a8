//! What every generated packet carries at the beginning of its payload: which flow, the how-manieth, when sent.
//!
//! ```text
//!  0        2                 6                                14                               22
//!  | magic  | flow            | sequence in the flow           | sent, CLOCK_MONOTONIC ns        |
//! ```
//! All in network order. Pure. 22 bytes make a UDP frame of 64. generate.bpf.c writes the same.

/// **Units:** bytes.
pub const LEN: usize = 22;

/// The first two bytes, "PC". Chosen: with a flow number below [`crate::tally::MAX_FLOWS`] it tells our packets from others.
pub const MAGIC: u16 = 0x5043;

/// A packet's stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The flow's number.
    pub flow: u32,
    /// The packet's number in its flow, from 0.
    pub sequence: u64,
    /// When it was sent. **Units:** nanoseconds of `CLOCK_MONOTONIC`.
    pub sent: u64,
}

impl Stamp {
    /// The stamp's bytes.
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..2].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[2..6].copy_from_slice(&self.flow.to_be_bytes());
        bytes[6..14].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[14..].copy_from_slice(&self.sent.to_be_bytes());
        bytes
    }

    /// The stamp that `payload` begins with, if it is one.
    pub fn from_bytes(payload: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = payload.first_chunk()?;
        let (magic, rest) = bytes.split_first_chunk::<2>()?;
        let (flow, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let sent = rest.first_chunk::<8>()?;
        (u16::from_be_bytes(*magic) == MAGIC).then_some(Self {
            flow: u32::from_be_bytes(*flow),
            sequence: u64::from_be_bytes(*sequence),
            sent: u64::from_be_bytes(*sent),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_as_it_was_written_and_nothing_else_reads_as_one() {
        let stamp = Stamp { flow: 0x0102_0304, sequence: u64::MAX - 1, sent: 42 };
        let bytes = stamp.to_bytes();
        assert_eq!(Stamp::from_bytes(&bytes), Some(stamp));
        assert_eq!(Stamp::from_bytes(&bytes[..LEN - 1]), None);
        assert_eq!(Stamp::from_bytes(&[0; LEN]), None);
    }
}
