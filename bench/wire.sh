#!/bin/sh
# The generator and the sink over a bare veth pair, no gateway: what the wire and the tools themselves carry on this machine.
#
# Usage: wire.sh [more options of `portcullis-bench generate`], for example --rate 1000000 --duration 5 --size 1514. Needs root.
# Two namespaces are made and removed. Prints a line of JSON of each end; exits 1 when the sink saw something wrong.
set -eu
cd "$(dirname "$0")/.."
bench=${BENCH:-target/release/portcullis-bench}
[ "$(id -u)" -eq 0 ] || { echo "wire.sh: needs root" >&2; exit 77; }

near=pcw-$$-near far=pcw-$$-far
mac=02:00:00:00:00:02
sink=
clean_up() {
    [ -z "$sink" ] || kill "$sink" 2>/dev/null || true
    ip netns delete "$near" 2>/dev/null || true
    ip netns delete "$far" 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 130' INT TERM

ip netns add "$near"
ip netns add "$far"
ip link add near netns "$near" type veth peer name far address "$mac" netns "$far"
ip -n "$far" link set far up
ip -n "$near" link set near up

[ $# -gt 0 ] || set -- --rate 200000 --duration 2
ip netns exec "$far" "$bench" sink --json --interface far --accept-redirected --expect-src 10.0.0.0/24 --duration 120 &
sink=$!
# It listens once its packet socket is in the kernel's list.
tries=0
until [ "$(ip netns exec "$far" sh -c 'wc -l </proc/net/packet')" -ge 2 ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] && kill -0 "$sink" || { echo "wire.sh: the sink does not listen" >&2; exit 1; }
    sleep 0.05
done
ip netns exec "$near" "$bench" generate --json --interface near --dst-mac "$mac" \
    --src 10.0.0.2-10.0.0.254 --dst 198.51.100.2 --flows 1000 "$@"
wait "$sink"
