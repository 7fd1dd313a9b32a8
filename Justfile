# Recipes of the house. `./justw RECIPE` installs what is missing first; `just --list` shows them all.

set positional-arguments
set shell := ["bash", "-euo", "pipefail", "-c"]

prefix := env("PREFIX", "/usr/local")
destdir := env("DESTDIR", "")

# Shows this list.
default:
    @just --list --unsorted

# Real programs through a gateway in three network namespaces (root). `--stay` leaves it up and says what to try.
demo *ARGS:
    cargo build --release -p portcullis -p portcullis-testkit --bins
    exec target/release/demo "$@"

# Every test; the end-to-end ones need root and are skipped, loudly, without it.
test:
    .ci/test

# The release build in an emulated guest whose NICs do RSS and zero-copy (root); `--short`: below a minute. docs/vm.md
vm-test *ARGS:
    exec bench/vm/run.sh "$@"

# Formatting, lints, documentation and, where cargo-deny is installed, licences and bans.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
    if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; else echo "SKIPPED: cargo-deny is not installed"; fi

# What CI runs: the tests, and beside them what else is checked, in a directory of its own, or else one build waits for the other.
ci:
    cargo fmt --all --check
    .ci/test "CARGO_TARGET_DIR=target/check just check"

# The gateway in the foreground, release build (root): `just run --config FILE`.
run *ARGS:
    cargo build --release -p portcullis
    exec target/release/portcullis run "$@"

# Each requirement of the NAT RFCs as a packet, against Portcullis, `--nat kernel`, or any other (root). docs/natcheck.md
natcheck *ARGS:
    cargo build --release -p portcullis
    exec target/release/portcullis natcheck "$@"

# The property tests with many more cases than `just test` has time for.
fuzz CASES="4096":
    PROPTEST_CASES="$1" cargo test --release -p portcullis-wire -p portcullis-steering -p portcullis-nat -p portcullis-testkit

# Coverage-guided fuzzing of each target, a minute each unless told: `just fuzz-targets 600 process`. crates/fuzz/README.md
fuzz-targets *ARGS:
    exec crates/fuzz/run.sh "$@"

# The NAT in memory: time, instructions, misses and bytes over the ladder of sessions; compares with the last result. `--plots` draws.
bench *ARGS:
    cargo build --release -p portcullis-pipeline
    exec target/release/pipeline all "$@"

# Instructions for each packet against bench/pipeline/instructions.json, as CI does; `--update` writes them there.
bench-instructions *ARGS:
    cargo build --release -p portcullis-pipeline
    exec target/release/pipeline instructions "$@"

# Our generator and sink over a bare veth pair (root): what the wire itself carries, the ceiling of every namespace figure.
bench-wire *ARGS:
    cargo build --release -p portcullis-bench
    bench/wire.sh "$@"

# A gateway between two ports of this machine, by the kernel's pktgen (root): rates without loss, a report. bench/pktgen/README.md
bench-pktgen *ARGS:
    cargo build --release --locked -p portcullis-bench
    exec bench/pktgen/pktgen.sh "$@"

# The kernel's NAT, a bare AF_XDP forwarder and Portcullis side by side over veth, one core each (root); `--quick`: below two minutes.
bench-veth *ARGS:
    cargo build --release -p portcullis -p portcullis-bench-veth
    exec target/release/bench-veth run "$@"

# The same rate to each gateway, round after round (root): what a packet costs, how long it takes and what twice that rate does, as ratios with their spread.
bench-rounds *ARGS:
    cargo build --release -p portcullis -p portcullis-bench-veth
    exec target/release/bench-veth rounds "$@"

# Ten minutes at 90 % of a rate that held as long (root): what is lost, and whose loss it is; no memory grown, no session left; `--minutes 1`.
soak *ARGS:
    cargo build --release -p portcullis -p portcullis-bench-veth
    exec target/release/bench-veth soak "$@"

# Installs the release build, an example configuration and the systemd unit (PREFIX, DESTDIR).
install:
    cargo build --release --locked -p portcullis
    install -Dm 0755 target/release/portcullis "{{destdir}}{{prefix}}/bin/portcullis"
    install -d "{{destdir}}/etc/portcullis" "{{destdir}}/etc/systemd/system"
    test -e "{{destdir}}/etc/portcullis/portcullis.toml" || install -m 0640 configs/home.toml "{{destdir}}/etc/portcullis/portcullis.toml"
    sed 's|/usr/local/bin/|{{prefix}}/bin/|' configs/portcullis.service > "{{destdir}}/etc/systemd/system/portcullis.service"
    @echo "edit /etc/portcullis/portcullis.toml, then: systemctl daemon-reload && systemctl enable --now portcullis"
