// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * What a port of the tester does with pktgen's packets that come back from the gateway: count them as early as can be, and drop them
 * or send them back. Everything else goes to the kernel, so that ARP is answered.
 *
 * Knows pktgen's magic and which addresses must have been translated away. count.rs loads it, one for each port, and reads the counts.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Linux net/core/pktgen.c: PKTGEN_MAGIC, the first word of the payload. */
#define MAGIC 0xbe9be955
/* Receive queues that are told apart; the last one has those beyond it too. */
#define QUEUES 64
#define ETHERTYPE_IPV4 0x0800
#define PROTOCOL_UDP 17

/* Host order, both ends included. Written before loading. */
struct range {
	__u32 first;
	__u32 last;
};

const volatile struct { struct range sources, destinations; } untranslated = {};

struct counted {
	__u64 packets;
	__u64 untranslated;
};

/* By receive queue. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, QUEUES);
	__type(key, __u32);
	__type(value, struct counted);
} counts SEC(".maps");

/* Whether packets are sent back. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} answer SEC(".maps");

struct frame {
	__u8 to[6];
	__u8 from[6];
	__be16 ethertype;
	__u8 version_and_length;
	__u8 fixed[8];
	__u8 protocol;
	__be16 ip_check;
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__be16 length;
	__be16 check;
	__be32 magic;
} __attribute__((packed, aligned(2)));

static __always_inline int within(__be32 address, const volatile struct range *range)
{
	__u32 value = bpf_ntohl(address);

	return value >= range->first && value <= range->last;
}

/* To where it came from. Neither checksum changes: both are sums. */
static __always_inline void turn_round(struct frame *frame)
{
	__be32 address = frame->source;
	__be16 port = frame->source_port;
	__u8 mac[6];

	__builtin_memcpy(mac, frame->to, 6);
	__builtin_memcpy(frame->to, frame->from, 6);
	__builtin_memcpy(frame->from, mac, 6);
	frame->source = frame->destination;
	frame->destination = address;
	frame->source_port = frame->destination_port;
	frame->destination_port = port;
}

SEC("xdp")
int count(struct xdp_md *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	__u32 queue = ctx->rx_queue_index, zero = 0, *answers;
	struct counted *counted;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (frame->ethertype != bpf_htons(ETHERTYPE_IPV4) || frame->version_and_length != 0x45 ||
	    frame->protocol != PROTOCOL_UDP || frame->magic != bpf_htonl(MAGIC))
		return XDP_PASS;
	if (queue >= QUEUES)
		queue = QUEUES - 1;
	counted = bpf_map_lookup_elem(&counts, &queue);
	answers = bpf_map_lookup_elem(&answer, &zero);
	if (!counted || !answers)
		return XDP_ABORTED;
	counted->packets++;
	if (within(frame->source, &untranslated.sources) || within(frame->destination, &untranslated.destinations))
		counted->untranslated++;
	if (!*answers)
		return XDP_DROP;
	turn_round(frame);
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
