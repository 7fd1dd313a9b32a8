// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * The verifying sink, in the receive path: checks every packet of the generator, counts it, and drops it or sends it back.
 *
 * It knows the setup below and what it has seen, nothing of the gateway. It runs on one queue, in one poll at a time, so its counts are
 * plain writes. Frames that are not the generator's (ARP, the datagram that wakes polling) are the kernel's. A packet with a wrong
 * checksum is counted as that and not believed.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../src/stamp.bpf.h"

#define ETHERNET_LEN 14
#define IPV4_LEN 20
#define UDP_LEN 8
#define WINDOW 64
#define SUB_BITS 5
#define BUCKETS (64 << SUB_BITS)

struct range {
	__u32 first;
	__u32 count;
};

/*
 * Written before loading; the verifier then knows it as constants. `from` is where packets come from, in host order. Flows below `steady`
 * keep their endpoint; the others may be forgotten and begin anew. With `home` packets have to come to the flow's own endpoint: its digits
 * in `src` and `sport`, as the generator makes them.
 */
const volatile struct expected {
	__u32 flows;
	__u32 steady;
	__u32 udp_len;
	__u32 from_first, from_last;
	__u32 reflect;
	__u32 home;
	struct range src, sport;
} expected = {};

struct totals {
	__u64 received;
	__u64 distinct;
	__u64 flows;
	__u64 bad_ip_checksum;
	__u64 bad_l4_checksum;
	__u64 wrong_endpoint;
	__u64 changed_endpoint;
	__u64 reordered;
	__u64 duplicates;
	__u64 foreign;
	__u64 latency[BUCKETS];
} totals = {};

/* Bit `k` of the window says that sequence `end - 1 - k` was seen. */
struct flow {
	__u64 window;
	__u64 end;
	__u64 seen;
	__be32 address;
	__be16 port;
	__u16 padding;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

struct ipv4 {
	__u8 version, tos;
	__be16 len;
	__u8 fixed[5];
	__u8 protocol;
	__be16 check;
	__be32 saddr;
	__be32 daddr;
} __attribute__((packed, aligned(2)));

struct udp {
	__be16 source;
	__be16 dest;
	__be16 len;
	__be16 check;
} __attribute__((packed, aligned(2)));

/* The one's complement sum of `len` bytes that the caller knows to be there; `len` is even. */
static __always_inline __u64 sum_bytes(const void *data, const __u32 len)
{
	__u64 sum = 0;
	__u32 at;

	for (at = 0; at + 8 <= len; at += 8) {
		__u64 word = *(const __u64 *)(data + at);

		sum += (word & 0xffffffff) + (word >> 32);
	}
	for (; at + 2 <= len; at += 2)
		sum += *(const __u16 *)(data + at);
	return sum;
}

static __always_inline __u32 log2_of(__u64 value)
{
	__u32 bits = 0;

#pragma unroll
	for (__u32 step = 32; step; step >>= 1) {
		if (value >> step) {
			value >>= step;
			bits += step;
		}
	}
	return bits;
}

/* Buckets are 32 to each power of two, exact below 32; sink.rs has the inverse. */
static __always_inline void count_latency(__u64 sent)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 latency = now > sent ? now - sent : 0;
	__u32 bits = latency >> SUB_BITS ? log2_of(latency) - SUB_BITS : 0;
	__u32 bucket = (latency >> SUB_BITS ? (bits + 1) << SUB_BITS : 0) + ((latency >> bits) & ((1 << SUB_BITS) - 1));

	if (bucket < BUCKETS)
		totals.latency[bucket]++;
}

static __always_inline void count_order(struct flow *flow, __u64 sequence)
{
	if (sequence >= flow->end) {
		__u64 step = sequence - flow->end + 1;

		flow->window = (step < WINDOW ? flow->window << step : 0) | 1;
		flow->end = sequence + 1;
	} else {
		__u64 back = flow->end - 1 - sequence;

		if (back < WINDOW) {
			if (flow->window >> back & 1) {
				totals.duplicates++;
				return;
			}
			flow->window |= 1ULL << back;
		}
		totals.reordered++;
	}
	totals.distinct++;
	totals.flows += !flow->seen++;
}

static __always_inline void count_endpoint(struct flow *flow, __u32 number, const struct ipv4 *ip, const struct udp *udp)
{
	__be32 address = expected.home ? ip->daddr : ip->saddr;
	__be16 port = expected.home ? udp->dest : udp->source;
	__u32 from = bpf_ntohl(ip->saddr);

	if (from < expected.from_first || from > expected.from_last)
		totals.wrong_endpoint++;
	if (expected.home) {
		__u32 sport = number / expected.src.count % expected.sport.count;

		if (address != bpf_htonl(expected.src.first + number % expected.src.count) ||
		    port != bpf_htons(expected.sport.first + sport))
			totals.wrong_endpoint++;
	}
	if (number < expected.steady && flow->seen && (flow->address != address || flow->port != port))
		totals.changed_endpoint++;
	flow->address = address;
	flow->port = port;
}

/*
 * Back to where it came from. Checksums stay right: they sum the same words. Not XDP_TX: with that, veth wakes its peer's queue only where
 * the peer has an XDP program.
 */
static __always_inline int reflect(struct xdp_md *ctx, void *data, struct ipv4 *ip, struct udp *udp)
{
	__u16 *mac = data;
	__be32 address = ip->saddr;
	__be16 port = udp->source;

#pragma unroll
	for (__u32 i = 0; i < 3; i++) {
		__u16 word = mac[i];

		mac[i] = mac[i + 3];
		mac[i + 3] = word;
	}
	ip->saddr = ip->daddr;
	ip->daddr = address;
	udp->source = udp->dest;
	udp->dest = port;
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv4 *ip = data + ETHERNET_LEN;
	struct udp *udp = data + ETHERNET_LEN + IPV4_LEN;
	struct stamp *stamp = data + ETHERNET_LEN + IPV4_LEN + UDP_LEN;
	struct flow *flow;
	__u32 number;
	__u64 sum;

	if (data + ETHERNET_LEN + IPV4_LEN + expected.udp_len > end || *(__be16 *)(data + 12) != bpf_htons(0x0800))
		return XDP_PASS;
	number = bpf_ntohl(stamp->flow);
	if (ip->version != 0x45 || ip->protocol != 17 || udp->len != bpf_htons(expected.udp_len) ||
	    stamp->magic != bpf_htons(MAGIC) || number >= expected.flows) {
		totals.foreign++;
		return XDP_PASS;
	}
	totals.received++;
	if (fold(sum_bytes(ip, IPV4_LEN)) != 0xffff) {
		totals.bad_ip_checksum++;
		return XDP_DROP;
	}
	sum = (__u64)ip->saddr + ip->daddr + bpf_htons(17) + udp->len;
	if (fold(sum + sum_bytes(udp, expected.udp_len)) != 0xffff) {
		totals.bad_l4_checksum++;
		return XDP_DROP;
	}
	flow = bpf_map_lookup_elem(&flows, &number);
	if (!flow)
		return XDP_ABORTED;
	count_endpoint(flow, number, ip, udp);
	count_order(flow, bpf_be64_to_cpu(stamp->sequence));
	count_latency(bpf_be64_to_cpu(stamp->sent));
	return expected.reflect ? reflect(ctx, data, ip, udp) : XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
