//! The mirrored state: links, addresses, routes, neighbours and foreign rules, and how one change alters them.
//!
//! Knows no sockets: `decode` makes the changes, `mirror` applies and publishes them, `network` and `narrate` read snapshots.
//! Invariant: a dump and then the changes heard since the subscription end in the kernel's state. One exception: several routes of
//! one prefix and metric that change during the dump; the mirror then looks a second time.
//! Cost: a change costs a map operation; a part is copied at most once per snapshot (copy on write). Tests: below.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::{BitOr, BitOrAssign};
use std::sync::Arc;

use ipnet::Ipv4Net;
use portcullis_nat::policy::Mac;

/// A kernel interface index; a device that goes and comes back has another one.
pub(crate) type IfIndex = u32;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its name.
    pub(crate) name: String,
    /// Its link-layer address; zeros where it has none of six bytes.
    pub(crate) mac: Mac,
    /// Its MTU. **Units:** bytes from the IPv4 header on.
    pub(crate) mtu: u32,
    /// Whether it is set up (`IFF_UP`).
    pub(crate) enabled: bool,
    /// Whether it is set up and has a carrier (`IFF_UP` and `IFF_LOWER_UP`): frames can be sent.
    pub(crate) up: bool,
    /// The VLAN that it is, if it is one.
    pub(crate) vlan: Option<Vlan>,
}

/// What makes a device a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vlan {
    /// The device that carries its frames; none when that is in another network namespace.
    pub(crate) parent: Option<IfIndex>,
    /// The VLAN identifier.
    pub(crate) id: u16,
    /// Whether the tag is 802.1Q; otherwise it is 802.1ad.
    pub(crate) customer_tag: bool,
}

/// An IPv4 address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address with its subnet; of a point-to-point link, with a prefix of 32.
    pub(crate) prefix: Ipv4Net,
    /// The subnet's broadcast address, where it has one.
    pub(crate) broadcast: Option<Ipv4Addr>,
    /// Whether another address of the same subnet comes first (`IFA_F_SECONDARY`).
    pub(crate) secondary: bool,
    /// Whether it came without a route to its subnet (`IFA_F_NOPREFIXROUTE`).
    pub(crate) no_prefix_route: bool,
    /// Who added it (`IFA_PROTO`, since Linux 5.18); zero if nobody said.
    pub(crate) protocol: u8,
}

/// The mark that claimed pool addresses bear as their protocol. Chosen: `IFA_PROTO` values above 3 are user space's, this one has no
/// other known user.
pub(crate) const CLAIM_PROTOCOL: u8 = 0x70;

impl Address {
    /// Whether it bears the mark of a claimed pool address.
    pub(crate) fn is_marked_claim(&self) -> bool {
        self.protocol == CLAIM_PROTOCOL
    }
}

/// The tables that the kernel's three standard rules consult, in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Table 255: the box's own addresses and broadcasts.
    Local,
    /// Table 254.
    Main,
    /// Table 253.
    Default,
}

/// A place in the route tables.
pub(crate) type RouteKey = (Table, Ipv4Net);

/// A route to a prefix; a prefix can have several, of which the kernel prefers the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteEntry {
    /// Its metric: the lowest wins.
    pub(crate) metric: u32,
    /// Where it leads.
    pub(crate) target: Target,
    /// The route's own MTU, where it has one.
    pub(crate) mtu: Option<u32>,
    /// What else tells it from other routes of the same prefix and metric: protocol, scope and preferred source.
    pub(crate) identity: (u8, u8, Option<Ipv4Addr>),
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To next hops, in the kernel's order; at least one.
    Hops(Arc<[Hop]>),
    /// To the box itself: local, broadcast, anycast and multicast routes. The link tells equal ones apart.
    Local(Option<IfIndex>),
    /// Nowhere: unreachable, prohibit, blackhole.
    Unreachable,
    /// Out of this table (throw).
    Throw,
    /// Somewhere that only the kernel can send to: an encapsulation, or an IPv6 gateway.
    Foreign,
}

/// A next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The link.
    pub(crate) interface: IfIndex,
    /// The gateway, or none for on-link.
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// A neighbour with a link-layer address that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// Its link-layer address.
    pub(crate) mac: Mac,
    /// Whether the kernel never probes it (PERMANENT or NOARP).
    pub(crate) fixed: bool,
}

/// The kernel's IPv4 network as it was at one moment. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelState {
    /// The devices.
    pub(crate) links: Arc<BTreeMap<IfIndex, Link>>,
    /// The addresses of each link, in the kernel's order: the primary first.
    pub(crate) addresses: Arc<BTreeMap<IfIndex, Vec<Address>>>,
    /// The routes of each prefix, in the kernel's order of preference.
    pub(crate) routes: Arc<BTreeMap<RouteKey, Arc<[RouteEntry]>>>,
    /// The neighbours.
    pub(crate) neighbours: Arc<BTreeMap<(IfIndex, Ipv4Addr), Neighbour>>,
    /// Policy routing rules beyond the three standard ones, in words; they are not followed.
    pub(crate) rules: Arc<BTreeSet<String>>,
}

impl KernelState {
    /// The link of that name.
    pub(crate) fn link(&self, name: &str) -> Option<(IfIndex, &Link)> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(&index, link)| (index, link))
    }

    /// The addresses of a link, the primary first.
    pub(crate) fn addresses_of(&self, index: IfIndex) -> &[Address] {
        self.addresses.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Whether a link can send.
    pub(crate) fn is_up(&self, index: IfIndex) -> bool {
        self.links.get(&index).is_some_and(|link| link.up)
    }

    /// The route and next hop that a prefix's routes select: the first next hop on a link that is up of the lowest metric; when no
    /// link is up the very first, because the kernel keeps such a route too and a packet must not take a less specific one instead.
    pub(crate) fn select<'a>(&self, entries: &'a [RouteEntry]) -> Option<(&'a RouteEntry, Option<Hop>)> {
        let usable = entries.iter().find_map(|entry| match &entry.target {
            Target::Hops(hops) => hops.iter().find(|hop| self.is_up(hop.interface)).map(|&hop| (entry, Some(hop))),
            _ => Some((entry, None)),
        });
        usable.or_else(|| {
            let entry = entries.first()?;
            let Target::Hops(hops) = &entry.target else { return Some((entry, None)) };
            Some((entry, hops.first().copied()))
        })
    }
}

/// How the kernel puts a route among others of the same prefix and metric (the flags of its notification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Before the others.
    First,
    /// After the others.
    Last,
    /// In the place of the first of them.
    Replace,
}

/// One thing that happened, as a netlink message says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A link is there, or has changed.
    Link(IfIndex, Link),
    /// A link is gone.
    LinkGone(IfIndex),
    /// An address is there, or has changed.
    Address(IfIndex, Address),
    /// An address is gone.
    AddressGone(IfIndex, Address),
    /// A route is there.
    Route(RouteKey, RouteEntry, Placement),
    /// A route is gone.
    RouteGone(RouteKey, RouteEntry),
    /// A neighbour is usable.
    Neighbour((IfIndex, Ipv4Addr), Neighbour),
    /// A neighbour is not usable.
    NeighbourGone((IfIndex, Ipv4Addr)),
    /// A rule that is not followed is there.
    Rule(String),
    /// Such a rule is gone.
    RuleGone(String),
    /// The kernel may have removed routes without a word.
    RoutesDoubtful,
}

/// A set of parts of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts(u8);

impl Parts {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const LINKS: Self = Self(1);
    pub(crate) const ADDRESSES: Self = Self(2);
    pub(crate) const ROUTES: Self = Self(4);
    pub(crate) const NEIGHBOURS: Self = Self(8);
    pub(crate) const RULES: Self = Self(16);
    pub(crate) const ALL: Self = Self(31);

    pub(crate) fn contains(self, part: Self) -> bool {
        self.0 & part.0 == part.0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Parts {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Parts {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What a change did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Whether anything that matters is different now.
    pub(crate) changed: bool,
    /// The parts that the kernel alters at such a change without saying so; they have to be dumped again. It flushes routes
    /// silently when a link goes down or an address goes (Linux `net/ipv4/fib_frontend.c`, `fib_flush`), and says of promoted
    /// addresses nothing about their order.
    pub(crate) doubtful: Parts,
}

impl Effect {
    const NOTHING: Self = Self { changed: false, doubtful: Parts::NONE };

    fn changed(changed: bool) -> Self {
        Self { changed, doubtful: Parts::NONE }
    }
}

impl KernelState {
    /// Applies one change. **Cost:** a map operation, and a copy of the part when a snapshot shares it.
    pub(crate) fn apply(&mut self, change: Change) -> Effect {
        match change {
            Change::Link(index, link) => self.set_link(index, link),
            Change::LinkGone(index) => self.remove_link(index),
            Change::Address(index, address) => Effect::changed(self.set_address(index, address)),
            Change::AddressGone(index, address) => self.remove_address(index, &address),
            Change::Route(key, entry, placement) => Effect::changed(self.set_route(key, entry, placement)),
            Change::RouteGone(key, entry) => Effect::changed(self.remove_route(key, &entry)),
            Change::Neighbour(key, neighbour) => Effect::changed(set(&mut self.neighbours, key, neighbour)),
            Change::NeighbourGone(key) => Effect::changed(remove(&mut self.neighbours, &key)),
            Change::Rule(rule) => Effect::changed(!self.rules.contains(&rule) && Arc::make_mut(&mut self.rules).insert(rule)),
            Change::RuleGone(rule) => Effect::changed(self.rules.contains(&rule) && Arc::make_mut(&mut self.rules).remove(&rule)),
            Change::RoutesDoubtful => Effect { changed: false, doubtful: Parts::ROUTES },
        }
    }

    /// Takes over `parts` of a fresh dump. Returns whether anything is different now.
    pub(crate) fn adopt(&mut self, parts: Parts, fresh: Self) -> bool {
        fn take<T: PartialEq>(own: &mut Arc<T>, fresh: Arc<T>, wanted: bool) -> bool {
            let differs = wanted && **own != *fresh;
            if differs {
                *own = fresh;
            }
            differs
        }
        let mut changed = take(&mut self.links, fresh.links, parts.contains(Parts::LINKS));
        changed |= take(&mut self.addresses, fresh.addresses, parts.contains(Parts::ADDRESSES));
        changed |= take(&mut self.routes, fresh.routes, parts.contains(Parts::ROUTES));
        changed |= take(&mut self.neighbours, fresh.neighbours, parts.contains(Parts::NEIGHBOURS));
        changed |= take(&mut self.rules, fresh.rules, parts.contains(Parts::RULES));
        changed
    }

    fn set_link(&mut self, index: IfIndex, link: Link) -> Effect {
        let was_enabled = self.links.get(&index).is_some_and(|old| old.enabled);
        let doubtful = if was_enabled && !link.enabled { Parts::ROUTES } else { Parts::NONE };
        Effect { changed: set(&mut self.links, index, link), doubtful }
    }

    fn remove_link(&mut self, index: IfIndex) -> Effect {
        if !remove(&mut self.links, &index) {
            return Effect::NOTHING;
        }
        remove(&mut self.addresses, &index);
        let theirs: Vec<_> =
            self.neighbours.range((index, Ipv4Addr::UNSPECIFIED)..=(index, Ipv4Addr::BROADCAST)).map(|(&key, _)| key).collect();
        for key in theirs {
            remove(&mut self.neighbours, &key);
        }
        Effect { changed: true, doubtful: Parts::ROUTES }
    }

    /// A new primary goes behind the last primary, a new secondary to the end (Linux `net/ipv4/devinet.c`, `__inet_insert_ifa`).
    fn set_address(&mut self, index: IfIndex, address: Address) -> bool {
        let known = self.addresses_of(index).iter().position(|old| old.prefix == address.prefix);
        if known.is_some_and(|at| self.addresses_of(index)[at] == address) {
            return false;
        }
        let list = Arc::make_mut(&mut self.addresses).entry(index).or_default();
        match known {
            Some(at) if list[at].secondary == address.secondary => list[at] = address,
            _ => {
                list.retain(|old| old.prefix != address.prefix);
                let at = if address.secondary { list.len() } else { list.iter().take_while(|old| !old.secondary).count() };
                list.insert(at, address);
            }
        }
        true
    }

    fn remove_address(&mut self, index: IfIndex, address: &Address) -> Effect {
        if !self.addresses_of(index).iter().any(|old| old.prefix == address.prefix) {
            return Effect::NOTHING;
        }
        let addresses = Arc::make_mut(&mut self.addresses);
        if let Some(list) = addresses.get_mut(&index) {
            list.retain(|old| old.prefix != address.prefix);
            if list.is_empty() {
                addresses.remove(&index);
            }
        }
        Effect { changed: true, doubtful: Parts::ADDRESSES | Parts::ROUTES }
    }

    fn set_route(&mut self, key: RouteKey, entry: RouteEntry, placement: Placement) -> bool {
        let old = self.routes.get(&key).map_or(&[][..], |entries| entries);
        let first = old.partition_point(|other| other.metric < entry.metric);
        let end = old.partition_point(|other| other.metric <= entry.metric);
        let known = old.iter().position(|other| *other == entry);
        let mut entries = old.to_vec();
        match (known, placement) {
            // A dump had it already. What this change replaced then has come back with an older change: take it away again.
            (Some(at), Placement::Replace) if at > first => drop(entries.drain(first..at)),
            (Some(_), _) => return false,
            (None, Placement::Replace) if first < end => entries[first] = entry,
            (None, Placement::Last) => entries.insert(end, entry),
            (None, Placement::First | Placement::Replace) => entries.insert(first, entry),
        }
        Arc::make_mut(&mut self.routes).insert(key, entries.into());
        true
    }

    fn remove_route(&mut self, key: RouteKey, entry: &RouteEntry) -> bool {
        let Some(old) = self.routes.get(&key) else { return false };
        let Some(at) = old.iter().position(|other| other == entry) else { return false };
        let mut entries = old.to_vec();
        entries.remove(at);
        let routes = Arc::make_mut(&mut self.routes);
        if entries.is_empty() {
            routes.remove(&key);
        } else {
            routes.insert(key, entries.into());
        }
        true
    }
}

/// Sets a value in a shared map, which is copied only if the value is new. Returns whether it was.
fn set<K: Ord + Clone, V: PartialEq + Clone>(map: &mut Arc<BTreeMap<K, V>>, key: K, value: V) -> bool {
    let differs = map.get(&key) != Some(&value);
    if differs {
        Arc::make_mut(map).insert(key, value);
    }
    differs
}

/// Removes a key from a shared map, which is copied only if it has the key. Returns whether it had.
fn remove<K: Ord + Clone, V: Clone>(map: &mut Arc<BTreeMap<K, V>>, key: &K) -> bool {
    let had = map.contains_key(key);
    if had {
        Arc::make_mut(map).remove(key);
    }
    had
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(enabled: bool) -> Link {
        Link { name: "out".into(), mac: [2; 6], mtu: 1500, enabled, up: enabled, vlan: None }
    }

    fn address(prefix: &str, secondary: bool) -> Address {
        Address { prefix: prefix.parse().expect("prefix"), broadcast: None, secondary, no_prefix_route: false, protocol: 0 }
    }

    fn route(metric: u32, last: u8) -> RouteEntry {
        let hop = Hop { interface: 3, gateway: Some(Ipv4Addr::new(192, 0, 2, last)) };
        RouteEntry { metric, target: Target::Hops([hop].into()), mtu: None, identity: (4, 0, None) }
    }

    const KEY: RouteKey = (Table::Main, Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));

    fn routes(state: &KernelState) -> &[RouteEntry] {
        state.routes.get(&KEY).map_or(&[], |entries| entries)
    }

    fn prefixes(state: &KernelState) -> Vec<String> {
        state.addresses_of(3).iter().map(|address| address.prefix.to_string()).collect()
    }

    #[test]
    fn routes_stand_in_the_kernels_order() {
        let mut state = KernelState::default();
        for (entry, placement) in [
            (route(100, 1), Placement::First),
            (route(0, 2), Placement::First),
            (route(0, 3), Placement::Last),
            (route(0, 4), Placement::First),
            (route(50, 5), Placement::Last),
        ] {
            assert!(state.apply(Change::Route(KEY, entry, placement)).changed);
        }
        assert_eq!(routes(&state), [route(0, 4), route(0, 2), route(0, 3), route(50, 5), route(100, 1)]);
        assert!(state.apply(Change::Route(KEY, route(50, 6), Placement::Replace)).changed);
        assert_eq!(routes(&state)[3], route(50, 6));
        assert!(state.apply(Change::RouteGone(KEY, route(0, 4))).changed);
        assert_eq!(routes(&state).len(), 4);
    }

    #[test]
    fn replacing_a_route_that_is_not_there_adds_it_and_removing_one_does_nothing() {
        let mut state = KernelState::default();
        assert!(!state.apply(Change::RouteGone(KEY, route(0, 1))).changed);
        assert!(state.apply(Change::Route(KEY, route(0, 1), Placement::Replace)).changed);
        assert!(!state.apply(Change::RouteGone(KEY, route(0, 2))).changed, "another next hop");
        assert_eq!(routes(&state), [route(0, 1)]);
        assert!(state.apply(Change::RouteGone(KEY, route(0, 1))).changed);
        assert!(state.routes.is_empty());
    }

    #[test]
    fn changes_heard_during_a_dump_may_be_applied_again_after_it() {
        let heard = [
            Change::Link(3, link(true)),
            Change::Address(3, address("192.0.2.2/24", false)),
            Change::Route(KEY, route(0, 1), Placement::First),
            Change::Route(KEY, route(0, 2), Placement::Replace),
            Change::Neighbour((3, Ipv4Addr::LOCALHOST), Neighbour { mac: [2; 6], fixed: false }),
            Change::NeighbourGone((3, Ipv4Addr::LOCALHOST)),
            Change::Rule("1: from all lookup 7".into()),
        ];
        // A dump sees the state after any number of them.
        for seen in 0..=heard.len() {
            let mut state = KernelState::default();
            let mut once = KernelState::default();
            for change in &heard[..seen] {
                state.apply(change.clone());
            }
            for change in &heard {
                state.apply(change.clone());
                once.apply(change.clone());
            }
            assert_eq!(state, once, "dumped after {seen}");
        }
    }

    /// What an operator does to the routes of a prefix: 4 kinds of command on 3 routes.
    const COMMANDS: usize = 12;

    /// The kernel's list of routes of one prefix and metric after a command, and the notification that it sends, if the command
    /// succeeds (Linux `net/ipv4/fib_trie.c`, `fib_table_insert`).
    fn kernel_does(list: &mut Vec<RouteEntry>, command: usize) -> Option<Change> {
        let entry = route(0, (command % 3) as u8);
        let known = list.iter().position(|other| *other == entry);
        let placement = match command / 3 {
            0 => {
                list.remove(known?);
                return Some(Change::RouteGone(KEY, entry));
            }
            _ if known.is_some() => return None,
            1 => Placement::First,
            2 => Placement::Last,
            _ => Placement::Replace,
        };
        match placement {
            Placement::Replace if !list.is_empty() => list[0] = entry.clone(),
            Placement::Last => list.push(entry.clone()),
            Placement::First | Placement::Replace => list.insert(0, entry.clone()),
        }
        Some(Change::Route(KEY, entry, placement))
    }

    /// Runs every program of four commands, and gives `check` the kernel's lists after each step, the notifications, and the moments
    /// of subscription and dump.
    fn every_program(check: impl Fn(&[Vec<RouteEntry>], &[Change], usize, usize)) {
        const LENGTH: u32 = 4;
        for program in 0..COMMANDS.pow(LENGTH) {
            let mut kernel = vec![vec![]];
            let mut notifications = Vec::new();
            for step in 0..LENGTH {
                let mut list = kernel[kernel.len() - 1].clone();
                if let Some(change) = kernel_does(&mut list, program / COMMANDS.pow(step) % COMMANDS) {
                    notifications.push(change);
                    kernel.push(list);
                }
            }
            for subscribed in 0..kernel.len() {
                for dumped in subscribed..kernel.len() {
                    check(&kernel, &notifications, subscribed, dumped);
                }
            }
        }
    }

    /// The routes after adopting a dump and applying notifications.
    fn mirrored(dumped: &[RouteEntry], notifications: &[Change]) -> Vec<RouteEntry> {
        let mut state = KernelState::default();
        for entry in dumped {
            state.apply(Change::Route(KEY, entry.clone(), Placement::Last));
        }
        for change in notifications {
            state.apply(change.clone());
        }
        routes(&state).to_vec()
    }

    #[test]
    fn following_commands_after_a_dump_ends_in_the_kernels_routes_in_its_order() {
        every_program(|kernel, notifications, subscribed, dumped| {
            if subscribed == dumped {
                assert_eq!(mirrored(&kernel[dumped], &notifications[subscribed..]), kernel[kernel.len() - 1], "{notifications:?}");
            }
        });
    }

    #[test]
    fn a_dump_amid_commands_ends_in_the_kernels_route_where_a_prefix_and_metric_never_has_two() {
        every_program(|kernel, notifications, subscribed, dumped| {
            let appended = notifications.iter().any(|change| matches!(change, Change::Route(_, _, Placement::Last)));
            if !appended && kernel.iter().all(|list| list.len() < 2) {
                let found = mirrored(&kernel[dumped], &notifications[subscribed..]);
                assert_eq!(found, kernel[kernel.len() - 1], "subscribed {subscribed}, dumped {dumped} of {notifications:?}");
            }
        });
    }

    #[test]
    fn a_primary_address_goes_behind_the_primaries_and_a_secondary_to_the_end() {
        let mut state = KernelState::default();
        for (prefix, secondary) in
            [("192.0.2.2/24", false), ("192.0.2.3/24", true), ("198.51.100.1/24", false), ("192.0.2.4/24", true)]
        {
            assert!(state.apply(Change::Address(3, address(prefix, secondary))).changed);
        }
        assert_eq!(prefixes(&state), ["192.0.2.2/24", "198.51.100.1/24", "192.0.2.3/24", "192.0.2.4/24"]);
        assert!(!state.apply(Change::Address(3, address("192.0.2.3/24", true))).changed, "a renewed lifetime");
        assert!(state.apply(Change::Address(3, address("192.0.2.3/24", false))).changed, "promoted");
        assert_eq!(prefixes(&state)[2], "192.0.2.3/24");
    }

    #[test]
    fn what_the_kernel_changes_in_silence_is_in_doubt() {
        let mut state = KernelState::default();
        assert_eq!(state.apply(Change::Link(3, link(true))).doubtful, Parts::NONE);
        state.apply(Change::Address(3, address("192.0.2.2/24", false)));
        assert_eq!(state.apply(Change::Link(3, link(false))).doubtful, Parts::ROUTES);
        let gone = Change::AddressGone(3, address("192.0.2.2/24", false));
        assert_eq!(state.apply(gone.clone()).doubtful, Parts::ADDRESSES | Parts::ROUTES);
        assert_eq!(state.apply(gone), Effect::NOTHING);
        assert_eq!(state.apply(Change::LinkGone(3)).doubtful, Parts::ROUTES);
        assert_eq!(state.apply(Change::LinkGone(3)), Effect::NOTHING);
    }

    #[test]
    fn a_link_takes_its_addresses_and_neighbours_with_it() {
        let mut state = KernelState::default();
        state.apply(Change::Link(3, link(true)));
        state.apply(Change::Address(3, address("192.0.2.2/24", false)));
        for index in [2, 3, 4] {
            state.apply(Change::Neighbour((index, Ipv4Addr::BROADCAST), Neighbour { mac: [2; 6], fixed: false }));
        }
        state.apply(Change::LinkGone(3));
        assert!(state.addresses.is_empty());
        assert_eq!(state.neighbours.keys().map(|key| key.0).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn adopting_a_dump_that_says_the_same_is_no_change() {
        let mut state = KernelState::default();
        state.apply(Change::Route(KEY, route(0, 1), Placement::First));
        let same = state.clone();
        assert!(!state.adopt(Parts::ALL, same));
        assert!(!state.adopt(Parts::LINKS | Parts::NEIGHBOURS, KernelState::default()), "routes were not dumped");
        assert!(state.adopt(Parts::ROUTES, KernelState::default()));
        assert!(state.routes.is_empty());
    }
}
