#!/usr/bin/env bash
# Fuzzes every target for some seconds each, from the stored inputs on: run.sh [SECONDS [TARGET...]]. Stable Rust, clang's C++.
#
# Coverage is LLVM's own pass, which the stable compiler has too; the sanitizers it has not, and the crates that are fuzzed have no
# unsafe code. A finding ends its target: the input is left in target/fuzz, and what stores it is printed. The fuzzers' own
# inputs stay in target/fuzz/TARGET, so that a longer run goes on where the last ended. Ends with `N passed, N failed, N skipped`.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
shift || true
command -v clang++ >/dev/null || { echo "SKIPPED (needs clang++): fuzzing"; exit 77; }

work=$PWD/target/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')
# With the whole workspace, or else its dependencies are built again with fewer features.
cargo build --quiet --locked --workspace --bins
# The target's name in cargo's command keeps build scripts and macros, which run here, from being instrumented.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16 --cfg fuzzing"
CXX=clang++ RUSTFLAGS=$(echo $coverage) cargo build --quiet --release --locked --manifest-path crates/fuzz/libfuzzer/Cargo.toml \
    --target "$triple" --target-dir "$work/build"

# Prints what came out, whole, since two run at once.
fuzz() {
    local target=$1 said
    target/debug/corpus unpack "$target" "$work/$target"
    local arguments=(-max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=4096 -print_final_stats=1
        -artifact_prefix="$work/$target-")
    [ ! -s "$work/$target.dict" ] || arguments+=(-dict="$work/$target.dict")
    if PORTCULLIS_FUZZ_TARGET=$target "$fuzzer" "${arguments[@]}" "$work/$target" >"$work/$target.log" 2>&1; then
        awk -v target="$target" '/number_of_executed_units/ { units = $2 } /cov: / { sub(/.*cov: /, ""); cov = $1 }
            END { printf "%-8s %9d inputs tried, %5d places reached, nothing found\n", target, units, cov }' "$work/$target.log"
    else
        said=$(grep -vE '^#[0-9]' "$work/$target.log" | tail -n 40)
        found=$(ls -t "$work/$target"-* 2>/dev/null | head -n 1)
        echo "$target: FOUND; \`target/debug/corpus play $target $found\` plays it, \`target/debug/corpus hex $found\`" \
            "prints the line for crates/fuzz/corpus/$target.hex, where a description goes above it
$said"
        return 1
    fi
}
export -f fuzz
export work seconds fuzzer="$work/build/$triple/release/fuzz"

targets=(${@:-$(target/debug/corpus targets)})
echo "fuzzing ${targets[*]}, two at once, for $seconds s each"
rm -f "$work"/*.log
printf '%s\n' "${targets[@]}" | xargs -n 1 -P 2 bash -c 'fuzz "$0"' || true
passed=$(grep -ls '^Done ' "$work"/*.log | wc -l)
echo "$passed passed, $((${#targets[@]} - passed)) failed, 0 skipped"
[ "$passed" -eq "${#targets[@]}" ]
