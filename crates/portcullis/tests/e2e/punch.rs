//! Two hosts, each behind a Portcullis of its own, that talk to each other without a relay: hole punching by UDP and by TCP.
//!
//! Two gateways at once, both with the behaviours that they have by default; the echo server is the rendezvous, which tells each client
//! its external endpoint. Both clients have the same internal address. Sources: RFC 5128, sections 3.3 and
//! 3.4; RFC 5382.

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use portcullis_testkit::topology::POOL;
use portcullis_testkit::topology::gateway::Gateway;
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::services::seen_from;
use portcullis_testkit::topology::site::{POOL_SECOND, Site};

use crate::world::{World, ask, binary, hears, receive, run_portcullis, udp, usual};

/// The rendezvous, over UDP and TCP.
const RENDEZVOUS: &str = "198.51.100.2:7";

/// Runs a test with a second site, whose gateway runs beside the world's.
fn with_second_site(world: &World, test: impl FnOnce(&Site) -> Result<()>) -> Result<()> {
    let site = Site::build(&world.topology)?;
    let mut second = Gateway::Portcullis(binary()).start(site.gateway(), &site.setup()).context("the second gateway")?;
    let tested = test(&site).with_context(|| format!("the second gateway's log:\n{}", second.log()));
    second.stop()?;
    tested
}

/// RFC 4787, REQ-1 and REQ-8: the mapping holds for every remote, the filter lets in whom the client has sent to.
#[test]
fn two_clients_behind_two_gateways_punch_holes_for_udp() {
    run_portcullis(usual(), |world| with_second_site(world, |site| punch_udp(world, site)));
}

fn punch_udp(world: &World, site: &Site) -> Result<()> {
    let (near, far) = (udp(world.client(0), "10.0.0.2:6400")?, udp(site.client(), "10.0.0.2:6400")?);
    let near_seen = seen_from(&ask(&near, RENDEZVOUS, "near")?)?;
    let far_seen = seen_from(&ask(&far, RENDEZVOUS, "far")?)?;
    ensure!(near_seen.ip().to_string() == POOL && far_seen.ip().to_string() == POOL_SECOND, "{near_seen}, {far_seen}");
    near.send_to(b"first knock", far_seen)?;
    ensure!(!hears(&far)?, "a datagram came in to a client that had not sent to its sender");
    for round in 0..3 {
        for (from, to, to_seen, from_seen) in [(&far, &near, near_seen, far_seen), (&near, &far, far_seen, near_seen)] {
            let text = format!("round {round} from {from_seen}");
            from.send_to(text.as_bytes(), to_seen)?;
            let (heard, sender) = receive(to).with_context(|| format!("waiting for {text:?}"))?;
            ensure!(heard == text && sender == from_seen, "{heard:?} from {sender} instead of {text:?} from {from_seen}");
        }
    }
    Ok(())
}

/// "REQ-2: A NAT MUST support all valid sequences of TCP packets (defined in [RFC0793]) for connections initiated both internally as
/// well as externally when the connection is permitted by the NAT." The simultaneous open is one of them.
#[test]
fn two_clients_behind_two_gateways_open_a_tcp_connection_at_once() {
    run_portcullis(usual(), |world| with_second_site(world, |site| open_at_once(world.client(0), site.client())));
}

fn open_at_once(near: &Namespace, far: &Namespace) -> Result<()> {
    let (_near_kept, near_seen) = meet(near)?;
    let (_far_kept, far_seen) = meet(far)?;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| talk(far, near_seen, "from far", "from near"));
        talk(near, far_seen, "from near", "from far").context("the near client")?;
        other.join().expect("no panic").context("the far client")
    })
}

/// Asks the rendezvous over TCP. Gives the connection, which keeps the mapping, and the external endpoint.
fn meet(host: &Namespace) -> Result<(TcpStream, SocketAddr)> {
    let mut stream = open(host, RENDEZVOUS.parse()?).context("the rendezvous")?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer)?;
    Ok((stream, seen_from(&String::from_utf8_lossy(&answer[..length]))?))
}

/// Connects to the other client, while that one connects to this; then each says something and hears the other.
fn talk(host: &Namespace, to: SocketAddr, says: &str, hears: &str) -> Result<()> {
    let SocketAddr::V4(to) = to else { anyhow::bail!("{to} is not IPv4") };
    let mut stream = open(host, to).with_context(|| format!("connecting to {to}"))?;
    stream.write_all(says.as_bytes())?;
    let mut heard = vec![0; hears.len()];
    stream.read_exact(&mut heard)?;
    ensure!(heard == hears.as_bytes(), "{:?} instead of {hears:?}", String::from_utf8_lossy(&heard));
    Ok(())
}

/// Connects from port 6500, which several sockets share.
fn open(host: &Namespace, to: SocketAddrV4) -> Result<TcpStream> {
    let connected = host.enter(|| -> nix::Result<OwnedFd> {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        // Bounds connect(2) as well: long enough for a SYN that is sent again after 1 s and after 3 s.
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(10))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        bind(fd.as_raw_fd(), &SockaddrIn::new(10, 0, 0, 2, 6500))?;
        connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
        Ok(fd)
    })?;
    Ok(TcpStream::from(connected?))
}
