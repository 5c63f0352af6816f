//! Certificates: claims about a memory that are tested on the memory itself, each beside a planted fault that the same
//! measurement must find.
//!
//! A measurement that finds nothing proves something only if it can find something. So each certificate measures twice:
//! once as claimed, and once with a fault planted in the procedure. It passes if the first is within its limit and the
//! second is not. If the fault goes unnoticed the certificate is void, which counts as a failure.
//!
//! - `exact`: claims about bits, on the engine that computes results;
//! - `recall`: controls of retrieval, on the oracle, whose keys and values can be paired at will.

mod exact;
mod recall;

use ndarray::{Array2, Array3, s};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;

use crate::engine::{Engine, Memory, Outcome, Work};
use crate::error::{Error, Result};
use crate::io::memory_file::MemoryFile;
use crate::memory::{Gates, Program, State};
use crate::real::Real;

/// Result of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The claim holds, and the planted fault was found.
    Passed,
    /// The claim does not hold.
    Failed,
    /// The planted fault was not found, so nothing is shown.
    Void,
}

/// A claim with its two measurements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificate {
    /// Short name.
    pub name: &'static str,
    /// The claim.
    pub claim: &'static str,
    /// Name of the things that are counted.
    pub measure: &'static str,
    /// The count.
    pub found: usize,
    /// Number of things that could have been counted.
    pub of: usize,
    /// Largest count with which the claim holds.
    pub allowed: usize,
    /// The planted fault.
    pub fault: &'static str,
    /// The count with the fault planted.
    pub found_with_fault: usize,
    /// Passed, failed or void.
    pub verdict: Verdict,
}

/// Two measurements of the same kind.
struct Counts {
    found: usize,
    of: usize,
    allowed: usize,
    found_with_fault: usize,
}

/// Texts of a certificate.
struct Texts {
    name: &'static str,
    claim: &'static str,
    measure: &'static str,
    fault: &'static str,
}

impl Certificate {
    fn new(texts: Texts, counts: Counts) -> Self {
        let Texts { name, claim, measure, fault } = texts;
        let Counts { found, of, allowed, found_with_fault } = counts;
        let verdict = if found > allowed {
            Verdict::Failed
        } else if found_with_fault > allowed {
            Verdict::Passed
        } else {
            Verdict::Void
        };
        Self { name, claim, measure, found, of, allowed, fault, found_with_fault, verdict }
    }
}

/// Fewest tokens of a test sequence: enough for every split to fall inside it when chunks are short.
const MIN_TOKENS: usize = 40;
/// Complete chunks of a test sequence, so that the middle has stored chunks before and after it.
const CHUNKS: usize = 4;
/// Factors of the random tokens, of which the first that keeps the memory finite is used. Tokens of N(0, 1) are far longer
/// than the unit keys for which rates like that of the delta rule are stable.
const SCALES: [f64; 3] = [1.0, 0.125, 0.015_625];

/// A memory under test: as it was saved, with one of its sequences.
struct Subject<'a, T: Real> {
    file: &'a MemoryFile,
    program: Program,
    gates: Gates,
    memory: Memory<T>,
    state: State<T>,
}

impl<'a, T: Real> Subject<'a, T> {
    fn new(file: &'a MemoryFile, program: Program, gates: Gates) -> Result<Self> {
        let memory = make::<T>(file, program, gates)?;
        let mut state = file.state::<T>().unwrap_or_else(|| memory.initial_state(1));
        let first = |array: &Array3<T>| array.slice(s![..1, .., ..]).to_owned();
        state.arrays = state.arrays.iter().map(first).collect();
        state.gradient_point = state.gradient_point.as_ref().map(first);
        state.stored.left_over = first(&state.stored.left_over);
        state.read.left_over = first(&state.read.left_over);
        Ok(Self { file, program, gates, memory, state })
    }

    /// Returns the same memory with other gates.
    fn with_gates(&self, gates: Gates) -> Result<Memory<T>> {
        make(self.file, self.program, gates)
    }

    fn dim(&self) -> usize {
        self.file.dimensions().dim
    }

    fn chunk_size(&self) -> usize {
        self.program.chunk_size()
    }

    /// Returns the number of tokens of a test sequence: complete chunks and an incomplete one.
    fn tokens(&self) -> usize {
        let c = self.chunk_size();
        (CHUNKS * c + c.div_ceil(2)).max(MIN_TOKENS)
    }
}

fn make<T: Real>(file: &MemoryFile, program: Program, gates: Gates) -> Result<Memory<T>> {
    Memory::new(file.parameters(&program), program, gates, file.past().as_deref())
}

/// Receives what is read.
struct Reads<T>(Array2<T>);

impl<T: Real> crate::engine::Sink<T> for Reads<T> {
    fn metrics(&mut self, _: &[crate::metrics::ChunkMetrics]) -> Result<()> {
        Ok(())
    }

    fn retrieved(&mut self, _: usize, start: usize, rows: ndarray::ArrayView2<T>) -> Result<()> {
        self.0.slice_mut(s![start..start + rows.nrows(), ..]).assign(&rows);
        Ok(())
    }

    fn sequence_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// Runs the engine. Returns the rows read (tokens, D), none for a plain store, and the outcome.
fn run<T: Real>(memory: &Memory<T>, state: &mut State<T>, work: Work<T>) -> Result<(Array2<T>, Outcome)> {
    let (rows, dim) = match work {
        Work::Read(queries) => (queries.shape().tokens, queries.shape().dim),
        Work::Online { read, .. } => (read.shape().tokens, read.shape().dim),
        Work::Store { sequences, .. } => (0, sequences.shape().dim),
    };
    let mut reads = Reads(Array2::zeros((rows, dim)));
    let outcome = Engine::new(memory).run(state, work, &mut reads, &mut |_| Ok(()))?;
    Ok((reads.0, outcome))
}

/// Reads a sequence (1, tokens, D) while storing it.
fn online<T: Real>(memory: &Memory<T>, state: &mut State<T>, tokens: &Array3<T>) -> Result<Array2<T>> {
    run(memory, state, Work::Online { read: tokens, store: tokens, probe: false }).map(|(reads, _)| reads)
}

/// Random tokens (1, tokens, D) of N(0, scale²).
fn random_tokens<T: Real>(tokens: usize, dim: usize, scale: f64, seed: u64) -> Array3<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array3::from_shape_simple_fn((1, tokens, dim), || {
        let x: f64 = StandardNormal.sample(&mut rng);
        T::from_f64(x * scale)
    })
}

/// Tests a memory in the element type T, in the program and with the gates of a run. `seed` is that of the random tokens.
/// `check` runs between certificates and can stop the work.
///
/// # Errors
/// A memory that becomes non-finite on random tokens of any scale, and errors of the engine and of `check`.
pub fn certificates<T: Real>(
    file: &MemoryFile,
    program: Program,
    gates: Gates,
    seed: u64,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Certificate>> {
    let subject = Subject::<T>::new(file, program, gates)?;
    let tokens = |scale: f64, seed: u64| random_tokens(subject.tokens(), subject.dim(), scale, seed);
    let mut finite = None;
    for scale in SCALES {
        let mut state = subject.state.clone();
        let stored: Array3<T> = tokens(scale, seed);
        let work = Work::Online { read: &stored, store: &stored, probe: false };
        if run(&subject.memory, &mut state, work)?.1.first_nonfinite().is_none() {
            finite = Some(scale);
            break;
        }
    }
    let Some(scale) = finite else {
        let reason =
            "becomes non-finite on random tokens; use a smaller learning rate or momentum, or a larger decay";
        return Err(Error::rejected(file.path().display().to_string(), reason));
    };
    let (first, second) = (tokens(scale, seed), tokens(scale, seed.wrapping_add(1)));
    let mut all = Vec::new();
    for certificate in exact::all() {
        check()?;
        all.push(certificate(&subject, &first, &second)?);
    }
    check()?;
    all.extend(recall::controls(file, &program, seed));
    Ok(all)
}
