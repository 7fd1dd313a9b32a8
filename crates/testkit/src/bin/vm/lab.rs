//! The guest as a gateway between two hosts, which are namespaces of this machine:
//!
//! ```text
//! inside host 10.0.0.2 ── tap ── inside0 10.0.0.1 [guest] 203.0.113.1 outside0 ── tap ── 203.0.113.2 outside host, 198.51.100.2
//! ```
//!
//! A tester in a namespace of the guest takes the hosts' places, with their addresses, while it is cabled ([`tester`]).
//!
//! Knows names, addresses and how the gateway is started in the guest; not what is checked. Invariant: whatever was built is removed on
//! drop, on a signal, and by the next run after a kill (the names are those that `cleanup` knows). Called by the checks.

pub(crate) mod tester;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::{CLIENTS, GATEWAY_INSIDE, GATEWAY_OUTSIDE, ROUTER, SERVER};
use serde_json::Value;

use crate::guest::{Guest, Parts};
use crate::placement::Rss;

/// The guest's NICs: their names there, and the addresses that qemu.sh gives them.
pub(crate) const NICS: [(&str, &str); 2] = [("inside0", "52:54:00:00:00:01"), ("outside0", "52:54:00:00:00:02")];
/// Queues of each NIC, as in qemu.sh.
pub(crate) const QUEUES: usize = 4;
/// Where the inside host's datagrams to anywhere go; the outside host has these behind the gateway.
pub(crate) const BEHIND: [u8; 2] = [100, 64];
/// Room in a tap for what the guest has not taken yet. Chosen: a second of the checks' traffic.
const TAP_QUEUE: usize = 10_000;
/// How long the gateway may take to forward, or to end.
const READY: Duration = Duration::from_secs(120);

/// How the gateway is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As it starts by itself: as many workers as queues, and the NICs set up.
    SetUp,
    /// `--no-nic-setup`.
    NicsLeftAlone,
    /// `worker.count = 1`.
    OneWorker,
    /// `worker.count = 2`: each has two queues of each NIC.
    TwoWorkers,
    /// By the configuration of bench/pktgen.
    Pktgen,
}

impl Manner {
    const fn words(self) -> &'static str {
        match self {
            Self::SetUp | Self::OneWorker | Self::TwoWorkers | Self::Pktgen => "",
            Self::NicsLeftAlone => "--no-nic-setup",
        }
    }

    const fn tables(self) -> &'static str {
        match self {
            Self::SetUp | Self::NicsLeftAlone | Self::Pktgen => "",
            Self::OneWorker => "\n[worker]\ncount = 1\n",
            Self::TwoWorkers => "\n[worker]\ncount = 2\n",
        }
    }

    /// The whole configuration, where it is not made of the end-to-end tests' default.
    fn file(self) -> Option<String> {
        (self == Self::Pktgen).then(|| include_str!("../../../../../bench/pktgen/gateway.toml").to_owned())
    }
}

/// Two hosts and the guest between them.
pub(crate) struct Lab {
    pub(crate) guest: Guest,
    pub(crate) inside: Namespace,
    pub(crate) outside: Namespace,
    /// Where QEMU runs; it ends with it.
    machine: Namespace,
    /// How the gateway runs, if it does.
    gateway: Option<Manner>,
    /// Whether the sink runs that has frames counted.
    counts: bool,
    /// Whether the tester has its namespace.
    tester: bool,
}

impl Lab {
    /// Boots the guest and gives everyone addresses. The gateway does not run yet.
    pub(crate) fn build(parts: &Parts) -> Result<Self> {
        let create = |role: &str| Namespace::create(&format!("pctest{}-vm-{role}", std::process::id()));
        let (machine, inside, outside) = (create("machine")?, create("inside")?, create("outside")?);
        // What the hosts say by themselves would be counted among the checks' frames.
        for host in [&machine, &inside, &outside] {
            host.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
            // Packets to addresses that nobody has end here.
            host.sysctl("net/ipv4/ip_forward", "0")?;
        }
        let taps = ["inside", "outside", tester::TAPS[0], tester::TAPS[1]];
        for tap in taps {
            machine.ip(&format!("tuntap add dev {tap} mode tap multi_queue vnet_hdr"))?;
            machine.ip(&format!("link set {tap} txqueuelen {TAP_QUEUE}"))?;
        }
        let guest = Guest::boot(&machine, parts, &taps)?;
        let mut lab = Self { guest, inside, outside, machine, gateway: None, counts: false, tester: false };
        lab.hand_over_taps()?;
        lab.number_guest()?;
        Ok(lab)
    }

    /// Gives each host its tap, which QEMU has open by now and keeps, and its addresses.
    fn hand_over_taps(&self) -> Result<()> {
        self.machine.ip(&format!("link set inside netns {}", self.inside.name()))?;
        self.machine.ip(&format!("link set outside netns {}", self.outside.name()))?;
        self.machine.ip(&format!("link set {} netns {}", tester::TAPS[0], self.inside.name()))?;
        self.machine.ip(&format!("link set {} netns {}", tester::TAPS[1], self.outside.name()))?;
        let ([(_, inside_mac), (_, outside_mac)], [a, b]) = (NICS, BEHIND);
        // The guest's link addresses are known: no ARP among the checks' frames.
        self.inside.ip_batch(&format!(
            "address add {}/24 dev inside
             link set inside up
             neighbour add {GATEWAY_INSIDE} lladdr {inside_mac} dev inside
             route add default via {GATEWAY_INSIDE}",
            CLIENTS[0]
        ))?;
        self.outside.ip_batch(&format!(
            "address add {ROUTER}/24 dev outside
             address add {SERVER}/32 dev lo
             link set outside up
             neighbour add {GATEWAY_OUTSIDE} lladdr {outside_mac} dev outside
             route add {a}.{b}.0.0/16 via {GATEWAY_OUTSIDE}"
        ))
    }

    /// Names the guest's NICs, gives them addresses, and waits for their links.
    fn number_guest(&mut self) -> Result<()> {
        for (name, mac) in NICS.into_iter().chain(tester::NICS) {
            self.guest
                .expect(&format!("ip link set $(basename $(dirname $(grep -l {mac} /sys/class/net/*/address))) name {name}"))?;
        }
        for command in [
            format!("ip address add {GATEWAY_INSIDE}/24 dev inside0"),
            format!("ip address add {GATEWAY_OUTSIDE}/24 dev outside0"),
            "ip link set inside0 up && ip link set outside0 up".to_owned(),
            format!("ip route add default via {ROUTER}"),
            format!("ip route add 10.0.0.0/8 via {}", CLIENTS[0]),
            "sysctl -wq net.ipv6.conf.all.disable_ipv6=1".to_owned(),
        ] {
            self.guest.expect(&command)?;
        }
        for (name, _) in NICS {
            let up =
                |guest: &mut Guest| guest.expect(&format!("cat /sys/class/net/{name}/carrier")).is_ok_and(|it| it.trim() == "1");
            ensure!(self.guest.wait_until(Duration::from_secs(20), up), "{name} has no carrier in the guest");
        }
        Ok(())
    }

    /// Sees to it that the gateway forwards, started in that manner. Its configuration is the end-to-end tests' default, but that anyone
    /// may send to an external endpoint; or the manner's own.
    ///
    /// **Errors:** it ended or was not ready in time, with its log.
    pub(crate) fn start_gateway(&mut self, manner: Manner) -> Result<()> {
        if self.gateway == Some(manner) {
            return Ok(());
        }
        self.stop_gateway()?;
        self.stop_counting()?;
        let tables = format!("\n[nat]\nfiltering = \"endpoint-independent\"\n{}", manner.tables());
        let setup = Setup { tables, file: manner.file(), ..Setup::default() }.toml("/run/portcullis".as_ref());
        self.guest.expect("mkdir -p /run/portcullis")?;
        self.guest.write("/run/portcullis.toml", &setup)?;
        // That the guest's kernel would forward too is the worst case on purpose, as in the end-to-end tests.
        self.guest.expect("sysctl -wq net.ipv4.ip_forward=1")?;
        // Its control socket is there before that, but nobody answers yet.
        let command = format!("portcullis run --config /run/portcullis.toml {}", manner.words());
        self.start("gateway", &command, "the gateway forwards")?;
        self.gateway = Some(manner);
        Ok(())
    }

    /// Sees to it that no gateway runs and the guest forwards nothing.
    ///
    /// **Errors:** it did not end when asked to, with its log.
    pub(crate) fn stop_gateway(&mut self) -> Result<()> {
        self.guest.expect("sysctl -wq net.ipv4.ip_forward=0")?;
        if self.gateway.take().is_some() { self.end("gateway", "TERM") } else { Ok(()) }
    }

    /// Kills the gateway, which gives it no time to put anything back.
    pub(crate) fn kill_gateway(&mut self) -> Result<()> {
        self.guest.expect("sysctl -wq net.ipv4.ip_forward=0")?;
        if self.gateway.take().is_some() { self.end("gateway", "KILL") } else { Ok(()) }
    }

    /// Starts a program in the guest's background and waits until its log has `sign`. One that does not come so far is killed.
    fn start(&mut self, name: &str, command: &str, sign: &str) -> Result<()> {
        self.guest.expect(&format!("NO_COLOR=1 setsid {command} >/run/{name}.log 2>&1 & echo $! >/run/{name}.pid"))?;
        let decided = format!("grep -q '{sign}' /run/{name}.log || ! kill -0 $(cat /run/{name}.pid)");
        let in_time = self.guest.wait_until(READY, |guest| guest.run(&decided).is_ok_and(|it| it.code == 0));
        let log = self.guest.expect(&format!("cat /run/{name}.log"))?;
        if log.contains(sign) {
            return Ok(());
        }
        self.guest.run(&format!("kill -9 $(cat /run/{name}.pid)"))?;
        bail!("`{command}` {}\n{log}", if in_time { "ended" } else { "was not ready in time" })
    }

    /// Sends a program of [`Self::start`] a signal that it has to end of, and waits.
    fn end(&mut self, name: &str, signal: &str) -> Result<()> {
        // One that has ended by itself, by its own clock or by a fault, is gone already.
        self.guest.run(&format!("kill -{signal} $(cat /run/{name}.pid)"))?;
        let gone = format!("kill -0 $(cat /run/{name}.pid)");
        let ended = self.guest.wait_until(READY, |guest| guest.run(&gone).is_ok_and(|it| it.code != 0));
        ensure!(ended, "the {name} did not end\n{}", self.guest.expect(&format!("cat /run/{name}.log"))?);
        Ok(())
    }

    /// What the gateway has logged.
    pub(crate) fn gateway_log(&mut self) -> Result<String> {
        self.guest.expect("cat /run/gateway.log")
    }

    /// What `portcullis stats --json` says.
    pub(crate) fn stats(&mut self) -> Result<Value> {
        let printed = self.guest.expect("portcullis stats --json")?;
        serde_json::from_str(&printed).with_context(|| format!("not JSON:\n{printed}"))
    }

    /// A NIC's key and table, as the driver shows them.
    pub(crate) fn rss(&mut self, nic: &str) -> Result<Rss> {
        Rss::from_ethtool(&self.guest.expect(&format!("ethtool -x {nic}"))?)
    }

    /// Has a NIC's driver count the frames of each queue, which it does where an XDP program is attached: that of our own sink, which
    /// passes everything. No gateway may run. Ends at [`Self::stop_counting`], when a gateway starts, and after two minutes.
    ///
    /// **Errors:** the sink does not listen.
    pub(crate) fn start_counting(&mut self, nic: &str) -> Result<()> {
        self.stop_counting()?;
        let sink = format!("portcullis-bench sink --interface {nic} --accept-redirected --ring 1 --idle 120 --duration 120");
        self.start("sink", &sink, "listening on")?;
        self.counts = true;
        Ok(())
    }

    /// Sees to it that no frames are counted, and that no program is attached for it.
    pub(crate) fn stop_counting(&mut self) -> Result<()> {
        if std::mem::take(&mut self.counts) { self.end("sink", "TERM") } else { Ok(()) }
    }

    /// The frames that each queue of a NIC has received, as the driver counts them while an XDP program is attached.
    pub(crate) fn received(&mut self, nic: &str) -> Result<Vec<u64>> {
        let printed = self.guest.expect(&format!("ethtool -S {nic}"))?;
        let counters: Vec<_> = printed.lines().filter_map(|line| line.trim().split_once(": ")).collect();
        let count = |queue: usize| {
            // The names since Linux 6.8, and before.
            let names = [format!("rx{queue}_xdp_packets"), format!("rx_queue_{queue}_xdp_packets")];
            let found = counters.iter().find(|(name, _)| names.iter().any(|wanted| wanted == name));
            let (_, value) = found.with_context(|| format!("no frames of queue {queue} counted:\n{printed}"))?;
            value.parse().with_context(|| format!("a counter {value:?}"))
        };
        (0..QUEUES).map(count).collect()
    }

    /// The interrupts of each of a NIC's receive queues, which tell where frames come while no XDP program is attached.
    pub(crate) fn interrupts(&mut self, nic: &str) -> Result<Vec<u64>> {
        let device = self.guest.expect(&format!("basename $(readlink /sys/class/net/{nic}/device)"))?;
        let printed = self.guest.expect("cat /proc/interrupts")?;
        let count = |queue: usize| -> Result<u64> {
            let name = format!("{}-input.{queue}", device.trim());
            let line = printed.lines().find(|line| line.split_whitespace().next_back() == Some(&name));
            let line = line.with_context(|| format!("no interrupt {name}:\n{printed}"))?;
            // Behind the interrupt's number a count for each processor.
            line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).map(Ok).sum()
        };
        (0..QUEUES).map(count).collect()
    }
}
