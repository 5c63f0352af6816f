//! Inputs of runs. Each file is opened, hashed and checked once, even if many runs share it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::report::{InputFile, Resolved};
use super::{Observer, RunEvent};
use crate::config::{Config, MemorySource, Mode, RecallFiles, with_flag};
use crate::engine::{Memory, Work, budget};
use crate::error::{Error, Result};
use crate::io::labels::{Labels, MAX_LABELS};
use crate::io::memory_file::MemoryFile;
use crate::io::text::{TextFile, check_streams};
use crate::io::{NpySequences, Progress};
use crate::memory::parameters::Init;
use crate::memory::program::Choices;
use crate::memory::{Dimensions, Gates, Program, State};
use crate::metrics::COLUMNS;
use crate::real::{ElementType, Real};
use crate::recall::{Cue, Targets};
use crate::sequence::Sequences;

/// Path and checks of a file. The element type matters because a value can be too large for f32 and fine in f64.
type Key = (PathBuf, ElementType, bool);

/// Values by key, each created once.
type Cache<K, V> = Mutex<Vec<(K, Arc<V>)>>;

/// Files that runs have opened. Files are assumed not to change during its lifetime.
#[derive(Default)]
pub struct InputCache {
    sequences: Cache<Key, NpySequences>,
    memories: Cache<Key, MemoryFile>,
    /// Memories with past weights added, and the hash of these weights. The key is the memory and the weights' file.
    shifted: Cache<(String, Key), (Arc<MemoryFile>, String)>,
}

impl InputCache {
    fn sequences(&self, config: &Config, path: &Path, progress: Progress) -> Result<Arc<NpySequences>> {
        shared(&self.sequences, key(config, path), || {
            NpySequences::open(path, config.dtype, config.allow_nonfinite, progress)
        })
    }

    fn memory(&self, config: &Config, path: &Path, progress: Progress) -> Result<Arc<MemoryFile>> {
        shared(&self.memories, key(config, path), || {
            MemoryFile::open(path, config.dtype, config.allow_nonfinite, progress)
        })
    }

    /// Returns `memory` with the past weights at `path` added.
    fn shifted(
        &self,
        config: &Config,
        (memory, program): (&ResolvedMemory, &Program),
        path: &Path,
        progress: Progress,
    ) -> Result<Arc<(Arc<MemoryFile>, String)>> {
        let name = format!("{:?} {:?} {program:?}", config.memory, memory.dimensions());
        shared(&self.shifted, (name, key(config, path)), || {
            let mut file = MemoryFile::clone(&memory.get(program));
            let sha256 = file.add_past(path, config.dtype, config.allow_nonfinite, progress)?;
            Ok((Arc::new(file), sha256))
        })
    }
}

fn key(config: &Config, path: &Path) -> Key {
    (path.to_path_buf(), config.dtype, config.allow_nonfinite)
}

fn shared<K: PartialEq, V>(all: &Cache<K, V>, key: K, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
    let mut known = all.lock().expect("no thread panics while it holds the lock");
    if let Some((_, value)) = known.iter().find(|(of, _)| *of == key) {
        return Ok(Arc::clone(value));
    }
    let value = Arc::new(make()?);
    known.push((key, Arc::clone(&value)));
    Ok(value)
}

/// The inputs of one run, checked against its configuration and each other.
pub struct ResolvedInputs {
    pub(crate) data: Arc<NpySequences>,
    pub(crate) store_seq: Option<Arc<NpySequences>>,
    memory: ResolvedMemory,
    pub(super) labels: Option<Labels>,
    /// Files that say what should be read.
    pub(crate) targets: Option<Targets>,
    /// Files that were read.
    pub files: Vec<InputFile>,
    pub(crate) program: Program,
    pub(crate) gates: Gates,
}

/// Memory of a run. A random one is created only when needed, because a sweep has many.
enum ResolvedMemory {
    File(Arc<MemoryFile>),
    Random(Dimensions, Init, u64),
}

impl ResolvedMemory {
    fn get(&self, program: &Program) -> Arc<MemoryFile> {
        match self {
            Self::File(file) => Arc::clone(file),
            &Self::Random(dimensions, init, seed) => {
                Arc::new(MemoryFile::random(dimensions, program, init, seed))
            }
        }
    }

    fn dimensions(&self) -> Dimensions {
        match self {
            Self::File(file) => file.dimensions(),
            Self::Random(dimensions, ..) => *dimensions,
        }
    }
}

impl ResolvedInputs {
    /// Opens the inputs named by `config`, or finds them in `cache`. `narrow` allows a memory's f64 state in an f32 run.
    pub fn open(config: &Config, narrow: bool, cache: &InputCache, observe: Observer) -> Result<Self> {
        let mut progress = |bytes: u64| observe(RunEvent::Loaded(bytes));
        let mut files = Vec::new();
        let named = [&config.store_seq, &config.past, &config.labels, &config.file];
        let memory = match &config.memory {
            MemorySource::File { path, .. } => Some(path),
            MemorySource::Random { .. } => None,
        };
        let compared = config.recall.iter().flat_map(|recall| recall.paths().map(|(_, path)| path));
        let named = named.into_iter().flatten().chain(memory).chain([&config.data]).chain(compared);
        check_streams(named.map(PathBuf::as_path))?;
        let label_file = config.labels.as_deref().map(|path| TextFile::read(path, MAX_LABELS)).transpose()?;
        let labels = label_file.as_ref().map(Labels::parse).transpose()?;
        let mut open = |role: &'static str, path: &Path| {
            let sequences = cache.sequences(config, path, &mut progress)?;
            files.push(InputFile {
                role,
                path: path.to_path_buf(),
                shape: Some(sequences.file_shape().to_vec()),
                dtype: Some(sequences.dtype().name()),
                sha256: sequences.sha256().to_owned(),
            });
            Ok::<_, Error>(sequences)
        };
        let data = open("data", &config.data)?;
        let store_seq = config.store_seq.as_deref().map(|path| open("store_seq", path)).transpose()?;
        let mut opened = Vec::new();
        for (role, path) in config.recall.iter().flat_map(RecallFiles::paths) {
            opened.push((role, open(role, path)?));
        }
        let targets = config.recall.as_ref().map(|recall| {
            let of =
                |role: &str| opened.iter().find(|(name, _)| *name == role).map(|(_, file)| Arc::clone(file));
            Targets {
                target: of("target").expect("recall has targets"),
                candidates: of("candidates"),
                old_target: of("old_target"),
                top_k: recall.top_k,
            }
        });
        targets.as_ref().map_or(Ok(()), |targets| targets.check(data.dims()))?;

        let mut other = |role: &'static str, path: &Path, sha256: String| {
            files.push(InputFile { role, path: path.to_path_buf(), shape: None, dtype: None, sha256 });
        };
        let (mut memory, program) = match (&config.memory, config.memory.random(data.dims().dim)?) {
            (_, Some((dimensions, init, seed))) => {
                let program = config.program(None)?;
                dimensions.check(&program).map_err(with_flag)?;
                dimensions.check_random(&program)?;
                (ResolvedMemory::Random(dimensions, init, seed), program)
            }
            (MemorySource::File { path, .. }, None) => {
                let file = cache.memory(config, path, &mut progress)?;
                config.memory.check(&file.dimensions())?;
                let program = config.program(Some(&file))?;
                file.dimensions().check(&program).map_err(|error| match error {
                    Error::Setting { setting, expected, got } => {
                        Error::file(path, format!("{setting} of {expected}"), got)
                    }
                    error => error,
                })?;
                other("memory", path, file.sha256().unwrap_or_default().to_owned());
                (ResolvedMemory::File(file), program)
            }
            (MemorySource::Random { .. }, None) => unreachable!("a random memory has sizes"),
        };
        if let Some(path) = &config.past {
            // The state of such a memory holds whole weights, which past weights would not reach.
            let whole = program.rule.holds_weights() || program.schedule.refresh.is_some();
            if let ResolvedMemory::File(file) = &memory
                && whole
                && file.state_type().is_some()
            {
                let reason = format!(
                    "the state in {} holds whole weights; add past weights before anything is stored",
                    file.path().display()
                );
                return Err(Error::rejected("--past", reason));
            }
            let shifted = cache.shifted(config, (&memory, &program), path, &mut progress)?;
            other("past", path, shifted.1.clone());
            memory = ResolvedMemory::File(Arc::clone(&shifted.0));
        }
        if let Some(file) = &label_file {
            other("labels", file.path(), file.sha256());
        }
        if let Some(path) = &config.file {
            other("config", path, config.file_sha256.clone());
        }
        let this = Self::checked(config, narrow, program, (data, store_seq, memory))?;
        Ok(Self { labels, targets, files, ..this })
    }

    fn checked(
        config: &Config,
        narrow: bool,
        program: Program,
        (data, store_seq, memory): (Arc<NpySequences>, Option<Arc<NpySequences>>, ResolvedMemory),
    ) -> Result<Self> {
        let dim = memory.dimensions().dim;
        for sequences in std::iter::once(&data).chain(&store_seq) {
            let got = sequences.dims().dim;
            if got != dim {
                let expected = format!("tokens of dim {dim}, as in the memory");
                return Err(Error::file(sequences.path(), expected, format!("dim {got}")));
            }
        }
        let (saved, state_type) = match &memory {
            ResolvedMemory::File(file) => (file.saved(), file.state_type()),
            ResolvedMemory::Random(..) => (None, None),
        };
        let gates = config.gates(saved.map(|saved| saved.gates).unwrap_or_default())?;
        if state_type == Some(ElementType::F64) && config.dtype == ElementType::F32 && !narrow {
            let expected = "f64, the type of the memory's state (--force narrows it)";
            return Err(Error::setting("--dtype", expected, "f32"));
        }
        let sequences = data.dims().sequences;
        if let Some(store) = store_seq.as_ref().filter(|store| store.dims().sequences != sequences) {
            let expected = format!("as many sequences as {}, {sequences}", data.path().display());
            return Err(Error::file(store.path(), expected, store.dims().sequences.to_string()));
        }
        // A plain read uses one memory for all sequences, so its state is checked in `load`.
        Ok(Self { data, store_seq, memory, labels: None, targets: None, files: Vec::new(), program, gates })
    }

    /// Returns an error if a sequence file has changed since it was opened, because results then match neither version.
    /// All other files are read into memory at once.
    pub fn check_unchanged(&self, content: bool) -> Result<()> {
        let compared = self.targets.iter().flat_map(Targets::files);
        let files = std::iter::once(&self.data).chain(&self.store_seq).chain(compared);
        files.into_iter().try_for_each(|file| file.check_unchanged(content))
    }

    /// Returns the sequences that are stored, if the run stores any.
    pub(super) fn store(&self) -> &NpySequences {
        self.store_seq.as_ref().unwrap_or(&self.data)
    }

    /// Returns the work of a run whose queries are `queries`: one part, or storing and then reading.
    pub(super) fn work<'a, T: Real>(
        &'a self,
        config: &Config,
        queries: &'a dyn Sequences<T>,
    ) -> Vec<Work<'a, T>> {
        let store = Work::Store { sequences: self.store(), probe: config.probe };
        match config.mode {
            Mode::Store => vec![store],
            Mode::Read => vec![Work::Read(queries)],
            Mode::Online if config.read_after => vec![store, Work::Read(queries)],
            Mode::Online => vec![Work::Online { read: queries, store: self.store(), probe: config.probe }],
        }
    }

    /// Returns the SHA-256 of each input, by role.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        self.files.iter().map(|input| (input.role.to_owned(), input.sha256.clone())).collect()
    }

    /// Returns the number of cells of metrics.csv, if the run ends normally.
    pub fn metric_cells(&self) -> usize {
        let (shape, dimensions) = (self.store().dims(), self.memory.dimensions());
        let chunks = shape.tokens / self.program.chunk_size();
        let weights = self.program.model.graph(dimensions.dim_head).weights.len();
        // Each memory weight has three columns.
        shape.sequences * chunks * dimensions.heads * (COLUMNS.len() + 3 * weights)
    }

    /// Returns how many times each query is presented: once, or as often as fills a chunk where a model would mix it with
    /// other queries.
    pub(crate) fn repeats(&self, config: &Config) -> usize {
        let alone = config.cue == Cue::Single
            && self.program.model.graph(self.memory.dimensions().dim_head).mixes_tokens();
        if alone { self.program.chunk_size() } else { 1 }
    }

    /// Returns the configuration with all values filled in.
    pub fn resolved(&self, config: &Config) -> Resolved {
        let random = config.memory.random(self.data.dims().dim).ok().flatten();
        Resolved {
            mode: config.mode,
            dimensions: self.memory.dimensions(),
            chunk_size: self.program.chunk_size(),
            program: Choices::from(&self.program),
            init: random.map(|(_, init, _)| init),
            seed: random.map(|(_, _, seed)| seed),
            gates: self.gates,
            restart_momentum: config.restart_momentum,
            read_after: config.read_after,
            cue: config.cue,
            top_k: config.recall.as_ref().map(|recall| recall.top_k),
            probe: config.probe,
            probes: config.probes.names(),
            retention: config.retention,
            allow_nonfinite: config.allow_nonfinite,
            repeat: config.repeat,
            plots: config.plots,
        }
    }

    /// Returns the memory's parameters, and its state if it has one.
    pub(crate) fn memory_file(&self) -> Arc<MemoryFile> {
        self.memory.get(&self.program)
    }

    /// Returns the memory and its initial state.
    pub(super) fn load<T: Real>(&self, config: &Config) -> Result<Loaded<T>> {
        let file = self.memory.get(&self.program);
        let parameters = file.parameters(&self.program);
        let memory = Memory::<T>::new(parameters, self.program, self.gates, file.past().as_deref())?;
        let sequences = self.data.dims().sequences;
        let known = file.state::<T>();
        let of_state = known.as_ref().map_or(sequences, State::sequences);
        if of_state != sequences && !(config.mode == Mode::Read && of_state == 1) {
            let expected = format!("as many sequences as the memory's state, {of_state}");
            return Err(Error::file(self.data.path(), expected, sequences.to_string()));
        }
        let states = if config.mode == Mode::Read { 1 } else { sequences };
        if known.is_none() {
            budget::check(memory.state_bytes(states))?;
        }
        let mut state = known.unwrap_or_else(|| memory.initial_state(states));
        if config.restart_momentum {
            state.arrays.iter_mut().skip(1).for_each(|array| array.fill(T::zero()));
        }
        Ok(Loaded { file, memory, state })
    }
}

/// A memory in the element type of its run.
pub(super) struct Loaded<T: Real> {
    pub file: Arc<MemoryFile>,
    pub memory: Memory<T>,
    pub state: State<T>,
}
