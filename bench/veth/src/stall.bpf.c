// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * How long the gateway's core stood still, and what came to it meanwhile.
 *
 * `tick` runs from the core's own clock, several thousand times a second, whatever task is on it. A tick that is late says that the core
 * itself was away: the hypervisor had it. A tick in another program than the gateway says the same and does not count. What the
 * generators sent in that time may have been lost before any gateway could do anything: with half a ring's packets from the pause before,
 * and those that a generator which paused too catches up with, the device's ring is full.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Written before loading. Times in nanoseconds. */
const volatile __u64 late = 0;
const volatile __u64 late_when_idle = 0;
const volatile __u64 ring = 0;

struct stalls {
	__u64 count;
	__u64 time;
	__u64 longest;
	__u64 packets;
	/* The tick before: when, how much had been sent, and how much was between the last two that were not late. */
	__u64 last;
	__u64 sent;
	__u64 usual;
} stalls = {};

/* The generators' count: their own map is put here. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sent SEC(".maps");

/* The gateway's process, or 0 where it is none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} gateway SEC(".maps");

/* The part of the kernel's that is looked at. */
struct task_struct {
	unsigned int flags;
} __attribute__((preserve_access_index));

/* A thread of the kernel's own, which has no memory of a process (linux/sched.h). */
#define PF_KTHREAD 0x00200000

/* One that does what work queues ask for. */
#define PF_WQ_WORKER 0x00000020

/*
 * Whether a program runs that is not the gateway. What the kernel's threads do may be for it; but work queues do nothing for a program that
 * forwards, where for the kernel's NAT they clean up.
 */
static __always_inline int is_foreign(void)
{
	__u32 key = 0, process = bpf_get_current_pid_tgid() >> 32;
	__u32 *own = bpf_map_lookup_elem(&gateway, &key);
	struct task_struct *task = bpf_get_current_task_btf();

	if (!process || !own || process == *own)
		return 0;
	return !(task->flags & PF_KTHREAD) || (*own && task->flags & PF_WQ_WORKER);
}

static __always_inline __u64 sent_until_now(void)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&sent, &key);

	return count ? *count : 0;
}

SEC("perf_event")
int tick(void *context)
{
	__u64 now = bpf_ktime_get_ns(), count = sent_until_now();
	__u64 since = now - stalls.last, came = count - stalls.sent;

	if (is_foreign())
		return 0;
	/* A core that has halted wakes late: whoever lets it halt pays for that. */
	if (stalls.last && since >= ((__u32)bpf_get_current_pid_tgid() ? late : late_when_idle)) {
		stalls.count++;
		stalls.time += since;
		if (since > stalls.longest)
			stalls.longest = since;
		if (came > stalls.usual + ring / 2)
			stalls.packets += came - stalls.usual;
	} else {
		stalls.usual = came;
	}
	stalls.last = now;
	stalls.sent = count;
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
