//! Claims about bits. Each counts the numbers that differ, and none may.

use ndarray::{Array2, Array3, ArrayView, Axis, Dimension, concatenate, s};

use super::{Certificate, Counts, Subject, Texts, online, run};
use crate::engine::{Memory, Work};
use crate::error::{Error, Result};
use crate::io::memory_file::MemoryFile;
use crate::memory::{Gate, Gates, State};
use crate::real::Real;
use crate::run::start_threads;

/// A certificate as a function of the memory and two random sequences (1, tokens, D).
type Test<T> = fn(&Subject<T>, &Array3<T>, &Array3<T>) -> Result<Certificate>;

/// All certificates about bits.
pub(super) fn all<T: Real>() -> [Test<T>; 6] {
    [causality, zero_rate, no_write, parts, threads, restore]
}

/// Learning rate of the fault where a memory should not write.
const FAULT_RATE: f64 = 0.01;
/// Threads of the comparison: more than one, and not a power of two.
const THREADS: usize = 3;

/// Counts the numbers that differ in their bits.
fn differing<T: Real, D: Dimension>(a: ArrayView<T, D>, b: ArrayView<T, D>) -> usize {
    assert_eq!(a.shape(), b.shape(), "arrays of equal shape");
    let bits = |x: &T| Real::to_f64(*x).to_bits();
    a.iter().zip(b.iter()).filter(|(a, b)| bits(a) != bits(b)).count()
}

/// Counts the numbers of two states that differ.
fn differing_states<T: Real>(a: &State<T>, b: &State<T>) -> usize {
    let arrays = a.arrays.iter().chain(&a.gradient_point).zip(b.arrays.iter().chain(&b.gradient_point));
    let positions = [(&a.stored, &b.stored), (&a.read, &b.read)];
    let left_over = |(a, b): (&Array3<T>, &Array3<T>)| {
        if a.dim() == b.dim() { differing(a.view(), b.view()) } else { a.len().max(b.len()) }
    };
    let kept = positions.map(|(a, b)| left_over((&a.left_over, &b.left_over)));
    let tokens = positions.map(|(a, b)| usize::from(a.tokens != b.tokens));
    arrays.map(|(a, b)| differing(a.view(), b.view())).sum::<usize>()
        + kept.into_iter().chain(tokens).sum::<usize>()
}

fn size<T>(state: &State<T>) -> usize {
    state.arrays.iter().chain(&state.gradient_point).map(Array3::len).sum()
}

fn part<T: Real>(tokens: &Array3<T>, range: std::ops::Range<usize>) -> Array3<T> {
    tokens.slice(s![.., range, ..]).to_owned()
}

fn counts(found: usize, of: usize, found_with_fault: usize) -> Counts {
    Counts { found, of, allowed: 0, found_with_fault }
}

fn fixed(rate: f64) -> Gates {
    Gates { learning_rate: Gate::Fixed(rate), momentum: Gate::Fixed(0.0), decay: Gate::Fixed(0.0) }
}

fn causality<T: Real>(subject: &Subject<T>, tokens: &Array3<T>, other: &Array3<T>) -> Result<Certificate> {
    let (n, c) = (subject.tokens(), subject.chunk_size());
    // A token in the middle of a chunk in the middle of the sequence.
    let last = n / 2 / c * c + c / 2;
    let mut changed = tokens.clone();
    changed.slice_mut(s![.., last + 1.., ..]).assign(&other.slice(s![.., last + 1.., ..]));
    let [reads, of_changed] = [tokens, &changed].map(|tokens| {
        let mut state = subject.state.clone();
        online(&subject.memory, &mut state, tokens)
    });
    let (reads, of_changed) = (reads?, of_changed?);
    let rows = |reads: &Array2<T>, first: usize| reads.slice(s![first..=first + last, ..]).to_owned();
    let compare = |first: usize| differing(rows(&reads, first).view(), rows(&of_changed, first).view());
    Ok(Certificate::new(
        Texts {
            name: "causality",
            claim: "changing the tokens after t leaves every read up to t as it was",
            measure: "numbers read up to t that differ",
            fault: "a reader that is one token ahead",
        },
        counts(compare(0), rows(&reads, 0).len(), compare(1)),
    ))
}

/// Stores at a fixed rate, without momentum or decay. Returns the state.
fn stored_at<T: Real>(subject: &Subject<T>, rate: f64, tokens: &Array3<T>) -> Result<State<T>> {
    let memory = subject.with_gates(fixed(rate))?;
    let mut state = start(subject);
    run(&memory, &mut state, Work::Store { sequences: tokens, probe: false })?;
    Ok(state)
}

/// Returns the state to start from: a gated transition moves weights at refreshes too, but not those of a new memory.
fn start<T: Real>(subject: &Subject<T>) -> State<T> {
    if subject.program.schedule.gated_transition {
        return subject.memory.initial_state(1);
    }
    subject.state.clone()
}

fn zero_rate<T: Real>(subject: &Subject<T>, tokens: &Array3<T>, _: &Array3<T>) -> Result<Certificate> {
    let before = start(subject);
    let compare = |rate: f64| -> Result<usize> {
        let after = stored_at(subject, rate, tokens)?;
        Ok(differing(before.update().view(), after.update().view()))
    };
    Ok(Certificate::new(
        Texts {
            name: "zero rate",
            claim: "storing at a learning rate, momentum and decay of zero writes nothing",
            measure: "weights that differ",
            fault: "a learning rate of 0.01",
        },
        counts(compare(0.0)?, before.update().len(), compare(FAULT_RATE)?),
    ))
}

fn no_write<T: Real>(subject: &Subject<T>, tokens: &Array3<T>, other: &Array3<T>) -> Result<Certificate> {
    let read = |mut state: State<T>| run(&subject.memory, &mut state, Work::Read(other));
    let before = read(start(subject))?.0;
    let compare = |rate: f64| -> Result<usize> {
        let after = read(stored_at(subject, rate, tokens)?)?.0;
        Ok(differing(before.view(), after.view()))
    };
    Ok(Certificate::new(
        Texts {
            name: "no-write baseline",
            claim: "a memory in which nothing was written reads as it did before",
            measure: "numbers read that differ",
            fault: "a learning rate of 0.01",
        },
        counts(compare(0.0)?, before.len(), compare(FAULT_RATE)?),
    ))
}

fn parts<T: Real>(subject: &Subject<T>, tokens: &Array3<T>, _: &Array3<T>) -> Result<Certificate> {
    let n = subject.tokens();
    let mut whole = subject.state.clone();
    let reads = online(&subject.memory, &mut whole, tokens)?;
    // In the middle of a chunk, unless chunks have one token.
    let seam = n / 2 + 1;
    let mut split = subject.state.clone();
    let first = online(&subject.memory, &mut split, &part(tokens, 0..seam))?;
    let second = online(&subject.memory, &mut split, &part(tokens, seam..n))?;
    let joined = concatenate(Axis(0), &[first.view(), second.view()]).expect("rows of one width");
    let mut lossy = subject.state.clone();
    online(&subject.memory, &mut lossy, &part(tokens, 0..seam))?;
    online(&subject.memory, &mut lossy, &part(tokens, seam + 1..n))?;
    let found = differing(reads.view(), joined.view()) + differing_states(&whole, &split);
    Ok(Certificate::new(
        Texts {
            name: "parts",
            claim: "a sequence in two calls reads and leaves what it does in one",
            measure: "numbers of reads and state that differ",
            fault: "a token lost at the seam",
        },
        counts(found, reads.len() + size(&whole), differing_states(&whole, &lossy)),
    ))
}

fn threads<T: Real>(subject: &Subject<T>, tokens: &Array3<T>, _: &Array3<T>) -> Result<Certificate> {
    let with = |threads: usize, tokens: &Array3<T>| -> Result<(Array2<T>, State<T>)> {
        let mut state = subject.state.clone();
        let reads = start_threads(threads)?.install(|| online(&subject.memory, &mut state, tokens))?;
        Ok((reads, state))
    };
    let (one, several) = (with(1, tokens)?, with(THREADS, tokens)?);
    let reversed = with(THREADS, &tokens.slice(s![.., ..;-1, ..]).as_standard_layout().to_owned())?;
    let compare = |other: &(Array2<T>, State<T>)| {
        differing(one.0.view(), other.0.view()) + differing_states(&one.1, &other.1)
    };
    Ok(Certificate::new(
        Texts {
            name: "threads",
            claim: "one thread and three compute the same bits",
            measure: "numbers of reads and state that differ",
            fault: "the tokens in reverse order",
        },
        counts(compare(&several), one.0.len() + size(&one.1), compare(&reversed)),
    ))
}

fn restore<T: Real>(subject: &Subject<T>, tokens: &Array3<T>, other: &Array3<T>) -> Result<Certificate> {
    let mut state = subject.state.clone();
    online(&subject.memory, &mut state, &part(tokens, 0..subject.tokens() / 2))?;
    let earlier = state.clone();
    online(&subject.memory, &mut state, &part(tokens, subject.tokens() / 2..subject.tokens()))?;
    let saved = saved(subject, &state)?;
    let go_on = |memory: &Memory<T>, from: &State<T>| -> Result<(Array2<T>, State<T>)> {
        let mut state = from.clone();
        let reads = online(memory, &mut state, other)?;
        Ok((reads, state))
    };
    let expected = go_on(&subject.memory, &state)?;
    // A state is rolled back by continuing from a copy that was made before.
    let rolled_back = go_on(&subject.memory, &state)?;
    let restored = go_on(&saved.0, &saved.1)?;
    let compare = |got: &(Array2<T>, State<T>)| {
        differing(expected.0.view(), got.0.view()) + differing_states(&expected.1, &got.1)
    };
    let found = compare(&rolled_back) + compare(&restored);
    Ok(Certificate::new(
        Texts {
            name: "restore",
            claim: "a saved and loaded state, and one that is rolled back, continue as the original",
            measure: "numbers of reads and state that differ",
            fault: "a state from before the last tokens",
        },
        counts(
            found,
            2 * (expected.0.len() + size(&expected.1)),
            compare(&go_on(&subject.memory, &earlier)?),
        ),
    ))
}

/// Saves a memory with its state and loads it.
fn saved<T: Real>(subject: &Subject<T>, state: &State<T>) -> Result<(Memory<T>, State<T>)> {
    let directory = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "make a directory in"))?;
    let path = directory.path().join("memory.safetensors");
    subject.file.save(&path, Some(state), &subject.program, subject.gates)?;
    let file = MemoryFile::open(&path, T::TYPE, true, &mut |_| Ok(()))?;
    let gates = file.saved().expect("a saved memory has its configuration").gates;
    let memory = super::make(&file, subject.program, gates)?;
    let state = file.state().expect("a saved state");
    Ok((memory, state))
}
