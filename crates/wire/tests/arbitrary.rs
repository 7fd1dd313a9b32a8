//! Any bytes at all: nothing panics, layouts lie within their frames, and edits touch what they name and no more.

mod common;

use common::bytes::{check_changed_within, check_layout};
use common::{errors, frames};
use portcullis_wire::embedded::{parse_embedded, quoted};
use portcullis_wire::icmp_error::{ErrorMessage, build_error, may_answer_with_error};
use portcullis_wire::packet::{Fragment, Transport, parse};
use portcullis_wire::partial::{ChecksumState, complete, transport_checksum_state};
use portcullis_wire::{checksum, ethernet, fragment, icmpv4, ipv4, tcp};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_frame_is_laid_out_within_its_bytes_or_refused(frame in frames()) {
        if let Ok(layout) = parse(&frame) {
            check_layout(&layout, &frame);
        }
    }

    #[test]
    fn every_prefix_of_a_frame_is_refused_or_within_its_bytes(frame in frames()) {
        for len in 0..frame.len() {
            if let Ok(layout) = parse(&frame[..len]) {
                check_layout(&layout, &frame[..len]);
            }
        }
    }

    #[test]
    fn a_layout_of_another_frame_is_harmless(frame in frames(), mut other in frames()) {
        let Ok(layout) = parse(&frame) else { return Ok(()) };
        let _ = (layout.ipv4(&other), layout.ports(&other), layout.tcp(&other), layout.udp(&other), layout.icmp(&other));
        let _ = (transport_checksum_state(&other, &layout), may_answer_with_error(&other, &layout));
        let before = other.clone();
        complete(&mut other, &layout);
        check_changed_within(&before, &other, layout.l4()..layout.end());
        let len = build_error(&mut other, &layout, &ErrorMessage::time_exceeded([192, 0, 2, 1].into(), 64));
        prop_assert!(len.is_none_or(|len| len <= other.len()));
    }

    #[test]
    fn completing_a_checksum_writes_that_field_only_and_leaves_it_complete(mut frame in frames()) {
        let Ok(layout) = parse(&frame) else { return Ok(()) };
        let before = frame.clone();
        let written = complete(&mut frame, &layout);
        let at = layout.l4() + if layout.transport() == Transport::Tcp { 16 } else { 6 };
        check_changed_within(&before, &frame, if written { at..at + 2 } else { 0..0 });
        prop_assert!(!written || transport_checksum_state(&frame, &layout) == ChecksumState::Complete);
        let state = transport_checksum_state(&before, &layout);
        prop_assert_eq!(state == ChecksumState::Absent, layout.transport() == Transport::Udp && layout.fragment() == Fragment::Whole && !written);
    }

    #[test]
    fn an_error_stays_in_its_buffer_and_quotes_what_came(mut frame in frames(), room in 0..60_usize) {
        let Ok(layout) = parse(&frame) else { return Ok(()) };
        let len = frame.len();
        frame.resize(len + room, 0xAA);
        let before = frame.clone();
        let Some(error_len) = build_error(&mut frame, &layout, &ErrorMessage::unreachable(1, [192, 0, 2, 1].into(), 64)) else {
            prop_assert_eq!(before, frame);
            return Ok(());
        };
        check_changed_within(&before, &frame, 0..error_len);
        let answer = parse(&frame[..error_len]).expect("a packet");
        prop_assert_eq!((answer.transport(), answer.end()), (Transport::IcmpError, error_len));
        let message = answer.payload(&frame);
        prop_assert!(icmpv4::checksum_ok(message) && answer.datagram_len() <= 576);
        prop_assert!(layout.datagram(&before).starts_with(&message[8..]));
        prop_assert!(!may_answer_with_error(&frame, &answer), "no error about an error");
    }

    #[test]
    fn a_quoted_datagram_is_laid_out_within_its_bytes_or_refused(bytes in vec(any::<u8>(), 0..100), frame in errors(), at in 14..60_usize) {
        let _ = (parse_embedded(&bytes), quoted(&bytes));
        let tail = frame.get(at..).unwrap_or(&[]);
        for bytes in [tail, quoted(tail), frame.get(42..).unwrap_or(&[])] {
            let Ok(embedded) = parse_embedded(bytes) else { continue };
            prop_assert!(20 <= embedded.l4() && embedded.l4() <= embedded.end() && embedded.end() <= bytes.len());
            prop_assert!(embedded.checksum_offset().is_none_or(|offset| offset + 2 <= embedded.end()));
            let ported = matches!(embedded.transport(), Transport::Tcp | Transport::Udp);
            prop_assert_eq!(embedded.ports(bytes).is_some(), ported);
            if ported || embedded.icmp(bytes).is_some() {
                prop_assert!(embedded.end() - embedded.l4() >= 8);
            }
        }
    }

    #[test]
    fn a_quote_is_edited_within_its_headers(frame in errors(), address in any::<[u8; 4]>(), port in any::<u16>(), cut in 0..60_usize) {
        let Ok(layout) = parse(&frame) else { return Ok(()) };
        let mut message = layout.payload(&frame).to_vec();
        let Ok(embedded) = parse_embedded(quoted(&message)) else { return Ok(()) };
        let before = message.clone();
        embedded.set_src(&mut message, address.into(), Some(port));
        embedded.set_dst(&mut message, address.into(), Some(port));
        check_changed_within(&before, &message, 2..8 + embedded.l4() + 18);
        message.truncate(message.len().saturating_sub(cut));
        embedded.set_dst(&mut message, address.into(), Some(port));
    }

    #[test]
    fn a_link_layer_header_is_rewritten_within_its_buffer(
        mut buffer in frames(), len in 0..250_usize, vlan in proptest::option::of(any::<u16>())
    ) {
        let before = buffer.clone();
        match ethernet::write_header(&mut buffer, len, vlan, [1; 6], [2; 6]) {
            Err(_) => prop_assert_eq!(before, buffer),
            Ok(new_len) => {
                check_changed_within(&before, &buffer, 0..new_len.max(len));
                let (old, new) = (ethernet::link(&before[..len]).expect("was read"), ethernet::link(&buffer[..new_len]).expect("was written"));
                prop_assert_eq!(&before[old.header_len..len], &buffer[new.header_len..new_len]);
                prop_assert!(vlan.is_none() || new.vlan.unwrap_or(0) == vlan.unwrap_or(0) & 0xFFF);
            }
        }
    }

    #[test]
    fn headers_of_any_bytes_are_edited_within_them(mut bytes in vec(any::<u8>(), 0..80), word in any::<u16>()) {
        let before = bytes.clone();
        ipv4::fill_checksum(&mut bytes);
        check_changed_within(&before, &bytes, 10..12);
        let mut bytes = before.clone();
        icmpv4::set_identifier(&mut bytes, word);
        check_changed_within(&before, &bytes, 2..6);
        let mut bytes = before.clone();
        let clamped = tcp::clamp_mss(&mut bytes, word);
        prop_assert_eq!(clamped, bytes != before);
        check_changed_within(&before, &bytes, 16..60);
    }

    #[test]
    fn a_lowered_segment_size_leaves_the_checksum_right_whatever_the_options(
        options in vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(4), any::<u8>()], 0..=40), flags in any::<u8>(), most in any::<u16>()
    ) {
        let mut segment = [&[0x12, 0x34, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0, flags, 0xFF, 0xFF, 0, 0, 0, 0], &options[..], b"data"].concat();
        segment[12] = ((20 + options.len()) / 4 * 16) as u8;
        let pseudo = checksum::pseudo_header([10, 0, 0, 1].into(), [192, 0, 2, 1].into(), 6, segment.len() as u16);
        let right = |segment: &[u8]| pseudo.and(checksum::sum(segment)).checksum();
        let value = right(&segment);
        segment[16..18].copy_from_slice(&value.to_be_bytes());
        let before = segment.clone();
        let lowered = tcp::clamp_mss(&mut segment, most);
        prop_assert_eq!(right(&segment), 0);
        let end = 20 + options.len() / 4 * 4;
        prop_assert_eq!(&segment[end..], &before[end..], "behind the options");
        prop_assert!(!lowered || flags & 2 != 0);
    }

    #[test]
    fn a_sum_from_any_start_is_that_of_its_words(bytes in vec(prop_oneof![Just(0), Just(0xFF), any::<u8>()], 0..300), start in 0..9_usize) {
        let bytes = bytes.get(start..).unwrap_or(&[]);
        let words: u64 = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum();
        let expected = if words == 0 { 0 } else { (words - 1) % 0xFFFF + 1 };
        prop_assert_eq!(u64::from(checksum::sum(bytes).fold()), expected);
    }

    #[test]
    fn any_bytes_are_split_within_the_mtu_or_refused(frame in frames(), mtu in 0..300_usize) {
        let bytes = frame.get(14..).unwrap_or(&[]);
        let Ok(pieces) = fragment::fragments(bytes, mtu) else { return Ok(()) };
        let mut out = [0; 300];
        for piece in pieces {
            let len = piece.write_to(&mut out).expect("room for the MTU");
            prop_assert!(len <= mtu && len == piece.total_len() && ipv4::header_checksum_ok(&out));
        }
    }
}
