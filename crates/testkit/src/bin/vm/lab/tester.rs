//! A tester with two ports, in a namespace of the guest, cabled to the gateway's NICs as a second machine would be:
//!
//! ```text
//! this machine   [ bridge: tester-inside, inside ]                  [ bridge: outside, tester-outside ]
//!                        │              │                                  │              │
//! guest         inside1 10.0.0.2   inside0 10.0.0.1 [gateway] 203.0.113.1 outside0   outside1 203.0.113.2
//! ```
//!
//! Knows how the cables are laid and taken away, and how a program runs there; not what it measures. Called by the checks of pktgen.
//! Invariant: while it is cabled the hosts see nothing and the gateway's neighbours are the tester's; afterwards all is as before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::{CLIENTS, GATEWAY_INSIDE, GATEWAY_OUTSIDE, ROUTER};

use super::Lab;

/// The tap devices on this machine, inside and outside.
pub(super) const TAPS: [&str; 2] = ["tester-inside", "tester-outside"];
/// The ports in the guest, with the addresses that qemu.sh gives them.
pub(crate) const NICS: [(&str, &str); 2] = [("inside1", "52:54:00:00:00:03"), ("outside1", "52:54:00:00:00:04")];
/// How long the gateway's machine may take to answer once it is cabled.
const ANSWER: Duration = Duration::from_secs(30);
/// How long one of the tester's programs may take.
const RUN: Duration = Duration::from_secs(240);

/// How a program in the tester's namespace ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) printed: String,
}

impl Lab {
    /// Lays the cables, does `body`, and takes them away again.
    pub(crate) fn with_tester<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.make_tester()?;
        let outcome = self.lay_cables().and_then(|()| body(self));
        // What went wrong first is told first.
        let taken = self.take_cables();
        outcome.and_then(|value| taken.map(|()| value))
    }

    /// Gives the tester its namespace, which it keeps, and in it the hosts' addresses.
    fn make_tester(&mut self) -> Result<()> {
        if self.tester {
            return Ok(());
        }
        self.guest.expect("setsid unshare -n sh -c 'echo $$ >/run/tester.pid; exec sleep 100000' >/dev/null 2>&1 &")?;
        let there = self
            .guest
            .wait_until(Duration::from_secs(10), |guest| guest.run("test -s /run/tester.pid").is_ok_and(|it| it.code == 0));
        ensure!(there, "the tester's namespace is not there");
        for ((port, _), address) in NICS.into_iter().zip([CLIENTS[0], ROUTER]) {
            self.guest.expect(&format!("ip link set {port} netns $(cat /run/tester.pid)"))?;
            for command in [
                format!("ip link set {port} up"),
                format!("ip address add {address}/24 dev {port}"),
                // What pktgen leaves to the card would stay undone here.
                format!("ethtool -K {port} tx off"),
            ] {
                self.in_tester(&command)?;
            }
        }
        self.tester = true;
        Ok(())
    }

    /// Runs a command in the tester's namespace that has to succeed.
    pub(crate) fn in_tester(&mut self, command: &str) -> Result<String> {
        self.guest.expect(&format!("nsenter -t $(cat /run/tester.pid) -n {command}"))
    }

    /// Runs a program in the tester's namespace that may take long.
    pub(crate) fn run_in_tester(&mut self, command: &str) -> Result<Ended> {
        let files = "/run/tester.log 2>&1; echo $? >/run/tester.code";
        self.guest.expect("rm -f /run/tester.code")?;
        self.guest.expect(&format!("setsid sh -c 'nsenter -t $(cat /run/tester.pid) -n {command} >{files}' >/dev/null 2>&1 &"))?;
        let ended = self.guest.wait_until(RUN, |guest| guest.run("test -s /run/tester.code").is_ok_and(|it| it.code == 0));
        let printed = self.guest.expect("cat /run/tester.log")?;
        ensure!(ended, "`{command}` did not end in {RUN:?}\n{printed}");
        let code = self.guest.expect("cat /run/tester.code")?;
        Ok(Ended { code: code.trim().parse().with_context(|| format!("an exit code {code:?}"))?, printed })
    }

    /// Makes the outside cable, on the tester's end, as narrow as tc-tbf(8) is told. It is so until [`Self::widen_cable`].
    pub(crate) fn narrow_cable(&self, words: &str) -> Result<()> {
        self.outside.run(&format!("tc qdisc add dev {} root tbf {words}", TAPS[1])).map(drop)
    }

    /// Makes it wide again.
    pub(crate) fn widen_cable(&self) -> Result<()> {
        self.outside.run(&format!("tc qdisc delete dev {} root", TAPS[1])).map(drop)
    }

    fn lay_cables(&mut self) -> Result<()> {
        for (host, tap, other) in [(&self.inside, TAPS[0], "inside"), (&self.outside, TAPS[1], "outside")] {
            // Two ports and no memory: what comes in at one goes out at the other, as in a cable. The bridge would answer ARP for
            // the host's address, which the tester has now, and the gateway would send to whoever answers first.
            host.ip_batch(&format!(
                "link add cable type bridge ageing_time 0 forward_delay 0 mcast_snooping 0
                 link set {tap} master cable
                 link set {other} master cable
                 link set {tap} up
                 link set cable arp off up"
            ))?;
        }
        self.forget_neighbours()?;
        for address in [GATEWAY_INSIDE, GATEWAY_OUTSIDE] {
            // The first may be lost while a gateway that has just started gets its queues going.
            let ping = format!("nsenter -t $(cat /run/tester.pid) -n ping -c 1 -W 2 {address}");
            let answers = self.guest.wait_until(ANSWER, |guest| guest.run(&ping).is_ok_and(|it| it.code == 0));
            ensure!(answers, "{address} does not answer the tester\n{}", self.gateway_log()?);
        }
        Ok(())
    }

    fn take_cables(&mut self) -> Result<()> {
        for host in [&self.inside, &self.outside] {
            host.ip("link delete cable")?;
        }
        self.forget_neighbours()
    }

    /// Has the guest find out again who has which address.
    fn forget_neighbours(&mut self) -> Result<()> {
        for nic in ["inside0", "outside0"] {
            self.guest.expect(&format!("ip neigh flush dev {nic}"))?;
        }
        Ok(())
    }
}
