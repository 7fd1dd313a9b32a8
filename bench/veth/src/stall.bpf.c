// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0-only
/*
 * How long the gateway's core stood still, and what came to it meanwhile.
 *
 * `tick` runs from the core's own clock, several thousand times a second, whatever task is on it. A tick that is late says that the core
 * itself was away: the hypervisor had it. A tick in another program than the gateway, or in a softirq that is not the network's beside a
 * gateway that is a program, says the same and does not count; nor does one while the core has waited for a spin lock for longer than any is
 * held, for then the hypervisor has the core that holds it; nor one that finds the core where it was some ticks ago, at the same instruction or in the
 * same run of a device's queue: then the hypervisor lets it do little more than take the ticks. What the generator sent in that time may have been lost before any gateway
 * could do anything, if the device's ring was full by then. How full it is after a pause is reckoned for a gateway at nine tenths of what it
 * can do: of nine packets that come it has done with ten.
 */
#include <linux/ptrace.h>
#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <asm/unistd.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/* Written before loading. Times in nanoseconds. */
const volatile __u32 core = 0;
const volatile __u64 period = 0;
const volatile __u64 late = 0;
const volatile __u64 late_when_idle = 0;
const volatile __u64 ring = 0;
const volatile __u64 held_long = 0;
const volatile __u64 stood_long = 0;

struct stalls {
	__u64 count;
	__u64 time;
	__u64 longest;
	__u64 packets;
	/* The tick before: when, how much had been sent, and what pauses had left in the ring. */
	__u64 last;
	__u64 sent;
	__u64 backlog;
	/* Whether the core is in a softirq that does nothing for a program that forwards: timers, disks, the scheduler, RCU. */
	__u64 in_foreign_softirq;
	/* Since when it waits for a spin lock, or 0. */
	__u64 waits_since;
	/* Whether it has halted since the tick before. */
	__u64 has_halted;
	/* Where the tick before found the core, since when, and whether it has run a device's queue since. */
	__u64 instruction;
	__u64 stack;
	__u64 stands_since;
	__u64 has_run_queue;
} stalls = {};

/* The generator's count: its own map is put here. */
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

#define NET_TX_SOFTIRQ 2
#define NET_RX_SOFTIRQ 3

SEC("tp_btf/softirq_entry")
int BPF_PROG(softirq_begins, unsigned int number)
{
	__u32 key = 0, *own = bpf_map_lookup_elem(&gateway, &key);

	if (bpf_get_smp_processor_id() == core)
		stalls.in_foreign_softirq = own && *own && number != NET_TX_SOFTIRQ && number != NET_RX_SOFTIRQ;
	return 0;
}

SEC("tp_btf/softirq_exit")
int BPF_PROG(softirq_ends, unsigned int number)
{
	if (bpf_get_smp_processor_id() == core)
		stalls.in_foreign_softirq = 0;
	return 0;
}

/* The flag of a wait in which the core spins (trace/events/lock.h). */
#define LCB_F_SPIN 1

SEC("tp_btf/contention_begin")
int BPF_PROG(wait_begins, void *lock, unsigned int flags)
{
	if (bpf_get_smp_processor_id() == core && flags & LCB_F_SPIN)
		stalls.waits_since = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/contention_end")
int BPF_PROG(wait_ends, void *lock, int error)
{
	if (bpf_get_smp_processor_id() == core)
		stalls.waits_since = 0;
	return 0;
}

/* The number of a state that is left, not entered (trace/events/power.h: PWR_EVENT_EXIT). */
#define IDLE_ENDS (~0u)

SEC("tp_btf/cpu_idle")
int BPF_PROG(idle_begins_or_ends, unsigned int state, unsigned int cpu)
{
	if (cpu == core && state != IDLE_ENDS)
		stalls.has_halted = 1;
	return 0;
}

SEC("tp_btf/napi_poll")
int BPF_PROG(queue_ran)
{
	if (bpf_get_smp_processor_id() == core)
		stalls.has_run_queue = 1;
	return 0;
}

/*
 * Whether the program is in the call by which it runs a device's queue: a datagram socket's busy polling. Another system call says nothing, since
 * the next one from the same place looks the same.
 */
static __always_inline int runs_queue(struct pt_regs *program)
{
#ifdef __TARGET_ARCH_x86
	return program->orig_rax == __NR_recvfrom;
#else
	return 0;
#endif
}

/*
 * Whether the core, which is at work, has got no further for some ticks. A gateway that computes, or sends, for so long is at the same instruction
 * each time by chance only. One that runs a queue has taken 64 packets sooner, after which it is told (`queue_ran`); a thread of the kernel's own
 * does nothing else, where the kernel is the gateway.
 */
static __always_inline int stands_for_long(__u64 now, int halted, struct bpf_perf_event_data *context)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *program = (struct pt_regs *)bpf_task_pt_regs(task);
	__u64 instruction = PT_REGS_IP(&context->regs), stack = PT_REGS_SP(&context->regs);

	/* Read here: the verifier allows no pointer into the context that may be one of two. */
	barrier_var(instruction);
	barrier_var(stack);
	if (task->flags & PF_KTHREAD || runs_queue(program)) {
		instruction = PT_REGS_IP(program);
		stack = PT_REGS_SP(program);
	}
	if (halted || stalls.has_run_queue || instruction != stalls.instruction || stack != stalls.stack)
		stalls.stands_since = now;
	stalls.instruction = instruction;
	stalls.stack = stack;
	stalls.has_run_queue = 0;
	return now - stalls.stands_since >= stood_long;
}

static __always_inline int waits_for_a_stopped_core(__u64 now)
{
	return stalls.waits_since && now - stalls.waits_since >= held_long;
}

static __always_inline __u64 sent_until_now(void)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&sent, &key);

	return count ? *count : 0;
}

SEC("perf_event")
int tick(struct bpf_perf_event_data *context)
{
	__u64 now = bpf_ktime_get_ns(), count = sent_until_now();
	__u64 since = now - stalls.last, came = count - stalls.sent, missed = 0, done;
	/* A core that has halted wakes late: whoever lets it halt pays for that. */
	int halted = stalls.has_halted || !(__u32)bpf_get_current_pid_tgid();
	int stands = stands_for_long(now, halted, context);

	if (is_foreign() || stalls.in_foreign_softirq || waits_for_a_stopped_core(now) || stands)
		return 0;
	if (stalls.last && since >= (halted ? late_when_idle : late)) {
		stalls.count++;
		stalls.time += since;
		if (since > stalls.longest)
			stalls.longest = since;
	}
	if (stalls.last && since >= (halted ? late_when_idle : period + period / 2))
		missed = came * (since - period) / since;
	done = (came - missed) / 9;
	stalls.backlog = stalls.backlog > done ? stalls.backlog - done : 0;
	if (missed) {
		stalls.backlog += missed;
		/* Packets come in batches, of which what does not fit is lost as a whole; when the pause began since the last tick is not known. */
		if (stalls.backlog > ring - ring / 8)
			stalls.packets += came;
		if (stalls.backlog > ring)
			stalls.backlog = ring;
	}
	stalls.last = now;
	stalls.sent = count;
	stalls.has_halted = 0;
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
