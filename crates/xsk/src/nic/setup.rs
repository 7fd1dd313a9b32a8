//! A plan carried out on a device, and everything put back afterwards.
//!
//! Knows in which order settings depend on each other, not why they are wanted. Called by the control plane. Invariant: before a setting
//! is changed, what it was is remembered (and noted, where the caller keeps notes); undone is in the opposite order. Sources: kernel
//! net/ethtool/ioctl.c (what refuses what), and the drivers named below. Tests: `setup/tests.rs`.
//!
//! ```text
//! features ─ table to default ─ channels ─ rings ─ key, table, function, transform ─ hashed fields ─ rules ─ deferral
//!            └ only if channels are refused without: the kernel gives no fewer queues than a configured table names
//! ```

#[cfg(test)]
mod tests;

use std::io;

use super::{
    Deferral, Ethtool, Feature, Fields, Flow, HashFunction, Impossible, Kernel, NTUPLE, Nic, NicError, Plan, RX_HASH, RingSizes,
    Rss, RssChange, Rule, Setting, Table, Transform,
    note::{Note, this_boot},
    plan::{most_queues, with_queues},
};

/// The driver that begins with [`RX_HASH`] off and hashes all the same. Switched off, it tells the device to hash nothing, and all frames
/// come to queue 0 until it is on again: so it is switched on for the hashed fields only, which need it, and never off (`virtnet_set_features`
/// and `virtnet_probe` in drivers/net/virtio_net.c).
const VIRTIO: &str = "virtio_net";

/// A device whose settings were changed, and what they were. Puts them back when it is dropped, and logs what stays.
///
/// Settings that somebody else changed meanwhile are overwritten with what they were at the beginning. Restore after the XDP program is
/// detached: virtio_net forgets a table at both occasions.
#[derive(Debug)]
#[must_use = "the settings are put back when this is dropped"]
pub struct NicSetup<E: Ethtool = Kernel> {
    nic: Nic<E>,
    ifindex: u32,
    /// What the settings were, in the order in which they were changed.
    former: Vec<Setting>,
    /// What [`Self::reapply_table`] writes again.
    hashing: RssChange,
}

/// Where a note is kept before each change.
type Keep<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

impl<E: Ethtool> NicSetup<E> {
    /// Carries a plan out. **Errors:** those of the first part that fails; what was changed before it has been put back by then.
    pub fn apply(nic: Nic<E>, plan: &Plan) -> Result<Self, NicError> {
        Self::apply_noting(nic, plan, |_| Ok(()))
    }

    /// As [`Self::apply`]; `keep` gets the note anew before each change (and after the insertion of a rule whose location the driver
    /// picks), so that [`Self::from_note`] can put back whatever a process that is killed on the way has changed.
    pub fn apply_noting(nic: Nic<E>, plan: &Plan, mut keep: impl FnMut(&str) -> io::Result<()>) -> Result<Self, NicError> {
        let ifindex = nic.ifindex()?;
        let mut setup = Self { nic, ifindex, former: Vec::new(), hashing: RssChange::default() };
        // On an error `setup` is dropped, which puts back what was changed.
        setup.carry_out(plan, &mut keep)?;
        Ok(setup)
    }

    /// What another process left to be put back. **Errors:** [`NicError::Note`] for a note that is no use for this device now.
    pub fn from_note(nic: Nic<E>, text: &str) -> Result<Self, NicError> {
        let ifindex = nic.ifindex()?;
        let problem = |problem| NicError::Note { device: nic.device.clone(), problem };
        let note = Note::parse(text).map_err(problem)?;
        note.check(&nic.device, ifindex).map_err(problem)?;
        Ok(Self { nic, ifindex, former: note.former, hashing: RssChange::default() })
    }

    /// What is to be put back, as text.
    pub fn to_note(&self) -> String {
        let (device, former) = (self.nic.device.clone(), self.former.clone());
        Note { boot: this_boot(), device, ifindex: self.ifindex, former }.to_text()
    }

    /// The device.
    pub fn nic(&self) -> &Nic<E> {
        &self.nic
    }

    /// What the changed settings were, in the order in which they were changed.
    pub fn former(&self) -> &[Setting] {
        &self.former
    }

    /// Writes table and key again. To be called after an XDP program was attached: virtio_net then forgets a table that was set, while
    /// it still shows it. Does nothing where the plan had neither.
    pub fn reapply_table(&self) -> Result<(), NicError> {
        if self.hashing.table.is_none() && self.hashing.key.is_none() {
            return Ok(());
        }
        self.nic.write(&Setting::Rss(self.hashing.clone())).map(drop)
    }

    /// Puts everything back, the last change first. **Errors:** for each setting that stays as it is.
    pub fn restore(mut self) -> Result<(), Vec<NicError>> {
        let failures = self.undo();
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    /// Leaves the settings as they are, for a process that takes over: it gets the note.
    pub fn leave(mut self) -> String {
        let note = self.to_note();
        self.former.clear();
        note
    }

    fn undo(&mut self) -> Vec<NicError> {
        let former = std::mem::take(&mut self.former);
        let written = former.iter().rev().map(|setting| self.nic.write(setting));
        written.filter_map(Result::err).filter(|error| !is_gone_already(error)).collect()
    }

    fn carry_out(&mut self, plan: &Plan, keep: &mut Keep<'_>) -> Result<(), NicError> {
        self.set_features(plan, keep)?;
        if let Some(queues) = plan.queues {
            self.set_queues(queues, keep)?;
        }
        if let Some((rx, tx)) = plan.rings {
            self.set_rings(rx, tx, keep)?;
        }
        if plan.is_about_hashing() {
            self.set_hashing(plan, keep)?;
        }
        for &(flow, fields) in &plan.fields {
            self.set_fields(flow, fields, keep)?;
        }
        // Each is put at the last free location, so the one that goes first is put last.
        for rule in plan.rules.iter().rev() {
            self.insert_rule(rule, keep)?;
        }
        if let Some(deferral) = plan.deferral {
            self.set_deferral(deferral, keep)?;
        }
        Ok(())
    }

    fn set_deferral(&mut self, deferral: Deferral, keep: &mut Keep<'_>) -> Result<(), NicError> {
        let what = "napi_defer_hard_irqs (is /sys this namespace's?)";
        let now = self.nic.deferral()?.ok_or_else(|| self.impossible(Impossible::Unsupported(what)))?;
        if now == deferral {
            return Ok(());
        }
        self.change(&Setting::Deferral(deferral), Setting::Deferral(now), keep)
    }

    fn set_features(&mut self, plan: &Plan, keep: &mut Keep<'_>) -> Result<(), NicError> {
        let known = self.nic.features()?;
        for (name, on) in &plan.features {
            let feature = known.iter().find(|feature| feature.name == *name);
            match feature {
                Some(feature) if feature.active == *on => {}
                Some(feature) if feature.changeable => self.switch(name, *on, keep)?,
                _ => return Err(self.impossible(Impossible::Feature(name.clone()))),
            }
        }
        let virtio = self.nic.driver()?.is_some_and(|driver| driver.name == VIRTIO);
        let about_hashing = if virtio { !plan.fields.is_empty() } else { plan.is_about_hashing() };
        let needed = [(RX_HASH, about_hashing), (NTUPLE, !plan.rules.is_empty())];
        for (name, _) in needed.into_iter().filter(|(_, needed)| *needed) {
            let said = plan.features.iter().any(|(said, _)| said == name);
            let off = |feature: &Feature| feature.name == name && feature.changeable && !feature.active;
            if said || !known.iter().any(off) {
                continue;
            }
            if virtio && name == RX_HASH {
                self.nic.write(&Setting::Feature { name: name.to_string(), on: true })?;
            } else {
                self.switch(name, true, keep)?;
            }
        }
        Ok(())
    }

    fn switch(&mut self, name: &str, on: bool, keep: &mut Keep<'_>) -> Result<(), NicError> {
        let setting = |on| Setting::Feature { name: name.to_string(), on };
        self.change(&setting(on), setting(!on), keep)
    }

    fn set_queues(&mut self, queues: u32, keep: &mut Keep<'_>) -> Result<(), NicError> {
        let now = self.nic.channels()?.ok_or_else(|| self.impossible(Impossible::Unsupported("channels to set")))?;
        if now.receiving() == queues {
            return Ok(());
        }
        let most = most_queues(&now);
        if queues == 0 || queues > most {
            return Err(self.impossible(Impossible::Queues { wanted: queues, most }));
        }
        let setting = Setting::Channels(with_queues(&now, queues));
        match self.change(&setting, Setting::Channels(now), keep) {
            Err(NicError::Write { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) && self.set_default_table(keep)? =>
            {
                self.change(&setting, Setting::Channels(now), keep)
            }
            changed => changed,
        }
    }

    /// Sets the kernel's default table where there is another one. Says whether it did.
    fn set_default_table(&mut self, keep: &mut Keep<'_>) -> Result<bool, NicError> {
        let Some(rss) = self.nic.rss()? else { return Ok(false) };
        if self.nic.has_default_table(&rss)? {
            return Ok(false);
        }
        let table = |table| Setting::Rss(RssChange { transform: rss.transform, table: Some(table), ..RssChange::default() });
        self.change(&table(Table::Default), table(Table::Queues(rss.table.clone())), keep)?;
        Ok(true)
    }

    fn set_rings(&mut self, rx: u32, tx: u32, keep: &mut Keep<'_>) -> Result<(), NicError> {
        let now = self.nic.rings()?.ok_or_else(|| self.impossible(Impossible::Unsupported("ring sizes to set")))?;
        if (now.rx, now.tx) == (rx, tx) {
            return Ok(());
        }
        let (max_rx, max_tx) = (now.max_rx, now.max_tx);
        if rx > max_rx || tx > max_tx {
            return Err(self.impossible(Impossible::Rings { rx, tx, max_rx, max_tx }));
        }
        self.change(&Setting::Rings(RingSizes { rx, tx, ..now }), Setting::Rings(now), keep)
    }

    /// Key, table and function in one request, so that no frame meets half of them; the transform off.
    fn set_hashing(&mut self, plan: &Plan, keep: &mut Keep<'_>) -> Result<(), NicError> {
        let Some(now) = self.nic.rss()? else {
            // Fields alone may be settable where key and table are not.
            let rss_is_needed = plan.key.is_some() || plan.table.is_some() || plan.hash.is_some();
            return if rss_is_needed { Err(self.impossible(Impossible::Unsupported("RSS"))) } else { Ok(()) };
        };
        self.check_hashing(plan, &now)?;
        let key = plan.key.clone().filter(|key| *key != now.key);
        let hash = plan.hash.filter(|&hash| hash != now.hash);
        // A table is written even if it is there already: virtio_net shows one that it has forgotten.
        let table = plan.table.clone().map(Table::Queues);
        let change = RssChange { hash, transform: Transform::None, key, table };
        self.hashing = RssChange { hash: None, transform: Transform::None, key: plan.key.clone(), table: change.table.clone() };
        if change == (RssChange { transform: now.transform, ..RssChange::default() }) {
            return Ok(());
        }
        let former_table = if self.nic.has_default_table(&now)? { Table::Default } else { Table::Queues(now.table.clone()) };
        let former = RssChange {
            hash: hash.map(|_| now.hash),
            transform: now.transform,
            key: change.key.as_ref().map(|_| now.key.clone()),
            table: change.table.as_ref().map(|_| former_table),
        };
        let setting = Setting::Rss(change);
        self.change(&setting, Setting::Rss(former), keep)?;
        let shown = self.nic.rss()?;
        let taken = shown.is_some_and(|shown| {
            plan.key.as_ref().is_none_or(|key| *key == shown.key)
                && plan.table.as_ref().is_none_or(|table| *table == shown.table)
                && plan.hash.is_none_or(|hash| hash == shown.hash || shown.hash == HashFunction::Other(0))
                && shown.transform == Transform::None
        });
        if taken { Ok(()) } else { Err(self.not_taken(setting)) }
    }

    fn check_hashing(&self, plan: &Plan, now: &Rss) -> Result<(), NicError> {
        let wrong_key = plan.key.as_ref().filter(|key| key.len() != now.key.len());
        if let Some(key) = wrong_key {
            return Err(self.impossible(Impossible::KeyLength { wanted: key.len(), has: now.key.len() }));
        }
        let Some(table) = &plan.table else { return Ok(()) };
        if table.len() != now.table.len() {
            return Err(self.impossible(Impossible::TableLength { wanted: table.len(), has: now.table.len() }));
        }
        self.check_queues(table.iter().copied())
    }

    fn check_queues(&self, queues: impl Iterator<Item = u32>) -> Result<(), NicError> {
        let receiving = match self.nic.rx_rings()? {
            Some(rings) => Some(rings),
            None => self.nic.channels()?.map(|channels| channels.receiving()),
        };
        let (Some(most), Some(queue)) = (receiving, queues.max()) else { return Ok(()) };
        if queue < most { Ok(()) } else { Err(self.impossible(Impossible::NoQueue { queue, queues: most })) }
    }

    fn set_fields(&mut self, flow: Flow, fields: Fields, keep: &mut Keep<'_>) -> Result<(), NicError> {
        let now = self.nic.fields(flow)?.filter(|_| flow.is_settable());
        let now = now.ok_or_else(|| self.impossible(Impossible::Fields(flow)))?;
        if now == fields {
            return Ok(());
        }
        let setting = Setting::Fields { flow, fields };
        self.change(&setting, Setting::Fields { flow, fields: now }, keep)?;
        if self.nic.fields(flow)? == Some(fields) { Ok(()) } else { Err(self.not_taken(setting)) }
    }

    fn insert_rule(&mut self, rule: &Rule, keep: &mut Keep<'_>) -> Result<(), NicError> {
        self.check_queues(std::iter::once(rule.queue))?;
        let room = self.nic.rule_room()?.ok_or_else(|| self.impossible(Impossible::Unsupported("flow rules")))?;
        if room.picks {
            let location = self.nic.write(&Setting::InsertRule { rule: *rule, location: None })?;
            self.former.extend(location.map(|location| Setting::RemoveRule { location }));
            return self.note(keep);
        }
        let Some(location) = room.last_free() else {
            return Err(self.impossible(Impossible::NoRoom { used: room.used.len(), size: room.size }));
        };
        let setting = Setting::InsertRule { rule: *rule, location: Some(location) };
        self.change(&setting, Setting::RemoveRule { location }, keep)
    }

    /// Remembers what a setting was, and writes it. What the driver refuses is not remembered.
    fn change(&mut self, setting: &Setting, former: Setting, keep: &mut Keep<'_>) -> Result<(), NicError> {
        self.former.push(former);
        let written = self.note(keep).and_then(|()| self.nic.write(setting));
        if written.is_err() {
            self.former.pop();
        }
        written.map(drop)
    }

    fn note(&self, keep: &mut Keep<'_>) -> Result<(), NicError> {
        keep(&self.to_note()).map_err(|source| NicError::Keep { device: self.nic.device.clone(), source })
    }

    fn impossible(&self, impossible: Impossible) -> NicError {
        NicError::Impossible { device: self.nic.device.clone(), impossible }
    }

    fn not_taken(&self, setting: Setting) -> NicError {
        NicError::NotTaken { device: self.nic.device.clone(), setting: Box::new(setting) }
    }
}

/// A rule that is not there need not be removed: somebody did, or the process died after it was noted and before it was inserted.
fn is_gone_already(error: &NicError) -> bool {
    let NicError::Write { setting, source, .. } = error else { return false };
    matches!(**setting, Setting::RemoveRule { .. }) && source.raw_os_error() == Some(libc::ENOENT)
}

impl<E: Ethtool> Drop for NicSetup<E> {
    fn drop(&mut self) {
        for error in self.undo() {
            tracing::warn!(device = %self.nic.device, %error, "a setting is not put back");
        }
    }
}
