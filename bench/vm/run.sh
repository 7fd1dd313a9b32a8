#!/bin/sh
# Boots a guest whose NICs really do Toeplitz RSS and zero-copy, and checks the release build in it; docs/vm.md says what and how.
#
# Usage: run.sh [--short | --list | CHECK...], as `just vm-test`. Needs root, apt and Debian on x86-64. Packages are kept in
# PORTCULLIS_VM_CACHE; PORTCULLIS_VM_KERNEL chooses another kernel, PORTCULLIS_VM_BUILD=debug the tests' build. Exits 0 when all checks passed, 1 when one failed, 77 when there can
# be no guest here: then nothing was checked, and the line `SKIPPED (no guest: reason)` says so.
set -eu
cd "$(dirname "$0")/../.."
cache=${PORTCULLIS_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/portcullis-vm}
kernel=${PORTCULLIS_VM_KERNEL:-6.18.15+deb13-cloud-amd64}
image=target/vm/image
build=${PORTCULLIS_VM_BUILD:-release}
case $build in
    release) profile=release ;;
    debug) profile=dev ;;
    *) echo "PORTCULLIS_VM_BUILD is $build: has to be release or debug" >&2; exit 2 ;;
esac

skip() {
    echo "SKIPPED (no guest: $*)"
    echo "0 passed, 0 failed, 1 skipped"
    exit 77
}

# Prints what is missing to have a guest here, if anything.
obstacle() {
    if [ "$(id -u)" -ne 0 ]; then echo "needs root"
    elif [ "$(uname -m)" != x86_64 ]; then echo "this machine is no x86-64"
    elif ! command -v apt-get >/dev/null; then echo "no apt-get"
    elif [ ! -c /dev/net/tun ]; then echo "no /dev/net/tun"
    fi
}

if [ "${1:-}" = --list ]; then exec cargo run --quiet --profile $profile --locked -p portcullis-testkit --bin vm -- --list; fi
reason=$(obstacle)
[ -z "$reason" ] || skip "$reason"
for program in ip tc ethtool ping curl; do command -v "$program" >/dev/null || skip "no $program"; done

# All of the workspace: with some packages only, crates that are built already would be built again with fewer features.
cargo build --profile $profile --locked --workspace --bins
code=0
reason=$(bench/vm/fetch.sh "$cache" "$kernel") || code=$?
[ "$code" -ne 77 ] || skip "$reason"
[ "$code" -eq 0 ] || exit "$code"
mkdir -p "$(dirname "$image")"
bench/vm/image.sh "$cache/tools" "$cache/kernel-$kernel" "$image" \
    target/$build/portcullis target/$build/portcullis-bench bench/pktgen/pktgen.sh "$(command -v ethtool)"
exec timeout --foreground -k 30 840 nice -n 5 target/$build/vm "$cache/tools" "$cache/kernel-$kernel" "$image" "$@"
