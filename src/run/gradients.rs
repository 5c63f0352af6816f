//! Outer gradients of a memory for given cotangents of what is read.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ndarray::{Array2, Array3, ArrayD, ArrayView2, Axis};
use serde::Serialize;

use super::compute::median;
use super::inputs::Loaded;
use super::{InputCache, Observer, ResolvedInputs, RunEvent, start_threads};
use crate::config::{Config, with_flag};
use crate::engine::backward::{Backward, Order, TokenGradients, Tokens};
use crate::engine::budget;
use crate::error::{Error, Result};
use crate::io::NpySequences;
use crate::io::export::{exported, library_of};
use crate::io::import::Library;
use crate::io::npz::write_npz;
use crate::norm::norm;
use crate::real::{ElementType, Real};
use crate::storage::WholeFile;

/// A request for gradients.
#[derive(Clone, Debug)]
pub struct Request {
    /// Cotangent of what is read, in the shape of the sequences.
    pub cotangent: PathBuf,
    /// When the sequences are read.
    pub order: Order,
    /// Tokens after whose multiples gradients are cut off.
    pub truncate: Option<usize>,
}

/// Result of a request, besides the file.
#[derive(Clone, Debug, Serialize)]
pub struct GradientReport {
    /// Σ cotangent ∘ retrieved.
    pub loss: f64,
    /// Whose names the arrays have.
    pub names: &'static str,
    /// Name, shape and norm of each array.
    pub arrays: Vec<GradientArray>,
    /// Element type of computation and results.
    pub dtype: ElementType,
    /// Number of threads.
    pub threads: usize,
    /// Seconds that reading, storing and the gradients took. With `repeat`, the median of `seconds_all`.
    pub seconds: f64,
    /// Seconds of each repetition, the first included.
    pub seconds_all: Vec<f64>,
}

/// One array of gradients.
#[derive(Clone, Debug, Serialize)]
pub struct GradientArray {
    /// Name, as in the `state_dict`; `seq` and `store_seq` for tokens.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Frobenius norm.
    pub norm: f64,
}

/// Reads the sequences of `config` while it stores them, and writes the gradients of Σ cotangent ∘ retrieved to `out`.
///
/// # Errors
/// Any failure that keeps the gradients from their file, and gradients that are not finite.
pub fn gradients(
    config: &Config,
    request: &Request,
    out: &mut WholeFile,
    observe: Observer,
) -> Result<GradientReport> {
    let inputs = ResolvedInputs::open(config, false, &InputCache::default(), observe)?;
    let mut progress = |bytes: u64| observe(RunEvent::Loaded(bytes));
    let cotangent =
        NpySequences::open(&request.cotangent, config.dtype, config.allow_nonfinite, &mut progress)?;
    if cotangent.dims() != inputs.data.dims() {
        let expected = format!("shape {:?}, as {}", inputs.data.file_shape(), inputs.data.path().display());
        return Err(Error::file(cotangent.path(), expected, format!("shape {:?}", cotangent.file_shape())));
    }
    let threads =
        config.threads.map_or_else(std::thread::available_parallelism, |n| Ok(n.try_into().expect("not 0")));
    let threads = threads.map_or(1, usize::from);
    let pool = start_threads(threads)?;
    let threads = pool.current_num_threads();
    pool.install(|| match config.dtype {
        ElementType::F32 => in_type::<f32>(config, request, (&inputs, &cotangent, threads), out, observe),
        ElementType::F64 => in_type::<f64>(config, request, (&inputs, &cotangent, threads), out, observe),
    })
}

fn in_type<T: Real>(
    config: &Config,
    request: &Request,
    (inputs, cotangent, threads): (&ResolvedInputs, &NpySequences, usize),
    out: &mut WholeFile,
    observe: Observer,
) -> Result<GradientReport> {
    let Loaded { file, state, .. } = inputs.load::<T>(config)?;
    let state = file.state::<T>().map(|_| state);
    let program = inputs.program;
    let parameters = file.parameters::<T>(&program);
    let past = file.past();
    let backward = Backward::new(&parameters, program, inputs.gates, past.as_deref(), request.truncate);
    let observe = Mutex::new(observe);
    let report = |event| observe.lock().unwrap_or_else(PoisonError::into_inner)(event);
    let check = || report(RunEvent::Computed(0));
    let backward = backward.map_err(|error| match error {
        Error::Limit { name, outside } if name == "truncate" => with_flag(Error::Limit { name, outside }),
        // A part of the memory's program.
        Error::Limit { name, outside } => {
            Error::Limit { name: format!("{}: {name}", file.path().display()), outside }
        }
        error => error,
    })?;
    let backward = backward.checked(&check);
    let (shape, store) = (inputs.data.dims(), inputs.store());
    budget::check(backward.bytes(shape.tokens, store.dims().tokens, shape.sequences))?;
    let read = all::<T>(&inputs.data)?;
    let stored = inputs.store_seq.as_deref().map(all::<T>).transpose()?;
    let tokens: Vec<_> = read
        .outer_iter()
        .zip(stored.as_ref().unwrap_or(&read).outer_iter())
        .map(|(read, store)| Tokens { read, store, order: request.order })
        .collect();
    // The cotangent is read when it is needed: with a copy of it from the start, the peak of memory would be higher.
    let objective = |i: usize, read: ArrayView2<T>| {
        let mut of_read = Array2::zeros(read.dim());
        let loaded = cotangent.copy_sequence(i, of_read.view_mut());
        let loss: f64 = read.iter().zip(&of_read).map(|(&x, &r)| x.to_f64() * Real::to_f64(r)).sum();
        (loaded.map(|()| loss), of_read)
    };
    let all_tokens = (shape.sequences * shape.tokens) as u64;
    report(RunEvent::Starting(all_tokens.saturating_mul(config.repeat as u64 + 1)))?;
    let mut seconds_all = Vec::new();
    let (of_sequences, sum) = loop {
        let begin = Instant::now();
        let result = backward.sequences(state.as_ref(), &tokens, objective)?;
        seconds_all.push(begin.elapsed().as_secs_f64());
        report(RunEvent::Computed(all_tokens))?;
        if seconds_all.len() > config.repeat {
            break result;
        }
    };
    report(RunEvent::Writing)?;
    inputs.check_unchanged(true)?;
    cotangent.check_unchanged(true)?;

    let dimensions = file.dimensions();
    let (names, mut arrays) = match library_of(&program, &dimensions) {
        Ok(library) => {
            let names = match library {
                Library::Titans0017 => "titans-pytorch 0.0.17",
                Library::Titans055 => "titans-pytorch 0.5.5",
            };
            (names, exported(library, &program, &dimensions, sum.tensors(&program)))
        }
        Err(_) => ("nmem", sum.tensors(&program)),
    };
    let (mut loss, mut of_read, mut of_store) = (0.0, Vec::new(), Vec::new());
    for (of_sequence, TokenGradients { read, store }) in of_sequences {
        loss += of_sequence?;
        of_read.push(read);
        of_store.push(store);
    }
    if inputs.store_seq.is_some() {
        arrays.push(("seq".to_owned(), stacked(&of_read, inputs.data.rank())));
        arrays.push(("store_seq".to_owned(), stacked(&of_store, store.rank())));
    } else {
        let both = stacked(&of_read, inputs.data.rank()) + stacked(&of_store, inputs.data.rank());
        arrays.push(("seq".to_owned(), both));
    }
    if !loss.is_finite() {
        let reason = format!("the loss is {loss}; use smaller rates, or --dtype f64");
        return Err(Error::rejected("gradients", reason));
    }
    for (name, array) in &arrays {
        if let Some(bad) = array.iter().find(|x| !x.is_finite()) {
            let reason = format!("the gradient of {name} has {bad}; use smaller rates, or --dtype f64");
            return Err(Error::rejected("gradients", reason));
        }
    }
    out.write(|out| write_npz(out, &arrays))?;
    let of_array = |(name, array): (String, ArrayD<T>)| GradientArray {
        norm: norm(array.as_slice().expect("standard layout")),
        shape: array.shape().to_vec(),
        name,
    };
    let arrays = arrays.into_iter().map(of_array).collect();
    let seconds = median(&seconds_all);
    Ok(GradientReport { loss, names, arrays, dtype: config.dtype, threads, seconds, seconds_all })
}

/// Reads all tokens of a file.
fn all<T: Real>(file: &NpySequences) -> Result<Array3<T>> {
    let shape = file.dims();
    let mut all = Array3::zeros((shape.sequences, shape.tokens, shape.dim));
    for (sequence, rows) in all.outer_iter_mut().enumerate() {
        file.copy_sequence(sequence, rows)?;
    }
    Ok(all)
}

/// Returns the rows of sequences as one array, of as many axes as the input has.
fn stacked<T: Real>(parts: &[Array2<T>], rank: usize) -> ArrayD<T> {
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let all = ndarray::stack(Axis(0), &views).expect("sequences of the same shape");
    if rank == 2 { all.index_axis_move(Axis(0), 0).into_dyn() } else { all.into_dyn() }
}
