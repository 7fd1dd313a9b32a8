//! Netlink sockets: one that listens to the kernel's notifications, one that asks it and waits for the answer.
//!
//! Knows framing, sequence numbers and errors; not what messages mean. An own thin reader rather than rtnetlink's connection, because
//! a dump that ends early, an undecodable message or an overrun must be told apart from the end of the data.
//! Invariant: a dump that returns was complete. Sources: netlink(7), rtnetlink(7). Tests: through `tests` (root).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::KernelError;

/// How long the kernel may take for one answer. It answers while the request is being sent; a route dump of a full table takes
/// well under a second. Chosen far above both.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(10);

/// What the kernel may queue for us before notifications are lost. **Units:** bytes. About 40,000 route notifications.
pub(super) const RECEIVE_BUFFER: usize = 16 << 20;

/// The largest datagram: dumps come in at most 32 KiB (Linux `net/netlink/af_netlink.c`, `netlink_recvmsg`).
const DATAGRAM: usize = 64 << 10;

/// `RTM_DELNEXTHOP` (linux/rtnetlink.h): the routes of a deleted nexthop object vanish without notifications of their own.
const DEL_NEXTHOP: u16 = 105;
/// `RTM_NEWNEXTHOP`.
const NEW_NEXTHOP: u16 = 104;

/// Notification groups as bits of the socket's address (linux/rtnetlink.h, `RTMGRP_*`).
const GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7;
/// `RTNLGRP_NEXTHOP`, which is beyond the 32 bits.
const GROUP_NEXTHOP: u32 = 32;

/// A netlink socket with its receive buffer.
struct Socket {
    inner: TokioSocket,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    fn open(groups: u32, buffer: usize) -> Result<Self, KernelError> {
        let mut inner = TokioSocket::new(NETLINK_ROUTE).map_err(KernelError::Open)?;
        inner.socket_mut().bind(&SocketAddr::new(0, groups)).map_err(KernelError::Open)?;
        if let Err(error) = setsockopt(inner.socket_ref(), RcvBufForce, &buffer) {
            tracing::debug!(%error, "the netlink receive buffer stays at the system's default");
        }
        Ok(Self { inner, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Receives one datagram of the kernel. Cancel safe.
    async fn datagram(&mut self) -> io::Result<&[u8]> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(DATAGRAM);
            let from = self.inner.recv_from(&mut self.buffer).await?;
            if from.port_number() == 0 {
                return Ok(&self.buffer);
            }
        }
    }
}

/// One message of a datagram.
struct Raw<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    bytes: &'a [u8],
}

impl Raw<'_> {
    fn decode(&self) -> Option<RouteNetlinkMessage> {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(self.bytes) {
            Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => Some(message),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(kind = self.kind, %error, "a netlink message could not be read and is ignored");
                None
            }
        }
    }
}

/// The messages of a datagram, up to the first that is not whole.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = NetlinkBuffer::new_checked(rest).ok()?;
        let length = header.length() as usize;
        let raw = Raw {
            kind: header.message_type(),
            flags: header.flags(),
            sequence: header.sequence_number(),
            bytes: rest.get(..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(raw)
    })
}

/// What the notification socket tells.
#[derive(Debug)]
pub(super) enum Event {
    /// A notification with its header's flags.
    Message(RouteNetlinkMessage, u16),
    /// A nexthop object was deleted.
    NexthopDeleted,
    /// Notifications were lost: all has to be dumped again.
    Lost,
}

/// The kernel's notifications about links, IPv4 addresses, routes and rules, and neighbours.
pub(super) struct Events {
    socket: Socket,
    ready: VecDeque<Event>,
}

impl Events {
    /// Subscribes. From here on nothing is missed that [`Event::Lost`] does not tell.
    pub(super) fn open(buffer: usize) -> Result<Self, KernelError> {
        let mut socket = Socket::open(GROUPS, buffer)?;
        if let Err(error) = socket.inner.socket_mut().add_membership(GROUP_NEXTHOP) {
            tracing::debug!(%error, "no notifications about nexthop objects");
        }
        Ok(Self { socket, ready: VecDeque::new() })
    }

    /// The next event. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Event, KernelError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match self.socket.datagram().await {
                Ok(datagram) if datagram.len() >= DATAGRAM => return Ok(Event::Lost),
                Ok(datagram) => self.ready.extend(messages(datagram).filter_map(|raw| notification(&raw))),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Event::Lost),
                Err(error) => return Err(KernelError::Socket(error)),
            }
        }
    }

    /// The next event that is there already.
    pub(super) fn ready(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }
}

fn notification(raw: &Raw<'_>) -> Option<Event> {
    match raw.kind {
        // Of nexthop objects that appear or change, the routes that they alter are announced themselves.
        NLMSG_NOOP | NLMSG_DONE | NLMSG_ERROR | NEW_NEXTHOP => None,
        NLMSG_OVERRUN => Some(Event::Lost),
        DEL_NEXTHOP => Some(Event::NexthopDeleted),
        _ if !concerns_ipv4(raw) => None,
        _ => Some(raw.decode().map_or(Event::Lost, |message| Event::Message(message, raw.flags))),
    }
}

/// Whether the family, the first byte of every rtnetlink header, is unspecified or IPv4: the neighbour group carries others too.
fn concerns_ipv4(raw: &Raw<'_>) -> bool {
    const HEADER: usize = 16;
    raw.bytes.get(HEADER).is_some_and(|&family| i32::from(family) == libc::AF_UNSPEC || i32::from(family) == libc::AF_INET)
}

/// Whether a dump saw one moment, or a table that changed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dump {
    /// One moment.
    Consistent,
    /// The kernel says that it changed (`NLM_F_DUMP_INTR`): entries can be missing or twice.
    Interrupted,
}

/// Asks the kernel, one request at a time. Clones share the socket; a socket that failed is opened again at the next request.
#[derive(Clone)]
pub(crate) struct Requests {
    client: Arc<Mutex<Option<Client>>>,
}

struct Client {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens the socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, KernelError> {
        let client = Client::open()?;
        Ok(Self { client: Arc::new(Mutex::new(Some(client))) })
    }

    /// Dumps a table into `sink`, message by message. **Errors:** what `sink` got so far is then incomplete.
    pub(super) async fn dump(
        &self,
        what: &'static str,
        request: RouteNetlinkMessage,
        sink: impl FnMut(RouteNetlinkMessage),
    ) -> Result<Dump, KernelError> {
        self.ask(what, request, NLM_F_DUMP, sink).await
    }

    /// Has the kernel do something, and waits until it is done.
    pub(super) async fn execute(&self, what: &'static str, request: RouteNetlinkMessage, flags: u16) -> Result<(), KernelError> {
        self.ask(what, request, NLM_F_ACK | flags, |_| ()).await.map(|_| ())
    }

    async fn ask(
        &self,
        what: &'static str,
        request: RouteNetlinkMessage,
        flags: u16,
        sink: impl FnMut(RouteNetlinkMessage),
    ) -> Result<Dump, KernelError> {
        let mut slot = self.client.lock().await;
        let mut client = match slot.take() {
            Some(client) => client,
            None => Client::open()?,
        };
        // A request that is abandoned or fails leaves answers in the socket: only a finished one gives it back.
        let answer = client.ask(what, request, flags, sink).await;
        if matches!(answer, Ok(_) | Err(KernelError::Refused { .. })) {
            *slot = Some(client);
        }
        answer
    }
}

impl Client {
    fn open() -> Result<Self, KernelError> {
        Ok(Self { socket: Socket::open(0, RECEIVE_BUFFER)?, sequence: 0 })
    }

    async fn ask(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
        flags: u16,
        mut sink: impl FnMut(RouteNetlinkMessage),
    ) -> Result<Dump, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.inner.send_to(&bytes, &SocketAddr::new(0, 0)).await.map_err(KernelError::Socket)?;

        let mut consistency = Dump::Consistent;
        loop {
            let received = timeout(ANSWER_TIME, self.socket.datagram()).await.map_err(|_| KernelError::Silent(what))?;
            for raw in messages(received.map_err(KernelError::Socket)?) {
                if raw.sequence != self.sequence {
                    continue;
                }
                if raw.flags & NLM_F_DUMP_INTR != 0 {
                    consistency = Dump::Interrupted;
                }
                match raw.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return errno(&raw).map_or(Ok(consistency), |error| Err(KernelError::Refused { what, error }));
                    }
                    _ => raw.decode().into_iter().for_each(&mut sink),
                }
            }
        }
    }
}

/// The error that an end-of-dump or an acknowledgement carries, if it does: a negative errno behind the header.
fn errno(raw: &Raw<'_>) -> Option<io::Error> {
    const HEADER: usize = 16;
    let code = raw.bytes.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::neighbour::NeighbourMessage;

    use super::*;

    fn bytes(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    fn neighbour() -> Vec<u8> {
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(NeighbourMessage::default()));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_datagram_is_split_at_message_boundaries_and_a_torn_end_is_left() {
        let mut datagram = bytes(20, 1, 7, &[1, 2, 3, 4, 5]);
        datagram.extend(bytes(21, 2, 8, &[]));
        datagram.extend(&bytes(22, 3, 9, &[0; 8])[..20]);
        let found: Vec<_> = messages(&datagram).map(|raw| (raw.kind, raw.flags, raw.sequence, raw.bytes.len())).collect();
        assert_eq!(found, [(20, 1, 7, 21), (21, 2, 8, 16)]);
    }

    #[test]
    fn any_bytes_are_split_without_a_panic() {
        for length in 0..64_u8 {
            for fill in [0, 1, 4, 16, 255] {
                let datagram = vec![fill; usize::from(length)];
                assert!(messages(&datagram).filter_map(|raw| notification(&raw)).count() <= 4);
            }
        }
    }

    #[test]
    fn an_acknowledgement_has_no_error_and_a_refusal_has_its_errno() {
        let answer = |code: i32| bytes(NLMSG_ERROR, 0, 1, &code.to_ne_bytes());
        let errno_of =
            |datagram: &[u8]| messages(datagram).next().and_then(|raw| errno(&raw)).and_then(|error| error.raw_os_error());
        assert_eq!(errno_of(&answer(0)), None);
        assert_eq!(errno_of(&answer(-libc::EEXIST)), Some(libc::EEXIST));
    }

    #[test]
    fn notifications_are_told_apart_and_one_that_cannot_be_read_counts_as_lost() {
        let event = |datagram: Vec<u8>| messages(&datagram).next().and_then(|raw| notification(&raw));
        assert!(matches!(event(neighbour()), Some(Event::Message(RouteNetlinkMessage::NewNeighbour(_), _))));
        assert!(matches!(event(bytes(NLMSG_OVERRUN, 0, 0, &[])), Some(Event::Lost)));
        assert!(matches!(event(bytes(DEL_NEXTHOP, 0, 0, &[0; 8])), Some(Event::NexthopDeleted)));
        let half_a_route = bytes(24, 0, 0, &[libc::AF_INET as u8, 0, 0, 0]);
        assert!(matches!(event(half_a_route), Some(Event::Lost)));
        let ipv6 = bytes(28, 0, 0, &[libc::AF_INET6 as u8, 0, 0, 0]);
        assert!(event(ipv6).is_none());
    }
}
