//! The kernel's answers about a device, through `SIOCETHTOOL`, and in sysfs.
//!
//! Knows what the words of each answer mean. Used through [`super::Nic`]. Invariant: a request about RSS has the sizes that the device
//! has at that moment. Sources: linux/ethtool.h, kernel net/ethtool/ioctl.c (`ethtool_get_rxfh`, `ethtool_set_rxfh`).

use std::io;

use super::{
    Channels, Coalescing, Deferral, Driver, Ethtool, Feature, Fields, Flow, HashFunction, Polling, RingSizes, Rss, RssChange, Rule,
    RuleRoom, Table, Transform,
    sysfs::{Tree, set_deferral},
};
use crate::device::{
    Handle,
    request::{
        COUNT_RULES, DATA, DELETE_RULE, FLOW_TYPE, GET_COALESCING, GET_DRIVER, GET_FIELDS, GET_RX_RINGS, HASH, INSERT_RULE,
        KEY_SIZE, LIST_RULES, LOCATION, RULE_COUNT, Request, RssRequest, SET_FIELDS, TABLE_SIZE,
    },
};

/// Where the figures of `struct ethtool_coalesce` are. **Units:** words.
mod coalesce {
    pub(super) const RX_USECS: usize = 1;
    pub(super) const RX_FRAMES: usize = 2;
    pub(super) const TX_USECS: usize = 5;
    pub(super) const TX_FRAMES: usize = 6;
    pub(super) const ADAPTIVE_RX: usize = 10;
    pub(super) const ADAPTIVE_TX: usize = 11;
}

/// A device of the kernel.
#[derive(Debug)]
pub struct Kernel(Handle);

impl Kernel {
    /// **Errors:** what cannot be a device's name. Whether there is such a device is not asked.
    pub fn open(device: &str) -> io::Result<Self> {
        Handle::open(device).map(Self)
    }
}

impl Ethtool for Kernel {
    fn ifindex(&self) -> io::Result<u32> {
        self.0.ifindex()
    }

    fn driver(&self) -> io::Result<Driver> {
        let answer = self.0.run(Request::new(GET_DRIVER))?;
        let text = |position: usize| answer.text(1 + position * 8, 32);
        Ok(Driver { name: text(0), version: text(1), firmware: text(2), bus: text(3) })
    }

    fn channels(&self) -> io::Result<Channels> {
        self.0.channels()
    }

    fn set_channels(&self, channels: &Channels) -> io::Result<()> {
        self.0.set_channels(channels)
    }

    fn rx_rings(&self) -> io::Result<u32> {
        let answer = self.0.run(Request::new(GET_RX_RINGS))?;
        Ok(answer.wide(DATA) as u32)
    }

    fn rings(&self) -> io::Result<RingSizes> {
        self.0.rings()
    }

    fn set_rings(&self, rings: &RingSizes) -> io::Result<()> {
        self.0.set_rings(rings)
    }

    fn coalescing(&self) -> io::Result<Coalescing> {
        let answer = self.0.run(Request::new(GET_COALESCING))?;
        Ok(Coalescing {
            rx_usecs: answer.get(coalesce::RX_USECS),
            rx_frames: answer.get(coalesce::RX_FRAMES),
            tx_usecs: answer.get(coalesce::TX_USECS),
            tx_frames: answer.get(coalesce::TX_FRAMES),
            adaptive_rx: answer.get(coalesce::ADAPTIVE_RX) != 0,
            adaptive_tx: answer.get(coalesce::ADAPTIVE_TX) != 0,
        })
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        self.0.features()
    }

    fn set_feature(&self, name: &str, on: bool) -> io::Result<()> {
        self.0.set_feature(name, on)
    }

    fn rss(&self) -> io::Result<Rss> {
        let sizes = self.0.run(Request::rss(RssRequest::Sizes))?;
        let (table, key) = (sizes.get(TABLE_SIZE), sizes.get(KEY_SIZE));
        let answer = self.0.run(Request::rss(RssRequest::Read { table, key }))?;
        let [hash, transform, ..] = answer.get(HASH).to_ne_bytes();
        Ok(Rss {
            key: answer.key(table as usize, key as usize),
            table: answer.table(table as usize).to_vec(),
            hash: HashFunction::from_code(hash),
            transform: Transform::from_code(transform),
        })
    }

    fn set_rss(&self, change: &RssChange) -> io::Result<()> {
        let key = change.key.as_deref().unwrap_or_default();
        let run = |what, table: &[u32], key: &[u8]| {
            let mut request = Request::rss(what);
            let hash = change.hash.map_or(0, HashFunction::code);
            request.set(HASH, u32::from_ne_bytes([hash, change.transform.code(), 0, 0]));
            request.set_rss(table, key);
            self.0.run(request).map(drop)
        };
        match &change.table {
            None => run(RssRequest::Key { key: key.len() as u32 }, &[], key),
            Some(Table::Queues(table)) => run(RssRequest::Table { table: table.len() as u32, key: key.len() as u32 }, table, key),
            Some(Table::Default) => {
                run(RssRequest::DefaultTable, &[], &[])?;
                if key.is_empty() { Ok(()) } else { run(RssRequest::Key { key: key.len() as u32 }, &[], key) }
            }
        }
    }

    fn fields(&self, flow: Flow) -> io::Result<Fields> {
        let mut request = Request::new(GET_FIELDS);
        request.set(FLOW_TYPE, flow.code());
        Ok(Fields(self.0.run(request)?.wide(DATA)))
    }

    fn set_fields(&self, flow: Flow, fields: Fields) -> io::Result<()> {
        let mut request = Request::new(SET_FIELDS);
        request.set(FLOW_TYPE, flow.code());
        request.set_wide(DATA, fields.0);
        self.0.run(request).map(drop)
    }

    fn rule_room(&self) -> io::Result<RuleRoom> {
        let counted = self.0.run(Request::new(COUNT_RULES))?;
        let count = counted.get(RULE_COUNT) as usize;
        let listed = self.0.run(Request::announcing(LIST_RULES, count))?;
        let count = count.min(listed.get(RULE_COUNT) as usize);
        Ok(RuleRoom::decode(counted.wide(DATA), listed.wide(DATA), listed.words_from(RULE_COUNT + 1)[..count].to_vec()))
    }

    fn insert_rule(&self, rule: &Rule, location: Option<u32>) -> io::Result<u32> {
        let mut request = Request::new(INSERT_RULE);
        rule.encode(location, &mut request);
        Ok(self.0.run(request)?.get(LOCATION))
    }

    fn remove_rule(&self, location: u32) -> io::Result<()> {
        let mut request = Request::new(DELETE_RULE);
        request.set(LOCATION, location);
        self.0.run(request).map(drop)
    }

    fn deferral(&self) -> io::Result<Deferral> {
        let Polling { defer_hard_irqs, gro_flush_timeout, .. } = Tree::default().polling(&self.0.name(), self.0.ifindex()?);
        let both = defer_hard_irqs.zip(gro_flush_timeout);
        let both = both.map(|(hard_irqs, flush_timeout)| Deferral { hard_irqs, flush_timeout });
        both.ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn set_deferral(&self, deferral: Deferral) -> io::Result<()> {
        set_deferral(&Tree::default(), &self.0.name(), self.0.ifindex()?, deferral)
    }
}

#[cfg(test)]
mod tests {
    use super::coalesce;
    use crate::header;

    #[test]
    fn the_figures_are_where_the_header_has_them() {
        let at = |word: usize| word as u64 * 4;
        header::compare(&[
            ("offsetof(struct ethtool_coalesce, rx_coalesce_usecs)", at(coalesce::RX_USECS)),
            ("offsetof(struct ethtool_coalesce, rx_max_coalesced_frames)", at(coalesce::RX_FRAMES)),
            ("offsetof(struct ethtool_coalesce, tx_coalesce_usecs)", at(coalesce::TX_USECS)),
            ("offsetof(struct ethtool_coalesce, tx_max_coalesced_frames)", at(coalesce::TX_FRAMES)),
            ("offsetof(struct ethtool_coalesce, use_adaptive_rx_coalesce)", at(coalesce::ADAPTIVE_RX)),
            ("offsetof(struct ethtool_coalesce, use_adaptive_tx_coalesce)", at(coalesce::ADAPTIVE_TX)),
            ("offsetof(struct ethtool_drvinfo, driver)", at(1)),
            ("offsetof(struct ethtool_drvinfo, version)", at(9)),
            ("offsetof(struct ethtool_drvinfo, fw_version)", at(17)),
            ("offsetof(struct ethtool_drvinfo, bus_info)", at(25)),
        ]);
    }
}
