/* SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0) */
/*
 * What the kernel programs and the process share: limits, map keys and values, counters.
 *
 * crates/xsk/src/abi.rs mirrors every name here; a test there reads this file and compares. Addresses are in network byte order,
 * everything else in the host's.
 */
#ifndef PORTCULLIS_STEER_H
#define PORTCULLIS_STEER_H

#include <linux/types.h>

/* Devices that carry an XDP program, and queues of each. XSKMAP key = device * PC_MAX_QUEUES + queue. */
#define PC_MAX_DEVICES 32
#define PC_MAX_QUEUES 128
/* Interfaces: devices, and VLANs on them. */
#define PC_MAX_INTERFACES 1024
/* External addresses, and those of them that the box shares with the NAT (8 KiB a protocol each). */
#define PC_MAX_EXTERNALS 65536
#define PC_MAX_SHARED 32
/* Prefixes of each list. */
#define PC_MAX_PREFIXES 65536
/* Datagrams that the kernel got the first fragment of. */
#define PC_MAX_KERNEL_FRAGMENTS 4096
/* Frames that were given back to the kernel and have not come by yet (generic mode). */
#define PC_MAX_PUNTED 1024
/* Bytes before the cookie of a carried frame: its IPv4 and UDP header. */
#define PC_CARRIED_HEAD 28
/* Bytes of a frame that can be carried; with what is before it they fit the kernel's receive path on any device. */
#define PC_MAX_CARRIED 4096
/* 64-bit words of a set of ports. */
#define PC_PORT_WORDS 1024
/* 64-bit words of a set of protocols. */
#define PC_PROTOCOL_WORDS 4
/* 64-bit words of a set of the first halves of addresses. */
#define PC_HALF_WORDS 1024
/* Places for interfaces without a tag, by the lower bits of their index. */
#define PC_MAX_UNTAGGED 1024
/* Places for external addresses, by their lower bits: as many as a configuration has at most. */
#define PC_MAX_NEAR 4096

/* Sides of an interface. */
#define PC_SIDE_INSIDE 1
#define PC_SIDE_OUTSIDE 2
/* In the values of sides, beside the side: every source is translated, not only those in inside_prefixes. */
#define PC_SIDE_ANY_SOURCE 256

/* Flags of an interface. */
#define PC_INTERFACE_ANY_SOURCE 1 /* translate every source, not only those in inside_prefixes */
#define PC_INTERFACE_GENERIC 2 /* punted frames pass this program a second time */

/* Flags of an external address. */
#define PC_EXTERNAL_SHARED 1 /* also the box's own */

/* Classes of a prefix in kernel_prefixes. */
#define PC_CLASS_TRANSLATED 0 /* an exception inside a wider prefix: not the kernel's */
#define PC_CLASS_LOCAL 1 /* an address of the box */
#define PC_CLASS_BROADCAST 2 /* a subnet's broadcast address */
#define PC_CLASS_INSIDE 3 /* routed on the inside: the kernel's between inside interfaces */
#define PC_CLASS_ELSEWHERE 4 /* routed out of an interface that is not configured */

/* The protocols that have port sets: index = slot * 2 + one of these. */
#define PC_PORTS_TCP 0
#define PC_PORTS_UDP 1

/* Key of interfaces: the device, and the VLAN identifier of the frame's tag or 0. */
struct pc_interface_key {
	__u32 ifindex;
	__u32 vlan;
};

struct pc_interface {
	__u32 device; /* its position in the XSKMAP */
	__u8 side;
	__u8 flags;
	__u8 mac[6];
};

/* An interface without a tag, found by its index modulo PC_MAX_UNTAGGED. Zero: none; ifindex is never zero. */
struct pc_untagged {
	__u32 ifindex;
	struct pc_interface interface;
};

struct pc_external {
	__u32 flags;
	__u32 slot; /* of its port sets, when shared */
};

/* An external address, found by itself modulo PC_MAX_NEAR. Zero: none; no external address is zero. */
struct pc_near {
	__be32 address;
	struct pc_external external;
};

struct pc_prefix {
	__u32 length;
	__be32 address;
};

/* Bit n of the set is bit n % 64 of word n / 64. */
struct pc_ports {
	__u64 words[PC_PORT_WORDS];
};

/* Bit n of the set is bit n % 64 of word n / 64. */
struct pc_protocols {
	__u64 words[PC_PROTOCOL_WORDS];
};

/* Bit n of the set is bit n % 64 of word n / 64. */
struct pc_halves {
	__u64 words[PC_HALF_WORDS];
};

struct pc_fragment {
	__be32 source;
	__be32 destination;
	__be16 identification;
	__u8 protocol;
	__u8 zero;
};

/* What names a punted frame: enough of it, and a mistake only swaps two packets of the same datagram. */
struct pc_punted {
	struct pc_fragment datagram;
	__be16 offset;
	__be16 length;
	__be32 transport; /* the first four bytes after the IPv4 header */
};

/*
 * How the process learns a queue's NAPI context: the next frame of the queue that is the NAT's comes to it inside a UDP datagram, which
 * the kernel marks with the context that it came through: PC_CARRIED_HEAD bytes of IPv4 and UDP header, the cookie, the frame.
 */
struct pc_carrier {
	__be32 address; /* one of the box's own */
	__be16 port; /* of the process's socket */
	__u16 armed; /* 1 until a frame is carried, which disarms it */
	__u64 cookie; /* what tells the datagram from a stranger's */
};

/* Per-CPU counters; the order is abi.rs's. */
enum pc_counter {
	PC_REDIRECTED,
	PC_DROP_NO_SOCKET,
	PC_DROP_BAD_IP_HEADER,
	PC_PASS_TOO_SHORT,
	PC_PASS_UNKNOWN_INTERFACE,
	PC_PASS_NOT_IPV4,
	PC_PASS_MULTICAST,
	PC_PASS_OTHER_HOST,
	PC_PASS_LOCAL,
	PC_PASS_BROADCAST,
	PC_PASS_INSIDE_ROUTE,
	PC_PASS_ELSEWHERE_ROUTE,
	PC_PASS_PREFIX_NOT_CONFIGURED,
	PC_PASS_EXEMPT,
	PC_PASS_NOT_EXTERNAL,
	PC_PASS_SHARED_PORT,
	PC_PASS_SHARED_ICMP,
	PC_PASS_SHARED_FRAGMENT,
	PC_PASS_SHARED_PROTOCOL,
	PC_PASS_PUNTED,
	PC_PASS_CARRIED,
	PC_GUARD_DROPPED,
	PC_COUNTERS,
};

#endif
