//! Packets that etherparse builds and reads: this crate finds the same fields, and its edits leave what etherparse computes.

mod common;

use std::net::Ipv4Addr;

use common::{Recipe, errors, recipes};
use etherparse::{SlicedPacket, TransportSlice};
use portcullis_wire::checksum::Delta;
use portcullis_wire::embedded::{parse_embedded, quoted};
use portcullis_wire::icmp_error::{ErrorMessage, build_error};
use portcullis_wire::icmpv4::{self, Query};
use portcullis_wire::packet::{Fragment, Layout, Transport, parse};
use portcullis_wire::{ethernet, ipv4, partial};
use proptest::prelude::*;

/// Asserts that both checksums of `frame` are what etherparse computes.
fn assert_checksums(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("not IPv4") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
    match packet.transport.expect("a transport") {
        TransportSlice::Udp(udp) => {
            let computed = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).expect("fits");
            assert_eq!(udp.checksum(), computed, "UDP checksum");
        }
        TransportSlice::Tcp(tcp) => {
            let computed = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).expect("fits");
            assert_eq!(tcp.checksum(), computed, "TCP checksum");
        }
        TransportSlice::Icmpv4(icmp) => {
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()), "ICMP checksum");
        }
        other => panic!("unexpected {other:?}"),
    }
}

/// What a NAT does to a packet: new addresses and ports, with one delta for all.
fn translate(frame: &mut [u8], layout: &Layout, src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) {
    let ip = layout.ipv4_mut(frame).expect("a header");
    let addresses = Delta::of_address(ip.src(), src.0).and(Delta::of_address(ip.dst(), dst.0));
    ip.set_addresses(src.0, dst.0, addresses);
    let ports = layout.ports(frame).map(|ports| Delta::of_u16(ports.src(), src.1).and(Delta::of_u16(ports.dst(), dst.1)));
    let delta = ports.map_or(Delta::NONE, |ports| addresses.and(ports));
    match layout.transport() {
        Transport::Udp => layout.udp_mut(frame).expect("UDP").set_ports(src.1, dst.1, delta),
        Transport::Tcp => layout.tcp_mut(frame).expect("TCP").set_ports(src.1, dst.1, delta),
        _ => icmpv4::set_identifier(layout.payload_mut(frame), src.1),
    }
}

proptest! {
    #[test]
    fn fields_are_found_where_etherparse_finds_them(recipe in recipes(), padding in 0..20_usize) {
        let mut frame = recipe.frame();
        let len = frame.len();
        frame.resize(len + padding, 0xAA);
        let layout = parse(&frame).expect("a right packet");
        let l3 = if recipe.vlan.is_some() { 18 } else { 14 };
        prop_assert_eq!((layout.vlan(), layout.l3(), layout.l4()), (recipe.vlan, l3, l3 + 20 + recipe.options.len()));
        prop_assert_eq!((layout.end(), layout.protocol(), layout.fragment()), (len, recipe.protocol, Fragment::Whole));
        let ip = layout.ipv4(&frame).expect("a header");
        prop_assert_eq!((ip.src().octets(), ip.dst().octets()), (recipe.src, recipe.dst));
        prop_assert_eq!(ipv4::options(layout.datagram(&frame)), &recipe.options[..]);
        match layout.transport() {
            Transport::IcmpQuery(query) => {
                let icmp = layout.icmp(&frame).expect("ICMP");
                prop_assert_eq!((query, icmp.identifier(), icmp.sequence()), (Query::Request, recipe.ports.0, recipe.ports.1));
            }
            transport => {
                prop_assert_eq!(transport, if recipe.protocol == ipv4::TCP { Transport::Tcp } else { Transport::Udp });
                let ports = layout.ports(&frame).expect("ports");
                prop_assert_eq!((ports.src(), ports.dst()), recipe.ports);
            }
        }
    }

    #[test]
    fn a_translated_packet_has_the_checksums_of_one_built_so(
        recipe in recipes(), src in any::<([u8; 4], u16)>(), dst in any::<([u8; 4], u16)>(), ttl in any::<u8>()
    ) {
        let mut frame = recipe.frame();
        let layout = parse(&frame).expect("a right packet");
        translate(&mut frame, &layout, (src.0.into(), src.1), (dst.0.into(), dst.1));
        let ports = if recipe.protocol == ipv4::ICMP { (src.1, recipe.ports.1) } else { (src.1, dst.1) };
        let built = Recipe { src: src.0, dst: dst.0, ports, ..recipe.clone() }.frame();
        prop_assert_eq!(&frame, &built, "byte for byte");
        layout.ipv4_mut(&mut frame).expect("a header").set_ttl(ttl);
        assert_checksums(&frame);

        layout.ipv4_mut(&mut frame).expect("a header").set_ttl(64);
        translate(&mut frame, &layout, (recipe.src.into(), recipe.ports.0), (recipe.dst.into(), recipe.ports.1));
        prop_assert_eq!(frame, recipe.frame(), "and back");
    }

    #[test]
    fn a_delta_may_be_stored_added_and_reversed(words in prop::collection::vec(any::<(u16, u16)>(), 1..20), rest in any::<u16>()) {
        let sum_of = |words: &mut dyn Iterator<Item = u16>| {
            let bytes: Vec<u8> = words.chain([rest, 1]).flat_map(u16::to_be_bytes).collect();
            portcullis_wire::checksum::sum(&bytes).checksum()
        };
        let old = sum_of(&mut words.iter().map(|&(old, _)| old));
        let new = sum_of(&mut words.iter().map(|&(_, new)| new));
        let delta = words.iter().fold(Delta::NONE, |delta, &(old, new)| delta.and(Delta::of_u16(old, new)));
        prop_assert_eq!(delta.apply(old), new);
        prop_assert_eq!(delta.reversed().apply(new), old);
    }

    #[test]
    fn a_partial_checksum_is_completed_to_what_etherparse_computes(recipe in recipes()) {
        let right = recipe.frame();
        let layout = parse(&right).expect("a right packet");
        prop_assert_eq!(partial::transport_checksum_state(&right, &layout), partial::ChecksumState::Complete);
        if recipe.protocol == ipv4::ICMP {
            return Ok(());
        }
        let len = (layout.end() - layout.l4()) as u16;
        let pseudo = portcullis_wire::checksum::pseudo_header(recipe.src.into(), recipe.dst.into(), recipe.protocol, len);
        let mut frame = right.clone();
        let at = layout.l4() + if recipe.protocol == ipv4::TCP { 16 } else { 6 };
        frame[at..at + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
        if frame == right || pseudo.fold() == 0xFFFF {
            return Ok(()); // once in 65,536: the field is then right as it is, in either spelling of zero
        }
        prop_assert_eq!(partial::transport_checksum_state(&frame, &layout), partial::ChecksumState::Partial);
        prop_assert!(partial::complete(&mut frame, &layout));
        prop_assert_eq!(frame, right);
    }

    #[test]
    fn an_error_is_what_etherparse_reads_as_one(recipe in recipes(), room in 28..700_usize) {
        let mut buffer = recipe.frame();
        let original = buffer.clone();
        let layout = parse(&buffer).expect("a right packet");
        buffer.resize(original.len() + room, 0xAA);
        let us = Ipv4Addr::new(192, 0, 2, 1);
        let len = build_error(&mut buffer, &layout, &ErrorMessage::fragmentation_needed(1400, us, 64)).expect("room");
        assert_checksums(&buffer[..len]);
        let answer = parse(&buffer[..len]).expect("a right packet");
        prop_assert_eq!((answer.transport(), answer.vlan(), answer.end()), (Transport::IcmpError, recipe.vlan, len));
        let ip = answer.ipv4(&buffer).expect("a header");
        prop_assert_eq!((ip.src(), ip.dst().octets()), (us, recipe.src));
        prop_assert_eq!((&buffer[..6], &buffer[6..12]), (&original[6..12], &original[..6]));
        let quote = &answer.payload(&buffer[..len])[8..];
        let datagram = layout.datagram(&original);
        prop_assert_eq!(quote, &datagram[..datagram.len().min(548)]);
        prop_assert!(buffer[len..].iter().skip(original.len().saturating_sub(len)).all(|&byte| byte == 0xAA));
    }

    #[test]
    fn a_tag_added_and_removed_leaves_the_frame_as_it_was(recipe in recipes(), id in 1..4095_u16) {
        let original = Recipe { vlan: None, ..recipe }.frame();
        let (dst, src) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        let mut buffer = original.clone();
        buffer.extend([0xAA; 8]);
        let len = ethernet::write_header(&mut buffer, original.len(), Some(id), dst, src).expect("room");
        prop_assert_eq!(len, original.len() + 4);
        let tagged = parse(&buffer[..len]).expect("a right packet");
        prop_assert_eq!((tagged.vlan(), tagged.datagram(&buffer)), (Some(id), &original[14..]));
        assert_checksums(&buffer[..len]);
        let len = ethernet::write_header(&mut buffer, len, None, dst, src).expect("shorter");
        prop_assert_eq!(&buffer[..len], &original[..]);
        prop_assert_eq!(&buffer[len + 4..], &[0xAA; 4], "nothing is written behind the longer frame");
    }

    #[test]
    fn a_translated_quote_is_the_quote_of_the_translated_packet(
        recipe in recipes(), src in any::<([u8; 4], u16)>(), dst in any::<([u8; 4], u16)>(), quoted_len in 28..200_usize
    ) {
        let error = |recipe: &Recipe| {
            let original = Recipe { vlan: None, ..recipe.clone() }.frame();
            let end = original.len().min(14 + quoted_len + recipe.options.len());
            common::icmp_message(11, 0, 0, &original[14..end])
        };
        let mut message = error(&recipe);
        let embedded = parse_embedded(quoted(&message)).expect("enough quoted");
        if recipe.protocol == ipv4::TCP && embedded.end() - embedded.l4() == 17 {
            return Ok(()); // half of the checksum is quoted, and stays as it is
        }
        let (src_port, dst_port) = if recipe.protocol == ipv4::ICMP { (Some(src.1), None) } else { (Some(src.1), Some(dst.1)) };
        embedded.set_src(&mut message, src.0.into(), src_port);
        embedded.set_dst(&mut message, dst.0.into(), dst_port);
        let ports = (src.1, dst_port.unwrap_or(recipe.ports.1));
        prop_assert_eq!(message, error(&Recipe { src: src.0, dst: dst.0, ports, ..recipe }));
    }

    #[test]
    fn an_error_translated_keeps_its_checksum_right_however_damaged_its_quote(
        frame in errors(), address in any::<[u8; 4]>(), port in proptest::option::of(any::<u16>())
    ) {
        let Some(layout) = parse(&frame).ok().filter(|layout| layout.transport() == Transport::IcmpError) else { return Ok(()) };
        let mut message = layout.payload(&frame).to_vec();
        icmpv4::fill_checksum(&mut message);
        let Ok(embedded) = parse_embedded(quoted(&message)) else { return Ok(()) };
        embedded.set_src(&mut message, address.into(), port);
        prop_assert!(icmpv4::checksum_ok(&message));
        let again = parse_embedded(quoted(&message)).expect("still right");
        prop_assert_eq!(again.src().octets(), address);
    }
}
