//! How frames come to their owners: what each device offers, the choice for all of them together, and the devices told of it.
//!
//! Knows `xsk`'s settings and `steering`'s ways, and translates between the two; decides nothing itself. Called at start, before the
//! sockets are bound, and by `doctor`. Invariants: with one worker, or when the operator says so, no device is touched; what was set is
//! put back at the end, and by the next process after one that was killed. Tests: below; the guest test over a NIC that really hashes.

use core::net::Ipv4Addr;

use portcullis_nat::policy::Side;
use portcullis_steering::choose::{Choice, choose};
use portcullis_steering::fields::{HashFields, Layout, Side as Looks};
use portcullis_steering::predict::Transport;
use portcullis_steering::shares::AddressPorts;
use portcullis_steering::toeplitz::Key;
use portcullis_steering::ways::{FieldChoice, FlowRule, Offer, Plan, Setting, Way};
use portcullis_xsk::nic::{self, Capabilities, Fields, Flow, HashFunction, Nic, Settable, Transform};

use super::nics::{NicChange, Notes};
use crate::cli::exit::Failure;

/// Flow rules that a driver is taken to have room for when it does not say. Chosen: the smallest table of the common ones.
const RULES_UNSAID: u32 = 8;

/// What of a packet a device may be told to hash, as choices that are tried.
const CHOICES: [Fields; 3] = [Fields::FOUR_TUPLE, Fields::SOURCE, Fields::DESTINATION_AND_PORT];

/// Whether devices may be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NicTouch {
    /// Set up, and put back at the end.
    #[default]
    SetUp,
    /// Only looked at: what could be set counts as if it may be, and nothing is tried that moves packets.
    LookOnly,
    /// Left as they are: `--no-nic-setup`.
    LeaveAlone,
}

/// A device, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Spreading {
    pub(super) name: String,
    pub(super) queues: u32,
    /// The sides of the interfaces on it.
    pub(super) sides: Vec<Side>,
}

/// How a device's frames come to their owners, for people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WayFound {
    /// The way's name.
    pub(crate) label: String,
    /// The part of TCP and UDP packets that has to be handed over.
    pub(crate) share: f64,
    /// Why no better way.
    pub(crate) why: String,
}

/// What was chosen for each device, in their order.
pub(super) struct Spread {
    pub(super) choice: Choice,
    devices: Vec<Spreading>,
    offers: Vec<Offer>,
}

impl Spread {
    /// The best that the devices can do together for so many workers, each of which is to have its share of the ports in `wanted`.
    /// **Errors:** no random numbers.
    pub(super) fn choose(
        devices: Vec<Spreading>,
        workers: u16,
        wanted: &[AddressPorts<'_>],
        touch: NicTouch,
    ) -> Result<Self, Failure> {
        let offers: Vec<_> = devices.iter().map(|device| offer_of(device, workers, touch)).collect();
        let choice = choose(&offers, workers, wanted, &mut random_words()).map_err(|error| Failure::Other(error.into()))?;
        Ok(Self { choice, devices, offers })
    }

    /// How many devices there are.
    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    /// The way of a device by its place.
    pub(super) fn way(&self, place: usize) -> WayFound {
        let plan = &self.choice.plans[place];
        if self.choice.owners.workers() <= 1 {
            return WayFound { label: "one worker".into(), share: 0.0, why: "it owns everything".into() };
        }
        let share = plan.share.tcp.max(plan.share.udp);
        let mut against: Vec<_> = plan.obstacles.iter().map(|(way, obstacle)| format!("no {way}, as {obstacle}")).collect();
        if against.is_empty() {
            against.push("the best way that there is".into());
        }
        WayFound { label: plan.way.to_string(), share, why: against.join("; ") }
    }

    /// Whether every TCP and UDP packet of a device is expected at its owner, so that one that is not says something.
    pub(super) fn is_exact(&self, place: usize) -> bool {
        let plan = &self.choice.plans[place];
        self.choice.owners.workers() > 1 && plan.placement.is_some() && plan.share.tcp == 0.0 && plan.share.udp == 0.0
    }

    /// Sets the devices up, each change noted in `notes`. **Errors:** a device that refuses; those before it are put back.
    pub(super) fn set_up(&self, notes: &Notes) -> Result<Vec<NicChange>, Failure> {
        let mut changes = Vec::new();
        for ((device, offer), plan) in self.devices.iter().zip(&self.offers).zip(&self.choice.plans) {
            let wanted = settings_of(plan, offer.key_length);
            if wanted != nic::Plan::default() {
                changes.push(NicChange::make(&device.name, "spread", &wanted, notes)?);
            }
            tracing::info!("device {}: steering by {plan}", device.name);
        }
        Ok(changes)
    }
}

/// The kernel's random numbers; they end where it has none, which `choose` reports.
fn random_words() -> impl Iterator<Item = u64> {
    use std::io::Read as _;
    let mut source = std::fs::File::open("/dev/urandom").ok();
    std::iter::from_fn(move || {
        let mut word = [0; 8];
        source.as_mut()?.read_exact(&mut word).ok()?;
        Some(u64::from_ne_bytes(word))
    })
}

/// What a device offers. One that carries both sides, cannot be read, or is not asked because one worker needs nothing, offers nothing.
fn offer_of(device: &Spreading, workers: u16, touch: NicTouch) -> Offer {
    let side = match device.sides.first() {
        Some(Side::Outside) => Looks::Outside,
        Some(Side::Inside) | None => Looks::Inside,
    };
    let nothing = nothing_offered(side, device.queues);
    let one_side = device.sides.windows(2).all(|pair| pair[0] == pair[1]);
    if workers <= 1 || !one_side {
        return nothing;
    }
    let asked = Nic::open(&device.name).and_then(|nic| offer(&nic, side, device.queues, touch));
    asked.unwrap_or_else(|error| {
        tracing::warn!(device = %device.name, %error, "cannot tell how it spreads frames");
        nothing
    })
}

fn nothing_offered(side: Looks, queues: u32) -> Offer {
    let fields = || FieldChoice { now: None, choices: Vec::new() };
    Offer {
        side,
        queues: queues as u16,
        toeplitz: false,
        key: Setting { now: None, settable: false },
        key_length: 0,
        table: Setting { now: Vec::new(), settable: false },
        tcp: fields(),
        udp: fields(),
        others: HashFields::NONE,
        layout: Layout::Kept,
        rules: 0,
    }
}

fn offer(nic: &Nic, side: Looks, queues: u32, touch: NicTouch) -> Result<Offer, nic::NicError> {
    let found = Capabilities::probe(nic)?;
    let rss = nic.rss()?;
    let may = |settable: Settable| touch != NicTouch::LeaveAlone && settable == Settable::Yes;
    let choice = |flow| -> Result<FieldChoice, nic::NicError> {
        let field = found.fields.iter().find(|field| field.flow == flow);
        let choices = match field {
            Some(field) if may(field.settable) && touch == NicTouch::SetUp => nic.accepted_fields(flow, &CHOICES)?,
            _ => Vec::new(),
        };
        let known = |fields: Fields| HashFields::from_ethtool(fields.0);
        Ok(FieldChoice { now: field.and_then(|field| known(field.now)), choices: choices.into_iter().filter_map(known).collect() })
    };
    let others = choice(Flow::Ip4)?.now.unwrap_or(HashFields::NONE);
    let rules = found.rules.filter(|_| touch != NicTouch::LeaveAlone).map_or(0, |rules| {
        let size = if rules.size == 0 { RULES_UNSAID } else { rules.size };
        (size as usize).saturating_sub(rules.used)
    });
    let transform_can_go = found.transform == Transform::None || may(found.key);
    Ok(Offer {
        side,
        queues: queues as u16,
        toeplitz: found.hash == Some(HashFunction::Toeplitz) && transform_can_go,
        key: Setting { now: rss.as_ref().and_then(|rss| Key::from_slice(&rss.key)), settable: may(found.key) },
        key_length: found.key_len,
        table: Setting {
            now: rss.map_or_else(Vec::new, |rss| rss.table.iter().map(|&queue| queue as u16).collect()),
            settable: may(found.table),
        },
        tcp: choice(Flow::Tcp4)?,
        udp: choice(Flow::Udp4)?,
        others,
        layout: Layout::Kept,
        rules,
    })
}

/// A plan in the words of `xsk`.
fn settings_of(plan: &Plan, key_length: usize) -> nic::Plan {
    let fields = |flow, fields: Option<HashFields>| fields.map(|fields| (flow, Fields(fields.ethtool())));
    nic::Plan {
        key: plan.key.map(|key| key.bytes().iter().copied().take(key_length).collect()),
        table: plan.table.as_ref().map(|table| table.iter().map(|&queue| u32::from(queue)).collect()),
        hash: (plan.way == Way::Synthesis).then_some(HashFunction::Toeplitz),
        fields: [fields(Flow::Tcp4, plan.tcp), fields(Flow::Udp4, plan.udp)].into_iter().flatten().collect(),
        rules: plan.rules.iter().copied().map(rule_of).collect(),
        ..nic::Plan::default()
    }
}

fn rule_of(rule: FlowRule) -> nic::Rule {
    let protocol = match rule.transport {
        Transport::Tcp => nic::Protocol::Tcp,
        _ => nic::Protocol::Udp,
    };
    let matches = match rule.side {
        Looks::Inside => nic::Match::Source {
            address: Ipv4Addr::from_bits(u32::from(rule.value)),
            mask: Ipv4Addr::from_bits(u32::from(rule.mask)),
        },
        Looks::Outside => nic::Match::DestinationPort { port: rule.value, mask: rule.mask },
    };
    nic::Rule { protocol, matches, queue: u32::from(rule.queue) }
}
