#!/bin/sh
# Measures a gateway with the kernel's pktgen, from a machine with a port on each side of it; README.md says how to set that up.
#
# Usage: pktgen.sh [options of `portcullis-bench pktgen`]; `--help` lists them. Needs root. Loads the module if it is not there. Reports go
# to bench/results/pktgen unless --output says otherwise. BENCH names the program. Exits 0 when all is right, 1 when the gateway or the run
# is not, 2 on wrong usage, 77 without root.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bench=${BENCH:-$here/../../target/release/portcullis-bench}
output=yes
for word in "$@"; do
    case $word in
        -h | --help) exec "$bench" pktgen --help ;;
        --output | --output=*) output= ;;
    esac
done
[ "$(id -u)" -eq 0 ] || { echo "pktgen.sh: pktgen needs root: run this with sudo" >&2; exit 77; }
# Without it the program says what to do; a kernel that has it built in needs no loading.
[ -d /proc/net/pktgen ] || modprobe pktgen 2>/dev/null || true
[ -z "$output" ] || set -- --output "$here/../results/pktgen" "$@"
exec "$bench" pktgen "$@"
