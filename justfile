# `just` alone lists what there is. Everything here is also a plain command: read on.
set positional-arguments

# What there is
default:
    @"{{ just_executable() }}" --list --unsorted

# Build the program: target/release/nmem
build:
    cargo build --release --locked

# Run nmem with any arguments: just run inspect data/passages.npy
run *ARGS:
    cargo run --release --quiet -- "$@"

# The README's first command: store the shipped passages, draw surprise, rates and decay
demo:
    cargo run --release -- store data/passages.npy --memory data/passages.safetensors --chunk-size 16 --labels data/passages_labels.csv --force

# Check and time the scans: results/scan-bench; `just scan-bench --full` goes to 65,536 steps
scan-bench *ARGS:
    cargo run --release --locked --quiet -- scan-bench --force "$@"

# All tests; `just test golden` runs those whose name holds "golden"
test *FILTER:
    cargo test --locked {{ FILTER }}

# Mutate inputs for a while: `just fuzz npy 600`, or each target for a minute; the targets are in tests/fuzz/targets.rs
fuzz TARGET='' SECONDS='60' SEED='1':
    FUZZ_TARGET={{ TARGET }} FUZZ_SECONDS={{ SECONDS }} FUZZ_SEED={{ SEED }} cargo test --locked --test fuzz -- --ignored --nocapture

# Where the engine spends its time: one head on the shipped passages unless told otherwise (flags of retrieve)
profile *ARGS='--heads 1 --chunk-size 16':
    cargo run --release --quiet -- retrieve data/passages.npy --online {{ ARGS }} --repeat 200 --no-plots --verbose --force --out results/profile

# Loss, surprise and speed against chunk size: experiments/chunk-size
chunk-size *ARGS:
    cargo run --release --locked --quiet -- sweep experiments/chunk-size/sweep.toml "$@"

# Where storing makes the memory worse: experiments/stability
stability *SETTINGS:
    cargo run --release --locked --quiet -- sweep experiments/stability/sweep.toml --x learning_rate --hue decay --y loss_before_mean/loss_mean,first_unstable_chunk "$@"

# How the loss of what was stored early grows, for several decays: experiments/forgetting
forgetting *ARGS:
    cargo run --release --locked --quiet -- sweep experiments/forgetting/sweep.toml "$@"

# Recall against the number of pairs ÷ dim_head: experiments/capacity
capacity *ARGS:
    mkdir -p results/capacity-data
    for pairs in 0.0625:2 0.25:8 1:32 2:64 4:128 8:256; do cargo run --release --locked --quiet -- generate recall --tokens ${pairs#*:} --seed ${pairs#*:} --dim 128 --sequences 8 --out results/capacity-data/${pairs%:*}.npy --force --quiet; done
    cargo run --release --locked --quiet -- generate recall --tokens 2 --dim 128 --out results/capacity-data/two.npy --parameters results/capacity-data/recall.safetensors --force --quiet
    cargo run --release --locked --quiet -- sweep experiments/capacity/sweep.toml --x _pairs_per_dim_head --hue learning_rate "$@"

# Format the code
fmt:
    cargo fmt

# Formatting and clippy, warnings denied
lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- --deny warnings

# Licences, duplicate versions, sources and advisories of the dependencies: deny.toml (cargo install cargo-deny)
deny:
    cargo deny --locked check

# The library's documentation, warnings denied; `just doc --open` shows it
doc *ARGS:
    RUSTDOCFLAGS="--deny warnings" cargo doc --no-deps --locked --document-private-items {{ ARGS }}

# The book as a site: target/book (cargo install mdbook)
book:
    mdbook build

# Run every command of the README and the book, and check their links and the page of settings
check-book *ARGS:
    cargo build --release --locked
    scripts/settings-page target/release/nmem --check
    scripts/check-book target/release/nmem "$@"

# What CI runs, all of it
ci:
    .ci/run

# Time nmem against titans-pytorch, ten minutes and more; `just vs-pytorch --quick` tries it
vs-pytorch *ARGS:
    experiments/vs-pytorch/compare.py "$@"

# f32 against f64 over 10,000,000 tokens, and 200 random configurations against the oracle: docs/design/numerics.md
long-run *ARGS:
    cargo run --release --locked --quiet --example long_run -- {{ ARGS }}

# What only a GPU can tell: tests, sanitizers, scans and forwards beside PyTorch's, in a record
gpu-check:
    experiments/vs-pytorch-cuda/check.sh

# Compile src/cuda/kernels.cu: kernels.ptx and registers.txt beside it; `just ptx --check` says whether they are stale
ptx *ARGS:
    src/cuda/ptx.py "$@"

# Remake the README's pictures from the shipped data
picture:
    rm -rf results/picture
    cargo run --release --locked --quiet -- store data/passages.npy --memory data/passages.safetensors --chunk-size 16 --labels data/passages_labels.csv --out results/picture --quiet
    cp results/picture/plots/timeline.svg docs/passages.svg
    cargo run --release --locked --quiet -- plot results/picture --kind heads --venue icml --out docs/heads.svg --quiet
    cargo run --release --locked --quiet -- plot results/picture --kind gates --venue icml --theme mono --out docs/gates.svg --quiet
    scripts/check-book target/release/nmem --keep target/book-run docs/concepts/worked-example.md
    cp $(find target/book-run -name surprise-and-ratio.svg -o -name no-decay.svg) docs/concepts/


# Draw again from CSV: just plot results/passages-store --venue icml --figure-format pdf
plot *ARGS:
    cargo run --release --locked --quiet -- plot "$@"

# Kill a sweep of 200 runs 50 times and compare it with one that was not
kills:
    cargo test --locked --test disk -- --ignored fifty_kills --nocapture

# The library's tests under a sanitizer: just sanitize address, just sanitize thread (which needs the rust-src component)
sanitize KIND *FILTER:
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer={{ KIND }}" cargo test --locked --target x86_64-unknown-linux-gnu {{ if KIND == "thread" { "-Zbuild-std" } else { "" } }} --lib --target-dir target/sanitize {{ FILTER }}

# The unsafe code's fallbacks under Miri (a nightly toolchain with Miri)
miri:
    MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --lib -- scan:: packed:: matmul::

# Mutants that no test notices (cargo install cargo-mutants): just mutants src/sweep/record.rs
mutants *FILES='src/io src/storage src/sweep src/memory src/scan':
    cargo mutants --timeout 300 $(for file in {{ FILES }}; do find "$file" -name '*.rs' -printf '--file %p '; done) -- --lib --test cli --test io --test golden --test scan

# Lines of the library that tests reach (cargo install cargo-llvm-cov, and the component llvm-tools)
coverage:
    cargo llvm-cov --locked --ignore-filename-regex 'src/cuda|src/engine/cuda' --summary-only
