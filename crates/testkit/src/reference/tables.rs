//! What the reference NAT remembers: mappings, sessions, fragments; who may have which external endpoint; what has ended.
//!
//! Knows no packets. Time is a number of milliseconds that never wraps. What ended by time stays in the *late* lists until the NAT
//! has swept: its ports and records may be in use there still, and only that. Ports that rest are kept beside. Invariant: a mapping has a
//! live session, or is bare and lives.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use portcullis_nat::policy::{Endpoint, External, Policy, PortParity, Protocol};
use portcullis_nat::view::SessionState;

use super::bare::{BarePacket, Trace};
use super::fragments::{Early, FragmentEntry, FragmentKey};
use super::halves::forward_at;
use super::others::{Others, Translation};
use super::shares::{PortKind, Shares};
use super::tcp::{self, Direction};

/// Where a session came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A packet from inside.
    Inside,
    /// A packet from outside that the filter let in.
    Filter,
    /// A packet from outside to a forward.
    Forward,
}

/// What changes of a session. More than one candidate exists where the rules leave a choice, until the NAT's view is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) state: SessionState,
    pub(super) last_seen: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) protocol: Protocol,
    pub(super) internal: Endpoint,
    pub(super) external: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) origin: Origin,
    /// The mapping; none of a forward's session.
    pub(super) mapping: Option<u32>,
    /// Whether the filter alone let it in, and nothing of it keeps the mapping (RFC 7857, section 7): until the inside answers.
    pub(super) guest: bool,
    pub(super) variants: Vec<Variant>,
    /// Who started it, while that is beyond doubt.
    pub(super) outbound: Option<bool>,
    pub(super) packets: (u32, u32),
    /// Whether the packet counts are beyond doubt.
    pub(super) counted: bool,
}

impl Session {
    pub(super) fn key(&self) -> SessionKey {
        (self.protocol, self.internal, self.remote)
    }

    pub(super) fn timeout(&self, state: SessionState, policy: &Policy) -> u64 {
        match self.protocol {
            // To the inside, which has not answered, it is still opening.
            Protocol::Tcp if self.guest => tcp::timeout(SessionState::SynReceived, &policy.timeouts),
            Protocol::Tcp => tcp::timeout(state, &policy.timeouts),
            Protocol::Udp => self.udp_idle(policy).as_millis() as u64,
            Protocol::Icmp => policy.timeouts.icmp.as_millis() as u64,
        }
    }

    /// RFC 4787, REQ-5a: shorter "for specific destination ports", which are the remote's where the inside began.
    fn udp_idle(&self, policy: &Policy) -> Duration {
        let of_port = policy.udp_ports.get(&self.remote.port).filter(|_| self.origin == Origin::Inside);
        of_port.copied().unwrap_or(policy.timeouts.udp)
    }

    fn is_live(&self, now: u64, policy: &Policy) -> bool {
        let Variant { state, last_seen } = self.variants[0];
        now - last_seen <= self.timeout(state, policy)
    }
}

/// A session's name: protocol, internal endpoint, remote endpoint.
pub(super) type SessionKey = (Protocol, Endpoint, Endpoint);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) protocol: Protocol,
    pub(super) internal: Endpoint,
    pub(super) external: Endpoint,
    pub(super) scope: Option<Endpoint>,
    /// Another scope that it may have, until the view shows it.
    pub(super) perhaps_for: Option<OtherScope>,
}

/// A scope that may be a mapping's instead of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherScope(pub(super) Option<Endpoint>);

/// What a packet's translation goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracked {
    Session(SessionKey),
    Bare { internal: Endpoint, external: Endpoint },
}

/// What a forwarded packet does to the tables.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    /// A packet of a session that exists.
    Advance { key: SessionKey, direction: Direction, flags: u8 },
    /// A new session, and the mapping if that is new too.
    Create { session: Box<Session>, mapping: Option<Mapping> },
    /// A packet of a bare mapping.
    Bare(BarePacket),
    /// A guest that may be there: see [`Tables::late_guest`].
    Late { guest: Box<Session> },
    /// A first fragment, recorded.
    Fragment { key: FragmentKey, entry: FragmentEntry },
    /// A later fragment.
    LaterFragment { key: FragmentKey },
    /// A packet that was translated by address.
    Other { translation: Translation, direction: Direction },
}

impl Effect {
    /// The session that it makes.
    pub(super) fn created(&self) -> Option<SessionKey> {
        if let Self::Create { session, .. } = self { Some(session.key()) } else { None }
    }

    /// Whether it makes a session, or a bare mapping.
    pub(super) fn makes(&self) -> bool {
        self.created().is_some() || matches!(self, Self::Bare(packet) if packet.makes)
    }

    /// Whether it is about sessions or bare mappings.
    pub(super) fn is_of_sessions(&self) -> bool {
        !matches!(self, Self::Fragment { .. })
    }

    pub(super) fn makes_mapping(&self) -> bool {
        matches!(self, Self::Create { mapping: Some(_), .. }) || matches!(self, Self::Bare(packet) if packet.makes)
    }
}

/// A datagram that went on with an identification of the NAT's choice.
#[derive(Clone, Debug)]
pub(super) struct Renamed {
    /// Source, destination, identification and protocol outside, or as the receiver of a hairpin sees them.
    pub(super) outside: FragmentKey,
    /// The same as received.
    pub(super) inside: FragmentKey,
    pub(super) at: u64,
}

/// How long an identification has to be unique: RFC 6864, section 4, by RFC 791's longest life of a datagram. **Units:** milliseconds.
const DATAGRAM_LIFETIME: u64 = 120_000;

/// How full something is, from what must be and what may be in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Room {
    Free,
    /// Free, unless the NAT has not swept yet.
    Perhaps,
    Full,
}

/// The room when `live` records and `late` ones share `limit`.
pub(super) fn room(live: usize, late: usize, limit: usize) -> Room {
    match () {
        () if live >= limit => Room::Full,
        () if live + late >= limit => Room::Perhaps,
        () => Room::Free,
    }
}

/// A session or bare mapping that was made, or may have been, with nothing shown of it.
#[derive(Clone, Debug)]
pub(super) struct Unseen {
    /// Alternatives that differ in the external endpoint.
    pub(super) effects: Vec<Effect>,
    /// Whether it must be there.
    pub(super) certain: bool,
}

/// A port whose mapping has ended, and that is not to be given again for a while (RFC 6888, REQ-8).
#[derive(Clone, Copy, Debug)]
pub(super) struct Resting {
    protocol: Protocol,
    external: Endpoint,
    /// When its mapping ended: it rests from then on, or from when the NAT met that.
    ended: u64,
    /// A moment at which the NAT had met it.
    met: Option<u64>,
}

/// How much longer than its time a port may rest: the NAT needs not count in milliseconds.
const REST_LATENESS: u64 = 1000;

#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) sessions: HashMap<SessionKey, Session>,
    pub(super) mappings: HashMap<u32, Mapping>,
    /// What the bare ones may remember, by internal endpoint.
    pub(super) bare: HashMap<Endpoint, Vec<Trace>>,
    pub(super) fragments: HashMap<FragmentKey, FragmentEntry>,
    pub(super) early: Vec<Early>,
    /// The latest last.
    pub(super) renamed: Vec<Renamed>,
    /// First fragments that have come, and datagrams that have waited, in all.
    pub(super) firsts: u64,
    pub(super) waited: u64,
    pub(super) late_sessions: Vec<Session>,
    pub(super) late_mappings: Vec<Mapping>,
    pub(super) resting: Vec<Resting>,
    pub(super) others: Others,
    now: u64,
    /// What was made with nothing shown of it. The view decides.
    pub(super) unseen: Vec<Unseen>,
    /// Sessions that may have ended when the forwards changed. The view decides.
    pub(super) doubtful: Vec<SessionKey>,
    next_mapping: u32,
}

impl Tables {
    /// Ends what was idle too long by `now`.
    pub(super) fn expire(&mut self, now: u64, policy: &Policy) {
        self.now = now;
        self.others.expire(now, policy);
        self.expire_bare(now, policy);
        self.retire(|session| session.is_live(now, policy));
        // What its own time has ended is nobody's guest.
        self.late_sessions.iter_mut().for_each(|late| late.guest &= late.is_live(now, policy));
    }

    /// Whether a port must not be given again yet. RFC 6888, REQ-8 A: those of TCP may, since its sessions are tracked.
    fn rests(&self, policy: &Policy, protocol: Protocol, external: Endpoint) -> bool {
        let time = policy.port_hold.time.as_millis() as u64;
        let is = |port: &&Resting| (port.protocol, port.external) == (protocol, external);
        time > 0 && self.resting.iter().filter(is).any(|port| self.now < port.ended + time)
    }

    /// Ends the sessions that `keep` does not want, and the mappings that have none left then.
    pub(super) fn retire(&mut self, keep: impl Fn(&Session) -> bool) {
        let gone: Vec<_> = self.sessions.values().filter(|session| !keep(session)).map(Session::key).collect();
        for key in gone {
            self.late_sessions.extend(self.sessions.remove(&key));
        }
        let hosts = self.sessions.values().filter(|session| !session.guest);
        let used: BTreeSet<_> = hosts.filter_map(|session| session.mapping).collect();
        let is_used = |(id, mapping): &(&u32, &Mapping)| used.contains(id) || self.is_bare(mapping);
        let ended: Vec<_> = self.mappings.iter().filter(|mapping| !is_used(mapping)).map(|(&id, _)| id).collect();
        for id in ended {
            let Some(mapping) = self.mappings.remove(&id) else { continue };
            if mapping.protocol != Protocol::Tcp {
                let Mapping { protocol, external, .. } = mapping;
                self.resting.push(Resting { protocol, external, ended: self.now, met: None });
            }
            self.late_mappings.push(mapping);
            let guests: Vec<_> = self.sessions.values().filter(|session| session.mapping == Some(id)).map(Session::key).collect();
            self.late_sessions.extend(guests.iter().filter_map(|key| self.sessions.remove(key)));
        }
    }

    /// A guest of a mapping that is over. The NAT may still let it in: until the sweep, or because its host has the same external endpoint again.
    pub(super) fn late_guest(&self, key: SessionKey) -> Option<&Session> {
        self.late_sessions.iter().find(|late| late.guest && late.key() == key)
    }

    /// The same, by its external endpoint.
    pub(super) fn late_guest_at(&self, protocol: Protocol, external: Endpoint, remote: Endpoint) -> Option<&Session> {
        self.late_sessions
            .iter()
            .find(|late| late.guest && (late.protocol, late.external, late.remote) == (protocol, external, remote))
    }

    /// Says that the NAT has swept all that ended until `now`.
    pub(super) fn swept(&mut self, now: u64, policy: &Policy) {
        let mut late = std::mem::take(&mut self.late_sessions);
        late.retain(|late| {
            let mapping = self
                .mapping_at(late.protocol, late.external)
                .filter(|(_, mapping)| mapping.internal.address == late.internal.address);
            late.guest && mapping.is_some() && late.is_live(now, policy)
        });
        self.late_sessions = late;
        self.late_mappings.clear();
        self.others.swept();
        let time = policy.port_hold.time.as_millis() as u64;
        for port in &mut self.resting {
            port.met.get_or_insert(now);
        }
        self.resting.retain(|port| port.met.is_none_or(|met| time > 0 && now < met + time + REST_LATENESS));
    }

    pub(super) fn by_external(&self, protocol: Protocol, external: Endpoint, remote: Endpoint) -> Option<&Session> {
        self.sessions.values().find(|s| (s.protocol, s.external, s.remote) == (protocol, external, remote))
    }

    pub(super) fn mapping_at(&self, protocol: Protocol, external: Endpoint) -> Option<(u32, Mapping)> {
        let mut found = self.mappings.iter().filter(|(_, m)| (m.protocol, m.external) == (protocol, external));
        found.next().map(|(&id, &mapping)| (id, mapping))
    }

    pub(super) fn mapping_of(&self, protocol: Protocol, internal: Endpoint, scope: Option<Endpoint>) -> Option<(u32, Mapping)> {
        let mut found = self.mappings.iter().filter(|(_, m)| (m.protocol, m.internal, m.scope) == (protocol, internal, scope));
        found.next().map(|(&id, &mapping)| (id, mapping))
    }

    pub(super) fn late_mapping_at(&self, protocol: Protocol, external: Endpoint) -> Option<Mapping> {
        self.late_mappings.iter().copied().find(|m| (m.protocol, m.external) == (protocol, external))
    }

    /// Does what a forwarded packet does.
    pub(super) fn commit(&mut self, effects: Vec<Effect>, now: u64, inbound_refresh: bool) {
        for effect in effects {
            match effect {
                Effect::Advance { key, direction, flags } => {
                    if let Some(session) = self.sessions.get_mut(&key) {
                        advance(session, direction, flags, now, inbound_refresh);
                    }
                }
                Effect::Create { mut session, mapping } => {
                    session.guest &= !inbound_refresh;
                    self.create(*session, mapping, now);
                }
                Effect::Bare(packet) => self.commit_bare(packet, now, inbound_refresh),
                Effect::Late { mut guest } => {
                    guest.variants.iter_mut().for_each(|variant| variant.last_seen = now);
                    self.late_sessions.retain(|late| late.key() != guest.key());
                    self.late_sessions.push(*guest);
                }
                Effect::Fragment { key, entry } => self.learn(key, entry),
                Effect::LaterFragment { key } => self.touch(key, now, inbound_refresh),
                Effect::Other { translation, direction } => self.others.commit(translation, direction, now, inbound_refresh),
            }
        }
    }

    /// What a packet that was dropped late on its way may have done to sessions and bare mappings that existed before it.
    pub(super) fn commit_perhaps(&mut self, effects: &[Effect], now: u64, inbound_refresh: bool) {
        for effect in effects {
            if let Effect::Bare(packet) = effect {
                self.commit_bare_perhaps(*packet, now, inbound_refresh);
            }
            let Effect::Advance { key, direction, flags } = effect else { continue };
            let Some(session) = self.sessions.get_mut(key) else { continue };
            let before = session.clone();
            advance(session, *direction, *flags, now, inbound_refresh);
            session.guest = before.guest;
            let after = std::mem::replace(&mut session.variants, before.variants);
            session.variants.extend(after);
            (session.packets, session.counted) = (before.packets, false);
        }
    }

    fn create(&mut self, mut session: Session, mapping: Option<Mapping>, now: u64) {
        session.variants.iter_mut().for_each(|variant| variant.last_seen = now);
        self.late_sessions.retain(|late| late.key() != session.key());
        if session.origin == Origin::Filter && session.mapping.is_none() && mapping.is_none() {
            // Under a mapping that the same packet has made.
            session.mapping = self.mapping_at(session.protocol, session.external).map(|(id, _)| id);
        }
        if let Some(mapping) = mapping {
            session.mapping = Some(self.insert_mapping(mapping));
        }
        self.sessions.insert(session.key(), session);
    }

    pub(super) fn insert_mapping(&mut self, mapping: Mapping) -> u32 {
        self.late_mappings.retain(|late| (late.protocol, late.external) != (mapping.protocol, mapping.external));
        self.resting.retain(|port| (port.protocol, port.external) != (mapping.protocol, mapping.external));
        self.mappings.insert(self.next_mapping, mapping);
        self.next_mapping += 1;
        self.next_mapping - 1
    }

    /// Takes down the identification that a datagram went on with. **Errors:** it is another's still.
    pub(super) fn rename(&mut self, renamed: Renamed) -> Result<(), String> {
        self.renamed.retain(|before| renamed.at - before.at <= DATAGRAM_LIFETIME);
        let other = self.renamed.iter().find(|before| before.outside == renamed.outside && before.inside != renamed.inside);
        if let Some(other) = other {
            return Err(format!("{renamed:?} has the identification of {other:?}"));
        }
        self.renamed.push(renamed);
        Ok(())
    }

    /// The identifications that a packet which an error quotes like that may have been sent with.
    pub(super) fn originals(&self, outside: FragmentKey) -> Vec<u16> {
        let known = self.renamed.iter().filter(|renamed| renamed.outside == outside).map(|renamed| renamed.inside.2);
        known.chain([outside.2]).collect()
    }

    /// A first fragment takes the place of an earlier one with its name.
    pub(super) fn learn(&mut self, key: FragmentKey, mut entry: FragmentEntry) {
        self.firsts += 1;
        entry.order = self.firsts;
        self.fragments.insert(key, entry);
    }

    /// Whether what a fragment was translated by is there still.
    pub(super) fn has(&self, tracked: &Tracked) -> bool {
        match tracked {
            Tracked::Session(key) => self.sessions.contains_key(key),
            Tracked::Bare { internal, external } => self.bare_of(*internal).is_some_and(|mapping| mapping.external == *external),
        }
    }

    /// A later fragment may refresh the sessions of its first, or not.
    fn touch(&mut self, key: FragmentKey, now: u64, inbound_refresh: bool) {
        let Some(entry) = self.fragments.get(&key) else { return };
        for (tracked, direction) in entry.tracked.clone() {
            let key = match tracked {
                _ if !self.has(&tracked) => continue,
                Tracked::Session(key) => key,
                Tracked::Bare { internal, .. } => {
                    self.touch_bare(internal, direction, now, inbound_refresh);
                    continue;
                }
            };
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let refreshed: Vec<_> = session.variants.iter().map(|variant| Variant { last_seen: now, ..*variant }).collect();
            session.variants.extend(refreshed);
            session.counted = false;
        }
    }

    /// Says why `external` may not be given to a new mapping of `internal`, if it may not.
    pub(super) fn objection(
        &self,
        policy: &Policy,
        shares: &Shares,
        protocol: Protocol,
        internal: Endpoint,
        external: Endpoint,
    ) -> Option<String> {
        let Some(slot) = policy.externals.iter().find(|slot| slot.address == Some(external.address)) else {
            return Some(format!("{} is no pool address", external.address));
        };
        // Until the sweep it may still be the one's who had it, even where a new policy has taken its port from the pool. But not where a
        // forward has it now: answers would come to the server.
        let mut late = self.late_mappings.iter().map(|m| (m.protocol, m.internal, m.external));
        let is_late = late.any(|late| late == (protocol, internal, external)) && forward_at(policy, protocol, external).is_none();
        if !is_late && !slot.ports.contains(external.port) {
            return Some(format!("port {} is not among the pool's", external.port));
        }
        if !shares.is_for(internal.address, external) {
            return Some(format!("port {} is another worker's than {}", external.port, internal.address));
        }
        if let Some((_, other)) = self.mapping_at(protocol, external) {
            return Some(format!("it is in use by {other:?}"));
        }
        if !is_late && self.rests(policy, protocol, external) {
            return Some(format!("port {} rests", external.port));
        }
        match self.paired(internal.address) {
            Some(paired) if paired != external.address => Some(format!("{} is paired with {paired}", internal.address)),
            _ if is_late => None,
            _ => self.better_kind(slot, policy, shares, (protocol, internal, external)),
        }
    }

    /// Says which ports a new mapping should have had one of, if any is surely free and more like the internal one (RFC 4787, REQ-3a and
    /// REQ-4).
    fn better_kind(
        &self,
        slot: &External,
        policy: &Policy,
        shares: &Shares,
        (protocol, internal, external): (Protocol, Endpoint, Endpoint),
    ) -> Option<String> {
        let wanted = PortKind::of(internal.port);
        let lacks = |kind: PortKind| match protocol {
            Protocol::Icmp => (false, false),
            Protocol::Tcp => (kind.low != wanted.low, false),
            Protocol::Udp => (kind.low != wanted.low, policy.port_parity == PortParity::Preserve && kind.odd != wanted.odd),
        };
        let given = lacks(PortKind::of(external.port));
        let better = PortKind::ALL.into_iter().filter(|&kind| lacks(kind) < given);
        let mut free = better.filter(|&kind| {
            let of = |port| PortKind::of(port) == kind && slot.ports.contains(port);
            let count = shares.ports_of_kind(internal.address, external.address, kind);
            self.room_among(policy, shares, (protocol, internal.address, external.address), count, of) == Room::Free
        });
        free.next().map(|kind| format!("for port {} one of {kind:?} is free", internal.port))
    }

    /// The external address of an internal one that has mappings (RFC 4787, REQ-2).
    pub(super) fn paired(&self, internal: Ipv4Addr) -> Option<Ipv4Addr> {
        self.mappings.values().find(|mapping| mapping.internal.address == internal).map(|mapping| mapping.external.address)
    }

    /// Whether a new mapping of `internal` finds a port.
    pub(super) fn port_room(&self, policy: &Policy, shares: &Shares, protocol: Protocol, internal: Ipv4Addr) -> Room {
        let address_room = |address: Ipv4Addr| {
            let slots = policy.externals.iter().filter(|slot| slot.address == Some(address));
            let free = |slot: &External| {
                let (of, count) = (|port| slot.ports.contains(port), shares.ports(internal, address));
                self.room_among(policy, shares, (protocol, internal, address), count, of)
            };
            slots.map(free).next().unwrap_or(Room::Full)
        };
        let addresses: Vec<_> = policy.externals.iter().filter_map(|slot| slot.address).collect();
        let rooms: Vec<_> = match self.paired(internal) {
            Some(paired) => vec![address_room(paired)],
            None => addresses.iter().map(|&address| address_room(address)).collect(),
        };
        let best = match () {
            () if rooms.contains(&Room::Free) => Room::Free,
            () if rooms.contains(&Room::Perhaps) => Room::Perhaps,
            () => Room::Full,
        };
        let bound = self.bound_elsewhere(internal).into_iter().any(|address| address_room(address) != Room::Free);
        if best == Room::Free && self.paired(internal).is_none() && bound { Room::Perhaps } else { best }
    }

    /// The room among `count` ports of an external address that an internal one may have, which are those that `of` says.
    fn room_among(
        &self,
        policy: &Policy,
        shares: &Shares,
        (protocol, internal, address): (Protocol, Ipv4Addr, Ipv4Addr),
        count: usize,
        of: impl Fn(u16) -> bool,
    ) -> Room {
        let is_one = |(of_protocol, external): &(Protocol, Endpoint)| {
            (*of_protocol, external.address) == (protocol, address) && of(external.port) && shares.is_for(internal, *external)
        };
        let live = self.mappings.values().map(|m| (m.protocol, m.external)).filter(is_one).map(|one| one.1.port);
        let rests = |port: &&Resting| port.met.is_some() && self.rests(policy, port.protocol, port.external);
        let (rest, rested): (Vec<_>, Vec<_>) = self.resting.iter().partition(rests);
        let ports = |ports: Vec<&Resting>| -> Vec<u16> {
            ports.into_iter().map(|port| (port.protocol, port.external)).filter(is_one).map(|one| one.1.port).collect()
        };
        let taken: BTreeSet<_> = live.chain(ports(rest)).collect();
        let late = self.late_mappings.iter().map(|m| (m.protocol, m.external)).filter(is_one).map(|one| one.1.port);
        let perhaps: BTreeSet<_> = late.chain(ports(rested)).filter(|port| !taken.contains(port)).collect();
        room(taken.len(), perhaps.len(), count)
    }

    /// External addresses that the NAT may hold an internal address to besides the pairing: by what it has not swept, or by a forward.
    fn bound_elsewhere(&self, internal: Ipv4Addr) -> Vec<Ipv4Addr> {
        let late = self.late_mappings.iter().filter(|m| m.internal.address == internal).map(|m| m.external.address);
        let forwards = self.sessions.values().chain(&self.late_sessions).filter(|s| s.mapping.is_none());
        late.chain(forwards.filter(|s| s.internal.address == internal).map(|s| s.external.address)).collect()
    }
}

/// A packet of a session: its state, when it was last seen, its counts.
fn advance(session: &mut Session, direction: Direction, flags: u8, now: u64, inbound_refresh: bool) {
    let reset = session.protocol == Protocol::Tcp && flags & crate::builder::RST != 0;
    let answered = session.packets.0 > 0 || !session.counted;
    let mut variants = Vec::new();
    for variant in &session.variants {
        let states = match session.protocol {
            Protocol::Tcp => tcp::successors(variant.state, direction, flags),
            _ => replied(variant.state, session.outbound, direction),
        };
        for state in states {
            for last_seen in refreshed(session, variant.last_seen, direction, flags, now, inbound_refresh, answered) {
                let variant = Variant { state, last_seen };
                if !variants.contains(&variant) {
                    variants.push(variant);
                }
            }
        }
    }
    if session.protocol == Protocol::Tcp && tcp::is_fresh_syn(flags) {
        let closed = |v: &Variant| matches!(v.state, SessionState::Closing | SessionState::Reset);
        if session.variants.iter().any(closed) {
            (session.outbound, session.counted) = (None, false);
        }
    }
    session.variants = variants;
    session.guest &= !(inbound_refresh || direction == Direction::Outbound && !reset);
    match direction {
        Direction::Outbound => session.packets.0 += 1,
        Direction::Inbound => session.packets.1 += 1,
    }
}

fn replied(state: SessionState, outbound: Option<bool>, direction: Direction) -> Vec<SessionState> {
    match outbound {
        Some(outbound) if outbound == (direction == Direction::Outbound) => vec![state],
        Some(_) => vec![SessionState::Replied],
        None => vec![state, SessionState::Replied],
    }
}

/// RFC 4787, REQ-6: outbound packets refresh. RFC 7857, section 7: inbound ones do not keep alive what the filter alone let in; once
/// the inside has answered, or when the inside answers with a RST (section 7.1), either is right.
fn refreshed(
    session: &Session,
    last_seen: u64,
    direction: Direction,
    flags: u8,
    now: u64,
    inbound_refresh: bool,
    answered: bool,
) -> Vec<u64> {
    let reset = session.protocol == Protocol::Tcp && flags & crate::builder::RST != 0;
    match direction {
        Direction::Outbound if reset && session.guest && !inbound_refresh => vec![last_seen],
        Direction::Inbound if session.guest && !inbound_refresh => vec![last_seen],
        Direction::Outbound if reset => vec![now, last_seen],
        Direction::Inbound if session.origin == Origin::Filter && !inbound_refresh && answered => vec![last_seen, now],
        Direction::Inbound if session.origin == Origin::Filter && !inbound_refresh => vec![last_seen],
        Direction::Outbound | Direction::Inbound => vec![now],
    }
}
