//! The echo server: answers every UDP datagram with itself.
//!
//! An ordinary socket, on purpose: it is what a real server looks like to a NAT. Called by the program and by tests, in the
//! network namespace of the calling thread. Invariant: every run ends by its count or its duration.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::address::seconds;

/// The largest UDP payload. **Units:** bytes.
const DATAGRAM_MAX: usize = 65_507;
/// How long one wait may take, so that the run ends in time. Chosen.
const WAIT: Duration = Duration::from_millis(50);

/// Where to listen and how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where to listen. On a machine with several addresses name the one that is asked: answers to 0.0.0.0 may come from another.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Stop after as many answers.
    #[arg(long, required_unless_present = "duration")]
    pub count: Option<u64>,
    /// Stop after as many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
}

/// What was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Datagrams answered.
    pub answered: u64,
    /// Their payloads' bytes.
    pub bytes: u64,
    /// Answers that the kernel refused to send.
    pub failed: u64,
}

/// An echo server that listens; datagrams wait in its socket until it runs.
pub struct Echo {
    socket: UdpSocket,
    options: Options,
}

impl Echo {
    /// Starts to listen.
    ///
    /// **Errors:** without count and duration; when the address is not here or taken.
    pub fn bind(options: &Options) -> Result<Self> {
        ensure!(options.count.is_some() || options.duration.is_some(), "a run needs a count or a duration to end by");
        let socket = UdpSocket::bind(options.listen).with_context(|| format!("listening on {}", options.listen))?;
        socket.set_read_timeout(Some(WAIT)).context("setting the socket's timeout")?;
        Ok(Self { socket, options: options.clone() })
    }

    /// Where it listens: the port that was chosen, if 0 was asked for.
    pub fn local_address(&self) -> Result<SocketAddr> {
        self.socket.local_addr().context("reading the socket's address")
    }

    /// Answers until the count or the duration is reached.
    ///
    /// **Errors:** when the socket breaks; an answer that could not be sent is only counted.
    pub fn run(self) -> Result<Report> {
        let (count, duration) = (self.options.count.unwrap_or(u64::MAX), self.options.duration.unwrap_or(Duration::MAX));
        let mut datagram = vec![0; DATAGRAM_MAX];
        let (start, mut report) = (Instant::now(), Report::default());
        while report.answered < count && start.elapsed() < duration {
            let (len, from) = match self.socket.recv_from(&mut datagram) {
                Ok(received) => received,
                // Refused is an earlier answer that met a closed port, told by ICMP.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused) =>
                {
                    continue;
                }
                Err(error) => return Err(error).context("receiving"),
            };
            match self.socket.send_to(&datagram[..len], from) {
                Ok(_) => {
                    report.answered += 1;
                    report.bytes += len as u64;
                }
                Err(_) => report.failed += 1,
            }
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn options(count: Option<u64>, duration: Option<Duration>) -> Options {
        Options { listen: "127.0.0.1:0".parse().unwrap(), count, duration }
    }

    #[test]
    fn every_datagram_comes_back_as_it_was_until_the_count_is_reached() {
        let echo = Echo::bind(&options(Some(3), Some(Duration::from_secs(10)))).unwrap();
        let address = echo.local_address().unwrap();
        let server = thread::spawn(|| echo.run().unwrap());
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.connect(address).unwrap();
        for len in [0, 1, 1472] {
            client.send(&vec![7; len]).unwrap();
            let mut answer = [0; 2000];
            let received = client.recv(&mut answer).unwrap();
            assert_eq!(answer[..received], vec![7; len]);
        }
        assert_eq!(server.join().unwrap(), Report { answered: 3, bytes: 1473, failed: 0 });
    }

    #[test]
    fn a_run_ends_by_its_duration_and_needs_an_end() {
        let echo = Echo::bind(&options(None, Some(Duration::from_millis(10)))).unwrap();
        assert_eq!(echo.run().unwrap(), Report::default());
        assert!(Echo::bind(&options(None, None)).is_err());
    }
}
