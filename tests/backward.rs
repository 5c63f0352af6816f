//! Outer gradients: PyTorch's autograd through titans-pytorch 0.0.17 and 0.5.5, and central differences of the oracle.

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, Array3, ArrayD, ArrayView2, Axis, s};
use ndarray_npy::{NpzReader, ReadNpyExt};
use nmem::Error;
use nmem::config::{Command, Settings};
use nmem::engine::backward::{Backward, Order, TokenGradients, Tokens};
use nmem::engine::{Memory, Work};
use nmem::io::TensorFile;
use nmem::io::export::{exported, library_of};
use nmem::io::import::{Arguments, Library, import};
use nmem::memory::loss::Loss;
use nmem::memory::model::{Model, ModelKind};
use nmem::memory::operators::{Activation, Attention, Op, Rows, Scores, Second, SecondResults};
use nmem::memory::parameters::{Init, random_tensors};
use nmem::memory::program::{Frame, ProjectionActivation, Reads, Schedule};
use nmem::memory::rule::{DecayOf, RateForm, RatePer, Rule};
use nmem::memory::{Dimensions, Gate, Gates, Parameters, Program, State};
use nmem::real::Real;
use nmem::run::{GradientRequest, RunEvent, gradients};
use nmem::storage::WholeFile;
use rayon::prelude::*;
use support::{Golden, assert_close, assert_close_to_largest, largest, run_through, uniform};

/// Largest difference from autograd in f64, relative to an array's largest magnitude.
const F64: f64 = 1e-8;
/// The same in f32, whose gradients are sums of many rounded terms.
const F32: f64 = 1e-3;

/// A case of golden-train.
struct Case {
    name: String,
    directory: PathBuf,
    seq: Array3<f64>,
    store_seq: Option<Array3<f64>>,
    program: Program,
}

fn npy(path: &Path) -> Option<Array3<f64>> {
    let file = File::open(path).ok()?;
    Array3::<f64>::read_npy(&file)
        .or_else(|_| Array3::<f32>::read_npy(File::open(path).unwrap()).map(|array| array.mapv(f64::from)))
        .ok()
}

fn root(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(of)
}

impl Case {
    /// Compares the gradients of every parameter and of the tokens, which are all that the file has.
    fn compare<T: Real>(&self, parameters: &Parameters<T>, past: Option<Vec<Array2<T>>>, rel: f64) {
        let mut npz = NpzReader::new(File::open(self.directory.join("gradients.npz")).unwrap()).unwrap();
        let names = npz.names().unwrap();
        let expected: BTreeMap<String, ArrayD<f64>> =
            names.into_iter().map(|name| (name.clone(), npz.by_name(&name).unwrap())).collect();
        let cotangent = npy(&self.directory.join("cotangent.npy")).unwrap().mapv(T::from_f64);
        let backward =
            Backward::new(parameters, self.program, Gates::default(), past.as_deref(), None).unwrap();
        let read = self.seq.mapv(T::from_f64);
        let store = self.store_seq.as_ref().map(|store| store.mapv(T::from_f64));
        // One read token in a call of its own reads the memory after everything was stored.
        let order = if self.name == "single_token_read" { Order::After } else { Order::Online };
        let stored = store.as_ref().unwrap_or(&read);
        let tokens: Vec<_> = read
            .outer_iter()
            .zip(stored.outer_iter())
            .map(|(read, store)| Tokens { read, store, order })
            .collect();
        let objective = |i: usize, _: ArrayView2<T>| ((), cotangent.index_axis(Axis(0), i).to_owned());
        let (of_sequences, sum) = backward.sequences(None, &tokens, objective).unwrap();
        let (of_read, of_store): (Vec<_>, Vec<_>) =
            of_sequences.into_iter().map(|((), TokenGradients { read, store })| (read, store)).unzip();
        let stacked = |parts: &[Array2<T>]| {
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            ndarray::stack(Axis(0), &views).unwrap().mapv(Real::to_f64).into_dyn()
        };
        let tensors = sum.tensors(&self.program);
        let library = library_of(&self.program, &parameters.dimensions).unwrap();
        let tensors = exported(library, &self.program, &parameters.dimensions, tensors);
        let mut got: BTreeMap<String, ArrayD<f64>> =
            tensors.into_iter().map(|(name, array)| (name, array.mapv(Real::to_f64))).collect();
        if store.is_some() {
            got.insert("seq".into(), stacked(&of_read));
            got.insert("store_seq".into(), stacked(&of_store));
        } else {
            got.insert("seq".into(), stacked(&of_read) + stacked(&of_store));
        }
        for (name, expected) in &expected {
            let got = got.remove(name).unwrap_or_else(|| panic!("{}: no gradient of {name}", self.name));
            assert_close_to_largest(&format!("{}, {name}", self.name), got.view(), expected.view(), rel);
        }
        for (name, got) in got {
            assert!(got.iter().all(|x| *x == 0.0), "{}: {name} has no gradient in the library", self.name);
        }
    }
}

#[test]
fn seed_gradients_agree_with_autograd() {
    let mut compared = 0;
    for golden in Golden::all() {
        let directory = root("golden-train/seed").join(&golden.name);
        if !directory.is_dir() {
            continue;
        }
        let case = Case {
            name: golden.name.clone(),
            directory,
            seq: golden.seq.clone(),
            store_seq: golden.store_seq.clone(),
            program: Program::titans_0_0_17(golden.chunk_size),
        };
        case.compare::<f64>(&golden.parameters(), golden.past(), F64);
        case.compare::<f32>(&golden.parameters(), golden.past(), F32);
        compared += 1;
    }
    assert_eq!(compared, 10, "all cases");
}

#[test]
fn gradients_of_0_5_5_agree_with_autograd() {
    let mut compared = 0;
    let mut directories: Vec<_> =
        std::fs::read_dir(root("golden-train/0.5.5")).unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    for directory in directories {
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        let of_case = root("golden-0.5.5").join(&name);
        let file = TensorFile::open(of_case.join("weights.safetensors"), &mut |_| Ok(())).unwrap();
        let json = std::fs::read_to_string(of_case.join("args.json")).unwrap();
        let arguments = Arguments { json: Some(json), ..Arguments::default() };
        let memory = import(&file, Library::Titans055, &arguments).unwrap().memory;
        let case = Case {
            name,
            directory,
            seq: npy(&of_case.join("seq.npy")).unwrap(),
            store_seq: npy(&of_case.join("store_seq.npy")),
            program: *memory.program(),
        };
        case.compare::<f64>(&memory.parameters(memory.program()), None, F64);
        case.compare::<f32>(&memory.parameters(memory.program()), None, F32);
        compared += 1;
    }
    assert_eq!(compared, 29, "all cases");
}

/// Step of central differences, whose rounding is about 1e-10 of the objective.
const STEP: f64 = 1e-5;
/// Largest difference from central differences, relative to the largest slope of an array.
const DIFFERENCE: f64 = 1e-6;

/// A program with parameters, a state to start from, tokens and the cotangent of what is read.
struct Trial {
    name: String,
    program: Program,
    parameters: Parameters<f64>,
    gates: Gates,
    past: Option<Vec<Array2<f64>>>,
    state: Option<State<f64>>,
    read: Array3<f64>,
    store: Array3<f64>,
    cotangent: Array3<f64>,
}

/// Numbers of an array that are compared: every one of a short array, some of a long one.
fn sample(length: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by(length.div_ceil(20).max(1))
}

/// Choices of a trial, by turns.
fn pick<T: Copy>(all: &[T], i: usize) -> T {
    all[i % all.len()]
}

impl Trial {
    /// Returns two trials for each model and depth. All other choices take turns.
    fn all() -> Vec<Self> {
        let mut trials = Vec::new();
        for &kind in ModelKind::ALL {
            let depths: &[usize] = if kind.options().depth.is_some() { &[1, 2, 3] } else { &[0] };
            for &depth in depths {
                for _ in 0..2 {
                    trials.push(Self::new(kind, depth, trials.len()));
                }
            }
        }
        trials
    }

    fn new(kind: ModelKind, depth: usize, i: usize) -> Self {
        let mut model = Model::new(kind, i % 2 == 1);
        model.options.depth = model.options.depth.map(|_| depth);
        model.options.expansion = model.options.expansion.map(|_| 1.7);
        model.options.rank = model.options.rank.map(|_| 2);
        model.options.model_activation =
            model.options.model_activation.map(|_| pick(&[Activation::Gelu, Activation::Silu], i / 2));
        // Chunk 1, chunks that are shorter than any tile, and a chunk that the tokens do not fill.
        let chunk_size =
            if kind == ModelKind::Attention { pick(&[2, 3, 5, 4], i) } else { pick(&[1, 3, 5, 4], i / 2) };
        let refresh = pick(&[None, Some(chunk_size), None, Some(2 * chunk_size), Some(3 * chunk_size)], i);
        let losses = [
            Loss::MeanSquare,
            Loss::HalfSquare,
            Loss::InnerProduct,
            Loss::Huber { delta: 0.4 },
            Loss::PNorm { p: 3.0 },
            Loss::PNorm { p: 2.0 },
        ];
        let heads = pick(&[1, 2], i / 3);
        let program = Program {
            model,
            loss: pick(&losses, i),
            rule: Rule {
                rate_form: pick(&[RateForm::Sigmoid, RateForm::Exp], i / 2),
                max_rate: if (i / 2).is_multiple_of(2) { 0.3 } else { 1.0 },
                rate_per: pick(&[RatePer::Token, RatePer::Chunk], i / 3),
                momentum: i % 5 != 4,
                decay_of: pick(&[DecayOf::Weights, DecayOf::Update], i),
            },
            schedule: Schedule {
                chunk_size,
                refresh,
                gated_transition: refresh.is_some() && !i.is_multiple_of(3),
                reads: pick(&[Reads::Complete, Reads::Behind, Reads::CompleteOrZeros], i / 2),
            },
            frame: Frame {
                activation: pick(
                    &[ProjectionActivation::None, ProjectionActivation::Silu, ProjectionActivation::Gelu],
                    i,
                ),
                qk_norm: (i / 2).is_multiple_of(2),
                head_norm: i % 3 == 1,
                read_gate: i % 4 == 1,
                gate_biases: i.is_multiple_of(2),
                per_head: i % 3 != 2,
            },
        };
        let (dim, dim_head) = if heads == 1 { (4, 4) } else { (5, 3) };
        let dimensions =
            Dimensions { dim, heads, dim_head, pre_norm: !i.is_multiple_of(5), post_norm: i % 4 == 2 };
        let seed = 100 + i as u64;
        let random: BTreeMap<_, _> =
            random_tensors(&dimensions, &program, Init::Xavier, seed).into_iter().collect();
        let parameters = Parameters::collect(dimensions, &program, |name| {
            // Off their constant start, so that no term vanishes; heads differ.
            let tensor = random[name].mapv(f64::from);
            let noise = uniform((1, 1, tensor.len()), 0.3, seed + name.len() as u64);
            let mut moved = tensor;
            moved.iter_mut().zip(&noise).for_each(|(x, &noise)| *x += noise);
            if name == "transition_gate" { moved + 4.0 } else { moved }
        });
        let gates = match i % 7 {
            2 => Gates { decay: Gate::Fixed(0.2), ..Gates::default() },
            4 => Gates { momentum: Gate::Fixed(0.7), learning_rate: Gate::Learned(-1.0), ..Gates::default() },
            _ => Gates { decay: Gate::Learned(-1.0), ..Gates::default() },
        };
        let past = (i % 6 == 5).then(|| {
            let shapes = program.model.graph(dim_head).shapes();
            let weight = |(p, &(rows, cols)): (usize, &(usize, usize))| {
                uniform((1, rows, cols), 0.2, seed + 50 + p as u64).index_axis_move(Axis(0), 0)
            };
            shapes.iter().enumerate().map(weight).collect()
        });
        let tokens = 4 * chunk_size + 2;
        let read = uniform((1, tokens, dim), 1.0, seed + 1);
        let store = if i % 4 == 3 { uniform((1, tokens + 1, dim), 1.0, seed + 2) } else { read.clone() };
        let cotangent = uniform((1, tokens, dim), 1.0, seed + 3);
        let name = format!("{i}: {} of depth {depth}, {:?}", kind.name(), program.schedule);
        let mut trial = Self { name, program, parameters, gates, past, state: None, read, store, cotangent };
        if i % 3 == 1 {
            trial.carry();
        }
        trial
    }

    /// Starts from the state that other tokens left, in the middle of a chunk.
    fn carry(&mut self) {
        let memory = self.memory(&self.parameters);
        let mut state = memory.initial_state(1);
        let tokens = self.program.chunk_size() + 1;
        let earlier = uniform((1, tokens, self.read.dim().2), 1.0, 7);
        let work = Work::Online { read: &earlier, store: &earlier, probe: false };
        run_through(&memory, &mut state, work, earlier.dim());
        self.state = Some(state);
    }

    fn memory(&self, parameters: &Parameters<f64>) -> Memory<f64> {
        Memory::new(parameters.clone(), self.program, self.gates, self.past.as_deref()).unwrap()
    }

    /// Returns Σ cotangent ∘ retrieved, by the engine.
    fn objective(&self, parameters: &Parameters<f64>, read: &Array3<f64>, store: &Array3<f64>) -> f64 {
        let memory = self.memory(parameters);
        let mut state = self.state.clone().unwrap_or_else(|| memory.initial_state(1));
        let work = Work::Online { read, store, probe: false };
        let retrieved = run_through(&memory, &mut state, work, read.dim()).retrieved;
        (&retrieved * &self.cotangent).sum()
    }

    fn tokens(&self) -> Tokens<'_, f64> {
        let [read, store] = [&self.read, &self.store].map(|of| of.index_axis(Axis(0), 0));
        Tokens { read, store, order: Order::Online }
    }

    /// Returns Σ cotangent ∘ retrieved and the gradients: of each parameter, of what is read and of what is stored.
    fn gradients(&self, truncate: Option<usize>) -> (f64, Vec<ArrayD<f64>>) {
        let past = self.past.as_deref();
        let backward = Backward::new(&self.parameters, self.program, self.gates, past, truncate).unwrap();
        let cotangent = self.cotangent.index_axis(Axis(0), 0);
        let objective = |_: usize, read: ArrayView2<f64>| ((&read * &cotangent).sum(), cotangent.to_owned());
        let (mut of_tokens, sum) =
            backward.sequences(self.state.as_ref(), &[self.tokens()], objective).unwrap();
        let (loss, TokenGradients { read, store }) = of_tokens.pop().unwrap();
        let parameters = sum.each().into_iter().map(|(_, values)| values.to_vec());
        let tokens = [read, store].map(|of| of.into_iter().collect());
        (
            loss,
            parameters
                .chain(tokens)
                .map(|all| ArrayD::from_shape_vec(vec![all.len()], all).unwrap())
                .collect(),
        )
    }

    /// Returns the same gradients by central differences, and half of what the slopes on both sides differ by: a step may
    /// cross the kink of Huber's slope.
    fn differences(&self) -> Vec<(ArrayD<f64>, ArrayD<f64>)> {
        let here = self.objective(&self.parameters, &self.read, &self.store);
        let huber = matches!(self.program.loss, Loss::Huber { .. });
        let slope = |at: &dyn Fn(f64) -> f64| {
            let central = |step: f64| (at(step) - at(-step)) / (2.0 * step);
            if huber {
                let (above, below) = (at(STEP), at(-STEP));
                ((above - below) / (2.0 * STEP), (above - 2.0 * here + below).abs() / (2.0 * STEP))
            } else {
                // Without the term of step², which is large where losses grow from chunk to chunk.
                ((4.0 * central(STEP) - central(2.0 * STEP)) / 3.0, 0.0)
            }
        };
        let mut all = Vec::new();
        for (field, (_, values)) in self.parameters.each().into_iter().enumerate() {
            let of_number = |i: usize| {
                slope(&|step| {
                    let mut moved = self.parameters.clone();
                    moved.each_mut()[field].1[i] += step;
                    self.objective(&moved, &self.read, &self.store)
                })
            };
            all.push(sample(values.len()).map(of_number).collect::<Vec<_>>());
        }
        for of_read in [true, false] {
            let of = if of_read { &self.read } else { &self.store };
            let of_number = |i: usize| {
                slope(&|step| {
                    let mut moved = of.clone();
                    moved.as_slice_mut().unwrap()[i] += step;
                    let (read, store) = if of_read { (&moved, &self.store) } else { (&self.read, &moved) };
                    self.objective(&self.parameters, read, store)
                })
            };
            all.push(sample(of.len()).map(of_number).collect());
        }
        let array = |all: Vec<f64>| ArrayD::from_shape_vec(vec![all.len()], all).unwrap();
        let both = |all: Vec<(f64, f64)>| all.into_iter().unzip::<f64, f64, Vec<_>, Vec<_>>();
        all.into_iter().map(both).map(|(slopes, gaps)| (array(slopes), array(gaps))).collect()
    }
}

/// Numbers of every parameter, each weight of each depth by itself, and of the tokens of both streams.
#[test]
fn gradients_are_slopes() {
    Trial::all().into_par_iter().for_each(|trial| {
        let (loss, gradients) = trial.gradients(None);
        let expected = trial.objective(&trial.parameters, &trial.read, &trial.store);
        assert!(
            (loss - expected).abs() < 1e-9 * expected.abs().max(1.0),
            "{}: {loss} for {expected}",
            trial.name
        );
        let slopes = trial.differences();
        assert_eq!(gradients.len(), slopes.len());
        for (field, (got, (expected, gaps))) in gradients.iter().zip(slopes).enumerate() {
            let got: Vec<_> = sample(got.len()).map(|i| got[i]).collect();
            let got = ArrayD::from_shape_vec(vec![got.len()], got).unwrap();
            let mut abs = DIFFERENCE * largest(expected.view()).max(1e-2);
            let mut expected = expected;
            if matches!(trial.program.loss, Loss::Huber { .. }) {
                // Between the slopes of both sides, where these differ; kinks of two errors may cancel in the difference.
                abs *= 100.0;
                for ((expected, &got), &gap) in expected.iter_mut().zip(&got).zip(&gaps) {
                    if gap > abs {
                        *expected = got.clamp(*expected - gap, *expected + gap);
                    }
                }
            }
            assert_close(&format!("{}, array {field}", trial.name), got.view(), expected.view(), abs, 0.0);
        }
    });
}

/// The comparison can fail: a gradient that is cut off between chunks lacks terms, in most arrays visibly.
#[test]
fn a_gradient_without_its_terms_is_not_the_slope() {
    let mut worst = Vec::new();
    for trial in Trial::all() {
        let (_, gradients) = trial.gradients(Some(trial.program.chunk_size()));
        let (_, whole) = trial.gradients(None);
        let differs = |(cut, whole): (&ArrayD<f64>, &ArrayD<f64>)| {
            largest((cut - whole).view()) / largest(whole.view()).max(1e-2)
        };
        worst.push(gradients.iter().zip(&whole).map(differs).fold(0.0, f64::max));
    }
    let failing = worst.iter().filter(|difference| **difference > 100.0 * DIFFERENCE).count();
    assert!(failing * 10 > worst.len() * 9, "{failing} of {} trials notice", worst.len());
}

/// The check is called before each segment, forwards and back, and its error ends the work.
#[test]
fn a_check_ends_the_work() {
    let trial = Trial::all().swap_remove(0);
    let heads = trial.parameters.dimensions.heads;
    let (calls, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let run = |allowed: usize| {
        calls.store(0, Ordering::Relaxed);
        read.store(0, Ordering::Relaxed);
        let check = || match calls.fetch_add(1, Ordering::Relaxed) {
            before if before < allowed => Ok(()),
            _ => Err(Error::rejected("check", "ended")),
        };
        let backward = Backward::new(&trial.parameters, trial.program, trial.gates, None, None).unwrap();
        let objective = |_: usize, _: ArrayView2<f64>| {
            read.fetch_add(1, Ordering::Relaxed);
            ((), trial.cotangent.index_axis(Axis(0), 0).to_owned())
        };
        let backward = backward.checked(&check).in_segments(1);
        // With more threads, several segments may begin before one of them ends the work.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let of = pool.install(|| backward.sequences(None, &[trial.tokens()], objective));
        (of.map(|_| ()).map_err(|error| error.to_string()), calls.load(Ordering::Relaxed))
    };
    let (result, calls) = run(usize::MAX);
    assert_eq!(result, Ok(()));
    assert!(calls >= 4 * heads, "{calls}");
    let ended = |allowed: usize| {
        let (result, calls) = run(allowed);
        assert_eq!(result, Err("check: ended".to_owned()));
        (calls, read.load(Ordering::Relaxed))
    };
    // Each head ends at its first call, and nothing is read.
    let (first, read_first) = ended(0);
    assert!(first <= heads && read_first == 0, "{first} calls");
    // The last call is on the way back.
    assert_eq!(ended(calls - 1).1, 1);
}

/// Segments of any length give the same gradients up to rounding, with and without a cut within one or at its end.
#[test]
fn segments_do_not_matter() {
    let differs = |(a, b): (&f64, &f64)| (a - b).abs() / (1.0 + a.abs());
    for trial in Trial::all() {
        for truncate in [None, Some(2), Some(3)] {
            let with = |chunks: usize| {
                let truncate = truncate.map(|every| every * trial.program.chunk_size());
                let backward = Backward::new(&trial.parameters, trial.program, trial.gates, None, truncate);
                let backward = backward.unwrap().in_segments(chunks);
                let objective =
                    |_: usize, _: ArrayView2<f64>| ((), trial.cotangent.index_axis(Axis(0), 0).to_owned());
                let state = trial.state.as_ref();
                let (of_tokens, sum) = backward.sequences(state, &[trial.tokens()], objective).unwrap();
                let of_parameters = sum.each().into_iter().flat_map(|(_, values)| values.to_vec());
                let of_tokens = of_tokens.iter().flat_map(|((), of)| of.read.iter().chain(&of.store));
                of_parameters.chain(of_tokens.copied()).collect::<Vec<_>>()
            };
            let whole = with(1000);
            for chunks in [1, 2, 3] {
                let worst = whole.iter().zip(&with(chunks)).map(differs).fold(0.0, f64::max);
                assert!(worst < 1e-10, "{}, segments of {chunks}, cut {truncate:?}: {worst}", trial.name);
            }
        }
    }
}

/// Some chunks are read by few rows, whose products with the initial weights are taken together, and others by many. Queries
/// end before the stored tokens or go on after them, in one segment or several.
#[test]
fn reads_of_few_rows_and_of_many() {
    let dimensions = Dimensions { dim: 40, heads: 1, dim_head: 40, pre_norm: true, post_norm: true };
    let gates = Gates { learning_rate: Gate::Fixed(1e-3), ..Gates::default() };
    let random = |rows: usize, seed| uniform((1, rows, 40), 1.0, seed).index_axis_move(Axis(0), 0);
    // With chunks of 36, values of reads are not kept: the factors of their gradients are more numbers than the weights.
    let sizes =
        [(8, 12), (8, 18), (8, 0), (8, 1), (8, 57), (4, 11), (4, 12), (2, 9), (2, 14), (5, 9), (36, 80)];
    let decays = [DecayOf::Update, DecayOf::Weights];
    let cases = sizes.into_iter().flat_map(|size| decays.map(|of| (size, of)));
    for (((chunk, queries), decay_of), segment) in
        cases.flat_map(|case| [None, Some(1), Some(2)].map(|segment| (case, segment)))
    {
        let mut program = Program::titans_0_0_17_mlp(chunk, 2);
        program.rule.decay_of = decay_of;
        let tensors: BTreeMap<_, _> =
            random_tensors(&dimensions, &program, Init::Xavier, 3).into_iter().collect();
        let parameters: Parameters<f64> =
            Parameters::collect(dimensions, &program, |name| tensors[name].mapv(f64::from));
        let (read, stored, cotangent) = (random(queries, 1), random(5 * chunk, 2), random(queries, 3));
        let gradient = |parameters: &Parameters<f64>| {
            let backward = Backward::new(parameters, program, gates, None, None).unwrap();
            let backward = segment.into_iter().fold(backward, Backward::in_segments);
            let of = Tokens { read: read.view(), store: stored.view(), order: Order::Online };
            let objective = |read: ArrayView2<f64>| ((&read * &cotangent).sum(), cotangent.clone());
            backward.sequence(None, of, objective).unwrap()
        };
        let (_, gradients) = gradient(&parameters);
        let step = 1e-5;
        for (field, (name, of_field)) in gradients.parameters.each().into_iter().enumerate() {
            let direction = uniform((1, 1, of_field.len()), 1.0, 10 + field as u64);
            let moved = |by: f64| {
                let mut parameters = parameters.clone();
                let (_, values) = parameters.each_mut().into_iter().nth(field).unwrap();
                values.iter_mut().zip(&direction).for_each(|(x, d)| *x += by * d);
                gradient(&parameters).0
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let got: f64 = of_field.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let size = of_field.iter().zip(&direction).map(|(g, d)| (g * d).abs()).sum::<f64>();
            let what =
                format!("chunks of {chunk}, {queries} queries, {decay_of:?}, segments {segment:?}, {name:?}");
            assert!((got - slope).abs() <= 1e-6 * size + 1e-7, "{what}: {got}, slope {slope}");
        }
    }
}

/// Buffers that longer and shorter calls have used do not change a bit.
#[test]
fn used_buffers_do_not_matter() {
    let dimensions = Dimensions { dim: 40, heads: 1, dim_head: 40, pre_norm: true, post_norm: true };
    for chunk in [4, 36] {
        let program = Program::titans_0_0_17_mlp(chunk, 2);
        let tensors: BTreeMap<_, _> =
            random_tensors(&dimensions, &program, Init::Xavier, 3).into_iter().collect();
        let parameters: Parameters<f64> =
            Parameters::collect(dimensions, &program, |name| tensors[name].mapv(f64::from));
        let new =
            || Backward::new(&parameters, program, Gates::default(), None, None).unwrap().in_segments(3);
        let gradient = |backward: &Backward<'_, f64>, tokens: usize| {
            let rows = uniform((1, tokens, 40), 1.0, 4).index_axis_move(Axis(0), 0);
            let of = Tokens { read: rows.view(), store: rows.view(), order: Order::Online };
            let ((), of) =
                backward.sequence(None, of, |read: ArrayView2<f64>| ((), read.to_owned())).unwrap();
            let numbers: Vec<_> =
                of.parameters.each().into_iter().map(|(_, values)| values.to_vec()).collect();
            (numbers, of.tokens.read, of.tokens.store)
        };
        let backward = new();
        for tokens in [8 * chunk, 2 * chunk + 1, 9 * chunk + 2, 7 * chunk] {
            let again = new().reusing(&backward.buffers());
            assert_eq!(
                gradient(&again, tokens),
                gradient(&new(), tokens),
                "{tokens} tokens, chunks of {chunk}"
            );
        }
    }
}

/// Without a cut within the tokens, truncation changes nothing.
#[test]
fn truncation_beyond_the_tokens_changes_nothing() {
    for trial in Trial::all().into_iter().filter(|trial| trial.state.is_none()).take(8) {
        let (c, (_, whole)) = (trial.program.chunk_size(), trial.gradients(None));
        let (_, same) = trial.gradients(Some(64 * c));
        assert_eq!(whole, same, "{}", trial.name);
    }
}

/// A truncated gradient is the sum of those of separate calls, of which each starts from the state that the last one left.
#[test]
fn truncation_separates_calls() {
    // Tokens of chunk i read the memory after i chunks, so calls of whole chunks divide the reads like the stores.
    let seed = Program::titans_0_0_17;
    separate_calls((2, 4), seed(3));
    // Wide memories go back by blocks of the weights, and chunks of few rows in a way of their own.
    for chunk in [2, 3, 4, 5] {
        for decay_of in [DecayOf::Update, DecayOf::Weights] {
            for &kind in ModelKind::ALL {
                let mut program = seed(chunk);
                program.model = Model::new(kind, false);
                program.rule.decay_of = decay_of;
                separate_calls((1, 40), program);
            }
        }
    }
}

fn separate_calls((heads, dim_head): (usize, usize), program: Program) {
    let dim = heads * dim_head;
    let dimensions = Dimensions { dim, heads, dim_head, pre_norm: true, post_norm: true };
    let tensors: BTreeMap<_, _> =
        random_tensors(&dimensions, &program, Init::Xavier, 3).into_iter().collect();
    let parameters: Parameters<f64> =
        Parameters::collect(dimensions, &program, |name| tensors[name].mapv(f64::from));
    let chunk = program.chunk_size();
    let gates = Gates { learning_rate: Gate::Fixed(0.1), ..Gates::default() };
    let shape = (1, 8 * chunk, dim);
    let [tokens, cotangent] = [uniform(shape, 1.0, 5), uniform(shape, 1.0, 6)];
    let all = |sum: &Parameters<f64>| -> Vec<f64> {
        sum.each().into_iter().flat_map(|(_, values)| values.to_vec()).collect()
    };
    let gradient = |state: Option<&State<f64>>, from: usize, to: usize, truncate: Option<usize>| {
        let backward = Backward::new(&parameters, program, gates, None, truncate).unwrap();
        let read = tokens.slice(s![0, from..to, ..]);
        let of = Tokens { read, store: read, order: Order::Online };
        let cotangent = cotangent.slice(s![0, from..to, ..]).to_owned();
        backward.sequences(state, &[of], |_, _| ((), cotangent.clone())).unwrap().1
    };
    let memory = Memory::new(parameters.clone(), program, gates, None).unwrap();
    let mut state = memory.initial_state(1);
    let mut sum = vec![0.0; all(&parameters).len()];
    let every = 3 * chunk;
    for from in (0..8 * chunk).step_by(every) {
        let to = (from + every).min(8 * chunk);
        let part = gradient((from > 0).then_some(&state), from, to, None);
        sum.iter_mut().zip(all(&part)).for_each(|(sum, x)| *sum += x);
        let part = tokens.slice(s![.., from..to, ..]).to_owned();
        let work = Work::Online { read: &part, store: &part, probe: false };
        run_through(&memory, &mut state, work, part.dim());
    }
    let [cut, whole] = [Some(every), None].map(|truncate| all(&gradient(None, 0, 8 * chunk, truncate)));
    let largest = whole.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let distance =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
    let what = format!("{:?}, dim_head {dim_head}, chunks of {chunk}", program.model.kind);
    assert!(distance(&cut, &sum) < 1e-12, "{what}: {}", distance(&cut, &sum));
    assert!(distance(&cut, &whole) > 1e-4, "{what}: a cut that nothing notices");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for trial in Trial::all().into_iter().step_by(5) {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| trial.gradients(None))
        };
        assert_eq!(with(1), with(3), "{}", trial.name);
    }
}

/// Segments that are at work at once give the bits of those that go one after another: with each option that they pass on, and with
/// short last segments and chunks of few and of many rows.
#[test]
fn segments_at_once_give_the_same_bits() {
    let dimensions = Dimensions { dim: 40, heads: 1, dim_head: 40, pre_norm: true, post_norm: true };
    let tokens = uniform((1, 61, dimensions.dim), 1.0, 5);
    let cotangent = uniform((1, 61, dimensions.dim), 1.0, 6);
    let plain = |chunk| Program::titans_0_0_17(chunk);
    let with = |chunk, change: fn(&mut Program)| {
        let mut program = plain(chunk);
        change(&mut program);
        program
    };
    let programs = [
        plain(2),
        plain(8),
        with(3, |program| program.rule.momentum = false),
        with(3, |program| program.rule.decay_of = DecayOf::Weights),
        with(8, |program| program.rule.rate_per = RatePer::Token),
        with(2, |program| program.model = Model::new(ModelKind::Swiglu, true)),
    ];
    for program in programs {
        let tensors: BTreeMap<_, _> =
            random_tensors(&dimensions, &program, Init::Xavier, 3).into_iter().collect();
        let parameters: Parameters<f64> =
            Parameters::collect(dimensions, &program, |name| tensors[name].mapv(f64::from));
        let gates = Gates { learning_rate: Gate::Fixed(1e-2), ..Gates::default() };
        let memory = Memory::new(parameters.clone(), program, gates, None).unwrap();
        let mut state = memory.initial_state(1);
        let work = Work::Online { read: &tokens, store: &tokens, probe: false };
        run_through(&memory, &mut state, work, (1, 61, dimensions.dim));
        let gradient = |threads: usize, segment: usize, carried: bool, order: Order| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let truncate = carried.then(|| 2 * program.chunk_size());
                let backward = Backward::new(&parameters, program, gates, None, truncate).unwrap();
                let backward = backward.in_segments(segment);
                let tokens = tokens.index_axis(Axis(0), 0);
                let of = Tokens { read: tokens, store: tokens, order };
                let objective = |_: usize, read: ArrayView2<f64>| {
                    (read.to_owned(), cotangent.index_axis(Axis(0), 0).to_owned())
                };
                let start = carried.then_some(&state);
                let (of_tokens, sum) = backward.sequences(start, &[of], objective).unwrap();
                let (read, TokenGradients { read: d_read, store: d_store }) =
                    of_tokens.into_iter().next().unwrap();
                let parameters: Vec<_> = sum.each().into_iter().map(|(_, values)| values.to_vec()).collect();
                (read, d_read, d_store, parameters)
            })
        };
        for (segment, carried, order) in [
            (1, false, Order::Online),
            (3, true, Order::Online),
            (2, false, Order::After),
            (4, true, Order::After),
        ] {
            let alone = gradient(1, segment, carried, order);
            for threads in [2, 3, 5] {
                let what = (&program, segment, carried, order, threads);
                assert!(gradient(threads, segment, carried, order) == alone, "{what:?}");
            }
        }
    }
}

/// Sizes at which work is divided: several groups of sequences, segments of chunks, groups of rows and of columns. Slopes along
/// random directions agree with the engine's, and the bits are those of one thread.
#[test]
fn divided_work_adds_up() {
    let dimensions = Dimensions { dim: 72, heads: 2, dim_head: 36, pre_norm: true, post_norm: true };
    let shape = (9, 170, dimensions.dim);
    let [tokens, cotangent] = [uniform(shape, 1.0, 5), uniform(shape, 1.0, 6)];
    for (program, rate) in [(Program::titans_0_0_17(16), 1e-3), (Program::titans_0_0_17_mlp(5, 2), 1e-4)] {
        let tensors: BTreeMap<_, _> =
            random_tensors(&dimensions, &program, Init::Xavier, 3).into_iter().collect();
        let parameters: Parameters<f64> =
            Parameters::collect(dimensions, &program, |name| tensors[name].mapv(f64::from));
        let gates = Gates { learning_rate: Gate::Fixed(rate), ..Gates::default() };
        let gradient = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let backward = Backward::new(&parameters, program, gates, None, None).unwrap().in_segments(4);
                let of = |read| Tokens { read, store: read, order: Order::Online };
                let all: Vec<_> = tokens.outer_iter().map(of).collect();
                let objective =
                    |i: usize, _: ArrayView2<f64>| ((), cotangent.index_axis(Axis(0), i).to_owned());
                let (of_tokens, sum) = backward.sequences(None, &all, objective).unwrap();
                let of_tokens: Vec<_> = of_tokens.into_iter().map(|((), of)| of.read + of.store).collect();
                (sum.each().into_iter().map(|(_, values)| values.to_vec()).collect::<Vec<_>>(), of_tokens)
            })
        };
        let (of_parameters, of_tokens) = gradient(1);
        let (parameters_again, tokens_again) = gradient(5);
        assert!(parameters_again == of_parameters && tokens_again == of_tokens, "5 threads: other bits");
        let loss = |parameters: &Parameters<f64>, tokens: &Array3<f64>| {
            let memory = Memory::new(parameters.clone(), program, gates, None).unwrap();
            let work = Work::Online { read: tokens, store: tokens, probe: false };
            let read = run_through(&memory, &mut memory.initial_state(shape.0), work, shape).retrieved;
            (&read * &cotangent).sum()
        };
        // The loss adds 110,000 products, whose rounding a difference divides by the step.
        let (step, noise) = (1e-5, 3e-6);
        for (field, of_field) in of_parameters.iter().enumerate() {
            let direction = uniform((1, 1, of_field.len()), 1.0, 10 + field as u64);
            let moved = |by: f64| {
                let mut parameters = parameters.clone();
                let (_, values) = parameters.each_mut().into_iter().nth(field).unwrap();
                values.iter_mut().zip(&direction).for_each(|(x, d)| *x += by * d);
                loss(&parameters, &tokens)
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let got: f64 = of_field.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let size = of_field.iter().zip(&direction).map(|(g, d)| (g * d).abs()).sum::<f64>();
            assert!((got - slope).abs() < 1e-6 * size + noise, "array {field}: {got}, slope {slope}");
        }
        let direction = uniform(shape, 1.0, 9);
        let moved = |by: f64| loss(&parameters, &(&tokens + &(&direction * by)));
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        let terms = || of_tokens.iter().zip(direction.outer_iter()).flat_map(|(g, d)| (g * &d).into_iter());
        let (got, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
        assert!((got - slope).abs() < 1e-6 * size + noise, "tokens: {got}, slope {slope}");
    }
}

/// Numbers of tokens at which segments, groups of chunks and groups of reads have remainders of all kinds. Slopes along random
/// directions agree with differences of what is read, and the bits are those of one thread.
#[test]
fn remainders_of_all_sizes() {
    let dimensions = Dimensions { dim: 6, heads: 2, dim_head: 3, pre_norm: true, post_norm: true };
    let gates = Gates { learning_rate: Gate::Fixed(0.01), ..Gates::default() };
    let cases = [1, 2, 3, 4, 5, 8, 16].into_iter().flat_map(|chunk| {
        let lengths = [0, chunk / 2, 2 * chunk - 1, 9 * chunk, 37 * chunk + chunk / 2];
        lengths.into_iter().flat_map(move |tokens| (0..6).map(move |kind| (chunk, tokens, kind)))
    });
    cases.collect::<Vec<_>>().into_par_iter().for_each(|(chunk, tokens, kind)| {
        let mut program = Program::titans_0_0_17_mlp(chunk, 2);
        if kind % 2 == 1 {
            program.rule.decay_of = DecayOf::Weights;
        }
        program.schedule.refresh = (kind >= 4).then_some(chunk * 2);
        let order = if kind / 2 == 1 { Order::After } else { Order::Online };
        let what = format!("chunks of {chunk}, {tokens} tokens, kind {kind}");
        let tensors: BTreeMap<_, _> =
            random_tensors(&dimensions, &program, Init::Xavier, 3).into_iter().collect();
        let parameters: Parameters<f64> =
            Parameters::collect(dimensions, &program, |name| tensors[name].mapv(f64::from));
        let shape = (tokens, dimensions.dim);
        let [seq, cotangent, direction] =
            [5, 6, 7].map(|seed| uniform((1, tokens, dimensions.dim), 1.0, seed).index_axis_move(Axis(0), 0));
        let gradient = |seq: &Array2<f64>, truncate: Option<usize>| {
            let backward =
                Backward::new(&parameters, program, gates, None, truncate).unwrap().in_segments(16);
            let of = Tokens { read: seq.view(), store: seq.view(), order };
            let objective = |read: ArrayView2<f64>| ((&read * &cotangent).sum(), cotangent.clone());
            let (loss, gradients) = backward.sequence(None, of, objective).unwrap();
            (loss, gradients.tokens.read + gradients.tokens.store)
        };
        let with = |threads: usize, truncate| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| gradient(&seq, truncate))
        };
        let (_, got) = with(1, None);
        assert_eq!(got.dim(), shape, "{what}");
        for truncate in [None, Some(8 * chunk)] {
            assert_eq!(with(1, truncate), with(3, truncate), "{what}, truncated after {truncate:?}");
        }
        let step = 1e-5;
        let [ahead, behind] = [step, -step].map(|by| gradient(&(&seq + &(&direction * by)), None).0);
        let slope = (ahead - behind) / (2.0 * step);
        let along = (&got * &direction).sum();
        // Differences of losses of a few hundred products, whose rounding is divided by the step.
        let tolerance = 1e-6 * (&got * &direction).mapv(f64::abs).sum() + 1e-7;
        assert!((along - slope).abs() <= tolerance, "{what}: {along}, slope {slope}");
    });
}

/// Segments and tasks that are longer than the first ones, at widths for which segments are of √N chunks, against segments of
/// another length.
#[test]
fn remainders_of_wide_memories() {
    for (dim, chunk, tokens) in [(128, 16, 1360), (64, 8, 296 * 8)] {
        let dimensions = Dimensions { dim, heads: 1, dim_head: dim, pre_norm: true, post_norm: true };
        let program = Program::titans_0_0_17(chunk);
        let tensors: BTreeMap<_, _> =
            random_tensors(&dimensions, &program, Init::Xavier, 3).into_iter().collect();
        let parameters: Parameters<f32> =
            Parameters::collect(dimensions, &program, |name| tensors[name].clone());
        let gates = Gates { learning_rate: Gate::Fixed(1e-4), ..Gates::default() };
        let seq = uniform((1, tokens, dim), 1.0, 5).mapv(|x| x as f32).index_axis_move(Axis(0), 0);
        let gradients = |segment: Option<usize>| {
            let backward = Backward::new(&parameters, program, gates, None, None).unwrap();
            let backward = segment.into_iter().fold(backward, Backward::in_segments);
            let of = Tokens { read: seq.view(), store: seq.view(), order: Order::Online };
            let ((), gradients) = backward.sequence(None, of, |read| ((), read.to_owned())).unwrap();
            gradients.tokens.store
        };
        let (chosen, other) = (gradients(None), gradients(Some(7)));
        let largest = chosen.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let worst = (&chosen - &other).iter().fold(0.0_f32, |worst, x| worst.max(x.abs()));
        assert!(largest > 0.0 && worst <= 1e-4 * largest, "{dim}, {chunk}, {tokens}: {worst} of {largest}");
    }
}

#[test]
fn a_program_without_second_derivative_is_rejected() {
    let mut trial = Trial::new(ModelKind::Linear, 0, 2);
    trial.program.loss = Loss::PNorm { p: 1.5 };
    let error = Backward::new(&trial.parameters, trial.program, trial.gates, None, None).unwrap_err();
    let expected = "loss_power 1.5 is below 2, where the second derivative is infinite at an exact prediction; use 2 or more";
    assert_eq!(error.to_string(), expected);
    trial.program.loss = Loss::MeanSquare;
    let error = Backward::new(&trial.parameters, trial.program, trial.gates, None, Some(4)).unwrap_err();
    let expected = "truncate 4 is not a multiple of chunk_size 3; gradients are cut off between chunks";
    assert_eq!(error.to_string(), expected);
}

/// The product of each operator against its naive twin, over chunks of which the last is shorter.
#[test]
fn second_products_of_operators_are_those_of_their_naive_twins() {
    let attention = |scores| Op::Attention(Attention { scores });
    let ops = [
        (Op::Activation(Activation::Gelu), vec![5]),
        (Op::Activation(Activation::Silu), vec![5]),
        (attention(Scores::Plain), vec![6]),
        (attention(Scores::Cosine(1.3)), vec![6]),
        (Op::layer_norm(), vec![5]),
        (Op::gain(), vec![4, 4]),
        (Op::add(), vec![4, 4]),
        (Op::glu(), vec![6]),
        (Op::mix(), vec![4, 4, 4]),
        (Op::concat(), vec![2, 3]),
    ];
    for (op, widths) in ops {
        for chunk in [1, 2, 3, 5] {
            compare_second(op, &widths, chunk);
        }
    }
}

fn compare_second(op: Op, widths: &[usize], chunk: usize) {
    let count = 7;
    let random = |width: usize, seed: u64| uniform((1, count, width), 1.0, seed).index_axis_move(Axis(0), 0);
    let inputs: Vec<_> = widths.iter().enumerate().map(|(i, &width)| random(width, i as u64)).collect();
    let views: Vec<_> = inputs.iter().map(|input| input.view()).collect();
    let width = op.width(widths);
    let cotangent = random(width, 10);
    let tangents: Vec<_> =
        widths.iter().enumerate().map(|(i, &width)| random(width, 20 + i as u64)).collect();
    // The last input of several has no tangent.
    let given = |i: usize| widths.len() == 1 || i + 1 < widths.len();
    let views_of_tangents: Vec<_> =
        tangents.iter().enumerate().map(|(i, tangent)| given(i).then(|| tangent.view())).collect();
    let mut work = nmem::memory::operators::Work::new(op, count, chunk, widths);
    let operator = op.operator::<f64>();
    let mut output = Array2::from_elem((count, width), f64::NAN);
    operator.forward_for_vjp(chunk, &views, output.view_mut(), &mut work);
    let mut d_cotangent = Array2::from_elem((count, width), f64::NAN);
    let mut d_inputs: Vec<_> = inputs.iter().map(|input| Array2::from_elem(input.dim(), f64::NAN)).collect();
    let mut places: Vec<_> = d_inputs.iter_mut().map(|d_input| Some(d_input.view_mut())).collect();
    let second = Second { chunk, inputs: &views, cotangent: cotangent.view(), tangents: &views_of_tangents };
    let results = SecondResults { d_cotangent: d_cotangent.view_mut(), d_inputs: &mut places };
    operator.vjp_of_vjp(&second, results, &mut work);
    for start in (0..count).step_by(chunk) {
        let end = count.min(start + chunk);
        let rows = |of: &Array2<f64>| -> Rows {
            of.slice(s![start..end, ..]).rows().into_iter().map(|row| row.to_vec()).collect()
        };
        let of_inputs: Vec<_> = inputs.iter().map(rows).collect();
        let of_tangents: Vec<_> = tangents.iter().map(rows).collect();
        let some: Vec<_> =
            of_tangents.iter().enumerate().map(|(i, tangent)| given(i).then_some(tangent)).collect();
        let all: Vec<_> = of_inputs.iter().collect();
        let (expected, of_expected) = op.naive_vjp_of_vjp(&all, &rows(&cotangent), &some);
        let array = |rows: Rows| {
            let width = rows[0].len();
            let all: Vec<_> = rows.into_iter().flatten().collect();
            ArrayD::from_shape_vec(vec![end - start, width], all).unwrap()
        };
        let got = |of: &Array2<f64>| of.slice(s![start..end, ..]).to_owned().into_dyn();
        let what = format!("{op:?}, chunk {chunk}, rows {start} to {end}");
        assert_close(&what, got(&d_cotangent).view(), array(expected).view(), 1e-12, 1e-12);
        for (i, (d_input, expected)) in d_inputs.iter().zip(of_expected).enumerate() {
            // Central differences with a step of 1e-5.
            assert_close(
                &format!("{what}, input {i}"),
                got(d_input).view(),
                array(expected).view(),
                1e-8,
                1e-8,
            );
        }
    }
}

/// Gradients of inputs that are rewritten meanwhile would be those of neither version.
#[test]
fn inputs_that_change_meanwhile_are_errors() {
    for (changed, error) in [("seq.npy", true), ("cotangent.npy", true), ("other.npy", false)] {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["seq.npy", "cotangent.npy", "other.npy"] {
            ndarray_npy::write_npy(path(name), &Array2::<f32>::ones((9, 4))).unwrap();
        }
        let settings = Settings {
            data: Some(path("seq.npy")),
            heads: Some(2),
            chunk_size: Some(4),
            ..Settings::default()
        };
        let config = settings.validate(Command::Retrieve).unwrap();
        let request =
            GradientRequest { cotangent: path("cotangent.npy"), order: Order::Online, truncate: None };
        let mut out = WholeFile::open("--out", &path("gradients.npz"), false).unwrap();
        let mut observe = |event| {
            if matches!(event, RunEvent::Writing) {
                ndarray_npy::write_npy(path(changed), &Array2::<f32>::zeros((9, 4))).unwrap();
            }
            Ok(())
        };
        let result = gradients(&config, &request, &mut out, &mut observe).map(drop);
        let message = result.err().map(|error| error.to_string());
        let expected = format!(
            "{}: the file changed while nmem was reading it; run again once it is complete",
            path(changed).display()
        );
        assert_eq!(message, error.then_some(expected));
    }
}
