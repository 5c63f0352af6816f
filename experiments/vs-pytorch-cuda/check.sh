#!/usr/bin/env bash
# Runs every check that needs a GPU, and writes one record: results/records/DATE-GPU-cuda.
#
#     just gpu-check
#     NMEM=/path/nmem CUDA_TESTS=/path/cuda-test experiments/vs-pytorch-cuda/check.sh    # with finished programs
#
#   STEPS    numbers of steps T of the scans, (8, 1536, T) [128,…,65536]
#   ROWS     rows of ../vs-pytorch/cases.py, counted from 1 [all]
#   SKIP     parts to skip: tests sanitizer scans memory
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
steps=${STEPS:-128,256,512,1024,2048,4096,8192,16384,32768,65536}
python=${PYTHON:-python3}
skip=" ${SKIP:-} "
failed=()
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }
wanted() { [[ $skip != *" $1 "* ]]; }
must() { "$@" || failed+=("$*"); }

if [ -z "${NMEM:-}" ]; then
    cargo build --release --locked --features cuda || exit 1
    NMEM=target/release/nmem
fi
if [ -z "${CUDA_TESTS:-}" ] && wanted tests; then
    CUDA_TESTS=$(cargo test --locked --features cuda --test cuda --no-run --message-format json |
        sed -n 's/.*"name":"cuda".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
fi

step 'the GPU'
"$NMEM" devices
"$NMEM" devices | grep -q '^cuda:' || exit 1
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
record=${RECORD:-results/records/$(date +%F)-${gpu:-gpu}-cuda}
mkdir -p "$record"
nvidia-smi > "$record/nvidia-smi.txt" 2>&1

if wanted memory; then
    # PyTorch compiles on half of the cores while the tests run, before anything is timed. A row takes most of a minute.
    caches=$(mktemp -d)
    trap 'rm -rf "$caches"' EXIT
    export TORCHINDUCTOR_CACHE_DIR=$caches TORCHINDUCTOR_COMPILE_THREADS=1
    rows=${ROWS:-$(cd "$here/../vs-pytorch" && "$python" -c 'from cases import CASES; print(*range(1, len(CASES) + 1), sep=",")')}
    tr , '\n' <<< "$rows" | xargs -P $((($(nproc) + 1) / 2)) -I ROW "$python" "$here/memory.py" --warm ROW \
        > "$caches/warming.txt" 2>&1 &
    warming=$!
fi

if wanted tests; then
    step 'tests'
    NMEM_REQUIRE_CUDA=1 "$CUDA_TESTS" > "$record/tests.txt" 2>&1 || failed+=('tests: see tests.txt')
    tail -3 "$record/tests.txt"
fi

if wanted memory; then
    step 'waiting for compilations'
    wait "$warming" || echo 'some rows were not compiled and are tried again'
    sort -u "$caches/warming.txt"
    step 'the memory'
    must "$python" "$here/memory.py" --nmem "$NMEM" --rows "$rows" --out "$record/memory.csv"
fi

if wanted scans; then
    step 'scans: the memory'"'"'s own shapes'
    scans="--device cuda --no-plots --force"
    # shellcheck disable=SC2086
    must "$NMEM" scan-bench $scans --batch 1 --steps 64 --channels 16384,65536,262144 --out "$record/scans-of-memory"
    step 'scans: 8 × 1536'
    # shellcheck disable=SC2086
    must "$NMEM" scan-bench $scans --batch 8 --channels 1536 --steps "$steps" --out "$record/scans"
    step 'scans: PyTorch and accelerated-scan'
    must "$python" "$here/scans.py" --steps "$steps" --out "$record/scans_pytorch.csv"
fi

if wanted sanitizer && command -v compute-sanitizer >/dev/null; then
    # Some tests of each kind, because all of them take hours. Last, because it takes longest.
    short=(the_fused_pair scan_with_gates_of_all_kinds products_in_f32 norms_whose_squares_leave_the_range
        segments_side_by_side)
    for name in "${short[@]}"; do
        "$CUDA_TESTS" --list "$name" | grep -q ': test$' || failed+=("sanitizer: no test named $name")
    done
    for tool in memcheck racecheck synccheck; do
        step "compute-sanitizer $tool"
        # Without a C++ compiler the tests run on the GPU alone.
        CXX=false NMEM_REQUIRE_CUDA=1 timeout 600 compute-sanitizer --tool "$tool" --error-exitcode 9 "$CUDA_TESTS" "${short[@]}" \
            > "$record/$tool.txt" 2>&1 || failed+=("$tool: see $tool.txt")
        tail -2 "$record/$tool.txt"
    done
fi

{
    printf '# On a GPU: %s\n\n' "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1)"
    printf 'Made by `just gpu-check` with %s on %s, in %s s.\n\n' "$("$NMEM" --version)" "$(date +%F)" "$SECONDS"
    printf '| file | holds |\n| --- | --- |\n'
    printf '| `tests.txt` | the kernels and the engine against their oracles, on the GPU and the CPU |\n'
    printf '| `memcheck.txt`, `racecheck.txt`, `synccheck.txt` | compute-sanitizer, where it is installed |\n'
    printf '| `scans*/scan_bench.csv` | the recurrences by the GPU'"'"'s clock, each checked before, and a copy of the same number of bytes |\n'
    printf '| `scans_pytorch.csv` | accelerated-scan and a copy in PyTorch, where they are installed |\n'
    printf '| `memory.csv` | store and read of the memory: nmem, and titans-pytorch where it is installed (ms, medians) |\n'
    printf '| `machine.json` | CPU, GPU, versions |\n\n'
    [ -z "${SKIP:-}" ] || printf 'Skipped: %s.\n\n' "$SKIP"
    command -v compute-sanitizer >/dev/null || printf 'Skipped: compute-sanitizer, which is not installed.\n\n'
    if [ ${#failed[@]} -eq 0 ]; then echo 'All checks passed.'; else printf 'Failed: %s\n' "${failed[@]}"; fi
} > "$record/README.md"
[ -e "$record/scans/machine.json" ] && cp "$record/scans/machine.json" "$record/machine.json"

step "done: $record"
printf '%s\n' "${failed[@]}"
[ ${#failed[@]} -eq 0 ]
