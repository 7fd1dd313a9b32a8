#!/bin/sh
# Brings what the guest is made of into a directory: QEMU with the libraries that are missing here, busybox, a kernel with its modules.
#
# Usage: fetch.sh CACHE KERNEL. Nothing is installed: apt reads lists of its own and downloads, dpkg unpacks below CACHE. The mirror is
# the one that this machine's Debian comes from. What is there already is not fetched again. KERNEL is a version such as
# 6.18.15+deb13-cloud-amd64; when the lists do not have it, the newest of the cloud flavour comes instead. Leaves CACHE/tools and
# CACHE/kernel-KERNEL. Exits 77, and prints why, when they are not to be had.
set -eu
cache=$1 kernel=$2
tools="qemu-system-x86 qemu-system-common qemu-system-data seabios busybox-static zstd"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# The first Linux whose virtio_net binds AF_XDP sockets without copying, and that Debian has in one package or two.
oldest=6.18

say() { echo "vm: $*" >&2; }
# Ends everything, also from within $( ).
give_up() { echo "$*" >&3; exit 77; }

# apt-get and apt-cache with our lists, bounded in time; as root they would else complain that _apt cannot write here.
our_apt() {
    program=$1
    shift
    timeout 600 "$program" -o Dir::Etc::sourcelist="$cache/apt/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt" -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::http::Timeout=30 \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -q "$@"
}

# Prints the repository of the machine's Debian. That of its security updates has no backports.
repository() {
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="$codename" '($1 == codename || $1 ~ /^(old)?stable$/) && $2 == "main" && !/security/ { print $3; exit }'
}

# Reads the lists once in a run, when something has to be fetched.
read_lists() {
    [ -z "${lists_read:-}" ] || return 0
    uri=$(repository)
    [ -n "$uri" ] || give_up "apt knows no Debian repository"
    [ -r "$keyring" ] || give_up "no $keyring"
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
    for suite in "$codename" "$codename-backports" trixie-backports; do
        echo "deb [signed-by=$keyring] $uri $suite main"
    done | sort -u >"$cache/apt/sources.list"
    say "reading the package lists"
    our_apt apt-get -o APT::Update::Error-Mode=any update >"$cache/apt/log" 2>&1 ||
        { tail -n 5 "$cache/apt/log" >&2; give_up "the package lists are not to be had"; }
    lists_read=yes
}

# Downloads packages into the current directory and unpacks them into one.
unpack_into() {
    directory=$1
    shift
    rm -rf "$directory.new"
    mkdir -p "$directory.new/debs"
    (
        cd "$directory.new/debs"
        our_apt apt-get download "$@" >"$cache/apt/log" 2>&1 || { tail -n 5 "$cache/apt/log" >&2; give_up "not to be had: $*"; }
        for package in ./*.deb; do dpkg -x "$package" ..; done
    )
    rm -rf "$directory.new/debs" "$directory"
    mv "$directory.new" "$directory"
}

# Prints package=version of the tools and of those of their dependencies that this machine lacks.
tools_and_libraries() {
    our_apt apt-get -s --no-install-recommends -t "$codename-backports" install $tools >"$cache/apt/plan" 2>&1 ||
        { tail -n 5 "$cache/apt/plan" >&2; give_up "apt cannot resolve what QEMU needs"; }
    sed -n 's/^Inst \([^ ]*\) .*(\([^ ]*\) .*/\1=\2/p' "$cache/apt/plan"
    # One that is installed has no line in the plan.
    for tool in $tools; do grep -q "^Inst $tool " "$cache/apt/plan" || echo "$tool"; done
}

fetch_tools() {
    [ ! -e "$cache/tools/complete" ] || return 0
    read_lists
    packages=$(tools_and_libraries)
    say "downloading QEMU: $(echo "$packages" | wc -l) packages, about 35 MB"
    unpack_into "$cache/tools" $packages
    touch "$cache/tools/complete"
}

# Prints the packages of a kernel version, if the lists have it: one, or since 6.19 the kernel and its modules apart.
kernel_packages() {
    for packages in "linux-binary-$1 linux-modules-$1" "linux-image-$1"; do
        if our_apt apt-cache show --no-all-versions $packages >/dev/null 2>&1; then
            # In some versions linux-image is only a name for the other two.
            case $packages in linux-image*) our_apt apt-cache show "$packages" | grep -q '^Depends:.*linux-binary' && continue ;; esac
            echo "$packages"
            return
        fi
    done
}

# Prints the versions of the cloud flavour, the newest first.
kernel_versions() {
    our_apt apt-cache pkgnames linux- |
        sed -n 's/^linux-\(image\|binary\)-\([0-9][0-9.]*+deb[0-9]*-cloud-amd64\)$/\2/p' | sort -Vru
}

fetch_kernel() {
    target=$cache/kernel-$kernel
    [ ! -e "$target/version" ] || return 0
    read_lists
    for version in "$kernel" $(kernel_versions); do
        packages=$(kernel_packages "$version")
        [ -z "$packages" ] || break
    done
    [ -n "$packages" ] || give_up "no kernel of the cloud flavour in the lists"
    [ "$(printf '%s\n' "$oldest" "$version" | sort -V | head -n 1)" = "$oldest" ] ||
        give_up "the newest kernel is $version, older than $oldest"
    [ "$version" = "$kernel" ] || say "no kernel $kernel any more: taking $version"
    say "downloading Linux $version, about 50 MB"
    unpack_into "$target" $packages
    # In /boot, or since 6.19 beside its modules.
    uncompress "$(find "$target" -name 'vmlinuz*' -type f | head -n 1)" "$target/vmlinux"
    echo "$version" >"$target/version"
}

# Prints a little-endian number of so many bytes at an offset of a file.
number_at() { od -An -j "$(($2))" -N "$3" -t "u$3" "$1" | tr -d ' '; }

# Takes the kernel proper out of its self-extracting image: the guest would spend seconds of emulation on that at every start. The
# payload's place is in the image's header (Linux Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
uncompress() {
    start=$((($(number_at "$1" 0x1f1 1) + 1) * 512 + $(number_at "$1" 0x248 4)))
    length=$(number_at "$1" 0x24c 4)
    # Four bytes behind the compressed stream say how long it is uncompressed.
    tail -c "+$((start + 1))" "$1" | head -c "$((length - 4))" >"$2.payload"
    if ! "$cache/tools/usr/bin/zstd" -dqf "$2.payload" -o "$2" 2>/dev/null; then
        say "the kernel's image is not compressed by zstd: the guest uncompresses it itself"
        cp "$1" "$2"
    fi
    rm -f "$2.payload"
}

exec 3>&1
[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || give_up "not Debian on x86-64"
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mkdir -p "$cache"
# Two runs at once would unpack over each other.
exec 9>"$cache/lock"
flock -w 900 9 || give_up "another run holds $cache"
fetch_tools
fetch_kernel
