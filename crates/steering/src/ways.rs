//! The four ways to have packets arrive at their owner: what a NIC offers, what stands against a way, and what is to be set.
//!
//! Knows descriptions of NICs, and asks none. `xsk` fills in [`Offer`] and carries out [`Plan`]; [`crate::choose`] decides between; `doctor`
//! prints what stands against. Invariant: a way is taken only when nothing stands against it. Source: docs/steering.md, "Four ways".

use core::fmt::{self, Display};
use std::collections::BTreeSet;

use crate::fields::{HashFields, Layout, Side};
use crate::key::MOST_BITS;
use crate::linear::rank;
use crate::owners::WorkerId;
use crate::predict::{Placement, Transport};
use crate::table::{TableError, check_size, entries_for, reduced, workers_of};
use crate::toeplitz::{IPV4_KEY, Key};

/// A way to have packets arrive at their owner. **Order:** best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// A key under which the NIC's hash depends on the owner's fields only.
    Synthesis,
    /// The NIC hashes the owner's fields only, under the key that it has.
    FieldSelection,
    /// Flow rules that send slices of ports or addresses to queues.
    FlowRules,
    /// Frames arrive anywhere and are handed off.
    Software,
}

/// A setting of a NIC as it is, and whether it can be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// As read.
    pub now: T,
    /// Whether the driver lets it be set.
    pub settable: bool,
}

/// What a NIC hashes of a protocol, and what it can be told to hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChoice {
    /// As read. None where it includes what nothing here knows.
    pub now: Option<HashFields>,
    /// What it can be set to, besides.
    pub choices: Vec<HashFields>,
}

/// What a NIC offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which way it looks.
    pub side: Side,
    /// Its receive queues.
    pub queues: u16,
    /// Whether its hash is Toeplitz, or can be made so, without a transformation of the input.
    pub toeplitz: bool,
    /// Its key. None where it cannot be read.
    pub key: Setting<Option<Key>>,
    /// The length of its key. **Units:** bytes.
    pub key_length: usize,
    /// Its indirection table. Empty where it has none.
    pub table: Setting<Vec<u16>>,
    /// What it hashes of TCP.
    pub tcp: FieldChoice,
    /// What it hashes of UDP.
    pub udp: FieldChoice,
    /// What it hashes of ICMP and fragments. [`HashFields::NONE`] where that is not known.
    pub others: HashFields,
    /// Where fields are in the input when others are left out.
    pub layout: Layout,
    /// How many flow rules can still be added that match some bits of the destination port outside, of the source address inside.
    pub rules: usize,
}

/// What stands against a way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Another hash function, or a symmetric one.
    #[error("its hash is not plain Toeplitz")]
    NotToeplitz,
    /// The key cannot be set, or it is not known.
    #[error("its key cannot be {0}")]
    Key(&'static str),
    /// The key does not reach the ports.
    #[error("its key has {length} bytes, and IPv4 with ports needs {IPV4_KEY}")]
    KeyShort {
        /// Its bytes.
        length: usize,
    },
    /// The NIC's own key spreads the fields badly.
    #[error("its own key does not spread {fields} over {entries} entries")]
    KeySpread {
        /// The fields.
        fields: HashFields,
        /// The entries that tell workers apart.
        entries: usize,
    },
    /// TCP is not, and cannot be, hashed on what is needed.
    #[error("it cannot hash TCP on {needed}")]
    Fields {
        /// What is needed.
        needed: HashFields,
    },
    /// The table is of no use.
    #[error("{0}")]
    Table(#[from] TableError),
    /// The table is fixed, and workers are left out.
    #[error("its indirection table cannot be set and leads to {reached} of {workers} workers")]
    TableReach {
        /// Workers that it leads to.
        reached: usize,
        /// How many there are.
        workers: u16,
    },
    /// No rules with masks, or too few.
    #[error("it takes {rules} more flow rules with masks, and {needed} are needed")]
    Rules {
        /// What it takes.
        rules: usize,
        /// What is needed.
        needed: usize,
    },
    /// Other devices of the side decide, and this one cannot follow them.
    #[error("another device of this side decides who owns what, and this one cannot do the same")]
    Differs,
}

/// A flow rule: packets of a protocol whose field has `value` in the bits of `mask` go to `queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRule {
    /// TCP or UDP.
    pub transport: Transport,
    /// Inside the source address, outside the destination port.
    pub side: Side,
    /// What the bits are.
    pub value: u16,
    /// Which bits count: 1 for those that do. The field's last 16.
    pub mask: u16,
    /// Where to.
    pub queue: u16,
}

/// The expected share of packets that have to be handed off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// Of TCP.
    pub tcp: f64,
    /// Of UDP.
    pub udp: f64,
}

/// What is to be set on a NIC. What is None or empty stays as it is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The way that results.
    pub way: Way,
    /// The key.
    pub key: Option<Key>,
    /// The queue of each entry of the indirection table.
    pub table: Option<Vec<u16>>,
    /// What to hash of TCP.
    pub tcp: Option<HashFields>,
    /// What to hash of UDP.
    pub udp: Option<HashFields>,
    /// Flow rules to add.
    pub rules: Vec<FlowRule>,
    /// Where frames are expected once all is set. None where nothing is.
    pub placement: Option<Placement>,
    /// How much remains for handing off.
    pub share: Share,
    /// Why no better way.
    pub obstacles: Vec<(Way, Obstacle)>,
}

impl Offer {
    /// What stands against a way on this NIC alone. None when it can be taken.
    pub fn obstacle(&self, way: Way, workers: u16) -> Option<Obstacle> {
        let stands = match way {
            Way::Synthesis => self.check_synthesis(workers),
            Way::FieldSelection => self.check_selection(workers),
            Way::FlowRules => self.check_rules(workers),
            Way::Software => Ok(()),
        };
        stands.err()
    }

    fn check_synthesis(&self, workers: u16) -> Result<(), Obstacle> {
        self.check_hash(workers)?;
        require(self.key.settable, Obstacle::Key("set"))?;
        require(self.suitable(&self.tcp).is_some(), Obstacle::Fields { needed: self.side.fields() })
    }

    fn check_selection(&self, workers: u16) -> Result<(), Obstacle> {
        let fields = self.side.fields();
        self.check_hash(workers)?;
        require(self.tcp.can_be(fields), Obstacle::Fields { needed: fields })?;
        let key = self.key.now.ok_or(Obstacle::Key("read"))?;
        let entries = self.fixed_owners(workers)?.map_or(self.owner_entries(workers), |owners| owners.len());
        require(self.has_full_rank(&key, entries), Obstacle::KeySpread { fields, entries })
    }

    fn check_rules(&self, workers: u16) -> Result<(), Obstacle> {
        let needed = 2 * usize::from(workers).next_power_of_two();
        require(self.rules >= needed, Obstacle::Rules { rules: self.rules, needed })
    }

    fn check_hash(&self, workers: u16) -> Result<(), Obstacle> {
        require(self.toeplitz, Obstacle::NotToeplitz)?;
        require(self.key_length >= IPV4_KEY, Obstacle::KeyShort { length: self.key_length })?;
        self.check_table(workers)
    }

    fn check_table(&self, workers: u16) -> Result<(), Obstacle> {
        let (entries, most) = (self.table.now.len(), 1 << MOST_BITS);
        check_size(entries)?;
        let Some(owners) = self.fixed_owners(workers)? else {
            let needed = usize::from(workers);
            return require(entries >= needed, TableError::TooSmall { entries, needed }.into());
        };
        require(owners.len() <= most, TableError::Size { entries }.into())?;
        let reached = owners.iter().collect::<BTreeSet<_>>().len();
        require(reached == usize::from(workers), Obstacle::TableReach { reached, workers })
    }

    /// The workers by index, where the table cannot be set: as short as they are.
    pub(crate) fn fixed_owners(&self, workers: u16) -> Result<Option<Vec<WorkerId>>, TableError> {
        if self.table.settable {
            return Ok(None);
        }
        workers_of(&self.table.now, self.queues, workers).map(|owners| Some(reduced(&owners).to_vec()))
    }

    /// How many entries tell owners apart, where this NIC has a say in it.
    pub(crate) fn owner_entries(&self, workers: u16) -> usize {
        entries_for(workers).min(self.table.now.len())
    }

    /// Whether what must spread does: the source address inside, the destination port outside.
    fn has_full_rank(&self, key: &Key, entries: usize) -> bool {
        let places = self.layout.places(self.side.fields());
        let bytes = match self.side {
            Side::Inside => &places[..],
            Side::Outside => &places[4..],
        };
        let bits = bytes.iter().flat_map(|&(_, byte)| byte * 8..byte * 8 + 8);
        rank(key, bits, 0..entries.ilog2()) == entries.ilog2()
    }

    /// The fields to hash under a synthesised key: all that the owner follows from, each in its place of the full input.
    pub(crate) fn suitable(&self, choice: &FieldChoice) -> Option<HashFields> {
        let wanted = Layout::Kept.places(self.side.fields());
        let suits = |fields: &HashFields| wanted.iter().all(|place| self.layout.places(*fields).contains(place));
        let preferred = [HashFields::FOUR_TUPLE].into_iter().filter(|&fields| choice.can_be(fields));
        choice.now.into_iter().chain(preferred).chain(choice.choices.iter().copied()).find(suits)
    }
}

impl FieldChoice {
    pub(crate) fn can_be(&self, fields: HashFields) -> bool {
        self.now == Some(fields) || self.choices.contains(&fields)
    }
}

fn require(holds: bool, otherwise: Obstacle) -> Result<(), Obstacle> {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synthesis => "key synthesis",
            Self::FieldSelection => "field selection",
            Self::FlowRules => "flow rules",
            Self::Software => "software",
        })
    }
}

/// One line for the log: the way, what it costs, and why no better one.
impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Share { tcp, udp } = self.share;
        write!(f, "{}: {:.1} % of TCP and {:.1} % of UDP to be handed over", self.way, tcp * 100.0, udp * 100.0)?;
        self.obstacles.iter().try_for_each(|(way, obstacle)| write!(f, "; no {way}: {obstacle}"))
    }
}
