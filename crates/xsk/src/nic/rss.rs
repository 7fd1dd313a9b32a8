//! Receive-side scaling as a device has it: key, table, function, transform, and changes of them.
//!
//! Knows the kernel's numbers for functions and transforms. Used by all files of [`super`]. Sources: linux/ethtool.h
//! (`struct ethtool_rxfh`, `ETH_RSS_HASH_*`, `RXH_XFRM_*`).

/// How a device hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashFunction {
    /// The one whose results can be predicted.
    Toeplitz,
    /// XOR of the input.
    Xor,
    /// A CRC of the input.
    Crc32,
    /// Another one by the kernel's number; 0 where the driver does not say.
    Other(u8),
}

impl HashFunction {
    /// The kernel's number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Toeplitz => 1,
            Self::Xor => 2,
            Self::Crc32 => 4,
            Self::Other(code) => code,
        }
    }

    /// The function of a number.
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Toeplitz,
            2 => Self::Xor,
            4 => Self::Crc32,
            other => Self::Other(other),
        }
    }

    /// The name that ethtool has for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Toeplitz => "toeplitz",
            Self::Xor => "xor",
            Self::Crc32 => "crc32",
            Self::Other(_) => "unknown",
        }
    }
}

/// What a device does with the fields before it hashes them. Kernels before 6.8 do not say; mlx5 had [`Self::SymmetricOrXor`] on there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// Source XOR destination, twice.
    SymmetricXor,
    /// Source OR destination, then source XOR destination.
    SymmetricOrXor,
    /// Another one by the kernel's number.
    Other(u8),
}

impl Transform {
    /// The kernel's number.
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::SymmetricXor => 1,
            Self::SymmetricOrXor => 2,
            Self::Other(code) => code,
        }
    }

    /// The transform of a number.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::None,
            1 => Self::SymmetricXor,
            2 => Self::SymmetricOrXor,
            other => Self::Other(other),
        }
    }

    /// The name that ethtool has for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SymmetricXor => "symmetric-xor",
            Self::SymmetricOrXor => "symmetric-or-xor",
            Self::Other(_) => "unknown",
        }
    }
}

/// What a device says about its hash (`ethtool -x`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// The key; empty where the driver does not show it.
    pub key: Vec<u8>,
    /// The queue by the low bits of the hash; empty where the driver has no table.
    pub table: Vec<u32>,
    /// The function.
    pub hash: HashFunction,
    /// The transform.
    pub transform: Transform,
}

impl Rss {
    /// Whether the table is what the kernel makes by default: the queues in turn (`ethtool_rxfh_indir_default`).
    pub fn is_default_for(&self, rings: u32) -> bool {
        rings > 0 && self.table.iter().zip(0_u32..).all(|(&queue, entry)| queue == entry % rings)
    }
}

/// A table as it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// The kernel's default one. Then the kernel lets the number of queues be changed, and no longer calls the table configured.
    Default,
    /// These queues, as many as the device's table has entries. The kernel then gives no fewer queues than the table names, until the
    /// default one is set. What a driver had by itself and is put back counts as configured too: the two cannot be told apart.
    Queues(Vec<u32>),
}

/// A change of RSS in one step. What is `None` stays. The transform is always said: there is no way to leave it that all kernels know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RssChange {
    /// The function. Said only where it changes: some drivers refuse to hear of it.
    pub hash: Option<HashFunction>,
    /// The transform.
    pub transform: Transform,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The table.
    pub table: Option<Table>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_names_one_function_and_one_transform() {
        for code in 0..=255 {
            assert_eq!(HashFunction::from_code(code).code(), code);
            assert_eq!(Transform::from_code(code).code(), code);
        }
    }

    #[test]
    fn the_default_table_takes_the_queues_in_turn() {
        let rss = |table: &[u32]| Rss {
            key: Vec::new(),
            table: table.to_vec(),
            hash: HashFunction::Toeplitz,
            transform: Transform::None,
        };
        assert!(rss(&[0, 1, 2, 0, 1, 2, 0, 1]).is_default_for(3));
        assert!(!rss(&[0, 1, 2, 0, 1, 2, 0, 1]).is_default_for(4));
        assert!(!rss(&[0, 0, 1, 1]).is_default_for(2));
        assert!(!rss(&[0, 0]).is_default_for(0));
    }
}
