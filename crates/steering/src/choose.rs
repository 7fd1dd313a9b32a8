//! The choice among the four ways, for all devices at once: the devices of a side must agree about who owns what.
//!
//! Knows offers and makes plans; sets nothing. Called at start. Invariants: what a plan's placement predicts for TCP, and for UDP where
//! its share is the same, is the owner; a device that cannot follow its side hands off and says why. Tests: tests/ways.rs.
//!
//! ```text
//! for each side:  the way, of the best three, that serves most devices  ─ owner rule of the side ─┬─ a plan for each served device
//!                 none: new keys in software                                                      └─ software for the others
//! ```

use crate::fields::{Layout, Side};
use crate::key::{KeyError, synthesise};
use crate::owners::{Basis, OwnerRule, Owners, WorkerId};
use crate::predict::{Hashing, Placement, Slices, Transport};
use crate::shares::{AddressPorts, draw_outside};
use crate::table::{TableError, blocks, entries_for, misplaced, queues_of, queues_of_worker};
use crate::toeplitz::Key;
use crate::ways::{FlowRule, Obstacle, Offer, Plan, Share, Way};

/// Shares of two workers may differ by one part in so many before more flow rules are added. Chosen: rules are few.
const SLICE_EVENNESS: usize = 8;

/// Who owns what, and what to set for it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The owners.
    pub owners: Owners,
    /// By device, as the offers came.
    pub plans: Vec<Plan>,
}

/// What one side could agree on.
struct Candidate {
    way: Way,
    /// None: a key is still to be made.
    basis: Option<Basis>,
    table: Vec<WorkerId>,
    /// The devices that can follow, as places in the offers.
    served: Vec<usize>,
}

/// Devices of one side with their places in the offers.
type Devices<'a> = Vec<(usize, &'a Offer)>;

/// The best that all devices can do together. A key that is made for the outside gives every worker its share of the ports in `wanted`, as
/// far as [`draw_outside`] can. **Errors:** [`KeyError`] when `random` ends or is not random.
pub fn choose(
    offers: &[Offer],
    workers: u16,
    wanted: &[AddressPorts<'_>],
    random: &mut impl Iterator<Item = u64>,
) -> Result<Choice, KeyError> {
    if workers <= 1 {
        let plans = offers.iter().map(|_| nothing_to_set(Share::default())).collect();
        return Ok(Choice { owners: Owners::single(), plans });
    }
    let (inside, inside_served) =
        agree(Side::Inside, offers, workers, |table| synthesise(Side::Inside, table.len().ilog2(), random))?;
    let (outside, outside_served) = agree(Side::Outside, offers, workers, |table| draw_outside(table, wanted, random))?;
    let plan = |(at, offer): (usize, &Offer)| {
        let (rule, (way, served)) = match offer.side {
            Side::Inside => (&inside, &inside_served),
            Side::Outside => (&outside, &outside_served),
        };
        if served.contains(&at) { follow(offer, *way, rule, workers) } else { software(offer, rule, workers) }
    };
    let plans = offers.iter().enumerate().map(plan).collect();
    Ok(Choice { owners: Owners::by(inside, outside), plans })
}

/// The rule of a side, and which devices follow it by which way. `draw` makes a key for a table.
fn agree(
    side: Side,
    offers: &[Offer],
    workers: u16,
    draw: impl FnOnce(&[WorkerId]) -> Result<Key, KeyError>,
) -> Result<(OwnerRule, (Way, Vec<usize>)), KeyError> {
    let able = |way| -> Devices<'_> {
        let here = offers.iter().enumerate().filter(|(_, offer)| offer.side == side);
        here.filter(|(_, offer)| offer.obstacle(way, workers).is_none()).collect()
    };
    let candidates = [
        by_table(Way::Synthesis, None, &able(Way::Synthesis), workers),
        by_selection(&able(Way::FieldSelection), workers),
        by_slices(&able(Way::FlowRules), workers),
    ];
    let software = Candidate { way: Way::Software, basis: None, table: blocks(entries_for(workers), workers), served: Vec::new() };
    let Candidate { way, basis, table, served } = candidates.into_iter().flatten().fold(software, better);
    let basis = match basis {
        Some(basis) => basis,
        None => Basis::Hash { key: draw(&table)?, layout: Layout::Kept },
    };
    Ok((OwnerRule { basis, table }, (way, served)))
}

/// The one that serves more devices; the first of equals.
fn better(first: Candidate, second: Candidate) -> Candidate {
    if second.served.len() > first.served.len() { second } else { first }
}

/// A table that most of the devices have or take: one in blocks for those whose table can be set, or one that is fixed.
fn by_table(way: Way, basis: Option<Basis>, devices: &Devices<'_>, workers: u16) -> Option<Candidate> {
    let fixed = |offer: &Offer| offer.fixed_owners(workers).ok().flatten();
    let settable: Devices<'_> = devices.iter().copied().filter(|(_, offer)| offer.table.settable).collect();
    let entries = settable.iter().map(|(_, offer)| offer.owner_entries(workers)).min();
    let in_blocks = entries.map(|entries| blocks(entries, workers));
    let takes = |offer: &Offer, table: &Vec<WorkerId>| match fixed(offer) {
        Some(own) => own == *table,
        None => offer.table.now.len() >= table.len(),
    };
    let candidate = |table: Vec<WorkerId>| {
        let served = devices.iter().filter(|(_, offer)| takes(offer, &table)).map(|&(at, _)| at).collect();
        Candidate { way, basis, table, served }
    };
    in_blocks.into_iter().chain(devices.iter().filter_map(|(_, offer)| fixed(offer))).map(candidate).reduce(better)
}

/// The key and layout that most devices have, since they keep their own.
fn by_selection(devices: &Devices<'_>, workers: u16) -> Option<Candidate> {
    let basis = |offer: &Offer| offer.key.now.map(|key| Basis::Hash { key, layout: offer.layout });
    let group = |(_, first): &(usize, &Offer)| {
        let alike = devices.iter().copied().filter(|(_, offer)| basis(offer) == basis(first)).collect();
        by_table(Way::FieldSelection, Some(basis(first)?), &alike, workers)
    };
    devices.iter().filter_map(group).reduce(better)
}

/// As many slices as make the shares even, and as all devices have rules for; at least one for each worker.
fn by_slices(devices: &Devices<'_>, workers: u16) -> Option<Candidate> {
    let most = devices.iter().map(|(_, offer)| offer.rules / 2).min()?;
    let each = usize::from(workers);
    let even = |slices: &usize| slices.is_multiple_of(each) || slices / each >= SLICE_EVENNESS;
    let possible = || (0..16).map(|bit| 1_usize << bit).filter(|&slices| slices >= each && slices <= most);
    let slices = possible().find(even).or_else(|| possible().next_back())?;
    let table = (0..slices).map(|slice| WorkerId((slice % each) as u16)).collect();
    Some(Candidate { way: Way::FlowRules, basis: Some(Basis::Slices), table, served: devices.iter().map(|&(at, _)| at).collect() })
}

/// The plan of a device that can follow the rule of its side.
fn follow(offer: &Offer, way: Way, rule: &OwnerRule, workers: u16) -> Plan {
    let plan = match rule.basis {
        Basis::Hash { key, .. } => follow_hash(offer, way, key, rule, workers),
        Basis::Slices => follow_slices(offer, rule, workers),
    };
    match plan {
        Ok(plan) => Plan { obstacles: obstacles(offer, way, workers), ..plan },
        Err(error) => {
            let mut plan = software(offer, rule, workers);
            plan.obstacles.push((way, error.into()));
            plan
        }
    }
}

fn follow_hash(offer: &Offer, way: Way, key: Key, rule: &OwnerRule, workers: u16) -> Result<Plan, TableError> {
    let wanted = |choice| match way {
        Way::Synthesis => offer.suitable(choice),
        _ => Some(offer.side.fields()).filter(|&fields| choice.can_be(fields)),
    };
    let (tcp, udp) = (wanted(&offer.tcp), wanted(&offer.udp));
    let entries = offer.table.now.len();
    let set = if offer.table.settable { Some(queues_of(&rule.table, entries, offer.queues, workers)?) } else { None };
    let table = set.as_ref().unwrap_or(&offer.table.now);
    let hashed = |wanted: Option<_>, now: Option<_>| wanted.or(now).unwrap_or_default();
    let (tcp_hashed, udp_hashed) = (hashed(tcp, offer.tcp.now), hashed(udp, offer.udp.now));
    let hashing = Hashing { key, layout: offer.layout, tcp: tcp_hashed, udp: udp_hashed, others: offer.others };
    let placed = misplaced(&rule.table, table, workers);
    let share = Share { tcp: placed, udp: if udp.is_some() { placed } else { apart(offer, rule, workers) } };
    let placement = Some(Placement::by_hash(&hashing, table)?);
    let change = |wanted: Option<_>, now| wanted.filter(|_| wanted != now);
    let (tcp, udp) = (change(tcp, offer.tcp.now), change(udp, offer.udp.now));
    let key = (way == Way::Synthesis).then_some(key);
    Ok(Plan { way, key, table: set, tcp, udp, placement, ..nothing_to_set(share) })
}

fn follow_slices(offer: &Offer, rule: &OwnerRule, workers: u16) -> Result<Plan, TableError> {
    let queues = queues_of(&rule.table, rule.table.len(), offer.queues, workers)?;
    let mask = (queues.len() - 1) as u16;
    let each = |transport| {
        let rule = move |(value, &queue): (usize, &u16)| FlowRule { transport, side: offer.side, value: value as u16, mask, queue };
        queues.iter().enumerate().map(rule)
    };
    let rules = each(Transport::Tcp).chain(each(Transport::Udp)).collect();
    let placed = misplaced(&rule.table, &queues, workers);
    let placement = Some(Placement::by_rules(Slices { side: offer.side, queues })?);
    Ok(Plan { way: Way::FlowRules, rules, placement, ..nothing_to_set(Share { tcp: placed, udp: placed }) })
}

/// The plan of a device that cannot follow: frames arrive where its hash puts them, whoever owns them.
fn software(offer: &Offer, rule: &OwnerRule, workers: u16) -> Plan {
    let apart = apart(offer, rule, workers);
    Plan { obstacles: obstacles(offer, Way::Software, workers), ..nothing_to_set(Share { tcp: apart, udp: apart }) }
}

fn nothing_to_set(share: Share) -> Plan {
    let (way, key, table, tcp, udp, placement) = (Way::Software, None, None, None, None, None);
    Plan { way, key, table, tcp, udp, rules: Vec::new(), placement, share, obstacles: Vec::new() }
}

/// Why each better way than `way` is not taken: what the device lacks, or else what the others of its side do.
fn obstacles(offer: &Offer, way: Way, workers: u16) -> Vec<(Way, Obstacle)> {
    let ways = [Way::Synthesis, Way::FieldSelection, Way::FlowRules].into_iter().filter(|&better| better < way);
    ways.map(|better| (better, offer.obstacle(better, workers).unwrap_or(Obstacle::Differs))).collect()
}

/// The share of packets whose queue and owner fall apart when neither knows of the other.
fn apart(offer: &Offer, rule: &OwnerRule, workers: u16) -> f64 {
    let queues = offer.queues.max(1);
    let of_queues = |worker| f64::from(queues_of_worker(worker, queues, workers)) / f64::from(queues);
    let together: f64 = rule.table.iter().map(|&WorkerId(owner)| of_queues(owner)).sum();
    1.0 - together / f64::from(rule.table.len() as u32)
}
