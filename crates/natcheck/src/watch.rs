//! Looks at every frame that the NAT sends during a whole run: no inside address outside, but to where nothing is translated; no wrong checksum
//! anywhere.
//!
//! Knows frames only. What a test damaged on purpose carries [`DAMAGED`], and its checksums are not held against the NAT.
//! Called by the receiving threads. Sources: RFC 1918, section 3; RFC 3022, section 4.1.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use portcullis_lab::builder::verify;

use crate::datagram::Datagram;
use crate::plan;
use crate::wire::Side;

/// The beginning of every payload's mark.
pub(crate) const SOUND: [u8; 3] = *b"ncT";
/// The same where something is wrong on purpose, which the NAT may pass on as it is.
pub(crate) const DAMAGED: [u8; 3] = *b"ncD";
/// How a finding ends where a header is not all there: such a packet has no room for a mark, and was sent so on purpose.
const CUT: &str = "header cut";
/// How many findings of a kind are kept in words.
const KEPT: usize = 5;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    frames: [AtomicU64; 2],
    leaks: Findings,
    checksums: Findings,
}

/// Findings of one kind: how many, and the first ones in words.
#[derive(Debug, Default)]
pub(crate) struct Findings(Mutex<(u64, Vec<String>)>);

impl Findings {
    fn add(&self, words: String) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.0 += 1;
        if found.1.len() < KEPT {
            found.1.push(words);
        }
    }

    /// How many, and the first ones.
    pub(crate) fn get(&self) -> (u64, Vec<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Watch {
    /// Judges a frame that came on `side`.
    pub(crate) fn judge(&self, side: Side, frame: &[u8], datagram: &Datagram) {
        self.frames[side as usize].fetch_add(1, Ordering::Relaxed);
        if side == Side::Outside {
            self.judge_addresses(datagram);
        }
        if !datagram.contains(&DAMAGED)
            && let Err(what) = verify(frame)
            && !what.ends_with(CUT)
        {
            self.checksums.add(format!("{what}, {}: {datagram}", side.word()));
        }
    }

    fn judge_addresses(&self, datagram: &Datagram) {
        if plan::is_exempt(datagram.destination()) {
            return;
        }
        if plan::is_inside(datagram.source()) {
            self.leaks.add(format!("inside source: {datagram}"));
        } else if plan::is_inside(datagram.destination()) {
            self.leaks.add(format!("inside destination: {datagram}"));
        } else if let Some(quote) = datagram.quote()
            && (plan::is_inside(quote.source()) || plan::is_inside(quote.destination()))
        {
            self.leaks.add(format!("inside address in the quote: {datagram}"));
        }
    }

    /// Frames seen inside and outside.
    pub(crate) fn frames(&self) -> (u64, u64) {
        (self.frames[0].load(Ordering::Relaxed), self.frames[1].load(Ordering::Relaxed))
    }

    /// Inside addresses that were seen outside.
    pub(crate) const fn leaks(&self) -> &Findings {
        &self.leaks
    }

    /// Wrong checksums and lengths.
    pub(crate) const fn checksums(&self) -> &Findings {
        &self.checksums
    }
}

#[cfg(test)]
mod tests {
    use portcullis_lab::builder::{Checksum, PacketBuilder, endpoint};

    use super::*;

    fn judge(watch: &Watch, side: Side, packet: &PacketBuilder) {
        let frame = packet.build();
        watch.judge(side, &frame, &Datagram::of_frame(&frame).expect("IPv4"));
    }

    #[test]
    fn inside_addresses_outside_are_leaks_and_inside_they_are_not() {
        let watch = Watch::default();
        let (host, remote) = (endpoint("10.0.0.2:1"), endpoint("198.51.100.2:2"));
        judge(&watch, Side::Inside, &PacketBuilder::udp(remote, host));
        assert_eq!(watch.leaks().get().0, 0);
        judge(&watch, Side::Outside, &PacketBuilder::udp(host, remote));
        judge(&watch, Side::Outside, &PacketBuilder::udp(remote, host));
        let quoted = PacketBuilder::udp(remote, host).datagram();
        judge(&watch, Side::Outside, &PacketBuilder::icmp_error(plan::POOL[0], remote.address, 3, 3, &quoted));
        assert_eq!(watch.leaks().get().0, 3);
        assert_eq!(watch.frames(), (1, 3));
    }

    #[test]
    fn wrong_checksums_are_found_unless_they_were_made_on_purpose() {
        let watch = Watch::default();
        let (pool, remote) = (endpoint("203.0.113.10:1"), endpoint("198.51.100.2:2"));
        let wrong = PacketBuilder::udp(pool, remote).checksum(Checksum::Wrong(1));
        judge(&watch, Side::Outside, &wrong.clone().payload(b"ncDxxxxx"));
        judge(&watch, Side::Outside, &PacketBuilder::udp(pool, remote).payload(b"ncTxxxxx"));
        assert_eq!(watch.checksums().get().0, 0);
        judge(&watch, Side::Outside, &wrong.payload(b"ncTxxxxx"));
        assert_eq!(watch.checksums().get().0, 1);
    }
}
