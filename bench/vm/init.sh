#!/bin/busybox sh
# The guest's first and only program: loads the modules, then runs the commands that come over the control port.
#
# Called by the kernel. Each line that comes has a number of seconds and a shell command; back go all that the command prints and a line
# `\001 CODE` with its exit code. At the other end is crates/testkit/src/bin/vm/guest.rs. When the port closes, the machine goes off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
mount -t tmpfs none /tmp
mount -t bpf none /sys/fs/bpf
while read -r module; do insmod "/modules/$module.ko" || echo "init: $module does not load"; done </modules/order
ip link set lo up

for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" != control ] || control=/dev/$(basename "$port")
done
exec 3<>"$control" || poweroff -f
printf '\n\001 ready\n' >&3
while read -r seconds command <&3; do
    timeout -k 2 "$seconds" sh -c "$command" >&3 2>&1 3>&- </dev/null
    printf '\n\001 %d\n' $? >&3
done
poweroff -f
