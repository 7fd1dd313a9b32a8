//! One body for the property tests and the fuzz target `parse`: what holds of any bytes that are taken for a frame.

use portcullis_wire::embedded::{parse_embedded, quoted};
use portcullis_wire::icmp_error::{ErrorMessage, build_error, may_answer_with_error};
use portcullis_wire::packet::{Fragment, Layout, Transport, parse};
use portcullis_wire::partial::{ChecksumState, complete, transport_checksum_state};
use portcullis_wire::{ethernet, fragment, icmpv4, ipv4, tcp};

/// Asserts everything that [`Layout`] promises about the frame that it was made from.
pub(crate) fn check_layout(layout: &Layout, frame: &[u8]) {
    assert!(layout.l3() == 14 || layout.l3() == 18);
    assert!(layout.l3() + 20 <= layout.l4() && layout.l4() <= layout.end() && layout.end() <= frame.len());
    assert!(ipv4::header_checksum_ok(&frame[layout.l3()..]));
    let payload = layout.payload(frame).len();
    let least = match layout.transport() {
        Transport::Udp | Transport::IcmpQuery(_) | Transport::IcmpError | Transport::OtherIcmp(_) => 8,
        Transport::Tcp => 20,
        Transport::Other(_) | Transport::None => 0,
    };
    assert!(payload >= least);
    assert_eq!(layout.fragment() == Fragment::Later, layout.transport() == Transport::None);
    if layout.fragment() == Fragment::Whole {
        assert!(layout.tcp(frame).is_none_or(|tcp| tcp.header_len() <= payload));
        assert!(layout.udp(frame).is_none_or(|udp| usize::from(udp.len()) <= payload));
    }
}

/// Asserts that `after` is `before` but for bytes in `range`.
pub(crate) fn check_changed_within(before: &[u8], after: &[u8], range: core::ops::Range<usize>) {
    assert_eq!(before.len(), after.len());
    for (at, (old, new)) in before.iter().zip(after).enumerate() {
        assert!(old == new || range.contains(&at), "byte {at} changed");
    }
}

/// Reads a frame, and edits it in every way that the gateway does. The first two bytes choose the edits' details; the rest is the frame.
pub(crate) fn run(bytes: &[u8]) {
    let Some((&[detail, more], frame)) = bytes.split_first_chunk() else { return };
    read_headers(frame);
    let Ok(layout) = parse(frame) else { return };
    check_layout(&layout, frame);
    complete_checksum(frame, &layout);
    answer_with_error(frame, &layout, usize::from(detail));
    edit_quote(&frame[layout.l4()..layout.end()], detail);
    relink(frame, usize::from(detail), (more != 0).then_some(u16::from(more) << 4 | 0xF));
    split(layout.datagram(frame), usize::from(detail) * 6);
}

/// Headers by themselves, wherever they begin.
fn read_headers(frame: &[u8]) {
    for at in [0, 14, 18, 34] {
        let bytes = frame.get(at..).unwrap_or(&[]);
        let _ = (ipv4::header_checksum_ok(bytes), icmpv4::checksum_ok(bytes), quoted(bytes));
        let mut segment = bytes.to_vec();
        let clamped = tcp::clamp_mss(&mut segment, 1360);
        assert_eq!(clamped, segment != bytes);
        check_changed_within(bytes, &segment, 16..60);
    }
}

fn complete_checksum(frame: &[u8], layout: &Layout) {
    let mut completed = frame.to_vec();
    let written = complete(&mut completed, layout);
    let at = layout.l4() + if layout.transport() == Transport::Tcp { 16 } else { 6 };
    check_changed_within(frame, &completed, if written { at..at + 2 } else { 0..0 });
    assert!(!written || transport_checksum_state(&completed, layout) == ChecksumState::Complete);
}

fn answer_with_error(frame: &[u8], layout: &Layout, room: usize) {
    let mut answer = frame.to_vec();
    answer.resize(frame.len() + room, 0xAA);
    let before = answer.clone();
    let Some(len) = build_error(&mut answer, layout, &ErrorMessage::unreachable(1, [192, 0, 2, 1].into(), 64)) else {
        assert_eq!(before, answer);
        return;
    };
    check_changed_within(&before, &answer, 0..len);
    let error = parse(&answer[..len]).expect("a packet");
    assert_eq!((error.transport(), error.end()), (Transport::IcmpError, len));
    let message = error.payload(&answer);
    assert!(icmpv4::checksum_ok(message) && error.datagram_len() <= 576);
    assert!(layout.datagram(frame).starts_with(&message[8..]));
    assert!(!may_answer_with_error(&answer, &error), "no error about an error");
}

/// The packet that an ICMP error quotes.
fn edit_quote(message: &[u8], cut: u8) {
    let Ok(embedded) = parse_embedded(quoted(message)) else { return };
    let mut edited = message.to_vec();
    embedded.set_src(&mut edited, [192, 0, 2, 7].into(), Some(7));
    embedded.set_dst(&mut edited, [192, 0, 2, 9].into(), Some(9));
    check_changed_within(message, &edited, 2..8 + embedded.l4() + 18);
    edited.truncate(edited.len().saturating_sub(usize::from(cut)));
    embedded.set_dst(&mut edited, [192, 0, 2, 1].into(), Some(1));
}

fn relink(frame: &[u8], len: usize, vlan: Option<u16>) {
    let mut buffer = frame.to_vec();
    match ethernet::write_header(&mut buffer, len, vlan, [1; 6], [2; 6]) {
        Err(_) => assert_eq!(frame, buffer),
        Ok(new_len) => {
            check_changed_within(frame, &buffer, 0..new_len.max(len));
            let (old, new) =
                (ethernet::link(&frame[..len]).expect("was read"), ethernet::link(&buffer[..new_len]).expect("was written"));
            assert_eq!(&frame[old.header_len..len], &buffer[new.header_len..new_len]);
        }
    }
}

fn split(datagram: &[u8], mtu: usize) {
    let Ok(pieces) = fragment::fragments(datagram, mtu) else { return };
    let mut out = [0; 2048];
    for piece in pieces {
        let len = piece.write_to(&mut out).expect("room for the MTU");
        assert!(len <= mtu && len == piece.total_len() && ipv4::header_checksum_ok(&out));
    }
}
