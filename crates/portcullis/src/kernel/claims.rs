//! Claimed addresses: pool addresses in an outside interface's subnet, which the kernel must answer ARP for.
//!
//! Added as /32 without a prefix route and marked as ours (`IFA_PROTO`), so that a process that died leaves nothing unknown: the next
//! one adopts or removes them. Called by the daemon; decides by [`plan`], which is pure. Invariant: only addresses that are ours are
//! ever removed; an address that is the operator's is neither claimed nor touched.
//! Sources: Linux `net/ipv4/devinet.c`. Tests: below for the plan, `tests::claims` (root) with a peer that asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::KernelError;
use super::mirror::wait_until;
use super::socket::Requests;
use super::state::{Address, CLAIM_PROTOCOL, IfIndex, KernelState};

/// Claims at once. Chosen: beyond it an operator wants the pool's prefix routed to the box instead of ARP for each address.
const MOST_CLAIMS: usize = 4_096;

/// The pause before what could not be added or removed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What is to be claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The outside interfaces' names.
    pub(crate) outside: Vec<String>,
    /// The pool's addresses.
    pub(crate) pool: BTreeSet<Ipv4Addr>,
}

/// A claimed address on its link.
type Claim = (IfIndex, Ipv4Addr);

/// The task that keeps the claims. Dropping it leaves them in place; [`Claims::release`] removes them.
pub(crate) struct Claims {
    wanted: watch::Sender<Wanted>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Claims {
    /// Starts to claim, on the current tokio runtime; marked addresses of a process that died are adopted.
    pub(crate) fn start(snapshots: watch::Receiver<Arc<KernelState>>, requests: Requests, wanted: Wanted) -> Self {
        let (wanted, inbox) = watch::channel(wanted);
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper {
            snapshots,
            requests,
            wanted: inbox,
            held: BTreeSet::new(),
            marks: kernel_keeps_marks(),
            cut: false,
            retry_at: None,
            blind: false,
        };
        let task = tokio::spawn(keeper.run(stopped));
        Self { wanted, stop, task }
    }

    /// Changes what is to be claimed, after a reload.
    pub(crate) fn set(&self, wanted: Wanted) {
        self.wanted.send_replace(wanted);
    }

    /// Removes exactly the claimed addresses, and ends.
    pub(crate) async fn release(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

struct Keeper {
    snapshots: watch::Receiver<Arc<KernelState>>,
    requests: Requests,
    wanted: watch::Receiver<Wanted>,
    held: BTreeSet<Claim>,
    marks: bool,
    cut: bool,
    retry_at: Option<Instant>,
    blind: bool,
}

impl Keeper {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        loop {
            self.reconcile().await;
            tokio::select! {
                stopped = &mut stop => {
                    // A handle that was merely dropped leaves the claims in place.
                    if stopped.is_ok() {
                        self.release().await;
                    }
                    return;
                }
                // Without a mirror there is nothing to follow, but the claims still have to be released.
                changed = self.snapshots.changed(), if !self.blind => self.blind = changed.is_err(),
                Ok(()) = self.wanted.changed() => {}
                () = wait_until(self.retry_at) => {}
            }
        }
    }

    async fn reconcile(&mut self) {
        let state = Arc::clone(&self.snapshots.borrow_and_update());
        let wanted = self.wanted.borrow_and_update().clone();
        let plan = plan(&state, &wanted, self.marks);
        if plan.cut && !self.cut {
            tracing::warn!(
                "more than {MOST_CLAIMS} pool addresses lie in the subnet of an outside interface; ARP is answered for the first \
                 {MOST_CLAIMS} only: route the pool's prefix to this box instead"
            );
        }
        self.cut = plan.cut;
        self.retry_at = None;
        for claim in plan.remove {
            self.remove(&state, claim).await;
        }
        for claim in plan.add {
            self.add(&state, claim).await;
        }
        self.held = plan.keep.into_iter().chain(self.held.iter().copied().filter(|claim| !is_there(&state, *claim))).collect();
    }

    async fn add(&mut self, state: &KernelState, claim: Claim) {
        let name = name(state, claim.0);
        match self
            .requests
            .execute("add a pool address", RouteNetlinkMessage::NewAddress(message(claim)), NLM_F_CREATE | NLM_F_EXCL)
            .await
        {
            Ok(()) => {
                let again = if self.held.insert(claim) { "" } else { " again: it had been removed" };
                tracing::info!("pool address {} claimed on {name}{again}", claim.1);
            }
            // Someone was faster; the next snapshot tells whose it is.
            Err(KernelError::Refused { error, .. }) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => {
                self.retry_at = Some(Instant::now() + RETRY);
                tracing::warn!(%error, "pool address {} cannot be claimed on {name}: nobody answers ARP for it", claim.1);
            }
        }
    }

    async fn remove(&mut self, state: &KernelState, claim: Claim) {
        let name = name(state, claim.0);
        self.held.remove(&claim);
        match self.requests.execute("remove a pool address", RouteNetlinkMessage::DelAddress(message(claim)), 0).await {
            Ok(()) => tracing::info!("pool address {} released on {name}", claim.1),
            Err(KernelError::Refused { error, .. }) if is_gone(&error) => {}
            Err(error) => {
                self.retry_at = Some(Instant::now() + RETRY);
                tracing::warn!(%error, "pool address {} cannot be removed from {name}", claim.1);
            }
        }
    }

    async fn release(&mut self) {
        let state = Arc::clone(&self.snapshots.borrow());
        let ours = claims_in(&state, &self.wanted.borrow().pool, self.marks);
        let fresh = self.held.iter().copied().filter(|&claim| !is_there(&state, claim));
        let all: BTreeSet<_> = ours.into_iter().chain(fresh).collect();
        for claim in all {
            self.remove(&state, claim).await;
        }
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV))
}

fn name(state: &KernelState, index: IfIndex) -> String {
    state.links.get(&index).map_or_else(|| format!("interface {index}"), |link| link.name.clone())
}

fn message((index, address): Claim) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Address(IpAddr::V4(address)),
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Flags(AddressFlags::Noprefixroute),
        AddressAttribute::Protocol(AddressProtocol::Other(CLAIM_PROTOCOL)),
    ];
    message
}

/// What there is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    add: Vec<Claim>,
    remove: Vec<Claim>,
    keep: Vec<Claim>,
    /// Whether more would have to be claimed than are.
    cut: bool,
}

/// Compares what is claimed with what should be: the pool's addresses that lie in a subnet of an outside interface and are not the
/// box's own. `marks` says whether the kernel keeps the mark; if not, a /32 without a prefix route that is in the pool is ours.
fn plan(state: &KernelState, wanted: &Wanted, marks: bool) -> Plan {
    let present = claims_in(state, &wanted.pool, marks);
    let own: BTreeSet<Ipv4Addr> = own_addresses(state, &wanted.pool, marks).map(|(_, address)| address.prefix.addr()).collect();
    let mut due = wanted.pool.iter().filter(|address| !own.contains(address)).filter_map(|&address| {
        let index = wanted.outside.iter().find_map(|name| {
            let (index, _) = state.link(name)?;
            is_in_a_subnet(state, index, address, &wanted.pool, marks).then_some(index)
        })?;
        Some((index, address))
    });
    let desired: BTreeSet<Claim> = due.by_ref().take(MOST_CLAIMS).collect();
    Plan {
        add: desired.difference(&present).copied().collect(),
        remove: present.difference(&desired).copied().collect(),
        keep: present.intersection(&desired).copied().collect(),
        cut: due.next().is_some(),
    }
}

fn is_in_a_subnet(state: &KernelState, index: IfIndex, address: Ipv4Addr, pool: &BTreeSet<Ipv4Addr>, marks: bool) -> bool {
    state.addresses_of(index).iter().filter(|own| !is_claim(own, pool, marks)).any(|own| {
        let subnet = own.prefix;
        let edge = subnet.prefix_len() < 31 && (address == subnet.network() || address == subnet.broadcast());
        subnet.prefix_len() < 32 && subnet.contains(&address) && !edge
    })
}

/// Whether an address is one of ours.
fn is_claim(address: &Address, pool: &BTreeSet<Ipv4Addr>, marks: bool) -> bool {
    let bare = address.prefix.prefix_len() == 32 && address.no_prefix_route;
    bare && if marks { address.is_marked_claim() } else { pool.contains(&address.prefix.addr()) }
}

fn all_addresses(state: &KernelState) -> impl Iterator<Item = (IfIndex, &Address)> {
    state.addresses.iter().flat_map(|(&index, list)| list.iter().map(move |address| (index, address)))
}

fn own_addresses<'a>(
    state: &'a KernelState,
    pool: &'a BTreeSet<Ipv4Addr>,
    marks: bool,
) -> impl Iterator<Item = (IfIndex, &'a Address)> {
    all_addresses(state).filter(move |(_, address)| !is_claim(address, pool, marks))
}

fn claims_in(state: &KernelState, pool: &BTreeSet<Ipv4Addr>, marks: bool) -> BTreeSet<Claim> {
    let ours = all_addresses(state).filter(|(_, address)| is_claim(address, pool, marks));
    ours.map(|(index, address)| (index, address.prefix.addr())).collect()
}

/// Whether an address, whoever's, is there as a claim would be.
fn is_there(state: &KernelState, (index, address): Claim) -> bool {
    state.addresses_of(index).iter().any(|own| own.prefix.addr() == address && own.prefix.prefix_len() == 32)
}

/// Whether the running kernel keeps an address's mark: `IFA_PROTO` came with Linux 5.18.
fn kernel_keeps_marks() -> bool {
    nix::sys::utsname::uname().is_ok_and(|system| system.release().to_str().is_some_and(release_keeps_marks))
}

fn release_keeps_marks(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0_u32));
    (numbers.next(), numbers.next()) >= (Some(5), Some(18))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::state::{Change, Link};

    const OUT: IfIndex = 3;
    const OTHER: IfIndex = 4;

    fn address(prefix: &str) -> Address {
        Address { prefix: prefix.parse().expect("prefix"), broadcast: None, secondary: false, no_prefix_route: false, protocol: 0 }
    }

    fn claimed(prefix: &str, protocol: u8) -> Address {
        Address { no_prefix_route: true, protocol, ..address(prefix) }
    }

    fn state(addresses: &[(IfIndex, Address)]) -> KernelState {
        let mut state = KernelState::default();
        for (index, name) in [(OUT, "out"), (OTHER, "other")] {
            let link = Link { name: name.into(), mac: [2; 6], mtu: 1500, enabled: true, up: true, vlan: None };
            state.apply(Change::Link(index, link));
        }
        for (index, address) in addresses {
            state.apply(Change::Address(*index, address.clone()));
        }
        state
    }

    fn wanted(pool: &[&str]) -> Wanted {
        Wanted { outside: vec!["out".into()], pool: pool.iter().map(|text| text.parse().expect("address")).collect() }
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().expect("address")
    }

    #[test]
    fn pool_addresses_in_the_outside_subnet_are_claimed_and_others_are_not() {
        let state = state(&[(OUT, address("192.0.2.2/24")), (OTHER, address("10.0.0.1/24"))]);
        let plan =
            plan(&state, &wanted(&["192.0.2.10", "192.0.2.2", "192.0.2.0", "192.0.2.255", "198.51.100.1", "10.0.0.7"]), true);
        assert_eq!(plan.add, [(OUT, ip("192.0.2.10"))], "not: own address, edges of the subnet, not connected, not outside");
        assert!(plan.remove.is_empty());
    }

    #[test]
    fn claims_of_a_dead_process_are_adopted_or_removed() {
        let state = state(&[
            (OUT, address("192.0.2.2/24")),
            (OUT, claimed("192.0.2.10/32", CLAIM_PROTOCOL)),
            (OUT, claimed("192.0.2.11/32", CLAIM_PROTOCOL)),
            (OTHER, claimed("192.0.2.12/32", CLAIM_PROTOCOL)),
        ]);
        let plan = plan(&state, &wanted(&["192.0.2.10", "192.0.2.12"]), true);
        assert_eq!(plan.keep, [(OUT, ip("192.0.2.10"))]);
        assert_eq!(plan.add, [(OUT, ip("192.0.2.12"))]);
        assert_eq!(plan.remove, [(OUT, ip("192.0.2.11")), (OTHER, ip("192.0.2.12"))]);
    }

    #[test]
    fn the_operators_addresses_are_respected_even_if_they_look_like_claims() {
        let state = state(&[(OUT, address("192.0.2.2/24")), (OUT, claimed("192.0.2.10/32", 0)), (OTHER, address("192.0.2.11/32"))]);
        assert_eq!(plan(&state, &wanted(&["192.0.2.10", "192.0.2.11"]), true), Plan::default());
    }

    #[test]
    fn without_marks_a_bare_address_in_the_pool_is_ours() {
        let state =
            state(&[(OUT, address("192.0.2.2/24")), (OUT, claimed("192.0.2.10/32", 0)), (OUT, claimed("192.0.2.20/32", 0))]);
        let plan = plan(&state, &wanted(&["192.0.2.10"]), false);
        assert_eq!(plan, Plan { keep: vec![(OUT, ip("192.0.2.10"))], ..Plan::default() });
    }

    #[test]
    fn a_claim_that_the_operator_takes_over_is_given_up() {
        let state = state(&[
            (OUT, address("192.0.2.2/24")),
            (OUT, claimed("192.0.2.10/32", CLAIM_PROTOCOL)),
            (OUT, address("192.0.2.10/24")),
        ]);
        assert_eq!(plan(&state, &wanted(&["192.0.2.10"]), true).remove, [(OUT, ip("192.0.2.10"))]);
    }

    #[test]
    fn claims_go_when_the_subnet_goes_and_a_claim_makes_no_subnet() {
        let state = state(&[(OUT, claimed("192.0.2.10/32", CLAIM_PROTOCOL))]);
        assert_eq!(plan(&state, &wanted(&["192.0.2.10"]), true).remove, [(OUT, ip("192.0.2.10"))]);
    }

    #[test]
    fn a_very_large_pool_is_claimed_in_part_and_says_so() {
        let state = state(&[(OUT, address("10.0.0.1/8"))]);
        let pool = (0..=MOST_CLAIMS as u32).map(|i| Ipv4Addr::from(0x0A10_0000 + i)).collect();
        let plan = plan(&state, &Wanted { pool, ..wanted(&[]) }, true);
        assert_eq!((plan.add.len(), plan.cut), (MOST_CLAIMS, true));
    }

    #[test]
    fn the_kernels_release_tells_whether_it_keeps_marks() {
        for (release, keeps) in
            [("5.17.9", false), ("5.18.0-rc1", true), ("4.19.0", false), ("6.1.0-13-amd64", true), ("odd", false)]
        {
            assert_eq!(release_keeps_marks(release), keeps, "{release}");
        }
    }
}
