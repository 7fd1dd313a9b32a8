//! Namespaces, wires and hosts around a gateway, for tests and the demo that use real programs.
//!
//! Knows `ip`, `ethtool` and the addresses below; does not know what the gateway is (that is [`gateway`]). Needs root. Called by the
//! end-to-end tests and the demo. Invariant: whatever was built is removed on drop, on panic, at exit and on a signal ([`cleanup`]);
//! what a killed run left behind is removed by the next. Tests: below, and every end-to-end test.

pub mod capture;
pub mod gateway;
pub mod services;
pub mod site;
pub mod sniff;
pub mod throughput;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

pub use portcullis_lab::{cleanup, namespace, program};

use portcullis_lab::spray;

use namespace::Namespace;
use program::Program;

/// The gateway's address towards the clients.
pub const GATEWAY_INSIDE: &str = "10.0.0.1";
/// The gateway's address towards the VLAN's client.
pub const GATEWAY_VLAN: &str = "10.0.100.1";
/// The gateway's own address towards the router.
pub const GATEWAY_OUTSIDE: &str = "203.0.113.1";
/// The pool's address, on no interface until a gateway claims it.
pub const POOL: &str = "203.0.113.10";
/// The clients, by number from 0.
pub const CLIENTS: [&str; 3] = ["10.0.0.2", "10.0.0.3", "10.0.100.2"];
/// The router, the gateway's next hop.
pub const ROUTER: &str = "203.0.113.2";
/// The router towards the server.
pub const ROUTER_FAR: &str = "198.51.100.1";
/// The server's first address.
pub const SERVER: &str = "198.51.100.2";
/// The server's second address.
pub const SERVER_SECOND: &str = "198.51.100.3";
/// The VLAN that the third client is in.
pub const VLAN: u16 = 100;

/// What hangs where, for people.
pub const PICTURE: &str = concat!(
    "  client1 10.0.0.2 --+\n",
    "                     +-- switch -- 10.0.0.1 [ GATEWAY ] 203.0.113.1 -- 203.0.113.2 router 198.51.100.1 -- 198.51.100.2 server\n",
    "  client2 10.0.0.3 --+             external address 203.0.113.10\n",
);

/// Whether hosts leave segmentation and checksums to the wire, as they do by default on veth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offloads {
    /// Everything on: partial checksums, and packets larger than the MTU between hosts that allow them.
    #[default]
    On,
    /// Complete checksums and MTU-sized packets, as a wire carries them.
    Off,
    /// Partial checksums, but MTU-sized packets.
    ChecksumOnly,
}

impl Offloads {
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::On => &["tx", "on", "tso", "on", "gso", "on", "gro", "off"],
            Self::Off => &["tx", "off", "tso", "off", "gso", "off", "gro", "off"],
            Self::ChecksumOnly => &["tx", "on", "tso", "off", "gso", "off", "gro", "off"],
        }
    }
}

/// The hosts and their wires:
///
/// ```text
/// client1 10.0.0.2 ──┐
/// client2 10.0.0.3 ──┤ switch ── inside0 10.0.0.1       [gateway] 203.0.113.1 outside0 ── 203.0.113.2 router 198.51.100.1
/// client3 10.0.100.2 ┘           inside0.100 10.0.100.1                                                          │
///  (in VLAN 100 of the same wire)                                                       server 198.51.100.2, 198.51.100.3
/// ```
#[derive(Debug)]
pub struct Topology {
    clients: [Namespace; 3],
    gateway: Namespace,
    router: Namespace,
    server: Namespace,
    switch: Namespace,
    vlan: bool,
    /// Of each of the gateway's wires, in each direction.
    queues: u32,
}

impl Topology {
    /// Builds all of it under names that begin with `prefix` and this process's number. The gateway's wires have one queue.
    ///
    /// **Errors:** not root, or a refused `ip` command; what was built until then is removed.
    pub fn build(prefix: &str) -> Result<Self> {
        Self::build_with_queues(prefix, 1)
    }

    /// The same with `queues` on each of the gateway's wires. With more than one, each frame to the gateway is put into any of them: RSS
    /// that knows nothing of owners.
    ///
    /// **Errors:** as [`Topology::build`]; no clang, for more than one queue.
    pub fn build_with_queues(prefix: &str, queues: u32) -> Result<Self> {
        static BUILT: AtomicU32 = AtomicU32::new(0);
        cleanup::arm();
        let number = BUILT.fetch_add(1, Ordering::Relaxed);
        let name = |role: &str| format!("{prefix}{}-{number}-{role}", std::process::id());
        let create = |role: &str| Namespace::create(&name(role));
        let mut topology = Self {
            clients: [create("client1")?, create("client2")?, create("client3")?],
            gateway: create("gateway")?,
            router: create("router")?,
            server: create("server")?,
            switch: create("switch")?,
            vlan: false,
            queues,
        };
        topology.lay_wires().context("laying the wires")?;
        topology.number_hosts().context("numbering the hosts")?;
        topology.vlan = topology.lay_vlan()?;
        topology.set_sysctls()?;
        topology.spread_receiving()?;
        for host in topology.hosts() {
            host.wait_for_carrier()?;
        }
        Ok(topology)
    }

    /// Queues of each of the gateway's wires.
    pub fn queues(&self) -> u32 {
        self.queues
    }

    /// Whether this kernel has VLAN devices. Without them the third client hangs in the air.
    pub fn has_vlan(&self) -> bool {
        self.vlan
    }

    /// Client `number`, from 0; the third is the one in the VLAN.
    pub fn client(&self, number: usize) -> &Namespace {
        &self.clients[number]
    }

    /// Where the gateway runs.
    pub fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    /// The gateway's next hop, and a host at [`ROUTER`].
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// The remote host.
    pub fn server(&self) -> &Namespace {
        &self.server
    }

    /// The bridge between the clients and the gateway; its port to the gateway is `gateway`.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// All namespaces.
    pub fn hosts(&self) -> impl Iterator<Item = &Namespace> {
        self.clients.iter().chain([&self.gateway, &self.router, &self.server, &self.switch])
    }

    /// Sets the offloads of every device that a host sends with; not the gateway's own.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        let devices = [
            (&self.clients[0], "eth0"),
            (&self.clients[1], "eth0"),
            (&self.clients[2], "eth0"),
            (&self.server, "eth0"),
            (&self.router, "gateway"),
            (&self.router, "server"),
            (&self.switch, "gateway"),
        ];
        for (host, device) in devices {
            host.ethtool_features(device, offloads.words())?;
        }
        Ok(())
    }

    /// Leaves everything up: nothing is removed when the topology goes out of scope.
    pub fn leave_up(self) {
        for host in self.hosts() {
            cleanup::forget(host.name());
        }
        std::mem::forget(self);
    }

    fn lay_wires(&self) -> Result<()> {
        let mut script = String::new();
        let mut wire = |a: (&str, &Namespace), b: (&str, &Namespace), queues: u32| {
            let (a_name, a_host, b_name, b_host) = (a.0, a.1.name(), b.0, b.1.name());
            let queues = format!("numrxqueues {queues} numtxqueues {queues}");
            writeln!(script, "link add {a_name} netns {a_host} {queues} type veth peer name {b_name} netns {b_host} {queues}")
        };
        for (number, client) in self.clients.iter().enumerate() {
            wire(("eth0", client), (&format!("client{}", number + 1), &self.switch), 1)?;
        }
        wire(("inside0", &self.gateway), ("gateway", &self.switch), self.queues)?;
        wire(("outside0", &self.gateway), ("gateway", &self.router), self.queues)?;
        wire(("eth0", &self.server), ("server", &self.router), 1)?;
        Program::new("ip", ["-batch", "-"]).input(script).run()?.success()?;
        self.switch.ip_batch(
            "link add lan type bridge forward_delay 0 stp_state 0
             link set client1 master lan up
             link set client2 master lan up
             link set gateway master lan up
             link set lan up",
        )
    }

    /// The third client's VLAN, tagged between the switch and the gateway. Returns whether the kernel has VLAN devices.
    fn lay_vlan(&self) -> Result<bool> {
        if self.switch.ip(&format!("link add link gateway name gateway.{VLAN} type vlan id {VLAN}")).is_err() {
            return Ok(false);
        }
        self.switch.ip_batch(&format!(
            "link add tagged type bridge forward_delay 0 stp_state 0
             link set client3 master tagged up
             link set gateway.{VLAN} master tagged up
             link set tagged up"
        ))?;
        self.gateway.ip_batch(&format!(
            "link add link inside0 name inside0.{VLAN} type vlan id {VLAN}
             address add {GATEWAY_VLAN}/24 dev inside0.{VLAN}
             link set inside0.{VLAN} up"
        ))?;
        self.clients[2].ip("link set eth0 up")?;
        self.clients[2].ip(&format!("route add default via {GATEWAY_VLAN}"))?;
        // The tag has to be in the frame when the gateway's XDP program sees it; veth would carry it beside the frame.
        self.switch.ethtool_features("gateway", &["txvlan", "off"])?;
        self.gateway.ethtool_features("inside0", &["txvlan", "off", "rxvlan", "off"])?;
        Ok(true)
    }

    fn number_hosts(&self) -> Result<()> {
        for (client, address) in self.clients.iter().zip(CLIENTS) {
            client.ip(&format!("address add {address}/24 dev eth0"))?;
        }
        for client in &self.clients[..2] {
            client.ip_batch(&format!(
                "link set eth0 up
                 route add default via {GATEWAY_INSIDE}"
            ))?;
        }
        self.gateway.ip_batch(&format!(
            "address add {GATEWAY_INSIDE}/24 dev inside0
             address add {GATEWAY_OUTSIDE}/24 dev outside0
             link set inside0 up
             link set outside0 up
             route add default via {ROUTER}"
        ))?;
        self.router.ip_batch(&format!(
            "address add {ROUTER}/24 dev gateway
             address add {ROUTER_FAR}/24 dev server
             link set gateway up
             link set server up"
        ))?;
        self.server.ip_batch(&format!(
            "address add {SERVER}/24 dev eth0
             address add {SERVER_SECOND}/24 dev eth0
             link set eth0 up
             route add default via {ROUTER_FAR}"
        ))
    }

    /// Spreads the hosts' work on what the gateway sends over all processors, as the queues of their NICs would. Without it veth does
    /// that work on the processor that sends, which is the gateway's.
    fn spread_receiving(&self) -> Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(32);
        let mask = u32::MAX >> (32 - processors);
        for host in [&self.router, &self.switch] {
            for queue in 0..self.queues {
                let line = format!("echo {mask:x} > /sys/class/net/gateway/queues/rx-{queue}/rps_cpus");
                host.program("sh", ["-c", &line]).run()?.success()?;
            }
            if self.queues > 1 {
                spray::spray(host, "gateway", self.queues)?;
            }
        }
        Ok(())
    }

    /// The router and the gateway forward; no host limits its ICMP errors, or traceroute and nmap would wait for them.
    ///
    /// That the gateway's kernel forwards is the worst case on purpose: whatever the NAT does not hold back, the kernel would send.
    fn set_sysctls(&self) -> Result<()> {
        for host in self.hosts() {
            host.sysctl("net/ipv4/icmp_ratelimit", "0")?;
            host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
            host.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        }
        // A switch's ports do not cost the gateway's processor more than they must.
        for table in ["iptables", "ip6tables", "arptables"] {
            let key = format!("net/bridge/bridge-nf-call-{table}");
            if std::path::Path::new(&format!("/proc/sys/{key}")).exists() {
                self.switch.sysctl(&key, "0")?;
            }
        }
        self.router.sysctl("net/ipv4/ip_forward", "1")?;
        self.gateway.sysctl("net/ipv4/ip_forward", "1")
    }
}

/// Whether this kernel can make VLAN devices. Needs root.
pub fn kernel_has_vlan() -> bool {
    let Ok(probe) = Namespace::create(&format!("pctest{}-vlan", std::process::id())) else { return false };
    probe.ip_batch("link add probe0 type veth peer name probe1\nlink add link probe0 name probe0.2 type vlan id 2").is_ok()
}

/// Whether this process may build a topology. Says so loudly when not: a skipped test is not a passed one.
pub fn is_root_or_skips(what: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    skip("needs root", what);
    false
}

/// Says that a test was skipped, past the test harness, which keeps back what passing tests print.
pub fn skip(why: &str, what: &str) {
    say(&format!("\n    SKIPPED ({why}): {what}\n"));
}

/// Writes a line to standard error, past the test harness.
pub fn say(line: &str) {
    // Nobody who cannot read standard error misses this line.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn frames_to_the_gateway_come_on_any_queue() {
        if !is_root_or_skips("topology::frames_to_the_gateway_come_on_any_queue") {
            return;
        }
        let topology = Topology::build_with_queues("pcunit", 2).expect("builds");
        // veth counts by queue what its NAPI takes, and its NAPI takes all while GRO is on and the peer has no TSO.
        topology.set_offloads(Offloads::Off).expect("has offloads");
        topology.gateway().ethtool_features("inside0", &["gro", "on"]).expect("has GRO");
        topology.client(0).run(&format!("ping -c40 -i0.002 -W2 {GATEWAY_INSIDE}")).expect("answers");
        let counted = topology.gateway().run("ethtool -S inside0").expect("counts by queue");
        for queue in 0..2 {
            let name = format!("rx_queue_{queue}_xdp_packets: ");
            let count = counted.lines().find_map(|line| line.trim().strip_prefix(&name)).expect("a count");
            assert_ne!(count, "0", "queue {queue}: {counted}");
        }
    }

    #[test]
    fn hosts_reach_their_neighbours_and_nothing_is_left_behind() {
        if !is_root_or_skips("topology::hosts_reach_their_neighbours_and_nothing_is_left_behind") {
            return;
        }
        let topology = Topology::build("pcunit").expect("builds");
        let names: Vec<_> = topology.hosts().map(|host| host.name().to_owned()).collect();
        let vlan = topology.has_vlan().then_some((2, GATEWAY_VLAN));
        for (client, gateway) in [(0, GATEWAY_INSIDE), (1, GATEWAY_INSIDE)].into_iter().chain(vlan) {
            topology
                .client(client)
                .program("ping", ["-c1", "-W2", gateway])
                .run()
                .and_then(program::Output::success)
                .expect(gateway);
        }
        topology.gateway().run(&format!("ping -c1 -W2 {SERVER_SECOND}")).expect("answers");
        let sleeper = topology.client(0).program("sleep", ["600"]).start().expect("starts");
        let inside = || namespace::processes_in(topology.client(0).name()).contains(&sleeper.pid().cast_signed());
        assert!(program::wait_until(Duration::from_secs(5), inside), "`ip netns exec` has not entered the namespace");
        drop(topology);
        for name in names {
            assert!(!namespace::path_of(&name).exists(), "{name} was left behind");
        }
        let end = sleeper.wait(Duration::from_secs(5)).expect("the process in the namespace was ended");
        assert!(!end.status.success());
    }
}
