// SPDX-License-Identifier: (GPL-2.0-only OR MIT OR Apache-2.0)
/*
 * Which received packets are the NAT's: those go to the AF_XDP sockets, everything else stays the kernel's.
 *
 *   xdp_steer     on every device: redirect, pass, or drop, each counted by its reason; one frame of a queue may be carried to the
 *                 process in a datagram, so that it learns the queue's NAPI context
 *   guard_egress  on every interface's clsact egress: the kernel forwards nothing between the sides, process or not, but what goes to
 *                 and from exempt destinations
 *   xdp_punt      never attached: runs on a frame that the process gives back, into the kernel's receive path
 *
 * Fail closed: a redirect without a socket is a drop, and both programs and their maps stay when the process is gone.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_ECHO_REQUEST 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMP_TIMESTAMP_REQUEST 13
#define ICMP_TIMESTAMP_REPLY 14

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET 0x1FFF
#define IPV4_DO_NOT_FRAGMENT 0x4000
#define VLAN_ID 0x0FFF
/* Where a carried frame says that it comes from (discard, RFC 863): nobody answers it. */
#define CARRIED_FROM_PORT 9

struct vlan_tag {
	__be16 tci;
	__be16 protocol;
};

struct ports_head {
	__be16 source;
	__be16 destination;
};

struct icmp_head {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, PC_MAX_DEVICES * PC_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* By the keys of xsks. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PC_MAX_DEVICES * PC_MAX_QUEUES);
	__type(key, __u32);
	__type(value, struct pc_carrier);
} carriers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PC_MAX_INTERFACES);
	__type(key, struct pc_interface_key);
	__type(value, struct pc_interface);
} interfaces SEC(".maps");

/* Those of interfaces that have no tag, once more: an array is asked without a call. One that another has taken the place of is not here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PC_MAX_UNTAGGED);
	__type(key, __u32);
	__type(value, struct pc_untagged);
} untagged SEC(".maps");

/* The side of every configured interface by its own ifindex, and PC_SIDE_ANY_SOURCE, for guard_egress. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PC_MAX_INTERFACES);
	__type(key, __u32);
	__type(value, __u32);
} sides SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PC_MAX_EXTERNALS);
	__type(key, __be32);
	__type(value, struct pc_external);
} externals SEC(".maps");

/* Once more, as in untagged. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PC_MAX_NEAR);
	__type(key, __u32);
	__type(value, struct pc_near);
} near_externals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PC_MAX_SHARED * 2);
	__type(key, __u32);
	__type(value, struct pc_ports);
} shared_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PC_MAX_PREFIXES);
	__type(key, struct pc_prefix);
	__type(value, __u32);
} kernel_prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PC_MAX_PREFIXES);
	__type(key, struct pc_prefix);
	__type(value, __u32);
} inside_prefixes SEC(".maps");

/* The first halves all of whose addresses inside_prefixes has, as far as one prefix has them: of these sources it is not asked. One entry. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pc_halves);
} inside_halves SEC(".maps");

/* Destinations that nothing is translated for: the kernel routes to and from them. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PC_MAX_PREFIXES);
	__type(key, struct pc_prefix);
	__type(value, __u32);
} exempt_prefixes SEC(".maps");

/*
 * The first halves of all addresses that externals, kernel_prefixes or exempt_prefixes say anything of, and perhaps others: of a destination
 * with another half none of these is asked, since a look at a trie or a hash takes longer than all the rest. One entry.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pc_halves);
} special_halves SEC(".maps");

/* The protocols beside TCP, UDP and ICMP that the NAT translates, by address alone. One entry. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pc_protocols);
} other_protocols SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PC_MAX_KERNEL_FRAGMENTS);
	__type(key, struct pc_fragment);
	__type(value, __u8);
} kernel_fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PC_MAX_PUNTED);
	__type(key, struct pc_punted);
	__type(value, __u8);
} punted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PC_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* What the rules look at. Every pointer is checked against `end` where it is followed. */
struct packet {
	struct iphdr *ip;
	void *transport;
	void *end;
	struct pc_interface *interface;
	__u16 fragment;
};

static __always_inline int counted(__u32 which, int action)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &which);

	if (counter)
		*counter += 1;
	return action;
}

static __always_inline struct pc_fragment datagram_of(const struct iphdr *ip)
{
	struct pc_fragment key = {
		.source = ip->saddr,
		.destination = ip->daddr,
		.identification = ip->id,
		.protocol = ip->protocol,
	};
	return key;
}

/* In generic mode the kernel runs xdp_steer again on a frame that the process gave back: let it through this time. */
static __always_inline int was_punted(struct packet *packet)
{
	struct pc_punted key = { .datagram = datagram_of(packet->ip) };
	__be32 *head = packet->transport;

	key.offset = packet->ip->frag_off;
	key.length = packet->ip->tot_len;
	if ((void *)(head + 1) <= packet->end)
		key.transport = *head;
	return bpf_map_delete_elem(&punted, &key) == 0;
}

static __always_inline __sum16 header_checksum(const struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)sizeof(*ip) / 2; i++)
		sum += words[i];
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return (__sum16)~sum;
}

/*
 * Puts the frame into a datagram to the process: its link header of `link` bytes once more, IPv4, UDP, the cookie, then all of it. The
 * source is the packet's own, for which the kernel has a way back out of this interface (rp_filter). Where the driver left no room,
 * the frame is as it was.
 */
static __always_inline int carry_behind(struct xdp_md *ctx, const __u32 link, __be32 source, const struct pc_carrier *carrier)
{
	__u32 frame = ctx->data_end - ctx->data;
	__u8 *data, *end;
	struct iphdr *ip;
	struct udphdr *udp;
	__u64 *cookie;

	if (bpf_xdp_adjust_head(ctx, -(int)(link + PC_CARRIED_HEAD + sizeof(*cookie))))
		return 0;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	/* Never so: for the verifier. */
	if (data + link + PC_CARRIED_HEAD + sizeof(*cookie) + link > end)
		return 1;
	__builtin_memcpy(data, data + link + PC_CARRIED_HEAD + sizeof(*cookie), link);
	ip = (void *)(data + link);
	udp = (void *)(ip + 1);
	cookie = (void *)(udp + 1);
	*ip = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*ip) / 4,
		.tot_len = bpf_htons(PC_CARRIED_HEAD + sizeof(*cookie) + frame),
		.frag_off = bpf_htons(IPV4_DO_NOT_FRAGMENT),
		.ttl = 1,
		.protocol = IPPROTO_UDP,
		.saddr = source,
		.daddr = carrier->address,
	};
	ip->check = header_checksum(ip);
	udp->source = bpf_htons(CARRIED_FROM_PORT);
	udp->dest = carrier->port;
	udp->len = bpf_htons(sizeof(*udp) + sizeof(*cookie) + frame);
	udp->check = 0;
	*cookie = carrier->cookie;
	return 1;
}

/* Whether the frame was carried to the process. A queue's frames come one after the other, so it is one frame. */
static __always_inline int carry(struct xdp_md *ctx, struct packet *packet, struct pc_carrier *carrier)
{
	__u32 link = (void *)packet->ip - (void *)(long)ctx->data;
	__be32 source = packet->ip->saddr;

	if (ctx->data_end - ctx->data > PC_MAX_CARRIED)
		return 0;
	carrier->armed = 0;
	if (link == ETH_HLEN)
		return carry_behind(ctx, ETH_HLEN, source, carrier);
	return carry_behind(ctx, ETH_HLEN + sizeof(struct vlan_tag), source, carrier);
}

static __always_inline int redirect(struct xdp_md *ctx, struct packet *packet)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 key = packet->interface->device * PC_MAX_QUEUES + queue;
	struct pc_carrier *carrier;

	if ((packet->interface->flags & PC_INTERFACE_GENERIC) && was_punted(packet))
		return counted(PC_PASS_PUNTED, XDP_PASS);
	if (queue >= PC_MAX_QUEUES || !bpf_map_lookup_elem(&xsks, &key))
		return counted(PC_DROP_NO_SOCKET, XDP_DROP);
	carrier = bpf_map_lookup_elem(&carriers, &key);
	if (carrier && carrier->armed && carry(ctx, packet, carrier))
		return counted(PC_PASS_CARRIED, XDP_PASS);
	counted(PC_REDIRECTED, 0);
	return bpf_redirect_map(&xsks, key, XDP_DROP);
}

/* A packet to a shared address that is the kernel's; the fragments that follow it are the kernel's too. */
static __always_inline int pass_shared(struct packet *packet, __u32 which)
{
	if (packet->fragment & IPV4_MORE_FRAGMENTS) {
		struct pc_fragment key = datagram_of(packet->ip);
		__u8 one = 1;

		bpf_map_update_elem(&kernel_fragments, &key, &one, BPF_ANY);
	}
	return counted(which, XDP_PASS);
}

/* A packet to a shared address that is the NAT's. An old datagram with the same identification no longer counts. */
static __always_inline int redirect_shared(struct xdp_md *ctx, struct packet *packet)
{
	if (packet->fragment & IPV4_MORE_FRAGMENTS) {
		struct pc_fragment key = datagram_of(packet->ip);

		bpf_map_delete_elem(&kernel_fragments, &key);
	}
	return redirect(ctx, packet);
}

static __always_inline int owns_port(__u32 slot, __u8 protocol, __be16 port)
{
	__u32 index = slot * 2 + (protocol == IPPROTO_UDP ? PC_PORTS_UDP : PC_PORTS_TCP);
	struct pc_ports *set = bpf_map_lookup_elem(&shared_ports, &index);
	__u32 number = bpf_ntohs(port);

	if (!set)
		return 0;
	return set->words[(number >> 6) & (PC_PORT_WORDS - 1)] >> (number & 63) & 1;
}

/* Whether the NAT translates a protocol by address alone. */
static __always_inline int is_other(__u8 protocol)
{
	__u32 only = 0;
	struct pc_protocols *set;

	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP)
		return 0;
	set = bpf_map_lookup_elem(&other_protocols, &only);
	return set && set->words[protocol >> 6] >> (protocol & 63) & 1;
}

static __always_inline int is_from_outside(struct packet *packet)
{
	return packet->interface->side == PC_SIDE_OUTSIDE;
}

/* Whether the NAT may have sent the packet that an ICMP error quotes. */
static __always_inline int owns_embedded(struct packet *packet)
{
	struct iphdr *inner = packet->transport + sizeof(struct icmp_head);
	struct pc_external *external;
	struct ports_head *ports;
	struct icmp_head *icmp;
	__u32 header, other;

	if ((void *)(inner + 1) > packet->end || inner->version != 4 || inner->ihl < 5)
		return 0;
	other = is_other(inner->protocol);
	if (!other && inner->frag_off & bpf_htons(IPV4_OFFSET))
		return 0;
	__be32 source = inner->saddr;
	external = bpf_map_lookup_elem(&externals, &source);
	if (!external)
		return 0;
	if (!(external->flags & PC_EXTERNAL_SHARED))
		return 1;
	if (other)
		return is_from_outside(packet);

	header = inner->ihl * 4;
	if (inner->protocol == IPPROTO_ICMP) {
		icmp = (void *)inner + header;
		if ((void *)(icmp + 1) > packet->end)
			return 0;
		return icmp->type == ICMP_ECHO_REQUEST || icmp->type == ICMP_TIMESTAMP_REQUEST;
	}
	if (inner->protocol != IPPROTO_TCP && inner->protocol != IPPROTO_UDP)
		return 0;
	ports = (void *)inner + header;
	if ((void *)(ports + 1) > packet->end)
		return 0;
	return owns_port(external->slot, inner->protocol, ports->source);
}

static __always_inline int shared_icmp(struct xdp_md *ctx, struct packet *packet)
{
	struct icmp_head *icmp = packet->transport;

	if ((void *)(icmp + 1) > packet->end)
		return pass_shared(packet, PC_PASS_SHARED_ICMP);
	switch (icmp->type) {
	case ICMP_ECHO_REPLY:
	case ICMP_TIMESTAMP_REPLY:
		return redirect_shared(ctx, packet);
	case ICMP_UNREACHABLE:
	case ICMP_SOURCE_QUENCH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		if (owns_embedded(packet))
			return redirect_shared(ctx, packet);
	}
	return pass_shared(packet, PC_PASS_SHARED_ICMP);
}

/* An address that the box and the NAT share: the packet says whose it is. */
static __always_inline int shared(struct xdp_md *ctx, struct packet *packet, __u32 slot)
{
	struct iphdr *ip = packet->ip;
	struct ports_head *ports = packet->transport;

	/* Every fragment of such a packet says all that it takes. From inside it is the box's: nothing in it says for which host else. */
	if (is_other(ip->protocol)) {
		if (is_from_outside(packet))
			return redirect_shared(ctx, packet);
		return pass_shared(packet, PC_PASS_SHARED_PROTOCOL);
	}
	if (packet->fragment & IPV4_OFFSET) {
		struct pc_fragment key = datagram_of(ip);

		if (bpf_map_lookup_elem(&kernel_fragments, &key))
			return counted(PC_PASS_SHARED_FRAGMENT, XDP_PASS);
		return redirect(ctx, packet);
	}
	if (ip->protocol == IPPROTO_ICMP)
		return shared_icmp(ctx, packet);
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return pass_shared(packet, PC_PASS_SHARED_PROTOCOL);
	if ((void *)(ports + 1) > packet->end || !owns_port(slot, ip->protocol, ports->destination))
		return pass_shared(packet, PC_PASS_SHARED_PORT);
	return redirect_shared(ctx, packet);
}

/* The class of a destination that the kernel keeps, or PC_CLASS_TRANSLATED. */
static __always_inline __u32 kernel_class(__be32 destination)
{
	struct pc_prefix key = { .length = 32, .address = destination };
	__u32 *class = bpf_map_lookup_elem(&kernel_prefixes, &key);

	return class ? *class : PC_CLASS_TRANSLATED;
}

static __always_inline int is_exempt(__be32 remote)
{
	struct pc_prefix key = { .length = 32, .address = remote };

	return bpf_map_lookup_elem(&exempt_prefixes, &key) != 0;
}

/* Whether a set has the first half of an address. */
static __always_inline int has_half(const struct pc_halves *set, __be32 address)
{
	__u32 half = bpf_ntohl(address) >> 16;

	return set && set->words[(half >> 6) & (PC_HALF_WORDS - 1)] >> (half & 63) & 1;
}

static __always_inline int is_configured(struct packet *packet)
{
	struct pc_prefix key = { .length = 32, .address = packet->ip->saddr };
	__u32 only = 0;

	if (packet->interface->flags & PC_INTERFACE_ANY_SOURCE)
		return 1;
	return has_half(bpf_map_lookup_elem(&inside_halves, &only), key.address) || bpf_map_lookup_elem(&inside_prefixes, &key);
}

static __always_inline struct pc_external *external_of(__be32 address)
{
	__u32 place = bpf_ntohl(address) % PC_MAX_NEAR;
	struct pc_near *near = bpf_map_lookup_elem(&near_externals, &place);

	if (near && near->address == address)
		return &near->external;
	return bpf_map_lookup_elem(&externals, &address);
}

/* Whether a table has to be asked about a destination. */
static __always_inline int is_special(__be32 destination)
{
	__u32 only = 0;
	struct pc_halves *set = bpf_map_lookup_elem(&special_halves, &only);

	return !set || has_half(set, destination);
}

/* A packet to a destination that is nobody's on the box, or to one that is exempt. */
static __always_inline int decide_remote(struct xdp_md *ctx, struct packet *packet, int may_be_exempt)
{
	if (packet->interface->side != PC_SIDE_INSIDE)
		return counted(PC_PASS_NOT_EXTERNAL, XDP_PASS);
	if (!is_configured(packet))
		return counted(PC_PASS_PREFIX_NOT_CONFIGURED, XDP_PASS);
	if (may_be_exempt && is_exempt(packet->ip->daddr))
		return counted(PC_PASS_EXEMPT, XDP_PASS);
	return redirect(ctx, packet);
}

static __always_inline int decide(struct xdp_md *ctx, struct packet *packet)
{
	__be32 destination = packet->ip->daddr;
	struct pc_external *external;

	if (bpf_ntohl(destination) >> 28 == 0xE || destination == bpf_htonl(0xFFFFFFFF))
		return counted(PC_PASS_MULTICAST, XDP_PASS);
	if (!is_special(destination))
		return decide_remote(ctx, packet, 0);

	external = external_of(destination);
	if (external) {
		if (external->flags & PC_EXTERNAL_SHARED)
			return shared(ctx, packet, external->slot);
		return redirect(ctx, packet);
	}

	switch (kernel_class(destination)) {
	case PC_CLASS_LOCAL:
		return counted(PC_PASS_LOCAL, XDP_PASS);
	case PC_CLASS_BROADCAST:
		return counted(PC_PASS_BROADCAST, XDP_PASS);
	case PC_CLASS_ELSEWHERE:
		return counted(PC_PASS_ELSEWHERE_ROUTE, XDP_PASS);
	case PC_CLASS_INSIDE:
		if (packet->interface->side == PC_SIDE_INSIDE)
			return counted(PC_PASS_INSIDE_ROUTE, XDP_PASS);
	}

	return decide_remote(ctx, packet, 1);
}

static __always_inline struct pc_interface *interface_of(struct pc_interface_key *key)
{
	__u32 place = key->ifindex % PC_MAX_UNTAGGED;
	struct pc_untagged *found = bpf_map_lookup_elem(&untagged, &place);

	if (!key->vlan && found && found->ifindex == key->ifindex)
		return &found->interface;
	return bpf_map_lookup_elem(&interfaces, key);
}

static __always_inline int is_ours(const struct ethhdr *eth, const struct pc_interface *interface)
{
	int differs = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		differs |= eth->h_dest[i] ^ interface->mac[i];
	return !differs;
}

SEC("xdp")
int xdp_steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct pc_interface_key key = { .ifindex = ctx->ingress_ifindex };
	struct packet packet = { .end = end };
	struct ethhdr *eth = data;
	void *network = eth + 1;
	__be16 protocol;
	__u32 header, total, there;

	if (network > end)
		return counted(PC_PASS_TOO_SHORT, XDP_PASS);
	protocol = eth->h_proto;
	if (protocol == bpf_htons(ETH_P_8021Q)) {
		struct vlan_tag *tag = network;

		network = tag + 1;
		if (network > end)
			return counted(PC_PASS_TOO_SHORT, XDP_PASS);
		key.vlan = bpf_ntohs(tag->tci) & VLAN_ID;
		protocol = tag->protocol;
	}

	packet.interface = interface_of(&key);
	if (!packet.interface)
		return counted(PC_PASS_UNKNOWN_INTERFACE, XDP_PASS);
	if (protocol != bpf_htons(ETH_P_IP))
		return counted(PC_PASS_NOT_IPV4, XDP_PASS);
	if (eth->h_dest[0] & 1)
		return counted(PC_PASS_MULTICAST, XDP_PASS);
	if (!is_ours(eth, packet.interface))
		return counted(PC_PASS_OTHER_HOST, XDP_PASS);

	packet.ip = network;
	if ((void *)(packet.ip + 1) > end)
		return counted(PC_DROP_BAD_IP_HEADER, XDP_DROP);
	header = packet.ip->ihl * 4;
	total = bpf_ntohs(packet.ip->tot_len);
	there = end - network;
	if (packet.ip->version != 4 || header < sizeof(struct iphdr) || total < header || total > there)
		return counted(PC_DROP_BAD_IP_HEADER, XDP_DROP);
	packet.transport = network + header;
	packet.fragment = bpf_ntohs(packet.ip->frag_off);
	return decide(ctx, &packet);
}

SEC("xdp")
int xdp_punt(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* The side that a packet leaves by. A VLAN's packets pass its parent's egress too: their tag says that they are the VLAN's. */
static __always_inline __u32 side_out(struct __sk_buff *skb, __u32 vlan)
{
	if (vlan) {
		struct pc_interface_key key = { .ifindex = skb->ifindex, .vlan = vlan };
		struct pc_interface *interface = bpf_map_lookup_elem(&interfaces, &key);

		if (!interface)
			return 0;
		return interface->side | (interface->flags & PC_INTERFACE_ANY_SOURCE ? PC_SIDE_ANY_SOURCE : 0);
	}
	__u32 ifindex = skb->ifindex;
	__u32 *side = bpf_map_lookup_elem(&sides, &ifindex);

	return side ? *side : 0;
}

/* Whether an address behind an inside interface of these `sides` bits is one that is translated otherwise: no forged source goes out. */
static __always_inline int is_host(__u32 side, __be32 address)
{
	struct pc_prefix key = { .length = 32, .address = address };

	if (kernel_class(address) != PC_CLASS_INSIDE)
		return 0;
	return side & PC_SIDE_ANY_SOURCE || bpf_map_lookup_elem(&inside_prefixes, &key);
}

/* Whether an ICMP error at `at` is about a packet from its receiver to an exempt destination: routers on the way send them. */
static __always_inline int is_error_about_exempt(struct __sk_buff *skb, __u32 at, const struct iphdr *ip)
{
	struct icmp_head icmp;
	struct iphdr quoted;

	at += ip->ihl * 4;
	if (ip->protocol != IPPROTO_ICMP || ip->frag_off & bpf_htons(IPV4_OFFSET))
		return 0;
	if (bpf_skb_load_bytes(skb, at, &icmp, sizeof(icmp)) || bpf_skb_load_bytes(skb, at + sizeof(icmp), &quoted, sizeof(quoted)))
		return 0;
	if (icmp.type != ICMP_UNREACHABLE && icmp.type != ICMP_TIME_EXCEEDED && icmp.type != ICMP_PARAMETER_PROBLEM)
		return 0;
	return quoted.saddr == ip->daddr && is_exempt(quoted.daddr);
}

/* Whether the IPv4 packet at `at` goes between a host and an exempt destination. */
static __always_inline int may_cross(struct __sk_buff *skb, __u32 at, __u32 from, __u32 to)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return 0;
	if (from & PC_SIDE_INSIDE)
		return is_host(from, ip.saddr) && is_exempt(ip.daddr);
	return is_host(to, ip.daddr) && (is_exempt(ip.saddr) || is_error_about_exempt(skb, at, &ip));
}

SEC("tc")
int guard_egress(struct __sk_buff *skb)
{
	__u32 from = skb->ingress_ifindex;
	__be16 protocol = skb->protocol;
	__u32 vlan = skb->vlan_present ? skb->vlan_tci & VLAN_ID : 0;
	__u32 *side_in, side, at = ETH_HLEN;

	if (!from)
		return TC_ACT_UNSPEC;
	if (protocol == bpf_htons(ETH_P_8021Q)) {
		struct vlan_tag tag;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &tag, sizeof(tag)))
			return TC_ACT_UNSPEC;
		vlan = bpf_ntohs(tag.tci) & VLAN_ID;
		protocol = tag.protocol;
		at += sizeof(tag);
	}
	if (protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;

	side_in = bpf_map_lookup_elem(&sides, &from);
	side = side_out(skb, vlan);
	if (!side_in || !side || !((*side_in ^ side) & ~PC_SIDE_ANY_SOURCE))
		return TC_ACT_UNSPEC;
	if (may_cross(skb, at, *side_in, side))
		return TC_ACT_UNSPEC;
	return counted(PC_GUARD_DROPPED, TC_ACT_SHOT);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
