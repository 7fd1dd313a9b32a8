//! Splitting datagrams: what the fragments put together is what was split, and RFC 791's rules for their headers hold.

mod common;

use portcullis_wire::fragment::{SplitError, fragments};
use portcullis_wire::ipv4::{self, Ipv4Header};
use portcullis_wire::packet::{Fragment, parse};
use proptest::collection::vec;
use proptest::prelude::*;

/// A datagram: options, flags and offset in the header's word, and a payload.
fn datagram(options: &[u8], flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes =
        vec![0x45 + (options.len() / 4) as u8, 0xB8, 0, 0, 0xAB, 0xCD, 0, 0, 33, ipv4::UDP, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1];
    bytes.extend_from_slice(options);
    bytes.extend_from_slice(payload);
    let len = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes[6..8].copy_from_slice(&flags.to_be_bytes());
    ipv4::fill_checksum(&mut bytes);
    bytes
}

fn split(bytes: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let write = |piece: portcullis_wire::fragment::Piece<'_>| {
        let mut out = vec![0; piece.total_len()];
        assert_eq!(piece.write_to(&mut out), Some(out.len()));
        out
    };
    fragments(bytes, mtu).expect("can be split").map(write).collect()
}

fn header(bytes: &[u8]) -> &Ipv4Header {
    Ipv4Header::from_prefix(bytes).expect("a header")
}

/// The procedure of RFC 791, section 3.2, on fragments in any order: the first byte's offset, the payload, and whether more follows.
fn reassemble(pieces: &[Vec<u8>]) -> (usize, Vec<u8>, bool) {
    let mut pieces: Vec<_> = pieces.iter().map(|piece| (header(piece), &piece[header(piece).header_len()..])).collect();
    pieces.sort_by_key(|(header, _)| header.fragment_offset());
    let start = pieces[0].0.fragment_offset();
    let mut payload = Vec::new();
    for (header, data) in &pieces {
        assert_eq!(header.fragment_offset(), start + payload.len(), "neither gap nor overlap");
        payload.extend_from_slice(data);
    }
    (start, payload, pieces.last().is_some_and(|(header, _)| header.more_fragments()))
}

#[test]
fn a_datagram_is_split_as_linux_splits_it() {
    // 2,048 bytes over an MTU of 1,500 with 12 bytes of options: Linux sent 1,464 bytes and then 592, and so the offset is 183.
    let options = [0x94, 4, 0, 0, 7, 7, 8, 10, 0, 0, 1, 0];
    let payload: Vec<u8> = (0..2056_u32).map(|i| i as u8).collect();
    let pieces = split(&datagram(&options, 0, &payload), 1500);
    assert_eq!(pieces.len(), 2);
    assert_eq!((header(&pieces[0]).total_len(), header(&pieces[0]).more_fragments()), (1496, true));
    assert_eq!((header(&pieces[1]).fragment_offset(), header(&pieces[1]).more_fragments()), (1464, false));
    // Linux keeps the room of options that are not copied, as no-operations; here later headers are shorter.
    assert_eq!(ipv4::options(&pieces[0]), options);
    assert_eq!(ipv4::options(&pieces[1]), [0x94, 4, 0, 0]);
}

#[test]
fn a_fragment_can_be_split_again() {
    for more in [0, ipv4::MORE_FRAGMENTS] {
        let pieces = split(&datagram(&[], more | 0x64, &[7; 1000]), 500);
        let (start, payload, last_more) = reassemble(&pieces);
        assert_eq!((start, payload.len(), last_more), (800, 1000, more != 0));
        assert!(pieces[..pieces.len() - 1].iter().all(|piece| header(piece).more_fragments()));
    }
}

#[test]
fn one_that_fits_is_its_own_fragment() {
    let bytes = datagram(&[1, 1, 7, 1], ipv4::DONT_FRAGMENT, &[1, 2, 3]);
    assert_eq!(split(&bytes, bytes.len()), std::slice::from_ref(&bytes));
    let empty = datagram(&[], 0, &[]);
    assert_eq!(split(&empty, 20), std::slice::from_ref(&empty));
}

#[test]
fn what_cannot_be_split_is_refused() {
    let refused = |bytes: &[u8], mtu| fragments(bytes, mtu).err();
    let bytes = datagram(&[], 0, &[0; 100]);
    assert_eq!(refused(&datagram(&[], ipv4::DONT_FRAGMENT, &[0; 100]), 119), Some(SplitError::DontFragment));
    assert_eq!(refused(&bytes, 27), Some(SplitError::MtuTooSmall));
    assert_eq!(refused(&bytes, 28), None);
    assert_eq!(refused(&bytes[..119], 68), Some(SplitError::BadIpHeader), "cut");
    assert_eq!(refused(&datagram(&[], 0x1FFF, &[0; 100]), 68), Some(SplitError::BadIpHeader), "ends beyond 65,535 bytes");
    assert_eq!(refused(&[0x45; 10], 68), Some(SplitError::BadIpHeader));
}

#[test]
fn a_fragment_without_room_is_not_written() {
    let bytes = datagram(&[], 0, &[9; 100]);
    let piece = fragments(&bytes, 68).expect("can be split").next().expect("a first");
    let mut out = [0xEE; 67];
    assert_eq!((piece.total_len(), piece.write_to(&mut out)), (68, None));
    assert_eq!(out, [0xEE; 67]);
}

/// Options with right and wrong lengths, copied and not.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![
        Just(vec![1]),
        Just(vec![0x94, 4, 0, 0]),
        Just(vec![0x83, 7, 4, 10, 0, 0, 1]),
        Just(vec![7, 7, 4, 0, 0, 0, 0]),
        vec(any::<u8>(), 1..6)
    ];
    vec(option, 0..8).prop_map(|options| {
        let mut options = options.concat();
        options.truncate(40);
        options.resize(options.len().next_multiple_of(4), 0);
        options
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn fragments_put_together_are_the_datagram(
        options in options(), payload in vec(any::<u8>(), 0..3000), mtu in 68..1600_usize, offset in 0..1000_u16, more in any::<bool>()
    ) {
        let flags = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
        let mut bytes = datagram(&options, flags, &payload);
        let original = bytes.clone();
        bytes.extend([0xEE; 9]);
        let pieces = split(&bytes, mtu);
        let (start, together, last_more) = reassemble(&pieces);
        prop_assert_eq!((start, &together, last_more), (usize::from(offset) * 8, &payload, more));
        prop_assert_eq!(&pieces[0][20..header(&pieces[0]).header_len()], &options[..], "the first has all options");
        for (number, piece) in pieces.iter().enumerate() {
            let ip = header(piece);
            prop_assert!(piece.len() <= mtu && ipv4::header_checksum_ok(piece));
            prop_assert_eq!(usize::from(ip.total_len()), piece.len());
            prop_assert_eq!((ip.id(), ip.ttl(), ip.dscp_ecn(), ip.protocol()), (0xABCD, 33, 0xB8, ipv4::UDP));
            prop_assert!(number == pieces.len() - 1 || (piece.len() - ip.header_len()).is_multiple_of(8));
            let largest = piece.len() + 8 > mtu || number == pieces.len() - 1;
            prop_assert!(largest, "no more fragments than needed");
        }
        prop_assert!(pieces.len() > 1 || pieces[0] == original);
    }

    #[test]
    fn etherparse_puts_the_fragments_together(payload in vec(any::<u8>(), 600..3000), mtu in 100..600_usize, rotate in any::<prop::sample::Index>()) {
        let mut pieces = split(&datagram(&[0x94, 4, 0, 0], 0, &payload), mtu);
        prop_assert!(pieces.len() > 1);
        let by = rotate.index(pieces.len());
        pieces.rotate_left(by);
        let mut pool = etherparse::defrag::IpDefragPool::<(), ()>::new();
        let mut whole = None;
        for piece in &pieces {
            let sliced = etherparse::SlicedPacket::from_ip(piece).expect("a packet");
            whole = whole.or(pool.process_sliced_packet(&sliced, (), ()).expect("no conflict"));
        }
        prop_assert_eq!(whole.expect("complete").payload, payload);
    }

    #[test]
    fn first_and_later_fragments_are_parsed_as_such(payload in vec(any::<u8>(), 200..3000), mtu in 68..200_usize) {
        let mut payload = payload;
        payload[4..6].copy_from_slice(&100_u16.to_be_bytes());
        for (number, piece) in split(&datagram(&[], 0, &payload), mtu).iter().enumerate() {
            let frame = [&[2; 12][..], &[8, 0], piece].concat();
            let layout = parse(&frame).expect("a packet");
            prop_assert_eq!(layout.fragment(), if number == 0 { Fragment::First } else { Fragment::Later });
        }
    }
}
