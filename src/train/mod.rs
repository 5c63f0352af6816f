//! Training: a memory's parameters from sequences, by AdamW along the [outer gradient](crate::engine::backward).
//!
//! - this file: the steps, from settings to a published directory;
//! - `examples`: which tokens are read and stored, and what should be read;
//! - `objective`: the loss of what is read, and the output head;
//! - `optimizer`: AdamW and its schedule;
//! - `start`: starting values;
//! - `validation`: the loss of examples that are not learned from;
//! - `checkpoint`: the state on disk; `log`: train.csv; `report`: run.json.
//!
//! Everything that the steps depend on is in the settings, the inputs and the state: random numbers come from the seed and the
//! number of an example. A training that was ended and resumed therefore gives the same bits as one that was not, with any
//! number of threads.

mod checkpoint;
mod examples;
mod log;
mod objective;
mod optimizer;
mod report;
mod start;
mod validation;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use ndarray::{Array2, ArrayView2};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::config::{Command, Config, Length, Objective, OutputHead, TrainConfig, with_flag};
use crate::engine::backward::{Backward, Buffers, Order, Tokens};
use crate::engine::budget;
use crate::error::{Error, Result};
use crate::io::NpySequences;
use crate::io::memory_file::MemoryFile;
use crate::io::tensors::{Tensor, write_safetensors};
use crate::io::text::TextFile;
use crate::memory::program::Reads;
use crate::memory::{Gates, Program, State};
use crate::peak::PeakMemory;
use crate::plot;
use crate::real::{ElementType, Real};
use crate::run::{
    InputCache, InputFile, Keep, ResolvedInputs, RunEvent, RunIdentity, SavedState, commit, start_threads,
    write_json,
};
use crate::sequence::{Sequences, Shape};
use crate::storage::{self, OutFile, ResultsDirectory};
use examples::{Data, Example, Examples, MAX_TABLE};
use log::{Log, Row};
use objective::{Goal, Head};
use optimizer::{AdamW, Group, Learned};
pub use report::{Ended, TrainReport, TrainSeconds};
use validation::Validation;

/// Share of the steps between validations, by default.
const VALIDATIONS: usize = 20;

/// Progress of a training.
#[derive(Clone, Copy, Debug)]
pub enum TrainEvent {
    /// A number of input bytes has been read.
    Loaded(u64),
    /// Steps begin, some of which an earlier start has taken.
    Starting {
        /// Steps already taken.
        taken: usize,
        /// All steps.
        steps: usize,
    },
    /// A step is done.
    Step {
        /// Its loss.
        loss: f64,
        /// Loss of the last validation.
        validation: Option<f64>,
    },
    /// Results are being written and drawn.
    Writing,
}

/// Callback for every [`TrainEvent`].
pub type TrainObserver<'a> = &'a mut (dyn FnMut(TrainEvent) -> Result<()> + Send);

/// Parameters at the best validation.
struct Best<T> {
    step: usize,
    loss: f64,
    learned: Learned<T>,
}

/// State of a training between two steps.
struct Progress<T> {
    step: usize,
    /// Loss of the last step.
    loss: Option<f64>,
    learned: Learned<T>,
    adam: AdamW<T>,
    /// Moving average of what is learned.
    mean: Option<Learned<T>>,
    best: Option<Best<T>>,
    /// Validations since the best.
    since_best: usize,
    log: Log,
}

/// Trains a memory and publishes its results. An error of the observer ends the training after the step in progress, with a
/// checkpoint from which the same call resumes.
///
/// # Errors
/// Any failure that keeps the training from its results. A loss that is not finite is a result: see [`Ended::Diverged`].
pub fn train(
    config: &Config,
    train: &TrainConfig,
    command_line: Vec<String>,
    replace: bool,
    observe: TrainObserver,
) -> Result<TrainReport> {
    let directory = ResultsDirectory::open(&config.out, replace)?;
    let loading = Instant::now();
    let inputs = TrainInputs::open(config, train, &InputCache::default(), observe)?;
    let mut saved = SavedState::open(directory.target(), &inputs.identity(config, train), replace)?;
    saved.check_place()?;
    if replace {
        saved.forget();
    }
    let threads =
        config.threads.map_or_else(std::thread::available_parallelism, |n| Ok(n.try_into().expect("not 0")));
    let pool = start_threads(threads.map_or(1, usize::from))?;
    let training = Training {
        config,
        train,
        command_line,
        directory: Some((directory.path(), Keep::All)),
        saved: Some(&saved),
        inputs: &inputs,
        load: loading.elapsed(),
    };
    let report = training.execute(&pool, observe).map_err(|error| directory.explain(error))?;
    inputs.check_unchanged(true)?;
    directory.publish()?;
    saved.remove()?;
    Ok(report)
}

/// Files of a training, opened and checked.
pub struct TrainInputs {
    main: ResolvedInputs,
    validation: Option<ResolvedInputs>,
    blocks: Option<TextFile>,
    layouts: Option<TextFile>,
    /// Files that the validation and the blocks add.
    others: Vec<InputFile>,
}

impl TrainInputs {
    /// Opens the files, or finds them in `cache`.
    pub fn open(
        config: &Config,
        train: &TrainConfig,
        cache: &InputCache,
        observe: TrainObserver,
    ) -> Result<Self> {
        let mut loaded = |event| match event {
            RunEvent::Loaded(bytes) => observe(TrainEvent::Loaded(bytes)),
            _ => Ok(()),
        };
        let main = ResolvedInputs::open(config, false, cache, &mut loaded)?;
        let of_validation = config.for_validation(&train.validation);
        let validation = of_validation
            .map(|config| ResolvedInputs::open(&config, false, cache, &mut loaded))
            .transpose()?;
        let text = |path: &Path| TextFile::read(path, MAX_TABLE);
        let blocks = train.passages.as_ref().map(|passages| text(&passages.blocks)).transpose()?;
        let layouts = train.validation.layouts.as_deref().map(text).transpose()?;
        let mut others = Vec::new();
        let roles =
            [("data", "validation"), ("store_seq", "validation_store"), ("target", "validation_target")];
        for file in validation.iter().flat_map(|inputs| &inputs.files) {
            if let Some((_, role)) = roles.iter().find(|(of_run, _)| *of_run == file.role) {
                others.push(InputFile { role, ..file.clone() });
            }
        }
        for (role, file) in [("blocks", &blocks), ("validation_layouts", &layouts)] {
            others.extend(file.as_ref().map(|file| InputFile {
                role,
                path: file.path().to_path_buf(),
                shape: None,
                dtype: None,
                sha256: file.sha256(),
            }));
        }
        Ok(Self { main, validation, blocks, layouts, others })
    }

    /// Returns the inputs of the examples, and the other files that were read.
    pub fn files(&self) -> (&ResolvedInputs, &[InputFile]) {
        (&self.main, &self.others)
    }

    /// Returns the SHA-256 of each input, by role.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        let others = self.others.iter().map(|file| (file.role.to_owned(), file.sha256.clone()));
        self.main.hashes().into_iter().chain(others).collect()
    }

    /// Returns the identity of a training of these files.
    pub fn identity(&self, config: &Config, train: &TrainConfig) -> RunIdentity {
        RunIdentity::new(Command::Train, config, &self.main).with(train, self.hashes())
    }

    /// Returns an error if a sequence file has changed since it was opened. `content` compares hashes.
    pub fn check_unchanged(&self, content: bool) -> Result<()> {
        let mut all = std::iter::once(&self.main).chain(&self.validation);
        all.try_for_each(|inputs| inputs.check_unchanged(content))
    }
}

/// A training that is ready to begin or to resume.
pub(crate) struct Training<'a> {
    /// Memory, sequences and place of the results.
    pub config: &'a Config,
    /// Settings of the training.
    pub train: &'a TrainConfig,
    /// Command line for the report.
    pub command_line: Vec<String>,
    /// Directory for the files that are kept.
    pub directory: Option<(&'a Path, Keep)>,
    /// Place of checkpoints; without it an interruption loses the training.
    pub saved: Option<&'a SavedState>,
    /// Files, opened.
    pub inputs: &'a TrainInputs,
    /// Time spent on opening them.
    pub load: Duration,
}

/// Everything that a training learns from, in its element type.
struct Plan<T> {
    program: Program,
    gates: Gates,
    data: Data,
    examples: Examples,
    goal: Goal<T>,
    validation: Validation,
    hidden: Vec<usize>,
    order: Order,
    steps: usize,
    /// Buffers of the outer gradient, kept from step to step.
    buffers: Buffers<T>,
}

impl Training<'_> {
    /// Trains in a pool of threads.
    pub fn execute(&self, pool: &ThreadPool, observe: TrainObserver) -> Result<TrainReport> {
        pool.install(|| match self.config.dtype {
            ElementType::F32 => self.run::<f32>(observe),
            ElementType::F64 => self.run::<f64>(observe),
        })
    }

    fn run<T: Real>(&self, observe: TrainObserver) -> Result<TrainReport> {
        let mut peak = PeakMemory::default();
        let mut seconds = TrainSeconds { load: self.load.as_secs_f64(), ..TrainSeconds::default() };
        let (plan, learned) = self.plan::<T>()?;
        let adam = AdamW::new(&learned);
        let mean = self.train.ema_decay.map(|_| learned.clone());
        let log = Log::new();
        let mut progress =
            Progress { step: 0, loss: None, learned, adam, mean, best: None, since_best: 0, log };
        if let Some(path) = self.saved.and_then(SavedState::found) {
            checkpoint::read(&mut progress, path)?;
        }
        let steps = plan.steps;
        observe(TrainEvent::Starting { taken: progress.step, steps })?;
        if progress.step == 0 && plan.validation.exists() {
            let validating = Instant::now();
            let loss = plan.validation.loss(progress.kept(), &plan)?;
            seconds.validate += validating.elapsed().as_secs_f64();
            progress.log.add(&Row { validation: Some(loss), ..Row::default() });
            progress.validated(loss);
        }
        let every = self.train.validate_every.unwrap_or(steps.div_ceil(VALIDATIONS));
        let (mut last_saved, mut ended) = (Instant::now(), Ended::Steps);
        while progress.step < steps {
            if self.train.patience.is_some_and(|most| progress.since_best >= most) {
                ended = Ended::Patience;
                break;
            }
            let stepping = Instant::now();
            let Some(mut row) = plan.step(&mut progress, self.train)? else {
                ended = Ended::Diverged;
                break;
            };
            seconds.train += stepping.elapsed().as_secs_f64();
            progress.loss = row.loss;
            if plan.validation.exists() && (progress.step.is_multiple_of(every) || progress.step == steps) {
                let validating = Instant::now();
                let loss = plan.validation.loss(progress.kept(), &plan)?;
                seconds.validate += validating.elapsed().as_secs_f64();
                row.validation = Some(loss);
                progress.validated(loss);
            }
            progress.log.add(&row);
            peak.sample();
            let event = TrainEvent::Step { loss: row.loss.unwrap_or(f64::NAN), validation: row.validation };
            let writing = Instant::now();
            match observe(event) {
                Err(Error::Interrupted) => return Err(self.interrupted(&progress, steps)?),
                seen => seen?,
            }
            let is_due = last_saved.elapsed().as_secs_f64() >= self.train.checkpoint_every;
            if let Some(saved) = self.saved.filter(|_| is_due) {
                saved.save(|directory| checkpoint::write(&progress, directory))?;
                last_saved = Instant::now();
            }
            seconds.write += writing.elapsed().as_secs_f64();
        }
        match self.finish(&plan, &progress, ended, seconds, peak, observe) {
            Err(Error::Interrupted) => Err(self.interrupted(&progress, steps)?),
            report => report,
        }
    }

    /// Saves the state of an interrupted training, and returns the error that says so.
    fn interrupted<T: Real>(&self, progress: &Progress<T>, steps: usize) -> Result<Error> {
        let Some(saved) = self.saved else { return Ok(Error::Interrupted) };
        saved.save(|directory| checkpoint::write(progress, directory))?;
        let checkpoint = saved.path().to_path_buf();
        Ok(Error::Preempted { checkpoint, done: progress.step, all: steps, unit: "steps" })
    }

    /// Prepares what the steps need, and the starting values.
    fn plan<T: Real>(&self) -> Result<(Plan<T>, Learned<T>)> {
        let (config, train, inputs) = (self.config, self.train, &self.inputs.main);
        let (program, gates) = (inputs.program, inputs.gates);
        program.check_differentiable().map_err(with_flag)?;
        let file = inputs.memory_file();
        if file.state_type().is_some() || file.past::<T>().is_some() {
            let reason = "has stored something, and training starts from a memory that has not; export its parameters first";
            return Err(Error::rejected(file.path().display().to_string(), reason));
        }
        let mut parameters = file.parameters::<T>(&program);
        let dimensions = parameters.dimensions;
        start::apply(&mut parameters, &program, &gates, &train.start)?;
        let hidden = match &train.visible {
            Some(visible) => start::hide(&mut parameters, visible)?,
            None => Vec::new(),
        };
        let columns = match (train.objective, &hidden[..]) {
            (Objective::Reconstruct, [_, ..]) => hidden.clone(),
            _ => (0..dimensions.dim).collect(),
        };
        let times = if train.objective == Objective::Value { inputs.repeats(config) } else { 1 };
        let data = Data::new(inputs, train.objective, columns.clone(), times);
        let width = data.width();
        let head =
            (train.output_head == OutputHead::Linear).then(|| start::head(dimensions.dim, width, train));
        let chunk = program.chunk_size();
        let (examples, kept) = Examples::new(&inputs.data, train, chunk, self.inputs.blocks.as_ref())?;
        let steps = match train.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                let count = examples.count().expect("whole sequences");
                epochs.saturating_mul(count).div_ceil(train.batch)
            }
        };
        let skip = train.skip.unwrap_or(match program.schedule.reads {
            _ if config.read_after => 0,
            Reads::Behind => chunk,
            Reads::Complete => 0,
            Reads::CompleteOrZeros => chunk - 1,
        });
        let candidates = inputs.targets.as_ref().and_then(|targets| targets.candidates.as_deref());
        let goal =
            Goal { loss: train.outer_loss, skip, times, candidates: candidates.map(all_rows).transpose()? };
        let validation = match &self.inputs.validation {
            Some(inputs) => {
                let layouts = self.inputs.layouts.as_ref();
                let all = examples::of_validation(&inputs.data, layouts, train.window)?;
                Validation::new(Data::new(inputs, train.objective, columns, times), all)
            }
            None => Validation::new(Data::new(inputs, train.objective, columns, times), kept),
        };
        let order = if config.read_after { Order::After } else { Order::Online };
        let backward = Backward::new(&parameters, program, gates, None, train.truncate).map_err(with_flag)?;
        let buffers = backward.buffers();
        let plan = Plan { program, gates, data, examples, goal, validation, hidden, order, steps, buffers };
        plan.check()?;
        let read = plan.examples.tokens() * plan.data.times;
        budget::check(backward.bytes(read, plan.stored(), train.batch))?;
        Ok((plan, Learned { parameters, head }))
    }

    /// Writes the results into the directory.
    fn finish<T: Real>(
        &self,
        plan: &Plan<T>,
        progress: &Progress<T>,
        mut ended: Ended,
        mut seconds: TrainSeconds,
        mut peak: PeakMemory,
        observe: TrainObserver,
    ) -> Result<TrainReport> {
        observe(TrainEvent::Writing)?;
        let config = self.config;
        let directory = self.directory.filter(|(_, keep)| *keep > Keep::None);
        let &Progress { step, loss, .. } = progress;
        let (best_step, validation, learned) = match &progress.best {
            Some(best) => (best.step, Some(best.loss), &best.learned),
            None => (step, None, progress.kept()),
        };
        // The last step of a training without validation is followed by no other.
        if learned.each().iter().any(|(_, numbers)| numbers.iter().any(|x| !x.is_finite())) {
            ended = Ended::Diverged;
        }
        let is_lost = ended == Ended::Diverged && progress.best.is_none();
        let parameters = learned.each().iter().map(|(_, numbers)| numbers.len()).sum();
        let (mut zero, mut without_updates) = (None, None);
        let validating = Instant::now();
        if plan.validation.exists() {
            zero = Some(plan.validation.loss_of_zeros(&plan.goal)?);
            without_updates = Some(plan.validation.loss_without_updates(learned, plan)?);
        }
        seconds.validate += validating.elapsed().as_secs_f64();
        observe(TrainEvent::Writing)?;
        let writing = Instant::now();
        if let Some((directory, _)) = directory {
            progress.log.write(directory)?;
        }
        if let Some((directory, _)) = directory.filter(|(_, keep)| *keep == Keep::All && !is_lost) {
            write_learned(plan, learned, directory)?;
        }
        let mut warnings = Vec::new();
        if let Some((directory, _)) = directory.filter(|_| config.plots) {
            warnings = self.draw(directory, observe)?;
        }
        peak.sample_now();
        seconds.write += writing.elapsed().as_secs_f64();
        let main = &self.inputs.main;
        let report = TrainReport {
            nmem: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            command: Command::Train,
            command_line: self.command_line.clone(),
            out: config.out.clone(),
            config: main.resolved(config),
            train: self.train.clone(),
            inputs: main.files.iter().chain(&self.inputs.others).cloned().collect(),
            threads: rayon::current_num_threads(),
            dtype: T::TYPE,
            parameters,
            validation_examples: plan.validation.count(),
            steps: step,
            ended,
            tokens: (step as u64)
                .saturating_mul(self.train.batch as u64)
                .saturating_mul(plan.stored() as u64),
            loss,
            best_step,
            validation,
            validation_without_updates: without_updates,
            validation_zero: zero,
            warnings,
            peak_bytes: peak.resident(),
            wall_s: seconds,
        };
        if let Some((directory, _)) = directory {
            write_json(&directory.join("run.json"), &report)?;
        }
        Ok(report)
    }

    /// Draws the figure of train.csv.
    fn draw(&self, directory: &Path, observe: TrainObserver) -> Result<Vec<String>> {
        let plots = directory.join("plots");
        storage::create_directory(&plots)?;
        let source = plot::CsvSource::find(&directory.join("train.csv"), None)?;
        let request = plot::Request { origin: Some("nmem train".to_owned()), ..plot::Request::default() };
        let drawn = plot::draw(&[source], &request, &mut || observe(TrainEvent::Writing))?;
        for file in drawn.files(&plots, &self.config.figure_format) {
            let (path, bytes) = file?;
            OutFile::write_new(&path, &bytes)?;
        }
        Ok(drawn.notes)
    }
}

/// Writes the memory and its output head.
fn write_learned<T: Real>(plan: &Plan<T>, learned: &Learned<T>, directory: &Path) -> Result<()> {
    let tensors = learned.parameters.tensors(&plan.program).into_iter();
    let tensors: BTreeMap<_, _> =
        tensors.map(|(name, tensor)| (name, Tensor::from_array(&tensor.view()))).collect();
    let path = directory.join("memory.safetensors");
    let file = MemoryFile::from_parts(path.clone(), learned.parameters.dimensions, plan.program, tensors);
    file.save(&path, None::<&State<T>>, &plan.program, plan.gates)?;
    if let Some(Head { weight, bias }) = &learned.head {
        let tensors = BTreeMap::from([
            ("weight".to_owned(), Tensor::from_array(&weight.view())),
            ("bias".to_owned(), Tensor::from_array(&bias.view())),
        ]);
        write_safetensors(directory.join("head.safetensors"), &tensors, "{}")?;
    }
    Ok(())
}

impl Data {
    fn new(inputs: &ResolvedInputs, objective: Objective, columns: Vec<usize>, times: usize) -> Self {
        let target = inputs.targets.as_ref().map(|targets| targets.target.clone());
        Self { read: inputs.data.clone(), store: inputs.store_seq.clone(), target, objective, columns, times }
    }
}

/// Returns all rows of a file of one sequence.
fn all_rows<T: Real>(file: &NpySequences) -> Result<Array2<T>> {
    let Shape { tokens, dim, .. } = file.dims();
    let mut rows = Array2::zeros((tokens, dim));
    Sequences::<T>::read_rows(file, 0, 0, rows.view_mut())?;
    Ok(rows)
}

impl<T: Real> Plan<T> {
    /// Returns the tokens that an example stores.
    fn stored(&self) -> usize {
        self.data.store.as_ref().map_or(self.examples.tokens(), |file| file.dims().tokens)
    }

    /// Rejects examples without a token that has a loss.
    fn check(&self) -> Result<()> {
        let training = (&self.data, self.examples.select(0));
        let validation = self.validation.selections().iter().map(|of| (self.validation.data(), of.clone()));
        for (data, selection) in std::iter::once(training).chain(validation) {
            if self.goal.tokens(&data.load::<T>(&selection)?) == 0 {
                let got = format!("{} tokens, of which {} have no loss", selection.len(), self.goal.skip);
                let expected = "examples with a token that has a loss (see --skip)";
                return Err(Error::file(data.read.path(), expected, got));
            }
        }
        Ok(())
    }

    /// Takes a step. Returns its row of train.csv, or nothing if its loss or gradient is not finite.
    fn step(&self, progress: &mut Progress<T>, train: &TrainConfig) -> Result<Option<Row>> {
        let begin = Instant::now();
        let first = progress.step as u64 * train.batch as u64;
        let load = |i: usize| self.data.load(&self.examples.select(first + i as u64));
        let examples = (0..train.batch).into_par_iter().map(load).collect::<Vec<_>>();
        let examples = examples.into_iter().collect::<Result<Vec<Example<T>>>>()?;
        let tokens: Vec<_> = examples.iter().map(|example| example.tokens(self.order)).collect();
        let (mut gradient, loss) = self.gradient(&progress.learned, &examples, &tokens, train)?;
        for &column in &self.hidden {
            if let Some(norm) = &mut gradient.parameters.retrieve_norm {
                norm[column] = T::zero();
            }
        }
        let (norm, of_groups) = gradient.norms();
        if !(loss.is_finite() && norm.is_finite()) {
            return Ok(None);
        }
        progress.step += 1;
        let at = (progress.step, self.steps);
        progress.adam.step(&mut progress.learned, &gradient, norm, &train.adam, at);
        if let (Some(mean), Some(decay)) = (&mut progress.mean, train.ema_decay) {
            optimizer::average(mean, &progress.learned, decay, progress.step);
        }
        let stored: usize = tokens.iter().map(|tokens| tokens.store.nrows()).sum();
        let has_head = progress.learned.head.is_some();
        let exists = |group: Group| group != Group::Head || has_head;
        Ok(Some(Row {
            step: progress.step,
            loss: Some(loss),
            validation: None,
            rate: Some(optimizer::rate(&train.adam, progress.step, self.steps)),
            grad_norm: Some(norm),
            of_groups: Group::ALL.map(|group| exists(group).then_some(of_groups[group as usize])),
            tokens_per_s: Some((stored as f64 / begin.elapsed().as_secs_f64()).round()),
        }))
    }

    /// Returns the gradient of the mean loss of some examples, and this loss.
    fn gradient(
        &self,
        learned: &Learned<T>,
        examples: &[Example<T>],
        tokens: &[Tokens<'_, T>],
        train: &TrainConfig,
    ) -> Result<(Learned<T>, f64)> {
        let Learned { parameters, head } = learned;
        let backward = Backward::new(parameters, self.program, self.gates, None, train.truncate);
        let backward = backward.map_err(with_flag)?.reusing(&self.buffers);
        let share = 1.0 / examples.len() as f64;
        let objective = |i: usize, read: ArrayView2<T>| {
            let (loss, cotangent, of_head) = self.goal.gradient(head.as_ref(), read, &examples[i], share);
            ((loss, of_head), cotangent)
        };
        let (of_examples, parameters) = backward.sequences(None, tokens, objective)?;
        let mut sum = Learned { parameters, head: None };
        let mut losses = 0.0;
        for ((loss, of_head), _) in of_examples {
            losses += loss;
            sum.head = match (sum.head.take(), of_head) {
                (Some(sum), Some(more)) => {
                    Some(Head { weight: sum.weight + more.weight, bias: sum.bias + more.bias })
                }
                (None, of_head) => of_head,
                (sum, None) => sum,
            };
        }
        Ok((sum, losses * share))
    }
}

impl<T: Real> Example<T> {
    fn tokens(&self, order: Order) -> Tokens<'_, T> {
        let store = self.store.as_ref().unwrap_or(&self.read).view();
        Tokens { read: self.read.view(), store, order }
    }
}

impl<T: Real> Progress<T> {
    /// Returns what is validated and kept.
    fn kept(&self) -> &Learned<T> {
        self.mean.as_ref().unwrap_or(&self.learned)
    }

    /// Compares a validation with the best so far.
    fn validated(&mut self, loss: f64) {
        if loss.is_finite() && self.best.as_ref().is_none_or(|best| loss < best.loss) {
            self.best = Some(Best { step: self.step, loss, learned: self.kept().clone() });
            self.since_best = 0;
        } else {
            self.since_best += 1;
        }
    }
}
