//! Small servers that say whom they saw: HTTP, echo over TCP and UDP, DNS.
//!
//! Knows std's sockets only. A service's sockets are in the namespace that it was started for; its threads end when it is dropped.
//! The demo runs the same loops in processes of their own. Every answer names the client as the server sees it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::namespace::Namespace;

/// How often a service looks whether it should end. **Units:** milliseconds.
const LOOK: u16 = 50;
/// How long a connection may stay silent.
const SILENCE: Duration = Duration::from_secs(20);
/// The address that the DNS service gives for every name (RFC 5737, TEST-NET-1).
pub const DNS_ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// A server that runs in threads of this process until it is dropped.
#[derive(Debug)]
pub struct Service {
    ctl: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// What a server's loop shares with whoever started it.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    served: AtomicU64,
}

impl Service {
    /// A web server. `/` answers with [`who`]; `/bytes/N` with N bytes.
    pub fn http(host: &Namespace, address: &str) -> Result<Self> {
        Self::tcp(host, address, serve_http)
    }

    /// Sends [`who`] at once, as SSH sends its banner, then echoes.
    pub fn tcp_echo(host: &Namespace, address: &str) -> Result<Self> {
        Self::tcp(host, address, serve_echo)
    }

    /// Answers each datagram with [`who`] and the datagram.
    pub fn udp_echo(host: &Namespace, address: &str) -> Result<Self> {
        Self::udp(host, address, |socket, datagram, from| {
            let local = socket.local_addr()?;
            socket.send_to(&[who(from, local).as_bytes(), datagram].concat(), from)
        })
    }

    /// Answers every question with [`DNS_ANSWER`].
    pub fn dns(host: &Namespace, address: &str) -> Result<Self> {
        Self::udp(host, address, |socket, query, from| socket.send_to(&dns_answer(query), from))
    }

    /// How many connections or datagrams it has taken.
    pub fn served(&self) -> u64 {
        self.ctl.served.load(Ordering::Relaxed)
    }

    fn tcp(host: &Namespace, address: &str, serve: fn(TcpStream) -> io::Result<()>) -> Result<Self> {
        let listener = host.enter(|| TcpListener::bind(address))?.with_context(|| format!("listening on tcp {address}"))?;
        Ok(Self::on_thread(move |ctl| accept(&listener, serve, ctl)))
    }

    fn udp(
        host: &Namespace,
        address: &str,
        answer: impl Fn(&UdpSocket, &[u8], SocketAddr) -> io::Result<usize> + Send + 'static,
    ) -> Result<Self> {
        let socket = host.enter(|| UdpSocket::bind(address))?.with_context(|| format!("binding udp {address}"))?;
        Ok(Self::on_thread(move |ctl| {
            let mut datagram = vec![0; 65_536];
            while ready(&socket, ctl) {
                // An ICMP error about an earlier answer shows up as an error here; the next datagram counts.
                if let Ok((length, from)) = socket.recv_from(&mut datagram) {
                    ctl.served.fetch_add(1, Ordering::Relaxed);
                    let _ = answer(&socket, &datagram[..length], from);
                }
            }
        }))
    }

    fn on_thread(body: impl FnOnce(&Control) + Send + 'static) -> Self {
        let ctl = Arc::new(Control::default());
        let its = Arc::clone(&ctl);
        Self { ctl, thread: Some(thread::spawn(move || body(&its))) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.ctl.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves HTTP in this process until it is killed.
///
/// **Errors:** the address cannot be listened on.
pub fn http_forever(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on tcp {address}"))?;
    accept(&listener, serve_http, &Control::default());
    Ok(())
}

/// The line that names both ends of what arrived.
pub fn who(from: SocketAddr, at: SocketAddr) -> String {
    format!("seen from {from} at {at}\n")
}

/// The client's address and port that a server's answer names.
///
/// **Errors:** no such line in the answer.
pub fn seen_from(answer: &str) -> Result<SocketAddr> {
    let after = answer.split("seen from ").nth(1).with_context(|| format!("no client named in the answer {answer:?}"))?;
    let address = after.split_whitespace().next().unwrap_or_default();
    address.parse().with_context(|| format!("no address in the answer {answer:?}"))
}

/// Waits for something to read. Returns false when the service should end.
fn ready(socket: &impl AsFd, ctl: &Control) -> bool {
    while !ctl.stop.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(LOOK)).is_ok_and(|ready| ready > 0) {
            return true;
        }
    }
    false
}

fn accept(listener: &TcpListener, serve: fn(TcpStream) -> io::Result<()>, ctl: &Control) {
    while ready(listener, ctl) {
        if let Ok((connection, _)) = listener.accept() {
            ctl.served.fetch_add(1, Ordering::Relaxed);
            // A client that resets its connection is a test's business, not the server's.
            thread::spawn(move || serve(connection));
        }
    }
}

fn serve_echo(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(SILENCE))?;
    connection.write_all(who(connection.peer_addr()?, connection.local_addr()?).as_bytes())?;
    let mut chunk = [0; 4096];
    loop {
        let length = connection.read(&mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        connection.write_all(&chunk[..length])?;
    }
}

fn serve_http(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let bytes = path.strip_prefix("/bytes/").and_then(|number| number.parse().ok());
    let body = match bytes {
        Some(length) => vec![b'x'; length],
        None => who(connection.peer_addr()?, connection.local_addr()?).into_bytes(),
    };
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    connection.write_all(&[head.as_bytes(), &body].concat())
}

/// An answer to `query` with one address. **Source:** RFC 1035, section 4.1.
fn dns_answer(query: &[u8]) -> Vec<u8> {
    /// Where the question starts, after the header.
    const QUESTION: usize = 12;
    let labels_end = query.get(QUESTION..).and_then(|question| question.iter().position(|&byte| byte == 0));
    let Some(end) = labels_end.map(|length| QUESTION + length + 5) else { return Vec::new() };
    let (Some(id), Some(question)) = (query.get(..2), query.get(QUESTION..end)) else { return Vec::new() };
    let header = [0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    let record = [0xC0, QUESTION as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4];
    [id, &header, question, &record, &DNS_ANSWER.octets()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_client_again() {
        let from: SocketAddr = "203.0.113.10:4711".parse().expect("an address");
        let at = "198.51.100.2:80".parse().expect("an address");
        assert_eq!(seen_from(&who(from, at)).expect("found"), from);
        assert!(seen_from("nothing").is_err());
    }

    #[test]
    fn a_dns_answer_repeats_the_question_and_gives_the_address() {
        let question = b"\x07example\x03org\x00\x00\x01\x00\x01";
        let query = [b"\xAB\xCD\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".as_slice(), question].concat();
        let answer = dns_answer(&query);
        assert_eq!(&answer[..2], b"\xAB\xCD");
        assert_eq!(&answer[12..12 + question.len()], question);
        assert_eq!(&answer[answer.len() - 4..], DNS_ANSWER.octets());
        assert_eq!(dns_answer(b"short"), b"");
    }
}
