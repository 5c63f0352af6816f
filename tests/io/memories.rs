use ndarray::{Array3, array};
use nmem::io::memory_file::MemoryFile;
use nmem::io::{Dtype, METADATA_KEY, Tensor, TensorFile, write_safetensors};
use nmem::memory::parameters::Init;
use nmem::memory::state::StreamPosition;
use nmem::memory::{Dimensions, Gate, Gates, Program, State};
use nmem::real::{ElementType, Real};

use crate::{TestDirectory, go_on};

/// Two heads of 2 in 3 dimensions: no two sizes are alike but those that must be.
const DIMENSIONS: Dimensions = Dimensions { dim: 3, heads: 2, dim_head: 2, pre_norm: true, post_norm: false };
const CHUNK: usize = 4;

fn program() -> Program {
    Program::titans_0_0_17(CHUNK)
}

const GATES: Gates =
    Gates { learning_rate: Gate::Learned(-0.5), momentum: Gate::Fixed(0.9), decay: Gate::Fixed(0.25) };

fn open(path: &std::path::Path) -> nmem::Result<MemoryFile> {
    MemoryFile::open(path, ElementType::F64, false, &mut go_on)
}

/// A state of one sequence that has stored and read these numbers of tokens. All its numbers differ.
fn state<T: Real>(stored: usize, read: usize) -> State<T> {
    let mut next = 0.0;
    let mut numbers = |shape: (usize, usize, usize)| {
        Array3::from_shape_simple_fn(shape, || {
            next += 0.25;
            T::from_f64(next)
        })
    };
    let (update, momentum) = (numbers((1, 2, 16)), numbers((1, 2, 16)));
    let mut position = |tokens: usize| StreamPosition { tokens, left_over: numbers((1, tokens % CHUNK, 3)) };
    let (stored, read) = (position(stored), position(read));
    State { arrays: vec![update, momentum], gradient_point: None, stored, read }
}

/// Writes the file of past weights (2, 2) that are all `x`.
fn past(directory: &TestDirectory, name: &str, prefix: &str, x: f32) -> std::path::PathBuf {
    let weight = Tensor::from_array(&array![[x, x], [x, x]].view());
    let tensors = (0..4).map(|p| (format!("{prefix}.{p}"), weight.clone())).collect();
    write_safetensors(directory.path(name), &tensors, "{}").unwrap();
    // Past weights are not a memory: their metadata does not matter.
    directory.path(name)
}

fn saved<T: Real>(directory: &TestDirectory, state: &State<T>, with_past: bool) -> std::path::PathBuf {
    let mut memory = MemoryFile::random(DIMENSIONS, &program(), Init::Xavier, 1);
    if with_past {
        let path = past(directory, "past.safetensors", "weights", 0.5);
        memory.add_past(&path, ElementType::F64, false, &mut go_on).unwrap();
    }
    let path = directory.path("memory.safetensors");
    memory.save(&path, Some(state), &program(), GATES).unwrap();
    path
}

fn survives<T: Real>(stored: usize, read: usize, with_past: bool) {
    let directory = TestDirectory::new();
    let before = state::<T>(stored, read);
    let path = saved(&directory, &before, with_past);
    let file = open(&path).unwrap();
    let after = file.state::<T>().unwrap();
    assert_eq!(after, before, "{stored} and {read} tokens");
    assert_eq!(file.state_type(), Some(T::TYPE));
    assert_eq!(file.dimensions(), DIMENSIONS);
    let config = file.saved().unwrap();
    assert_eq!((config.program, config.gates, config.dimensions), (program(), GATES, DIMENSIONS));
    assert_eq!(config.nmem, env!("CARGO_PKG_VERSION"));
    let random = MemoryFile::random(DIMENSIONS, &program(), Init::Xavier, 1);
    assert_eq!(file.parameters::<T>(&program()).queries, random.parameters::<T>(&program()).queries);
    let weights = file.past::<T>();
    assert_eq!(weights.is_some(), with_past);
    for weight in weights.iter().flatten() {
        assert_eq!(weight, array![[0.5, 0.5], [0.5, 0.5]].mapv(T::from_f64));
    }
    // Saved again, the bytes are the same.
    let again = directory.path("again.safetensors");
    file.save(&again, Some(&after), &program(), GATES).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&path).unwrap());
    assert_eq!(open(&again).unwrap().sha256(), file.sha256());
    assert_eq!(file.sha256().unwrap().len(), 64);
}

/// Streams at chunk ends, within a chunk, and at different places.
#[test]
fn memories_survive_saving() {
    for (stored, read) in [(0, 0), (8, 8), (10, 8), (8, 7), (10, 7), (9, 13), (11, 3)] {
        for with_past in [false, true] {
            survives::<f32>(stored, read, with_past);
            survives::<f64>(stored, read, with_past);
        }
    }
}

/// Streams with the same left-over tokens keep them once.
#[test]
fn left_over_tokens_are_kept_once_if_both_streams_have_them() {
    let directory = TestDirectory::new();
    let mut before = state::<f32>(10, 10);
    before.read.left_over.clone_from(&before.stored.left_over);
    let path = saved(&directory, &before, false);
    let names = |path: &std::path::Path| {
        let file = TensorFile::open(path, &mut go_on).unwrap();
        let names = file.tensors().keys().filter_map(|name| name.strip_prefix("state."));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(names(&path).contains(&"left_over".to_owned()));
    assert!(!names(&path).contains(&"read_left_over".to_owned()));
    assert_eq!(open(&path).unwrap().state::<f32>().unwrap(), before);
    // −0 and 0 are equal as numbers, and different bits.
    before.stored.left_over[[0, 0, 0]] = 0.0;
    before.read.left_over[[0, 0, 0]] = -0.0;
    let path = saved(&directory, &before, false);
    assert!(names(&path).contains(&"read_left_over".to_owned()));
}

#[test]
fn parameters_alone_have_no_state() {
    let directory = TestDirectory::new();
    let path = saved(&directory, &state::<f32>(8, 8), false);
    let mut tensors = TensorFile::open(&path, &mut go_on).unwrap().tensors().clone();
    tensors.retain(|name, _| !name.starts_with("state."));
    let mut bytes = Vec::new();
    nmem::io::tensors::write_parameters(&mut bytes, &tensors, "attention").unwrap();
    let file = open(&directory.file("parameters.safetensors", &bytes)).unwrap();
    assert!(file.saved().is_none() && file.state::<f32>().is_none() && file.state_type().is_none());
    assert!(file.past::<f32>().is_none() && file.sha256().is_some());
    assert!(MemoryFile::random(DIMENSIONS, &program(), Init::Xavier, 1).sha256().is_none());
}

/// Each inconsistent memory and its whole message.
#[test]
fn inconsistent_states_are_rejected() {
    let directory = TestDirectory::new();
    let path = saved(&directory, &state::<f32>(10, 7), true);
    let file = TensorFile::open(&path, &mut go_on).unwrap();
    let json = file.metadata()[METADATA_KEY].clone();
    let zeros = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        Tensor::new(Dtype::F32, shape.to_vec(), vec![0; 4 * count]).unwrap()
    };
    let wide = Tensor::new(Dtype::F64, vec![1, 2, 2, 2], vec![0; 64]).unwrap();
    let half = Tensor::new(Dtype::F16, vec![1, 2, 2, 2], vec![0; 16]).unwrap();
    let whole = Tensor::new(Dtype::I32, vec![2, 2], vec![0; 16]).unwrap();
    let most = (1_u64 << 53) - 1;
    let counts = "state.tokens: expected two counts below 2^53, u64 [2], got";
    // A tensor that takes the place of another, or that is removed.
    let cases = [
        ("state.tokens", None, "state.tokens: expected a tensor of this name, got none".to_owned()),
        ("state.tokens", Some(Tensor::from_counters(&[10, 7, 0])), format!("{counts} u64 [3]")),
        ("state.tokens", Some(Tensor::from_counters(&[10, most + 1])), format!("{counts} u64 [2]")),
        ("state.tokens", Some(zeros(&[2])), format!("{counts} f32 [2]")),
        // 2^53 − 2 is 2 more than a multiple of 4, as 10 is.
        ("state.tokens", Some(Tensor::from_counters(&[most - 1, 7])), String::new()),
        (
            "state.tokens",
            Some(Tensor::from_counters(&[10, 9])),
            "state.read_left_over: expected f32 [1, 1, 3], got f32 [1, 3, 3]".to_owned(),
        ),
        (
            "state.tokens",
            Some(Tensor::from_counters(&[8, 7])),
            "state.left_over: expected only tensors of its saved state, got an additional tensor".to_owned(),
        ),
        (
            "state.update.0",
            Some(half),
            "state.update.0: expected f32 or f64 of at least one sequence, got f16 [1, 2, 2, 2]".to_owned(),
        ),
        (
            "state.update.0",
            Some(zeros(&[0, 2, 2, 2])),
            "state.update.0: expected f32 or f64 of at least one sequence, got f32 [0, 2, 2, 2]".to_owned(),
        ),
        (
            "state.momentum.3",
            Some(wide),
            "state.momentum.3: expected f32 [1, 2, 2, 2], got f64 [1, 2, 2, 2]".to_owned(),
        ),
        (
            "state.update.2",
            Some(zeros(&[1, 2, 2, 3])),
            "state.update.2: expected f32 [1, 2, 2, 2], got f32 [1, 2, 2, 3]".to_owned(),
        ),
        ("state.update.1", None, "state.update.1: expected a tensor of this name, got none".to_owned()),
        ("state.left_over", None, "state.left_over: expected a tensor of this name, got none".to_owned()),
        (
            "state.read_left_over",
            None,
            "state.read_left_over: expected a tensor of this name, got none".to_owned(),
        ),
        (
            "state.other",
            Some(zeros(&[1])),
            "state.other: expected only tensors of its saved state, got an additional tensor".to_owned(),
        ),
        ("state.past.2", None, "state.past.2: expected shape [2, 2], got []".to_owned()),
        ("state.past.1", Some(zeros(&[2, 3])), "state.past.1: expected shape [2, 2], got [2, 3]".to_owned()),
        (
            "state.past.0",
            Some(whole.clone()),
            "state.past.0: expected type f16, bf16, f32 or f64, got i32".to_owned(),
        ),
        (
            "memory_model.weights.0",
            Some(whole),
            "memory_model.weights.0: expected type f16, bf16, f32 or f64, got i32".to_owned(),
        ),
    ];
    for (name, tensor, expected) in cases {
        let mut tensors = file.tensors().clone();
        match tensor {
            Some(tensor) => tensors.insert(name.to_owned(), tensor),
            None => tensors.remove(name),
        };
        let path = directory.path("changed.safetensors");
        write_safetensors(&path, &tensors, &json).unwrap();
        let got = open(&path).map(drop).map_err(|error| directory.message(error));
        let expected =
            if expected.is_empty() { Ok(()) } else { Err(format!("changed.safetensors: {expected}")) };
        assert_eq!(got, expected);
    }
}

/// Each configuration that is wrong, and its whole message.
#[test]
fn inconsistent_configurations_are_rejected() {
    let directory = TestDirectory::new();
    let path = saved(&directory, &state::<f32>(8, 8), false);
    let file = TensorFile::open(&path, &mut go_on).unwrap();
    let json: serde_json::Value = serde_json::from_str(file.memory_json().unwrap()).unwrap();
    let read = |json: &str| {
        let path = directory.path("changed.safetensors");
        write_safetensors(&path, file.tensors(), json).unwrap();
        open(&path).map(drop).map_err(|error| directory.message(error))
    };
    assert_eq!(read(&json.to_string()), Ok(()));
    let format = "changed.safetensors: expected a memory's configuration of format 1 to 2, got";
    let version = env!("CARGO_PKG_VERSION");
    for (key, value, expected) in [
        ("format", "3", format!("{format} format 3, written by nmem \"{version}\"")),
        ("model", "\"other\"", format!("{format} unknown variant `other`")),
        ("model", "\"mlp\"", format!("{format} model mlp in format 1, written by nmem \"{version}\"")),
        ("chunk_size", "1", "changed.safetensors: chunk_size 1 is below 2".to_owned()),
        ("chunk_size", "16385", "changed.safetensors: chunk_size 16385 is above 16384".to_owned()),
        ("decay", "{\"pinned\": 1.5}", "changed.safetensors: decay 1.5 is above 1".to_owned()),
        ("momentum", "{\"pinned\": -1}", "changed.safetensors: momentum -1 is below 0".to_owned()),
        ("learning_rate", "{\"pinned\": -1}", "changed.safetensors: learning_rate -1 is below 0".to_owned()),
        ("heads", "1", "changed.safetensors: expected a configuration that fits its tensors".to_owned()),
        ("unknown", "1", format!("{format} unknown field `unknown`")),
    ] {
        let mut changed = json.clone();
        changed[key] = serde_json::from_str(value).unwrap();
        let got = read(&changed.to_string()).unwrap_err();
        assert!(got.starts_with(&expected), "{key}: {got}");
    }
    assert!(read("{").unwrap_err().starts_with(format));
    // Spaces are no error, up to the limit of 16 KiB.
    let text = json.to_string();
    let padded = |bytes: usize| format!("{text}{}", " ".repeat(bytes - text.len()));
    assert_eq!(read(&padded(16 << 10)), Ok(()));
    assert_eq!(read(&padded((16 << 10) + 1)), Err(format!("{format} 16385 bytes")));
}

#[test]
fn past_weights_of_either_name() {
    let directory = TestDirectory::new();
    for prefix in ["weights", "memory_model.weights"] {
        let mut memory = MemoryFile::random(DIMENSIONS, &program(), Init::Xavier, 1);
        let path = past(&directory, "past.safetensors", prefix, 2.0);
        let sha256 = memory.add_past(&path, ElementType::F32, false, &mut go_on).unwrap();
        assert_eq!(sha256, TensorFile::open(&path, &mut go_on).unwrap().sha256());
        let weights = memory.past::<f64>().unwrap();
        assert_eq!(weights, vec![array![[2.0, 2.0], [2.0, 2.0]]; 4]);
        let again = memory.add_past(&path, ElementType::F32, false, &mut go_on).unwrap_err();
        assert_eq!(
            directory.message(again),
            "--past: random memory already contains past weights; omit --past or use a memory without them"
        );
    }
}

#[test]
fn wrong_past_weights_are_rejected() {
    let directory = TestDirectory::new();
    let path = past(&directory, "past.safetensors", "weights", 1.0);
    let good = TensorFile::open(&path, &mut go_on).unwrap().tensors().clone();
    let numbers = "expected floating-point numbers of shape [2, 2], got";
    let float = |x: f32| Tensor::from_array(&array![[x, x], [x, x]].view());
    for (name, tensor, expected) in [
        ("weights.1", Some(Tensor::from_array(&array![[1.0_f32, 2.0]].view())), format!("weights.1: {numbers} [1, 2]")),
        (
            "weights.3",
            Some(Tensor::new(Dtype::I8, vec![2, 2], vec![0; 4]).unwrap()),
            format!("weights.3: {numbers} i8 [2, 2]"),
        ),
        ("weights.2", None, "weights.2: expected a tensor of this name, got none".to_owned()),
        (
            "weights.4",
            Some(float(1.0)),
            "weights.4: expected only weights.0 … weights.3, got an additional tensor".to_owned(),
        ),
        (
            "weights.0",
            Some(float(f32::INFINITY)),
            "expected finite numbers, got inf at tensor weights.0, element [0, 0] (--allow-nonfinite lets it through)"
                .to_owned(),
        ),
    ] {
        let mut tensors = good.clone();
        match tensor {
            Some(tensor) => tensors.insert(name.to_owned(), tensor),
            None => tensors.remove(name),
        };
        write_safetensors(&path, &tensors, "{}").unwrap();
        let mut memory = MemoryFile::random(DIMENSIONS, &program(), Init::Xavier, 1);
        let error = memory.add_past(&path, ElementType::F32, false, &mut go_on).unwrap_err();
        assert_eq!(directory.message(error), format!("past.safetensors: {expected}"));
        let allowed = memory.add_past(&path, ElementType::F32, true, &mut go_on);
        assert_eq!(allowed.is_ok(), name == "weights.0");
    }
    // A missing weight is named before an additional one.
    let mut tensors = good;
    let moved = tensors.remove("weights.2").unwrap();
    tensors.insert("weights.9".to_owned(), moved);
    write_safetensors(&path, &tensors, "{}").unwrap();
    let mut memory = MemoryFile::random(DIMENSIONS, &program(), Init::Xavier, 1);
    let error = memory.add_past(&path, ElementType::F32, false, &mut go_on).unwrap_err();
    assert_eq!(
        directory.message(error),
        "past.safetensors: weights.2: expected a tensor of this name, got none"
    );
}

/// The message about a directory names the memory in it, if there is one.
#[test]
fn directories_are_no_memories() {
    let directory = TestDirectory::new();
    std::fs::create_dir(directory.path("run")).unwrap();
    for got in ["a directory", "a directory (pass the memory.safetensors in it)"] {
        let message = directory.message(open(&directory.path("run")).err().unwrap());
        assert_eq!(message, format!("run: expected a .safetensors or .npz file, got {got}"));
        directory.file("run/memory.safetensors", b"");
    }
    let error = nmem::io::NpySequences::open(directory.path("run"), ElementType::F64, false, &mut go_on)
        .err()
        .unwrap();
    assert_eq!(directory.message(error), "run: expected a .npy file, got a directory");
}

/// Numbers that are not finite in the run's type.
#[test]
fn nonfinite_memories() {
    let directory = TestDirectory::new();
    let mut before = state::<f64>(8, 8);
    before.arrays[0][[0, 1, 5]] = 1e300;
    let path = saved(&directory, &before, false);
    assert!(open(&path).is_ok());
    let error = MemoryFile::open(&path, ElementType::F32, false, &mut go_on).unwrap_err();
    assert_eq!(
        directory.message(error),
        "memory.safetensors: expected numbers that f32 can hold, got 1e300 at tensor state.update.1, element \
         [0, 1, 0, 1] (--dtype f64 holds it)"
    );
    let file = MemoryFile::open(&path, ElementType::F32, true, &mut go_on).unwrap();
    assert!(file.state::<f32>().unwrap().update()[[0, 1, 5]].is_infinite());
}

/// Random memory weights follow their distributions, and other parameters do not depend on it.
#[test]
fn random_weights_of_either_kind() {
    let dimensions = Dimensions { dim: 4, heads: 1, dim_head: 16, ..DIMENSIONS };
    let parameters =
        |init, seed| MemoryFile::random(dimensions, &program(), init, seed).parameters::<f64>(&program());
    for seed in [0, 1] {
        // 1024 numbers each: their means have standard deviations of 0.03 and 0.008.
        for (init, variance, most) in [(Init::Randn, 1.0_f64, 6.0), (Init::Xavier, 6.0 / 32.0 / 3.0, 0.4331)]
        {
            let weights: Vec<f64> = parameters(init, seed).memory.into_iter().flatten().collect();
            assert_eq!(weights.len(), 1024);
            let mean = weights.iter().sum::<f64>() / 1024.0;
            let square = weights.iter().map(|x| x * x).sum::<f64>() / 1024.0;
            assert!(mean.abs() < 0.15 * variance.sqrt(), "{init:?}: mean {mean}");
            assert!((square / variance - 1.0).abs() < 0.2, "{init:?}: mean square {square}");
            assert!(weights.iter().all(|x| x.abs() < most), "{init:?}");
        }
    }
    assert_ne!(parameters(Init::Xavier, 0).memory, parameters(Init::Xavier, 1).memory);
    assert_eq!(parameters(Init::Xavier, 3).memory, parameters(Init::Xavier, 3).memory);
}
