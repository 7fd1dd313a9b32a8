#!/bin/sh
# Runs the guest: four processors, two multi-queue NICs that do Toeplitz RSS, and two plainer ones for a tester, each on a tap device of
# this network namespace.
#
# Usage: qemu.sh TOOLS KERNEL IMAGE CONTROL INSIDE OUTSIDE TESTER_INSIDE TESTER_OUTSIDE: the directories that fetch.sh left, the archive
# of image.sh, the socket to make for commands, four tap devices made with `multi_queue vnet_hdr`. Kernel messages go to standard output. Emulated in software, so
# it needs no virtualisation. It ends by itself after 15 minutes, whatever becomes of whoever started it.
set -eu
tools=$1 kernel=$2 image=$3 control=$4 inside=$5 outside=$6 tester_inside=$7 tester_outside=$8
libraries=$tools/usr/lib/x86_64-linux-gnu:$tools/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH="$libraries" QEMU_MODULE_DIR="$tools/usr/lib/x86_64-linux-gnu/qemu"

# As many queues as processors: virtio_net uses no more, and the NIC's table spreads over all that the device has. What lets AF_XDP bind
# without copying are iommu_platform and disable-legacy: the driver then maps memory by the kernel's DMA functions.
queues=4
nic=virtio-net-pci,mq=on,vectors=$((2 * queues + 2)),iommu_platform=on,disable-legacy=on,rss=on,romfile=
tap=script=no,downscript=no,vhost=off
# The tester's have two queues, to have more than one.
tester_nic=virtio-net-pci,mq=on,vectors=6,romfile=

exec timeout --foreground 900 "$tools/usr/bin/qemu-system-x86_64" \
    -L "$tools/usr/share/qemu" -L "$tools/usr/share/seabios" \
    -M q35 -accel tcg,thread=multi -cpu max,la57=off -smp "$queues" -m 768M -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$kernel/vmlinux" -initrd "$image" \
    -append "console=ttyS0 loglevel=5 panic=-1 mitigations=off random.trust_cpu=on tsc=reliable" \
    -serial stdio -monitor none \
    -device virtio-serial-pci -chardev "socket,id=control,path=$control,server=on,wait=off" \
    -device virtserialport,chardev=control,name=control \
    -netdev "tap,id=inside,ifname=$inside,queues=$queues,$tap" -device "$nic,netdev=inside,mac=52:54:00:00:00:01" \
    -netdev "tap,id=outside,ifname=$outside,queues=$queues,$tap" -device "$nic,netdev=outside,mac=52:54:00:00:00:02" \
    -netdev "tap,id=tester-inside,ifname=$tester_inside,queues=2,$tap" -device "$tester_nic,netdev=tester-inside,mac=52:54:00:00:00:03" \
    -netdev "tap,id=tester-outside,ifname=$tester_outside,queues=2,$tap" -device "$tester_nic,netdev=tester-outside,mac=52:54:00:00:00:04"
