//! The memory of the tables: how much it is, and how it is cut.
//!
//! Knows sizes. The owner hands in zeroed bytes, on huge pages where it has them; the tables keep no pointer inside. Invariant: each
//! part starts where its records do not straddle cache lines, but for those of 24 bytes; those that fill lines come first.

use zerocopy::FromBytes;

use crate::bare::BareMapping;
use crate::due::{self, Due};
use crate::index::{self, Index, Line};
use crate::others::Translation;
use crate::policy::Protocol;
use crate::ports::{Holders, PortBits};
use crate::record::{Mapping, Session};

/// How many records each table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Mappings.
    pub mappings: u32,
    /// Bare mappings: of UDP that is kept without sessions. Zero where UDP has sessions like the others.
    pub bare_mappings: u32,
    /// Sessions.
    pub sessions: u32,
    /// External address slots.
    pub externals: u16,
    /// Fragmented packets followed at once.
    pub fragments: u32,
    /// Translations of protocols without ports.
    pub others: u32,
}

/// The alignment of the parts: a cache line.
const LINE: usize = 64;

impl Capacity {
    /// The memory that the tables take. **Units:** bytes.
    pub fn bytes(&self) -> usize {
        let sizes = [
            self.session_lines() * size_of::<Line>(),
            self.mapping_lines() * size_of::<Line>(),
            self.sessions as usize * size_of::<Session>(),
            self.mappings as usize * size_of::<Mapping>(),
            self.other_lines() * size_of::<Line>(),
            self.others as usize * size_of::<Translation>(),
            self.bare_lines() * size_of::<Line>(),
            self.bare_mappings as usize * size_of::<BareMapping>(),
            self.port_spaces() * (size_of::<PortBits>() + size_of::<Holders>()),
            Due::blocks_for(self.sessions as usize) * size_of::<due::Block>(),
            Due::blocks_for(self.bare_mappings as usize) * size_of::<due::Block>(),
        ];
        LINE + sizes.iter().sum::<usize>()
    }

    /// Each session is found from both sides.
    fn session_lines(&self) -> usize {
        Index::lines_for(2 * self.sessions as usize, index::ROOMY)
    }

    fn mapping_lines(&self) -> usize {
        Index::lines_for(self.mappings as usize, index::ROOMY)
    }

    /// Each translation is found from both sides.
    fn other_lines(&self) -> usize {
        Index::lines_for(2 * self.others as usize, index::DENSE)
    }

    fn bare_lines(&self) -> usize {
        Index::lines_for(self.bare_mappings as usize, index::DENSE)
    }

    fn port_spaces(&self) -> usize {
        usize::from(self.externals) * Protocol::ALL.len()
    }
}

/// The memory handed in is smaller than [`Capacity::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall;

impl core::fmt::Display for TooSmall {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the memory handed in is smaller than the tables")
    }
}

impl core::error::Error for TooSmall {}

/// The parts.
pub(crate) struct Arenas<'m> {
    pub(crate) session_lines: &'m mut [Line],
    pub(crate) mapping_lines: &'m mut [Line],
    pub(crate) sessions: &'m mut [Session],
    pub(crate) mappings: &'m mut [Mapping],
    pub(crate) other_lines: &'m mut [Line],
    pub(crate) others: &'m mut [Translation],
    pub(crate) bare_lines: &'m mut [Line],
    pub(crate) bares: &'m mut [BareMapping],
    pub(crate) port_bits: &'m mut [PortBits],
    pub(crate) port_holders: &'m mut [Holders],
    /// When each session is looked at again.
    pub(crate) due: &'m mut [due::Block],
    /// The same of each bare mapping.
    pub(crate) bares_due: &'m mut [due::Block],
}

impl<'m> Arenas<'m> {
    /// Cuts zeroed `memory` into the parts. **Errors:** [`TooSmall`].
    pub(crate) fn cut(memory: &'m mut [u8], capacity: &Capacity) -> Result<Self, TooSmall> {
        let skip = memory.as_ptr().align_offset(LINE);
        let memory = memory.get_mut(skip..).ok_or(TooSmall)?;
        let (session_lines, memory) = part(memory, capacity.session_lines())?;
        let (mapping_lines, memory) = part(memory, capacity.mapping_lines())?;
        let (other_lines, memory) = part(memory, capacity.other_lines())?;
        let (bare_lines, memory) = part(memory, capacity.bare_lines())?;
        let (port_bits, memory) = part(memory, capacity.port_spaces())?;
        let (port_holders, memory) = part(memory, capacity.port_spaces())?;
        let (sessions, memory) = part(memory, capacity.sessions as usize)?;
        let (mappings, memory) = part(memory, capacity.mappings as usize)?;
        let (others, memory) = part(memory, capacity.others as usize)?;
        let (due, memory) = part(memory, Due::blocks_for(capacity.sessions as usize))?;
        let (bares_due, memory) = part(memory, Due::blocks_for(capacity.bare_mappings as usize))?;
        let (bares, _) = part(memory, capacity.bare_mappings as usize)?;
        Ok(Self {
            session_lines,
            mapping_lines,
            sessions,
            mappings,
            other_lines,
            others,
            bare_lines,
            bares,
            port_bits,
            port_holders,
            due,
            bares_due,
        })
    }
}

fn part<T>(memory: &mut [u8], count: usize) -> Result<(&mut [T], &mut [u8]), TooSmall>
where
    T: FromBytes + zerocopy::IntoBytes + zerocopy::KnownLayout,
{
    <[T]>::mut_from_prefix_with_elems(memory, count).map_err(|_| TooSmall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_bytes_suffice_at_any_alignment() {
        let capacity = Capacity { mappings: 10, bare_mappings: 65, sessions: 65, externals: 2, fragments: 4, others: 3 };
        let mut memory = vec![0; capacity.bytes() + 7];
        for shift in 0..8 {
            let end = shift + capacity.bytes();
            let arenas = Arenas::cut(&mut memory[shift..end], &capacity).expect("enough memory");
            assert_eq!((arenas.sessions.len(), arenas.mappings.len(), arenas.port_bits.len(), arenas.due.len()), (65, 10, 6, 2));
            assert_eq!((arenas.others.len(), arenas.other_lines.len()), (3, Index::lines_for(6, index::DENSE)));
            let bare = (arenas.bares.len(), arenas.bares_due.len(), arenas.bare_lines.len());
            assert_eq!(bare, (65, 2, Index::lines_for(65, index::DENSE)));
        }
        assert!(Arenas::cut(&mut memory[..capacity.bytes() - LINE - 1], &capacity).is_err());
    }
}
