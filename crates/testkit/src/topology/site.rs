//! A second site at the router: a client behind a gateway of its own, with the first site's internal addresses.
//!
//! Knows the topology that it is added to; does not know what the gateways are. Called by tests of two hosts that are both behind NAT.
//! Invariant: as the topology's, whatever was built is removed on drop and at exit.
//!
//! ```text
//! client 10.0.0.2 ── inside0 10.0.0.1 [gateway] 192.0.2.1 outside0 ── 192.0.2.2 router of the topology
//! ```

use anyhow::{Context, Result};

use super::gateway::Setup;
use super::namespace::Namespace;
use super::program::Program;
use super::{CLIENTS, GATEWAY_INSIDE, Topology, spray};

/// The second gateway's external address, on no interface until a gateway claims it.
pub const POOL_SECOND: &str = "192.0.2.10";
/// The second gateway's own address towards the router.
const OUTSIDE: &str = "192.0.2.1";
/// The router's address towards the second gateway.
const ROUTER: &str = "192.0.2.2";

/// A client and the place of its gateway.
#[derive(Debug)]
pub struct Site {
    client: Namespace,
    gateway: Namespace,
}

impl Site {
    /// Hangs a second site on the topology's router; its wires have as many queues as the first's. One for each topology.
    ///
    /// **Errors:** a refused `ip` command; what was built until then is removed.
    pub fn build(topology: &Topology) -> Result<Self> {
        let create = |role: &str| Namespace::create(&topology.gateway.name().replace("-gateway", &format!("-{role}")));
        let site = Self { client: create("client4")?, gateway: create("gateway2")? };
        site.lay_wires(topology).context("laying the second site's wires")?;
        site.number_hosts(topology).context("numbering the second site's hosts")?;
        for host in [&site.client, &site.gateway] {
            host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        }
        site.gateway.sysctl("net/ipv4/ip_forward", "1")?;
        if topology.queues > 1 {
            spray::spray(&site.client, "eth0", topology.queues)?;
            spray::spray(&topology.router, "gateway2", topology.queues)?;
        }
        site.client.wait_for_carrier()?;
        site.gateway.wait_for_carrier()?;
        Ok(site)
    }

    /// The client, at the first of [`CLIENTS`]' addresses.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Where the second gateway runs.
    pub fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    /// What the second gateway is told: [`POOL_SECOND`], and all else by default.
    pub fn setup(&self) -> Setup {
        let interface = |name, side| format!("[[interface]]\nname = \"{name}\"\nside = \"{side}\"\n\n");
        let pool = format!("[[pool]]\nname = \"default\"\naddresses = [\"{POOL_SECOND}\"]\n");
        Setup { file: Some(interface("inside0", "inside") + &interface("outside0", "outside") + &pool), ..Setup::default() }
    }

    fn lay_wires(&self, topology: &Topology) -> Result<()> {
        let queues = format!("numrxqueues {0} numtxqueues {0}", topology.queues);
        let wire = |inner: &str, outer: &str, host: &Namespace| {
            let (gateway, host) = (self.gateway.name(), host.name());
            format!("link add {inner} netns {gateway} {queues} type veth peer name {outer} netns {host} {queues}\n")
        };
        let script = wire("inside0", "eth0", &self.client) + &wire("outside0", "gateway2", &topology.router);
        Program::new("ip", ["-batch", "-"]).input(script).run()?.success()?;
        Ok(())
    }

    fn number_hosts(&self, topology: &Topology) -> Result<()> {
        self.client.ip_batch(&format!(
            "address add {}/24 dev eth0
             link set eth0 up
             route add default via {GATEWAY_INSIDE}",
            CLIENTS[0]
        ))?;
        self.gateway.ip_batch(&format!(
            "address add {GATEWAY_INSIDE}/24 dev inside0
             address add {OUTSIDE}/24 dev outside0
             link set inside0 up
             link set outside0 up
             route add default via {ROUTER}"
        ))?;
        topology.router.ip_batch(&format!(
            "address add {ROUTER}/24 dev gateway2
             link set gateway2 up"
        ))
    }
}

/// A namespace goes some time after its name; its wire to the router has to be gone before another site is hung there.
impl Drop for Site {
    fn drop(&mut self) {
        // What fails here is said by whoever builds the next site.
        let _ = self.gateway.ip_batch("link delete outside0");
    }
}
