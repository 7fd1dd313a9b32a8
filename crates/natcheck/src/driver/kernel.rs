//! The kernel's NAT, as an ordinary administrator sets it up: SNAT to the pool, forwards, a stateful filter, conntrack's sysctls.
//!
//! Knows nft and sysctls. Conntrack's defaults stay unless a setup names times. A host keeps its address (`persistent`).

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use portcullis_lab::namespace::Namespace;

use super::{INSIDE, OUTSIDE, Running, Started};
use crate::plan;
use crate::setup::{Filtering, Setup, Timers};

/// The kernel's version, without what a distribution appends.
pub(super) fn version() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let numbers: Vec<_> = release.trim().split(['.', '-']).take(2).collect();
    format!("Linux {}", numbers.join("."))
}

/// Loads the rules. Conntrack filters by address and port, whatever the rules say.
pub(super) fn start(namespace: &Namespace, setup: &Setup) -> Result<Started> {
    if let Some(filtering) = setup.filtering
        && filtering != (Filtering::AddressAndPort, Filtering::AddressAndPort)
    {
        return Ok(Started::Unsupported("conntrack filters by address and port only".to_owned()));
    }
    if setup.silent {
        return Ok(Started::Unsupported("no setting of the NAT turns the kernel's own ICMP errors off".to_owned()));
    }
    for address in setup.pool() {
        namespace.ip(&format!("address replace {address}/32 dev {OUTSIDE}"))?;
    }
    // As systemd's defaults have it: a source has to be reachable by some interface.
    namespace.sysctl("net/ipv4/conf/all/rp_filter", "2")?;
    if let Some((port, time)) = setup.udp_port
        && namespace.nft(&port_timer(port, time)).is_err()
    {
        return Ok(Started::Unsupported("this kernel, or this nft, has no timeout policies".to_owned()));
    }
    namespace.nft(&rules(setup))?;
    // Conntrack's keys are there once a rule has loaded it.
    if let Some(timers) = setup.timers {
        set_timers(namespace, timers)?;
    }
    Ok(Started::Running(Running::Kernel))
}

fn rules(setup: &Setup) -> String {
    let (first, last) = (plan::POOL[0], plan::POOL[setup.addresses - 1]);
    let prefix = "10.0.0.0/16";
    let mut to = format!("{first}-{last}");
    let mut snat = format!("ip saddr {prefix} oifname \"{OUTSIDE}\" snat to {to} persistent\n");
    if let Some((low, high)) = setup.ports {
        let _ = write!(to, ":{low}-{high}");
        // A range of ports wants the protocol named.
        snat = ["meta l4proto { tcp, udp }", "meta l4proto icmp"]
            .map(|protocol| format!("ip saddr {prefix} oifname \"{OUTSIDE}\" {protocol} snat to {to} persistent\n"))
            .concat();
    }
    let forward = |protocol, external, internal| {
        format!("ip daddr {first} {protocol} dport {external} dnat to {}:{internal}\n", plan::SERVER)
    };
    let forwards = forward("udp", plan::UDP_FORWARD, plan::UDP_SERVICE) + &forward("tcp", plan::TCP_FORWARD, plan::TCP_SERVICE);
    let clamp = if setup.clamps { "tcp flags syn tcp option maxseg size set rt mtu\n" } else { "" };
    let exempt = if setup.exempts {
        ["daddr", "saddr"].map(|end| format!("ip {end} {} accept\n", plan::EXEMPT))
    } else {
        Default::default()
    };
    format!(
        "table ip natcheck {{
             chain in {{
                 type nat hook prerouting priority dstnat; policy accept;
                 {forwards}
             }}
             chain out {{
                 type nat hook postrouting priority srcnat; policy accept;
                 {}
                 {snat}
             }}
             chain filter {{
                 type filter hook forward priority filter; policy drop;
                 {clamp}
                 iifname \"{INSIDE}\" accept
                 ct state established,related accept
                 ct status dnat accept
                 {}
             }}
         }}",
        exempt[0], exempt[1]
    )
}

/// A policy of conntrack's for UDP towards a port, which its entry is given after conntrack has made it, and before it is confirmed.
fn port_timer(port: u16, time: Duration) -> String {
    let seconds = time.as_secs();
    format!(
        "table ip natcheck-times {{
             ct timeout towards-port {{
                 protocol udp
                 l3proto ip
                 policy = {{ unreplied : {seconds}, replied : {seconds} }}
             }}
             chain times {{
                 type filter hook prerouting priority mangle; policy accept;
                 udp dport {port} ct timeout set \"towards-port\"
             }}
         }}"
    )
}

fn set_timers(namespace: &Namespace, timers: Timers) -> Result<()> {
    let seconds = [
        ("udp_timeout", timers.udp),
        ("udp_timeout_stream", timers.udp),
        ("tcp_timeout_established", timers.established),
        ("tcp_timeout_syn_sent", timers.opening),
        ("tcp_timeout_syn_recv", timers.opening),
        ("tcp_timeout_fin_wait", timers.closing),
        ("tcp_timeout_close_wait", timers.closing),
        ("tcp_timeout_last_ack", timers.closing),
        ("tcp_timeout_time_wait", timers.closing),
        ("tcp_timeout_close", timers.closing),
        ("icmp_timeout", timers.icmp),
    ];
    for (key, time) in seconds {
        namespace.sysctl(&format!("net/netfilter/nf_conntrack_{key}"), &time.as_secs().to_string())?;
    }
    Ok(())
}
