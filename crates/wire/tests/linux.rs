//! Packets that Linux sent over veth, captured with tcpdump: partial checksums, a complete one, an ICMP error.

mod common;

use common::{PARTIAL_TCP, PARTIAL_TCP_COMPLETED, PARTIAL_UDP, PARTIAL_UDP_COMPLETED, RESET, UNREACHABLE};
use portcullis_wire::embedded::{parse_embedded, quoted};
use portcullis_wire::icmp_error::{ErrorMessage, build_error};
use portcullis_wire::icmpv4;
use portcullis_wire::packet::{Transport, parse};
use portcullis_wire::partial::{ChecksumState, complete, transport_checksum_state};
use portcullis_wire::tcp::TcpHeader;
use portcullis_wire::udp::UdpHeader;

#[test]
fn a_veth_senders_udp_checksum_is_partial_and_completed_as_tcpdump_says() {
    let layout = parse(PARTIAL_UDP).expect("a packet");
    assert_eq!(transport_checksum_state(PARTIAL_UDP, &layout), ChecksumState::Partial);
    let mut frame = PARTIAL_UDP.to_vec();
    assert!(complete(&mut frame, &layout));
    assert_eq!(layout.udp(&frame).map(UdpHeader::checksum), Some(PARTIAL_UDP_COMPLETED));
    assert_eq!(transport_checksum_state(&frame, &layout), ChecksumState::Complete);
}

#[test]
fn a_veth_senders_tcp_checksum_is_partial_and_completed_as_tcpdump_says() {
    let layout = parse(PARTIAL_TCP).expect("a packet");
    assert_eq!(transport_checksum_state(PARTIAL_TCP, &layout), ChecksumState::Partial);
    let mut frame = PARTIAL_TCP.to_vec();
    assert!(complete(&mut frame, &layout));
    assert_eq!(layout.tcp(&frame).map(TcpHeader::checksum), Some(PARTIAL_TCP_COMPLETED));
}

#[test]
fn a_complete_checksum_is_complete_and_computed_the_same() {
    let layout = parse(RESET).expect("a packet");
    assert_eq!(transport_checksum_state(RESET, &layout), ChecksumState::Complete);
    let mut frame = RESET.to_vec();
    assert!(complete(&mut frame, &layout));
    assert_eq!(frame, RESET);
}

#[test]
fn a_field_that_is_right_and_equals_the_pseudo_headers_sum_is_complete() {
    // For one value of the last two data bytes, the right checksum happens to equal the pseudo-header's sum.
    let mut frame = PARTIAL_UDP.to_vec();
    let layout = parse(&frame).expect("a packet");
    for last in 0..=u16::MAX {
        frame[46..48].copy_from_slice(&last.to_be_bytes());
        let mut completed = frame.clone();
        complete(&mut completed, &layout);
        if completed == frame {
            assert_eq!(transport_checksum_state(&frame, &layout), ChecksumState::Complete);
            return;
        }
        assert_eq!(transport_checksum_state(&frame, &layout), ChecksumState::Partial);
    }
    panic!("some data makes the partial checksum the right one");
}

#[test]
fn bytes_behind_the_udp_length_are_not_covered() {
    let mut frame = PARTIAL_UDP.to_vec();
    frame.extend([0xAB, 0xCD]);
    frame[17] += 2;
    portcullis_wire::ipv4::fill_checksum(&mut frame[14..]);
    let layout = parse(&frame).expect("surplus bytes (RFC 9868) are allowed");
    assert_eq!(transport_checksum_state(&frame, &layout), ChecksumState::Partial);
    assert!(complete(&mut frame, &layout));
    assert_eq!(layout.udp(&frame).map(UdpHeader::checksum), Some(PARTIAL_UDP_COMPLETED));
}

#[test]
fn no_udp_checksum_is_absent_and_not_made_up() {
    let mut frame = PARTIAL_UDP.to_vec();
    frame[40..42].fill(0);
    let layout = parse(&frame).expect("a packet");
    assert_eq!(transport_checksum_state(&frame, &layout), ChecksumState::Absent);
    let before = frame.clone();
    assert!(!complete(&mut frame, &layout));
    assert_eq!(frame, before);
}

#[test]
fn an_error_of_linux_is_read_with_the_datagram_that_it_quotes() {
    let layout = parse(UNREACHABLE).expect("a packet");
    assert_eq!(layout.transport(), Transport::IcmpError);
    let message = layout.payload(UNREACHABLE);
    assert!(icmpv4::checksum_ok(message));
    let embedded = parse_embedded(quoted(message)).expect("a datagram");
    assert_eq!(embedded.ports(quoted(message)).map(|ports| (ports.src(), ports.dst())), Some((58783, 4444)));
    assert_eq!((embedded.l4(), embedded.end(), embedded.checksum_offset()), (20, 34, Some(26)));
}

#[test]
fn the_error_made_here_is_that_of_linux() {
    let layout = parse(PARTIAL_UDP).expect("a packet");
    let mut buffer = PARTIAL_UDP.to_vec();
    buffer.resize(200, 0);
    let error = ErrorMessage::unreachable(icmpv4::PORT_UNREACHABLE, [10, 0, 0, 2].into(), 64);
    let len = build_error(&mut buffer, &layout, &error).expect("room");
    // Linux counts its datagrams up and does not set Don't Fragment; all else is the same, byte for byte.
    let ip = layout.ipv4_mut(&mut buffer).expect("a header");
    assert_eq!((ip.id(), ip.dont_fragment()), (0, true));
    ip.set_id(0x8960);
    buffer[20] = 0;
    portcullis_wire::ipv4::fill_checksum(&mut buffer[14..]);
    assert_eq!(&buffer[..len], UNREACHABLE);
}
