//! What a device lets be set, for the choice among the ways of steering.
//!
//! Knows how drivers say no. Called at start and by `doctor`. Invariant: [`Capabilities::probe`] writes only what is there already.

use std::io;

use super::{Ethtool, Fields, Flow, HashFunction, NTUPLE, Nic, NicError, Rss, RssChange, Setting, Table, Transform};

/// Whether a setting can be set. Drivers do not announce it: it is known by trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settable {
    /// The driver took what was there already.
    Yes,
    /// The driver refused it.
    No,
    /// It could not be tried: no right to, or the device is busy or down. The number is the kernel's.
    Unknown(i32),
}

impl Settable {
    fn of(answer: &io::Result<()>) -> Self {
        match answer.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) => Self::Yes,
            Err(Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)) => Self::No,
            Err(errno) => Self::Unknown(errno.unwrap_or_default()),
        }
    }
}

/// What a device lets be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The driver's name.
    pub driver: String,
    /// Receive queues now; none where the driver has no say in them.
    pub queues: Option<u32>,
    /// The most receive queues.
    pub most_queues: Option<u32>,
    /// Whether their number can be set.
    pub channels: Settable,
    /// The hash function; none where there is no RSS.
    pub hash: Option<HashFunction>,
    /// The transform. One that is on can be switched off where the key can be set.
    pub transform: Transform,
    /// Bytes of the key; 0 where it is not shown.
    pub key_len: usize,
    /// Whether the key can be set.
    pub key: Settable,
    /// Entries of the table; 0 where there is none.
    pub table_len: usize,
    /// Whether the table can be set.
    pub table: Settable,
    /// The fields that are hashed, for the kinds of packets that the driver tells apart.
    pub fields: Vec<FieldCapability>,
    /// Flow rules; none where the driver has none.
    pub rules: Option<RuleCapability>,
}

/// What is hashed of a kind of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldCapability {
    /// The kind.
    pub flow: Flow,
    /// The fields now.
    pub now: Fields,
    /// Whether they can be set at all; which others are taken, [`Nic::accepted_fields`] says.
    pub settable: Settable,
}

/// What can be done with flow rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleCapability {
    /// How many there can be; 0 where the driver does not say, or not before they are switched on.
    pub size: u32,
    /// How many there are.
    pub used: usize,
    /// Whether they are on (the feature [`NTUPLE`]). If not, they can be switched on.
    pub on: bool,
}

impl Capabilities {
    /// Finds out by writing settings that are there already, which changes nothing: the next frame goes where the last one went. (On
    /// virtio_net even that has an effect, a good one: see [`super::NicSetup::reapply_table`].) **Errors:** [`NicError::Read`].
    pub fn probe<E: Ethtool>(nic: &Nic<E>) -> Result<Self, NicError> {
        let channels = nic.channels()?;
        let rss = nic.rss()?;
        let mut fields = Vec::new();
        for flow in Flow::ALL {
            // No fields at all is how drivers answer for a kind that they do not hash.
            if let Some(now) = nic.fields(flow)?.filter(|&now| now != Fields::NONE) {
                let settable = if flow.is_settable() { Settable::of(&nic.ethtool.set_fields(flow, now)) } else { Settable::No };
                fields.push(FieldCapability { flow, now, settable });
            }
        }
        Ok(Self {
            driver: nic.driver()?.unwrap_or_default().name,
            queues: channels.map(|channels| channels.receiving()),
            most_queues: channels.as_ref().map(super::plan::most_queues),
            // The kernel knows whether the driver can, and does not ask it for what is there already.
            channels: channels.as_ref().map_or(Settable::No, |channels| Settable::of(&nic.ethtool.set_channels(channels))),
            hash: rss.as_ref().map(|rss| rss.hash),
            transform: rss.as_ref().map_or(Transform::None, |rss| rss.transform),
            key_len: rss.as_ref().map_or(0, |rss| rss.key.len()),
            key: rss.as_ref().map_or(Settable::No, |rss| try_key(nic, rss)),
            table_len: rss.as_ref().map_or(0, |rss| rss.table.len()),
            table: rss.as_ref().map_or(Ok(Settable::No), |rss| try_table(nic, rss))?,
            fields,
            rules: rules(nic)?,
        })
    }
}

impl<E: Ethtool> Nic<E> {
    /// Which of the choices the driver takes for a kind of packets: each is set, and what was there is set again. For that moment
    /// packets go to other queues, so this is for the time before traffic is served. **Errors:** [`NicError::Write`] when what was
    /// there cannot be set again.
    pub fn accepted_fields(&self, flow: Flow, choices: &[Fields]) -> Result<Vec<Fields>, NicError> {
        let Some(now) = self.fields(flow)?.filter(|_| flow.is_settable()) else { return Ok(Vec::new()) };
        let mut accepted = Vec::new();
        for &fields in choices {
            let taken = self.ethtool.set_fields(flow, fields).is_ok();
            let shown = self.fields(flow)?;
            if shown != Some(now) {
                self.write(&Setting::Fields { flow, fields: now })?;
            }
            if taken && shown == Some(fields) {
                accepted.push(fields);
            }
        }
        Ok(accepted)
    }
}

fn try_key<E: Ethtool>(nic: &Nic<E>, rss: &Rss) -> Settable {
    if rss.key.is_empty() {
        return Settable::No;
    }
    let change = RssChange { transform: rss.transform, key: Some(rss.key.clone()), ..RssChange::default() };
    Settable::of(&nic.ethtool.set_rss(&change))
}

/// A default table is set as the default, so that the kernel does not take it for a configured one.
fn try_table<E: Ethtool>(nic: &Nic<E>, rss: &Rss) -> Result<Settable, NicError> {
    if rss.table.is_empty() {
        return Ok(Settable::No);
    }
    let table = if nic.has_default_table(rss)? { Table::Default } else { Table::Queues(rss.table.clone()) };
    let change = RssChange { transform: rss.transform, table: Some(table), ..RssChange::default() };
    Ok(Settable::of(&nic.ethtool.set_rss(&change)))
}

/// Rules there are where the feature for them is on, or can be switched on.
fn rules<E: Ethtool>(nic: &Nic<E>) -> Result<Option<RuleCapability>, NicError> {
    let Some(feature) = nic.feature(NTUPLE)?.filter(|feature| feature.active || feature.changeable) else { return Ok(None) };
    let room = nic.rule_room()?.unwrap_or_default();
    Ok(Some(RuleCapability { size: room.size, used: room.used.len(), on: feature.active }))
}
