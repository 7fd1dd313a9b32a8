// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * The generator's XDP programs.
 *
 * `generate` writes the next packet into the frame that BPF_PROG_RUN lends it and redirects it out of an interface. It knows the
 * setup below and its own state, and nothing of time but the clock it stamps with. The kernel recycles frames, with whatever
 * their last reader left in them: so it writes every header byte, every time. template.rs says in Rust what it must write, and
 * a test compares the two byte for byte.
 *
 * `stream` does the same at a rate, in calls of many thousand frames: what is not due yet it drops, and the kernel lends it the frame again.
 * So packets leave one by one as they become due, and a call for each few is not needed.
 *
 * A second set of flows can go among the first: each so-manieth packet is one of theirs.
 *
 * `accept` passes everything: a veth takes redirected frames only when its peer has an XDP program (or GRO).
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "stamp.bpf.h"

#define ETHERNET_LEN 14
#define IPV4_LEN 20
#define STAMP_LEN 22
#define HEADERS_MAX (ETHERNET_LEN + IPV4_LEN + 20)

enum protocol { UDP, TCP_SYN, TCP_ACK, ICMP_ECHO };
enum checksum { RIGHT, ZERO, PARTIAL };

/* Counted from `first`, `count` of them; addresses and ports are in host order. */
struct range {
	__u32 first;
	__u32 count;
};

/* The flows of a stream. Every sequence starts at 0. */
struct flows {
	__u32 count;
	__u32 first;
	__u32 step;
	struct range src, dst, sport, dport;
};

/*
 * Written before loading; the verifier then knows it as constants. Each `every`th packet is of the second flows, or none where it is 0.
 * The sums are one's complement sums over the template (and the pseudo header without addresses), unfolded, in memory order.
 */
const volatile struct setup {
	__u32 ifindex;
	__u32 protocol;
	__u32 checksum;
	__u32 ip_sum;
	__u32 l4_sum;
	__u32 pseudo_sum;
	__u32 payload_len;
	__u32 every;
	struct flows flows[2];
	__u8 template[HEADERS_MAX];
	__u8 padding[2];
} setup = {};

/*
 * What the next packet of either flows is. `turn` is its place in the pass over all of them; the indices are the flow's digits in mixed
 * radix.
 */
struct state {
	__u64 sent;
	__u64 sequence;
	__u32 turn;
	__u32 flow;
	__u32 src, sport, dst, dport;
};

/* One runner at a time, so plain writes. `turns` counts the packets since the last of the second flows. */
struct progress {
	struct state of[2];
	__u32 turns;
} progress = {};

/* Packets sent, of either flows, for programs that look on. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sent SEC(".maps");

/* When the next packet is due, and then the one after. In units of 1/1024 ns of the kernel's clock; no interval: always. */
struct pace {
	__u64 next;
	__u64 interval;
	__u64 debt;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pace);
} paces SEC(".maps");

#define UNIT_BITS 10

struct ipv4 {
	__u8 fixed[10];
	__be16 check;
	__be32 saddr;
	__be32 daddr;
} __attribute__((packed, aligned(2)));

struct ports {
	__be16 source;
	__be16 dest;
} __attribute__((packed, aligned(2)));

struct udp {
	struct ports ports;
	__be16 len;
	__be16 check;
} __attribute__((packed, aligned(2)));

struct tcp {
	struct ports ports;
	__be32 seq;
	__be32 ack;
	__u8 fixed[4];
	__be16 check;
	__be16 urgent;
} __attribute__((packed, aligned(2)));

struct icmp_echo {
	__u8 type;
	__u8 code;
	__be16 check;
	__be16 id;
	__be16 sequence;
} __attribute__((packed, aligned(2)));

static __always_inline __u64 sum64(__u64 value)
{
	return (value & 0xffffffff) + (value >> 32);
}

/* Jumps to the flow `step` further on, round and round: each pass meets every flow once, as `step` and the count have no common divisor. */
static __always_inline void jump(struct state *state, const volatile struct flows *flows)
{
	__u32 rest;

	state->flow += flows->step;
	if (state->flow >= flows->count)
		state->flow -= flows->count;
	rest = state->flow;
	state->src = rest % flows->src.count;
	rest /= flows->src.count;
	state->sport = rest % flows->sport.count;
	rest /= flows->sport.count;
	state->dst = rest % flows->dst.count;
	rest /= flows->dst.count;
	state->dport = rest % flows->dport.count;
}

/* Steps to the next flow, and after the last one to the next sequence number. */
static __always_inline void advance(struct state *state, const volatile struct flows *flows)
{
	state->sent++;
	if (++state->turn >= flows->count) {
		state->turn = state->flow = state->src = state->sport = state->dst = state->dport = 0;
		state->sequence++;
		return;
	}
	if (flows->step != 1) {
		jump(state, flows);
		return;
	}
	state->flow++;
	if (++state->src < flows->src.count)
		return;
	state->src = 0;
	if (++state->sport < flows->sport.count)
		return;
	state->sport = 0;
	if (++state->dst < flows->dst.count)
		return;
	state->dst = 0;
	if (++state->dport >= flows->dport.count)
		state->dport = 0;
}

/* What an upper-layer checksum field gets, given the sum of what it covers and of its pseudo header. */
static __always_inline __u16 l4_check(__u64 sum, __u64 pseudo)
{
	__u16 check;

	if (setup.checksum == ZERO)
		return 0;
	if (setup.checksum == PARTIAL)
		return fold(pseudo);
	check = ~fold(sum);
	return check ? check : 0xffff;
}

static __always_inline void count_sent(void)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&sent, &key);

	if (count)
		*count += 1;
}

/* Writes the next packet of the first or the second flows. Returns 0, or -1 where the frame has no room for it. */
static __always_inline int emit(struct xdp_md *ctx, const __u32 which, const __u32 l4_len)
{
	const volatile struct flows *flows = &setup.flows[which];
	struct state *state = &progress.of[which];
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	const __u32 headers = ETHERNET_LEN + IPV4_LEN + l4_len;
	struct ipv4 *ip = data + ETHERNET_LEN;
	void *l4 = data + ETHERNET_LEN + IPV4_LEN;
	struct stamp *stamp = data + headers;
	__u64 sequence = state->sequence;
	__u16 sport = bpf_htons(flows->sport.first + state->sport);
	__u16 dport = bpf_htons(flows->dport.first + state->dport);
	__u64 addresses, sum;

	if (data + headers + STAMP_LEN > end)
		return -1;
#pragma unroll
	for (__u32 i = 0; i < headers; i += 2)
		*(__u16 *)(data + i) = *(const volatile __u16 *)(setup.template + i);

	ip->saddr = bpf_htonl(flows->src.first + state->src);
	ip->daddr = bpf_htonl(flows->dst.first + state->dst);
	addresses = (__u64)ip->saddr + ip->daddr;
	ip->check = ~fold(setup.ip_sum + addresses);

	stamp->magic = bpf_htons(MAGIC);
	stamp->flow = bpf_htonl(flows->first + state->flow);
	stamp->sequence = bpf_cpu_to_be64(sequence);
	stamp->sent = bpf_cpu_to_be64(bpf_ktime_get_ns());
	sum = setup.l4_sum + (__u64)stamp->flow + sum64(stamp->sequence) + sum64(stamp->sent);

	if (setup.protocol == UDP) {
		struct udp *udp = l4;

		udp->ports.source = sport;
		udp->ports.dest = dport;
		udp->check = l4_check(sum + addresses + sport + dport, setup.pseudo_sum + addresses);
	} else if (setup.protocol == ICMP_ECHO) {
		struct icmp_echo *icmp = l4;

		icmp->id = sport;
		icmp->sequence = bpf_htons(sequence);
		icmp->check = ~fold(sum + icmp->id + icmp->sequence);
	} else {
		struct tcp *tcp = l4;

		tcp->ports.source = sport;
		tcp->ports.dest = dport;
		if (setup.protocol == TCP_ACK) {
			tcp->seq = bpf_htonl((__u32)sequence * setup.payload_len);
			/* Each packet acknowledges something else, so that no receive offload merges it with the next. */
			tcp->ack = bpf_htonl((__u32)sequence);
			sum += (__u64)tcp->seq + tcp->ack;
		}
		tcp->check = l4_check(sum + addresses + sport + dport, setup.pseudo_sum + addresses);
	}
	advance(state, flows);
	count_sent();
	return 0;
}

static __always_inline int write_of(struct xdp_md *ctx, const __u32 which)
{
	if (setup.protocol == TCP_SYN || setup.protocol == TCP_ACK)
		return emit(ctx, which, 20);
	return emit(ctx, which, 8);
}

static __always_inline int write_next(struct xdp_md *ctx)
{
	if (setup.every && ++progress.turns >= setup.every) {
		progress.turns = 0;
		return write_of(ctx, 1);
	}
	return write_of(ctx, 0);
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	return write_next(ctx) ? XDP_ABORTED : bpf_redirect(setup.ifindex, 0);
}

SEC("xdp")
int stream(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct pace *pace = bpf_map_lookup_elem(&paces, &key);

	if (!pace)
		return XDP_ABORTED;
	if (pace->interval) {
		__u64 now = bpf_ktime_get_ns() << UNIT_BITS;

		if (now < pace->next)
			return XDP_DROP;
		/* A debt beyond what may be caught up is forgiven: a stall is not followed by a flood. */
		if (now - pace->next > pace->debt)
			pace->next = now - pace->debt;
		pace->next += pace->interval;
	}
	return write_next(ctx) ? XDP_ABORTED : bpf_redirect(setup.ifindex, 0);
}

SEC("xdp")
int accept(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
