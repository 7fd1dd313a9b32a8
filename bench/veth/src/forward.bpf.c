// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * The bare forwarder's XDP program: every IPv4 frame to the socket of its queue, but for datagrams to the port that wakes the
 * forwarder's polling, which are the kernel's. It looks nothing up, so no gateway's program can be cheaper.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETHERNET_LEN 14
#define IPV4_LEN 20
#define UDP 17

/* Written before loading. */
const volatile __u32 prime_port = 0;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

SEC("xdp")
int forward(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	__u8 *end = (void *)(long)ctx->data_end;

	if (data + ETHERNET_LEN + IPV4_LEN + 8 > end || *(__be16 *)(data + 12) != bpf_htons(0x0800))
		return XDP_PASS;
	if (data[ETHERNET_LEN + 9] == UDP && *(__be16 *)(data + ETHERNET_LEN + IPV4_LEN + 2) == bpf_htons(prime_port))
		return XDP_PASS;
	return bpf_redirect_map(&sockets, 0, XDP_DROP);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
