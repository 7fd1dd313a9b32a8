#!/bin/sh
# Makes the guest's root file system, an archive that the kernel unpacks into memory: busybox, ethtool, modules, the gateway, init.sh.
#
# Usage: image.sh TOOLS KERNEL OUTPUT PROGRAM...: the directories that fetch.sh left, and programs and scripts of this machine, which are
# copied with the libraries that ldd names. Modules are unpacked and put in the order in which they can be loaded.
set -eu
tools=$1 kernel=$2 output=$3
shift 3
here=$(dirname "$0")
# What the gateway (virtio_net, the guard's hook), its checks (pktgen) and people who look (xsk_diag) need, in no order.
wanted="virtio_net sch_ingress cls_bpf pktgen xsk_diag"

root=$output.root
rm -rf "$root"
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/etc" "$root/modules"
trap 'rm -rf "$root"' EXIT

# Copies a program with its libraries, each to where the loader looks for it. A script has none.
add_program() {
    install -D "$1" "$root/bin/$(basename "$1")"
    strip --strip-debug "$root/bin/$(basename "$1")" 2>/dev/null || true
    ldd "$1" 2>/dev/null | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
        [ -e "$root$library" ] || install -D "$library" "$root$library"
    done
}

# Unpacks a module after those that it depends on. The file names of modules may have dashes where their names have underscores.
add_module() {
    [ ! -e "$root/modules/$1.ko" ] || return 0
    pattern=$(echo "$1" | sed 's/_/[-_]/g')
    file=$(find "$kernel" -name "$pattern.ko*" | head -n 1)
    # One that is not there is built into the kernel, or init.sh and the checks will miss it.
    [ -n "$file" ] || return 0
    case $file in
        *.xz) "$tools/bin/busybox" xzcat "$file" >"$root/modules/$1.ko" ;;
        *.zst) "$tools/usr/bin/zstd" -dqc "$file" >"$root/modules/$1.ko" ;;
        *) cp "$file" "$root/modules/$1.ko" ;;
    esac
    for needed in $(tr '\0' '\n' <"$root/modules/$1.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do add_module "$needed"; done
    echo "$1" >>"$root/modules/order"
}

cp "$tools/bin/busybox" "$root/bin/busybox"
cp "$here/init.sh" "$root/init"
chmod 0755 "$root/init"
for program in "$@"; do add_program "$program"; done
for module in $wanted; do add_module "$module"; done
(cd "$root" && find . | "$tools/bin/busybox" cpio -o -H newc 2>/dev/null) >"$output.new"
mv "$output.new" "$output"
