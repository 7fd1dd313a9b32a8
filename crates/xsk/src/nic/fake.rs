//! Drivers in memory, behind what the kernel checks before it asks them: virtio_net, igb, one like mlx5, one that picks locations.
//!
//! Knows net/ethtool/ioctl.c's refusals and each driver's habits. For tests only. Invariant: every write is counted, and any one of them
//! can be made to fail. Blind spot: habits are as read in the sources of Linux 6.18, not as measured on hardware.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use super::{
    Channels, Coalescing, Deferral, Driver, Ethtool, Feature, Fields, Flow, HashFunction, NTUPLE, Nic, RX_HASH, RingSizes, Rss,
    RssChange, Rule, RuleRoom, Table, Transform,
};

/// Whose habits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// Begins with `rxhash off` and hashes; switched off, it does not. Takes two or four fields, and forgets them all when those of ip4 are
    /// set; forgets a table when XDP is attached; no rules.
    Virtio,
    /// Shows no key; UDP by addresses at first; rules for link-layer fields only.
    Igb,
    /// A symmetric transform at first; any fields; rules once they are switched on.
    Mlx5,
    /// As mlx5, but rules are always on and their locations the driver's choice.
    Picker,
}

impl Model {
    pub(super) const ALL: [Self; 4] = [Self::Virtio, Self::Igb, Self::Mlx5, Self::Picker];

    const fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio_net",
            Self::Igb => "igb",
            Self::Mlx5 => "mlx5_core",
            Self::Picker => "picker",
        }
    }

    const fn takes(self, flow: Flow, fields: Fields) -> bool {
        let two = fields.0 == Fields::TWO_TUPLE.0;
        let four = fields.0 == Fields::FOUR_TUPLE.0;
        match (self, flow) {
            (Self::Mlx5 | Self::Picker, Flow::Ip4) => Fields::TWO_TUPLE.contains(fields) && fields.0 != 0,
            (Self::Mlx5 | Self::Picker, _) => Fields::FOUR_TUPLE.contains(fields) && fields.0 != 0,
            (_, Flow::Ip4) => two,
            (Self::Igb, Flow::Tcp4) => four,
            (Self::Virtio | Self::Igb, _) => two || four,
        }
    }
}

/// All settings of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) channels: Channels,
    pub(super) rings: RingSizes,
    pub(super) rss: Rss,
    /// What the kernel remembers of a table that was set (`IFF_RXFH_CONFIGURED`).
    pub(super) configured: bool,
    /// Whether frames are hashed: otherwise all come to queue 0.
    pub(super) hashes: bool,
    /// The table that frames meet; virtio's is not always the one that is shown.
    pub(super) live_table: Vec<u32>,
    pub(super) fields: BTreeMap<Flow, Fields>,
    pub(super) features: BTreeMap<&'static str, bool>,
    pub(super) rules: BTreeMap<u32, Rule>,
    pub(super) deferral: Deferral,
}

/// What a test can do to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// The write with this number fails, counted from 0.
    pub(super) fails_at: Option<usize>,
    /// Writes from this number on fail.
    pub(super) fails_from: Option<usize>,
    /// Keys are taken and not kept.
    pub(super) loses_keys: bool,
}

#[derive(Debug)]
pub(super) struct Inner {
    model: Model,
    pub(super) state: State,
    pub(super) faults: Faults,
    pub(super) writes: Vec<&'static str>,
}

/// A device in memory. Clones are the same device.
#[derive(Clone, Debug)]
pub(super) struct Fake(pub(super) Rc<RefCell<Inner>>);

/// Locations that the models have for rules.
pub(super) const RULE_LOCATIONS: u32 = 8;

fn refused<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

fn in_turn(entries: usize, rings: u32) -> Vec<u32> {
    (0..entries as u32).map(|entry| entry % rings).collect()
}

fn is_symmetric(fields: Fields) -> bool {
    let both = |a, b| fields.contains(a) == fields.contains(b);
    both(Fields::SOURCE, Fields::DESTINATION) && both(Fields::SOURCE_PORT, Fields::DESTINATION_PORT)
}

impl Fake {
    /// A device with four of eight queues, as it is after the machine's start.
    pub(super) fn new(model: Model) -> Self {
        let channels = Channels { combined: 4, max_combined: 8, ..Channels::default() };
        let rings = RingSizes { rx: 512, tx: 512, max_rx: 4096, max_tx: 4096 };
        let transform = if model == Model::Mlx5 { Transform::SymmetricOrXor } else { Transform::None };
        let key = if model == Model::Igb { Vec::new() } else { (1..=40).collect() };
        let rss = Rss { key, table: in_turn(128, 4), hash: HashFunction::Toeplitz, transform };
        let udp = if model == Model::Igb { Fields::TWO_TUPLE } else { Fields::FOUR_TUPLE };
        let fields = BTreeMap::from([(Flow::Tcp4, Fields::FOUR_TUPLE), (Flow::Udp4, udp), (Flow::Ip4, Fields::TWO_TUPLE)]);
        let mut features = BTreeMap::from([(RX_HASH, model != Model::Virtio), ("rx-lro", false)]);
        if model != Model::Virtio {
            features.insert(NTUPLE, model == Model::Picker);
        }
        let live_table = rss.table.clone();
        let state = State {
            channels,
            rings,
            rss,
            configured: false,
            hashes: true,
            live_table,
            fields,
            features,
            rules: BTreeMap::new(),
            deferral: Deferral::default(),
        };
        Self(Rc::new(RefCell::new(Inner { model, state, faults: Faults::default(), writes: Vec::new() })))
    }

    pub(super) fn nic(&self) -> Nic<Self> {
        Nic::new("fake0", self.clone())
    }

    pub(super) fn state(&self) -> State {
        self.0.borrow().state.clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.borrow_mut().state);
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// The writes so far, which are forgotten.
    pub(super) fn take_writes(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.borrow_mut().writes)
    }

    /// An XDP program is attached: virtio_net tells the device its number of queues anew, which ends a configured table.
    pub(super) fn attach_xdp(&self) {
        let mut inner = self.0.borrow_mut();
        if inner.model == Model::Virtio && inner.state.configured {
            inner.state.live_table = in_turn(128, inner.state.channels.combined);
        }
    }

    fn write<T>(&self, what: &'static str, change: impl FnOnce(Model, &mut State, Faults) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.0.borrow_mut();
        let number = inner.writes.len();
        inner.writes.push(what);
        let faults = inner.faults;
        if faults.fails_at == Some(number) || faults.fails_from.is_some_and(|first| number >= first) {
            return refused(libc::EIO);
        }
        change(inner.model, &mut inner.state, faults)
    }
}

impl State {
    /// What net/ethtool/ioctl.c checks (`ethtool_set_rxfh`).
    fn check_rss(&self, change: &RssChange) -> io::Result<()> {
        let wrong_key = change.key.as_ref().is_some_and(|key| key.len() != self.rss.key.len());
        let wrong_table = match &change.table {
            Some(Table::Queues(table)) => {
                table.len() != self.rss.table.len() || table.iter().any(|&queue| queue >= self.channels.combined)
            }
            Some(Table::Default) | None => false,
        };
        if wrong_key || wrong_table {
            return refused(libc::EINVAL);
        }
        let asymmetric = self.fields.values().any(|&fields| !is_symmetric(fields));
        if change.transform != Transform::None && asymmetric { refused(libc::EINVAL) } else { Ok(()) }
    }
}

impl Ethtool for Fake {
    fn ifindex(&self) -> io::Result<u32> {
        Ok(9)
    }

    fn driver(&self) -> io::Result<Driver> {
        Ok(Driver { name: self.0.borrow().model.name().into(), ..Driver::default() })
    }

    fn channels(&self) -> io::Result<Channels> {
        Ok(self.state().channels)
    }

    fn set_channels(&self, wanted: &Channels) -> io::Result<()> {
        self.write("channels", |_, state, _| {
            let names_more = state.rss.table.iter().any(|&queue| queue >= wanted.combined);
            if wanted.combined == 0 || wanted.combined > 8 || (state.configured && names_more) {
                return refused(libc::EINVAL);
            }
            state.channels.combined = wanted.combined;
            if !state.configured {
                state.rss.table = in_turn(128, wanted.combined);
                state.live_table.clone_from(&state.rss.table);
            }
            Ok(())
        })
    }

    fn rx_rings(&self) -> io::Result<u32> {
        Ok(self.state().channels.combined)
    }

    fn rings(&self) -> io::Result<RingSizes> {
        Ok(self.state().rings)
    }

    fn set_rings(&self, rings: &RingSizes) -> io::Result<()> {
        self.write("rings", |_, state, _| {
            (state.rings.rx, state.rings.tx) = (rings.rx, rings.tx);
            Ok(())
        })
    }

    fn coalescing(&self) -> io::Result<Coalescing> {
        refused(libc::EOPNOTSUPP)
    }

    fn features(&self) -> io::Result<Vec<Feature>> {
        let feature = |(&name, &active): (&&str, &bool)| Feature { name: name.to_string(), active, changeable: true };
        Ok(self.state().features.iter().map(feature).collect())
    }

    fn set_feature(&self, name: &str, on: bool) -> io::Result<()> {
        self.write("feature", |model, state, _| match state.features.iter_mut().find(|(known, _)| **known == name) {
            Some((_, active)) => {
                *active = on;
                if (model, name) == (Model::Virtio, RX_HASH) {
                    state.hashes = on;
                }
                Ok(())
            }
            None => refused(libc::EOPNOTSUPP),
        })
    }

    fn rss(&self) -> io::Result<Rss> {
        Ok(self.state().rss)
    }

    fn set_rss(&self, change: &RssChange) -> io::Result<()> {
        self.write("rss", |model, state, faults| {
            state.check_rss(change)?;
            let transforms = matches!(model, Model::Mlx5 | Model::Picker);
            if (change.transform != Transform::None && !transforms)
                || change.hash.is_some_and(|hash| hash != HashFunction::Toeplitz)
            {
                return refused(libc::EOPNOTSUPP);
            }
            state.rss.transform = change.transform;
            if let Some(key) = change.key.as_ref().filter(|_| !faults.loses_keys) {
                state.rss.key.clone_from(key);
            }
            match &change.table {
                Some(Table::Default) => state.rss.table = in_turn(128, state.channels.combined),
                Some(Table::Queues(table)) => state.rss.table.clone_from(table),
                None => {}
            }
            if let Some(table) = &change.table {
                state.configured = *table != Table::Default;
            }
            state.live_table.clone_from(&state.rss.table);
            Ok(())
        })
    }

    fn fields(&self, flow: Flow) -> io::Result<Fields> {
        Ok(self.state().fields[&flow])
    }

    fn set_fields(&self, flow: Flow, fields: Fields) -> io::Result<()> {
        self.write("fields", |model, state, _| {
            let transformed = state.rss.transform != Transform::None && !is_symmetric(fields);
            if transformed || !model.takes(flow, fields) {
                return refused(libc::EINVAL);
            }
            state.fields.insert(flow, fields);
            if (model, flow) == (Model::Virtio, Flow::Ip4) {
                state.fields.extend([(Flow::Tcp4, Fields::TWO_TUPLE), (Flow::Udp4, Fields::TWO_TUPLE)]);
            }
            Ok(())
        })
    }

    fn rule_room(&self) -> io::Result<RuleRoom> {
        let (state, model) = (self.state(), self.0.borrow().model);
        if model == Model::Virtio || (model == Model::Mlx5 && !state.features[NTUPLE]) {
            return refused(libc::EOPNOTSUPP);
        }
        Ok(RuleRoom { size: RULE_LOCATIONS, used: state.rules.keys().copied().collect(), picks: model == Model::Picker })
    }

    fn insert_rule(&self, rule: &Rule, location: Option<u32>) -> io::Result<u32> {
        self.write("insert", |model, state, _| {
            let picked = (0..RULE_LOCATIONS).find(|location| !state.rules.contains_key(location));
            let location = match (model, location) {
                (Model::Igb, _) | (Model::Mlx5, None) => return refused(libc::EINVAL),
                (Model::Mlx5, Some(location)) if state.features[NTUPLE] => location,
                (Model::Mlx5, Some(_)) | (Model::Virtio, _) => return refused(libc::EOPNOTSUPP),
                (Model::Picker, _) => picked.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?,
            };
            if rule.queue >= state.channels.combined {
                return refused(libc::EINVAL);
            }
            state.rules.insert(location, *rule);
            Ok(location)
        })
    }

    fn remove_rule(&self, location: u32) -> io::Result<()> {
        self.write("remove", |_, state, _| if state.rules.remove(&location).is_some() { Ok(()) } else { refused(libc::ENOENT) })
    }

    fn deferral(&self) -> io::Result<Deferral> {
        Ok(self.state().deferral)
    }

    fn set_deferral(&self, deferral: Deferral) -> io::Result<()> {
        self.write("deferral", |_, state, _| {
            state.deferral = deferral;
            Ok(())
        })
    }
}
