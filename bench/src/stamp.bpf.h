/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only */
/*
 * What the generator writes at the beginning of each payload and the sinks read, and the end of a checksum. stamp.rs is the same in Rust.
 */
#ifndef STAMP_BPF_H
#define STAMP_BPF_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define MAGIC 0x5043

struct stamp {
	__be16 magic;
	__be32 flow;
	__be64 sequence;
	__be64 sent;
} __attribute__((packed, aligned(2)));

/* A sum of words of any width up to 32 bits, as one of 16 bits. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

#endif
