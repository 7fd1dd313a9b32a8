use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::*;

fn a() -> Endpoint {
    endpoint("10.0.0.2:5000")
}

fn b() -> Endpoint {
    endpoint("192.0.2.1:53")
}

#[test]
fn etherparse_reads_what_was_built() {
    let frame = PacketBuilder::udp(a(), b()).vlan(Some(7)).ttl(9).options(&[1, 1, 1]).payload(b"hello").trailer(6).build();
    let sliced = SlicedPacket::from_ethernet(&frame).expect("etherparse reads it");
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("IPv4 expected") };
    assert_eq!((ip.header().ttl(), ip.header().options().len()), (9, 4));
    assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("UDP expected") };
    assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (5000, 53, &b"hello"[..]));
    let checksum = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).expect("short enough");
    assert_eq!(checksum, udp.checksum());
}

#[test]
fn tcp_and_icmp_checksums_are_etherparses() {
    let frame = PacketBuilder::tcp(a(), b(), SYN | ACK).tcp_options(&[2, 4, 5, 180]).payload(b"odd").build();
    let sliced = SlicedPacket::from_ethernet(&frame).expect("etherparse reads it");
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&sliced.net, &sliced.transport) else {
        panic!("TCP expected")
    };
    assert!(tcp.syn() && tcp.ack() && !tcp.fin());
    let right = tcp.to_header().calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()).expect("short enough");
    assert_eq!(right, tcp.checksum());

    let frame = PacketBuilder::query(a().address, b().address, Query::Echo, 77).payload(b"ping").build();
    let sliced = SlicedPacket::from_ethernet(&frame).expect("etherparse reads it");
    let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("ICMP expected") };
    assert_eq!(icmp.header().icmp_type.calc_checksum(icmp.payload()), icmp.checksum());
}

#[test]
fn verify_tells_right_from_wrong() {
    let right = PacketBuilder::udp(a(), b()).payload_len(33);
    assert_eq!(verify(&right.build()), Ok(()));
    assert_eq!(verify(&right.clone().checksum(Checksum::Zero).build()), Ok(()));
    assert!(verify(&right.clone().checksum(Checksum::Partial).build()).is_err());
    assert!(verify(&right.checksum(Checksum::Wrong(1)).build()).is_err());
    let mut frame = PacketBuilder::tcp(a(), b(), ACK).build();
    assert_eq!(verify(&frame), Ok(()));
    frame[22] ^= 1;
    assert!(verify(&frame).is_err_and(|why| why.contains("IPv4 header checksum")));
}

#[test]
fn verify_reads_the_embedded_header() {
    let mut quoted = PacketBuilder::udp(a(), b()).datagram();
    let error = |quoted: &[u8]| PacketBuilder::icmp_error(b().address, a().address, 3, 3, quoted).quote(28).build();
    assert_eq!(verify(&error(&quoted)), Ok(()));
    quoted[8] ^= 1;
    assert!(verify(&error(&quoted)).is_err_and(|why| why.contains("embedded")));
}

#[test]
fn a_partial_checksum_is_the_uncomplemented_pseudo_header_sum() {
    let frame = PacketBuilder::tcp(a(), b(), SYN).checksum(Checksum::Partial).build();
    let expected = checksum::sum(&[&checksum::pseudo_header(a().address, b().address, 6, 20)]);
    assert_eq!(frame[50..52], expected.to_be_bytes());
}

#[test]
fn an_extension_follows_a_padded_quote_whose_length_is_given_in_words() {
    let quoted = PacketBuilder::udp(a(), b()).datagram();
    let bytes = PacketBuilder::icmp_error(b().address, a().address, 11, 0, &quoted).extension(&[0, 1, 2, 3]).datagram();
    let message = &bytes[20..];
    assert_eq!(message[5], 32, "RFC 4884, section 4.1: the length in 32-bit words");
    assert_eq!(message.len(), 8 + 128 + 4 + 8);
    assert_eq!(message[8 + quoted.len()..8 + 128], vec![0; 128 - quoted.len()]);
    assert!(checksum::verifies(&[&message[136..]]), "the extension has its own checksum");
}

#[test]
fn fragments_cover_the_datagram_in_order() {
    let packet = PacketBuilder::udp(a(), b()).payload_len(100);
    let frames = packet.fragments(48);
    assert_eq!(frames.len(), 3);
    let joined: Vec<u8> = frames.iter().flat_map(|frame| frame[34..].to_vec()).collect();
    assert_eq!(joined, packet.datagram()[20..]);
    assert!(frames.iter().all(|frame| verify(frame).is_ok()));
    assert_eq!(frames.iter().map(|frame| u16::from_be_bytes([frame[20], frame[21]])).collect::<Vec<_>>(), [0x2000, 0x2006, 12]);
}

#[test]
fn a_line_names_the_protocol_the_endpoints_and_the_quote() {
    let quoted = PacketBuilder::tcp(a(), b(), SYN).datagram();
    let line = describe(&PacketBuilder::icmp_error(b().address, a().address, 3, 3, &quoted).vlan(Some(7)).build());
    for part in ["vlan 7", "192.0.2.1 > 10.0.0.2", "ICMP 3/3", "TCP 5000 > 53 [SYN]"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    for len in 0..60 {
        assert!(!describe(&vec![0x45; len]).is_empty());
    }
}

/// RFC 3828, section 3.1, and RFC 4340, section 9.2: what is not covered may change, what is may not.
#[test]
fn the_checksums_of_udp_lite_and_dccp_cover_what_they_say() {
    for (packet, header, uncovered) in [
        (PacketBuilder::udp_lite(a(), b(), 0), 8, false),
        (PacketBuilder::udp_lite(a(), b(), 8), 8, true),
        (PacketBuilder::udp_lite(a(), b(), 9), 8, true),
        (PacketBuilder::dccp(a(), b(), 0), 16, false),
        (PacketBuilder::dccp(a(), b(), 1), 16, true),
        (PacketBuilder::dccp(a(), b(), 2), 16, true),
    ] {
        let mut frame = packet.payload_len(7).build();
        assert_eq!(verify(&frame), Ok(()));
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert_eq!(verify(&frame).is_ok(), uncovered, "{}", describe(&frame));
        frame[last] ^= 1;
        frame[14 + 20 + header - 1] ^= 1;
        assert!(verify(&frame).is_err(), "{}", describe(&frame));
    }
}

#[test]
fn a_udp_lite_checksum_of_zero_and_an_impossible_coverage_are_wrong() {
    assert!(verify(&PacketBuilder::udp_lite(a(), b(), 0).checksum(Checksum::Zero).build()).is_err());
    assert!(verify(&PacketBuilder::udp_lite(a(), b(), 7).payload_len(9).build()).is_err());
    assert!(verify(&PacketBuilder::udp_lite(a(), b(), 18).payload_len(9).build()).is_err());
    assert!(verify(&PacketBuilder::dccp(a(), b(), 3).payload_len(7).build()).is_err());
    assert!(verify(&PacketBuilder::dccp(a(), b(), 0).checksum(Checksum::Wrong(1)).build()).is_err());
}
