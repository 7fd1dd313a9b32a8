//! What happens in the world, one symbolic step after the other.
//!
//! Knows no bytes: see `resolve`. An index means "one of those so far", whatever their number. Shrinks towards fewer and plainer steps.

use portcullis_nat::policy::Timeouts;
use proptest::prelude::*;
use proptest::sample::Index;

use super::world::{ForwardChange, OTHERS, Plan, bare, mtu, plan};
use crate::builder::{ACK, Checksum, FIN, PSH, Query, RST, SYN};

/// Where a new packet goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A remote host's port.
    Remote(Index, u16),
    /// An external address at a port that a session has, if there are any.
    Known(Index),
    /// An external address at a forward's port.
    Forward(Index),
    /// An external address at the port of a UDP forward that there is now.
    CurrentForward(Index),
    /// An external address at some port of the small pool.
    Guess(Index, u16),
    /// An inside host, past the NAT.
    Host(Index, u16),
    /// Any of the addresses that are nobody's or the box's own.
    Odd(Index),
}

/// What a new packet is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// UDP.
    Udp,
    /// TCP with those flags.
    Tcp(u8),
    /// An ICMP query or reply.
    Query(Query),
    /// Another protocol.
    Other(u8),
    /// UDP-Lite with that coverage of its checksum.
    UdpLite(u16),
    /// DCCP with that coverage of its checksum.
    Dccp(u8),
    /// An ICMP message of another type.
    OtherIcmp(u8),
}

/// Who sends a new packet.
#[derive(Clone, Debug)]
pub enum Sender {
    /// An inside host.
    Host(Index),
    /// A remote host.
    Remote(Index),
    /// A source that may not be: inside or outside, any address of [`super::resolve::ODD`].
    Odd {
        /// Which side it is on.
        inside: bool,
        /// Which of the addresses.
        address: Index,
    },
}

/// The parts of a packet that do not decide where it goes, mostly.
#[derive(Clone, Debug)]
pub struct Trim {
    /// The TTL.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Bytes of payload.
    pub payload: usize,
    /// Don't Fragment.
    pub dont_fragment: bool,
    /// The transport checksum.
    pub checksum: Checksum,
    /// Bytes of IPv4 options, and the first of them.
    pub options: (usize, u8),
    /// Bytes behind the datagram.
    pub trailer: usize,
    /// Pieces to cut it into, when it is long enough; their order is rotated by the second number.
    pub pieces: Option<(usize, usize)>,
    /// The identification.
    pub id: u16,
    /// Whether the frame is addressed to the gateway.
    pub for_us: bool,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A new packet.
    Send {
        /// Who sends it.
        sender: Sender,
        /// From which port, or with which ICMP identifier.
        port: u16,
        /// To where.
        target: Target,
        /// What it is.
        kind: Kind,
        /// The rest.
        trim: Trim,
    },
    /// The same packet as before, received again, with other TCP flags if it is TCP; often one of the latest, often after some time.
    Again {
        /// Which packet.
        of: Index,
        /// Whether only the latest eight are meant.
        latest: bool,
        /// TCP's flags.
        flags: u8,
        /// Time that passes first.
        after: Option<Wait>,
    },
    /// A packet that was translated, received again with a payload for which the translated checksum is zero.
    Zero(Index),
    /// The receiver of a packet that came out answers it: ports and addresses reversed.
    Answer(Index, Kind, Trim),
    /// The receiver of a packet that came out, or a router before it, sends an ICMP error about it.
    Complain {
        /// Which packet.
        of: Index,
        /// ICMP type and code.
        kind: (u8, u8),
        /// Whether a router sends it.
        router: bool,
        /// How many bytes it quotes.
        quote: usize,
        /// Whether RFC 4884 extensions follow.
        extension: bool,
        /// Whether the ICMP checksum is wrong.
        corrupt: bool,
        /// The rest.
        trim: Trim,
    },
    /// The packet of another step, with bytes changed: place, and what to xor.
    Mutate(Box<Step>, Vec<(Index, u8)>, bool),
    /// Any bytes at all, from any device.
    Raw(u8, Vec<u8>),
    /// Time passes.
    Wait(Wait),
    /// The NAT sweeps.
    Sweep,
    /// An interface's MTU changes.
    Mtu(Index, u16),
    /// An interface goes down or up.
    Flip(Index),
    /// A neighbour is lost or found.
    Neighbour(Index),
    /// An external address goes away or comes back.
    Address(Index),
    /// A protocol without ports is translated no more, or again.
    Protocol(Index),
    /// With bare mappings, the UDP forwards change; otherwise nothing does.
    Forwards(ForwardChange),
}

/// How long to wait.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// So many milliseconds.
    For(u32),
    /// A timeout of the policy, give or take a millisecond.
    About(Timeout, i8),
}

impl Step {
    /// The pieces that its packet is cut into, and the rotation of their order.
    pub fn pieces(&self) -> Option<(usize, usize)> {
        match self {
            Self::Send { trim, .. } | Self::Answer(_, _, trim) => trim.pieces,
            _ => None,
        }
    }

    /// Gives its packet another identification.
    pub fn set_id(&mut self, id: u16) {
        if let Self::Send { trim, .. } | Self::Answer(_, _, trim) = self {
            trim.id = id;
        }
    }
}

impl Wait {
    /// How long that is. **Units:** milliseconds.
    pub fn milliseconds(self, times: &Timeouts) -> u32 {
        let (timeout, by) = match self {
            Self::For(milliseconds) => return milliseconds,
            Self::About(timeout, by) => (timeout, by),
        };
        let time = match timeout {
            Timeout::Udp => times.udp,
            Timeout::Established => times.tcp_established,
            Timeout::Opening => times.tcp_opening,
            Timeout::Closing => times.tcp_closing,
            Timeout::Icmp => times.icmp,
            Timeout::Fragment => times.fragment,
            Timeout::OtherOpening => times.other_opening,
            Timeout::Other => times.other,
        };
        (time.as_millis() as u32).saturating_add_signed(i32::from(by))
    }
}

/// One of the policy's timeouts.
#[derive(Clone, Copy, Debug)]
pub enum Timeout {
    /// UDP.
    Udp,
    /// TCP established.
    Established,
    /// TCP that opens.
    Opening,
    /// TCP that closes.
    Closing,
    /// ICMP queries.
    Icmp,
    /// Fragments.
    Fragment,
    /// Protocols without ports, before the first answer.
    OtherOpening,
    /// Protocols without ports.
    Other,
}

/// A world and what happens in it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The world.
    pub plan: Plan,
    /// Hash keys and the seed of port choice.
    pub seeds: [u64; 4],
    /// The steps.
    pub steps: Vec<Step>,
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => Just(SYN),
        2 => Just(SYN | ACK),
        3 => Just(ACK),
        1 => Just(ACK | PSH),
        2 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
        1 => any::<u8>()
    ]
}

fn query() -> impl Strategy<Value = Query> {
    prop_oneof![4 => Just(Query::Echo), 2 => Just(Query::EchoReply), 1 => Just(Query::Timestamp), 1 => Just(Query::TimestampReply)]
}

/// Protocols without ports: few, so that several hosts speak one with a remote, and now and then any. Boxed, as a choice of choices does not fit
/// on a test's stack.
fn other() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Other(OTHERS[0])),
        2 => prop::sample::select(&OTHERS[..]).prop_map(Kind::Other),
        1 => prop::sample::select(&[2_u8, 51, 89][..]).prop_map(Kind::Other),
        1 => any::<u8>().prop_map(Kind::Other),
        2 => prop_oneof![Just(0_u16), Just(8), 9..40_u16].prop_map(Kind::UdpLite),
        2 => prop_oneof![Just(0_u8), 1..8_u8].prop_map(Kind::Dccp)
    ]
    .boxed()
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Udp),
        6 => flags().prop_map(Kind::Tcp),
        4 => query().prop_map(Kind::Query),
        4 => other(),
        1 => prop_oneof![Just(4_u8), Just(5), Just(17), any::<u8>()].prop_map(Kind::OtherIcmp)
    ]
    .boxed()
}

fn target() -> impl Strategy<Value = Target> {
    let port = || prop_oneof![Just(53_u16), Just(80)];
    prop_oneof![
        8 => (any::<Index>(), port()).prop_map(|(host, port)| Target::Remote(host, port)),
        6 => any::<Index>().prop_map(Target::Known),
        3 => any::<Index>().prop_map(Target::Forward),
        2 => (any::<Index>(), 0_u16..5).prop_map(|(address, port)| Target::Guess(address, port)),
        1 => (any::<Index>(), port()).prop_map(|(host, port)| Target::Host(host, port)),
        1 => any::<Index>().prop_map(Target::Odd)
    ]
}

fn sender() -> impl Strategy<Value = Sender> {
    prop_oneof![
        10 => any::<Index>().prop_map(Sender::Host),
        6 => any::<Index>().prop_map(Sender::Remote),
        1 => (any::<bool>(), any::<Index>()).prop_map(|(inside, address)| Sender::Odd { inside, address })
    ]
}

fn checksum() -> impl Strategy<Value = Checksum> {
    prop_oneof![
        8 => Just(Checksum::Right),
        1 => Just(Checksum::Zero),
        2 => Just(Checksum::Partial),
        1 => any::<u16>().prop_map(Checksum::Wrong)
    ]
}

/// The rest of a packet.
pub fn trim() -> impl Strategy<Value = Trim> {
    let ttl = prop_oneof![10 => Just(64_u8), 1 => 0_u8..=2, 1 => any::<u8>()];
    let payload = prop_oneof![6 => 0_usize..64, 1 => 1300_usize..1460, 1 => 520_usize..570];
    let kind = prop_oneof![4 => Just(1_u8), 1 => Just(131), 1 => Just(137), 1 => any::<u8>()];
    let options = prop_oneof![8 => Just((0_usize, 1)), 1 => (1_usize..=40, kind)];
    let trailer = prop_oneof![4 => Just(0_usize), 1 => 1_usize..20];
    let pieces = prop_oneof![6 => Just(None), 1 => (2_usize..4, 0_usize..3).prop_map(Some)];
    let first = (ttl, prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], payload, prop::bool::weighted(0.4), checksum());
    (first, options, trailer, pieces, 0_u16..3, prop::bool::weighted(0.98)).prop_map(
        |((ttl, tos, payload, dont_fragment, checksum), options, trailer, pieces, id, for_us)| Trim {
            ttl,
            tos,
            payload,
            dont_fragment,
            checksum,
            options,
            trailer,
            pieces,
            id,
            for_us,
        },
    )
}

fn send() -> impl Strategy<Value = Step> {
    send_of(target(), kind())
}

/// New packets of those kinds to those targets.
fn send_of(target: impl Strategy<Value = Target>, kind: impl Strategy<Value = Kind>) -> impl Strategy<Value = Step> {
    let port = prop_oneof![6 => Just(80_u16), 6 => Just(1000), 6 => Just(1001), 4 => 5000_u16..5002, 1 => Just(0)];
    (sender(), port, target, kind, trim()).prop_map(|(sender, port, target, kind, trim)| Step::Send {
        sender,
        port,
        target,
        kind,
        trim,
    })
}

fn complain() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just((3_u8, 3_u8)), Just((3, 4)), Just((11, 0)), Just((12, 0)), Just((3, 1))];
    let quote = prop_oneof![3 => Just(28_usize), 2 => Just(576), 1 => 0_usize..70];
    (any::<Index>(), kind, any::<bool>(), quote, prop::bool::weighted(0.2), prop::bool::weighted(0.05), trim()).prop_map(
        |(of, kind, router, quote, extension, corrupt, trim)| Step::Complain { of, kind, router, quote, extension, corrupt, trim },
    )
}

fn wait() -> impl Strategy<Value = Wait> {
    let timeout = prop_oneof![
        Just(Timeout::Udp),
        Just(Timeout::Established),
        Just(Timeout::Opening),
        Just(Timeout::Closing),
        Just(Timeout::Icmp),
        Just(Timeout::Fragment),
        Just(Timeout::OtherOpening),
        Just(Timeout::Other)
    ];
    prop_oneof![
        3 => (0_u32..3000).prop_map(Wait::For),
        3 => (timeout, -1_i8..=1).prop_map(|(timeout, by)| Wait::About(timeout, by)),
        1 => (0_u32..8_000_000).prop_map(Wait::For)
    ]
}

fn again() -> impl Strategy<Value = Step> {
    (any::<Index>(), prop::bool::weighted(0.7), flags(), prop::option::of(wait()))
        .prop_map(|(of, latest, flags, after)| Step::Again { of, latest, flags, after })
}

fn traffic() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => send(),
        4 => again(),
        1 => any::<Index>().prop_map(Step::Zero),
        7 => (any::<Index>(), kind(), trim()).prop_map(|(of, kind, trim)| Step::Answer(of, kind, trim)),
        3 => complain()
    ]
}

fn forwards() -> impl Strategy<Value = Step> {
    let servers = prop_oneof![2 => Just(1..2_usize), 1 => Just(2..3_usize)]
        .prop_flat_map(|count| prop::collection::vec((any::<Index>(), any::<Index>()), count));
    (any::<Index>(), any::<bool>(), prop::bool::weighted(0.3), servers)
        .prop_map(|(of, elsewhere, wide, servers)| Step::Forwards(ForwardChange { of, elsewhere, wide, servers }))
        .boxed()
}

/// One step of any kind.
pub fn step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 1..4);
    prop_oneof![
        30 => traffic(),
        2 => (traffic(), changes, any::<bool>()).prop_map(|(step, changes, repair)| Step::Mutate(Box::new(step), changes, repair)),
        1 => (0_u8..4, prop::collection::vec(any::<u8>(), 0..120)).prop_map(|(device, bytes)| Step::Raw(device, bytes)),
        6 => wait().prop_map(Step::Wait),
        2 => Just(Step::Sweep),
        1 => (any::<Index>(), mtu()).prop_map(|(interface, mtu)| Step::Mtu(interface, mtu)),
        1 => any::<Index>().prop_map(Step::Flip),
        1 => any::<Index>().prop_map(Step::Neighbour),
        1 => any::<Index>().prop_map(Step::Address),
        1 => any::<Index>().prop_map(Step::Protocol)
    ]
}

/// One step of a world where most speak protocols without ports, with few remotes.
fn step_of_others() -> impl Strategy<Value = Step> {
    let target = prop_oneof![
        8 => any::<Index>().prop_map(|host| Target::Remote(host, 53)),
        2 => any::<Index>().prop_map(|address| Target::Guess(address, 0)),
        1 => target()
    ];
    let timeout = prop_oneof![Just(Timeout::OtherOpening), Just(Timeout::Other)];
    let about = (timeout, -1_i8..=1).prop_map(|(timeout, by)| Step::Wait(Wait::About(timeout, by)));
    prop_oneof![
        12 => send_of(target, prop_oneof![8 => other(), 1 => kind()]).boxed(),
        8 => (any::<Index>(), kind(), trim()).prop_map(|(of, kind, trim)| Step::Answer(of, kind, trim)).boxed(),
        4 => complain().boxed(),
        3 => again().boxed(),
        1 => any::<Index>().prop_map(Step::Zero),
        4 => about,
        8 => step().boxed()
    ]
}

/// A world with at most `most` steps, mostly of protocols without ports, in which little else stands in their way.
pub fn scenario_of_others(most: usize) -> impl Strategy<Value = Scenario> {
    let plan = plan().prop_map(|mut plan| {
        plan.slots.truncate(2);
        Plan { default_route: true, down: 0, untranslated: plan.untranslated & 0b110, ..plan }
    });
    (plan, any::<[u64; 4]>(), prop::collection::vec(step_of_others().boxed(), 1..=most)).prop_map(|(plan, seeds, steps)| Scenario {
        plan,
        seeds,
        steps,
    })
}

/// One step of a world where most speak UDP: to remotes and to each other, from the ports that forwards lead to.
fn step_of_bare() -> impl Strategy<Value = Step> {
    let target = prop_oneof![
        6 => (any::<Index>(), prop_oneof![Just(53_u16), Just(80)]).prop_map(|(host, port)| Target::Remote(host, port)),
        7 => any::<Index>().prop_map(Target::Known),
        6 => any::<Index>().prop_map(Target::CurrentForward),
        1 => target()
    ];
    let about = (-1_i8..=1).prop_map(|by| Step::Wait(Wait::About(Timeout::Udp, by)));
    prop_oneof![
        12 => send_of(target, prop_oneof![8 => Just(Kind::Udp), 1 => kind()]).boxed(),
        8 => (any::<Index>(), kind(), trim()).prop_map(|(of, kind, trim)| Step::Answer(of, kind, trim)).boxed(),
        4 => complain().boxed(),
        3 => again().boxed(),
        2 => about,
        4 => forwards(),
        8 => step().boxed()
    ]
}

/// A world with at most `most` steps in which UDP has bare mappings, in which little else stands in its way.
pub fn scenario_of_bare(most: usize) -> impl Strategy<Value = Scenario> {
    let plan = (plan(), bare()).prop_map(|(plan, bare)| Plan { bare, default_route: true, down: 0, ..plan });
    (plan, any::<[u64; 4]>(), prop::collection::vec(step_of_bare().boxed(), 1..=most)).prop_map(|(plan, seeds, steps)| Scenario {
        plan,
        seeds,
        steps,
    })
}

/// A world with at most `most` steps. In one of four UDP has bare mappings.
pub fn scenario(most: usize) -> impl Strategy<Value = Scenario> {
    let steps = prop::collection::vec(step(), 1..=most);
    let any = (plan(), any::<[u64; 4]>(), steps).prop_map(|(plan, seeds, steps)| Scenario { plan, seeds, steps });
    prop_oneof![3 => any.boxed(), 1 => scenario_of_bare(most).boxed()]
}

/// A number of cases, scaled by `PROPTEST_CASES`, of which 256 is the default.
pub fn scaled(cases: u32) -> u32 {
    let wanted = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse::<u64>().ok());
    wanted.map_or(cases, |wanted| (u64::from(cases) * wanted / 256).max(1) as u32)
}
