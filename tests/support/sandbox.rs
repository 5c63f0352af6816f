//! The program from outside: it runs in a temporary directory, and its files are read back with the formats'
//! own libraries.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{read_npy, write_npy};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// Returns the path of a file in the repository.
pub fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The status and output of a command.
pub struct CommandOutput {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// A temporary working directory. A command is one line, split into words at spaces.
pub struct Sandbox {
    directory: TempDir,
    variables: Vec<(&'static str, OsString)>,
}

impl Sandbox {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    /// Creates it in a memory file system if there is one, so that thousands of synced files do not wait for the disk.
    pub fn in_memory() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { directory, variables: Vec::new() }
    }

    /// Sets a variable in the environment of its commands.
    pub fn set(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Creates it with copies of a golden case's files.
    pub fn with_golden(case: &str) -> Self {
        let sandbox = Self::new();
        for entry in std::fs::read_dir(shipped("tests/golden").join(case)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, sandbox.path(path.file_name().unwrap().to_str().unwrap())).unwrap();
        }
        sandbox
    }

    /// Creates it with copies of `data/passages.*`.
    pub fn with_passages() -> Self {
        let sandbox = Self::new();
        for name in ["passages.npy", "passages.safetensors", "passages_labels.csv"] {
            std::fs::copy(shipped("data").join(name), sandbox.path(name)).unwrap();
        }
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn command(&self, line: &str) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_nmem"));
        command
            .current_dir(self.directory.path())
            .args(line.split_whitespace())
            .timeout(Duration::from_mins(2));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn finish(mut command: assert_cmd::Command) -> CommandOutput {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        CommandOutput { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    pub fn run(&self, line: &str) -> CommandOutput {
        Self::finish(self.command(line))
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, line: &str) -> CommandOutput {
        let output = self.run(line);
        assert_eq!(output.code, Some(0), "nmem {line}\n{}", output.err);
        output
    }

    /// Runs a command that must be rejected: exit status 2, nothing on stdout, one line on stderr, no files
    /// left. Returns that line without the directory's path.
    pub fn rejected(&self, line: &str) -> String {
        let before = self.contents();
        let message = self.one_error(&self.run(line), 2, line);
        assert!(
            self.contents() == before,
            "nmem {line}: files in the directory: {:?}",
            self.contents().keys()
        );
        message
    }

    /// Returns the one line on stderr of a command that ended with `code`.
    pub fn one_error(&self, output: &CommandOutput, code: i32, line: &str) -> String {
        let CommandOutput { code: got, out, err } = output;
        assert_eq!((*got, &out[..]), (Some(code), ""), "nmem {line}\n{err}");
        let message = err.strip_prefix("error: ").and_then(|rest| rest.strip_suffix('\n'));
        let message =
            message.filter(|text| !text.contains('\n')).unwrap_or_else(|| panic!("nmem {line}: {err}"));
        self.without_own_path(message)
    }

    /// Removes this directory's path from text; the directory itself becomes HERE.
    pub fn without_own_path(&self, text: &str) -> String {
        let own = self.directory.path().canonicalize().unwrap();
        text.replace(&format!("{}/", own.display()), "").replace(&own.display().to_string(), "HERE")
    }

    /// Returns everything in the directory, hidden entries too: paths, and the bytes of files.
    pub fn contents(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut directories = vec![self.directory.path().to_path_buf()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.directory.path()).unwrap().to_str().unwrap().to_owned();
                let bytes = if path.is_dir() { None } else { Some(std::fs::read(&path).unwrap()) };
                if bytes.is_none() {
                    directories.push(path);
                }
                found.insert(name, bytes);
            }
        }
        found
    }

    /// Returns the names in one directory, hidden ones too, sorted.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries =
            std::fs::read_dir(self.path(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
        let names: BTreeSet<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.into_iter().collect()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).unwrap()
    }

    pub fn csv(&self, name: &str) -> Table {
        Table::read(&self.path(name))
    }

    pub fn f32s(&self, name: &str) -> ArrayD<f32> {
        read_npy(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn f64s(&self, name: &str) -> ArrayD<f64> {
        read_npy(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Reads an array of f32 or f64, depending on the file.
    pub fn floats(&self, name: &str) -> ArrayD<f64> {
        read_npy::<_, ArrayD<f32>>(self.path(name))
            .map_or_else(|_| self.f64s(name), |array| array.mapv(f64::from))
    }

    pub fn npy(&self, name: &str, array: &ArrayD<f32>) {
        write_npy(self.path(name), array).unwrap();
    }

    pub fn tensors(&self, name: &str) -> BTreeMap<String, Raw> {
        read_tensors(&self.path(name))
    }

    /// Returns the JSON in a memory's metadata.
    pub fn memory_config(&self, name: &str) -> Value {
        let bytes = self.bytes(name);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        serde_json::from_str(&header.metadata().as_ref().unwrap()["nmem"]).unwrap()
    }
}

/// The text of a CSV file, by column name.
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn read(path: &Path) -> Self {
        let mut reader =
            csv::Reader::from_path(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let texts = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
        Self {
            header: texts(reader.headers().unwrap()),
            rows: reader.records().map(|record| texts(&record.unwrap())).collect(),
        }
    }

    pub fn texts(&self, name: &str) -> Vec<&str> {
        let column = self.header.iter().position(|header| header == name);
        let column = column.unwrap_or_else(|| panic!("no column {name} in {:?}", self.header));
        self.rows.iter().map(|row| &row[column][..]).collect()
    }

    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.texts(name)
            .into_iter()
            .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}")))
            .collect()
    }

    /// Returns a column, in rows by chunk and head, as (sequences, heads, chunks).
    pub fn by_head(&self, name: &str, sequences: usize, heads: usize) -> ArrayD<f64> {
        let shape = IxDyn(&[sequences, self.rows.len() / (sequences * heads), heads]);
        let array = ArrayD::from_shape_vec(shape, self.numbers(name)).unwrap();
        array.permuted_axes(IxDyn(&[0, 2, 1])).as_standard_layout().into_owned()
    }
}

/// Columns of integers; the others are measured.
pub const COUNTS: [&str; 5] = ["sequence", "chunk", "head", "start", "end"];

/// A tensor in its file's form.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Raw {
    pub fn new(dtype: Dtype, array: &ArrayD<f64>) -> Self {
        let mut data = Vec::new();
        for &x in array {
            match dtype {
                Dtype::F16 => data.extend(f16::from_f64(x).to_le_bytes()),
                Dtype::BF16 => data.extend(bf16::from_f64(x).to_le_bytes()),
                Dtype::F32 => data.extend((x as f32).to_le_bytes()),
                Dtype::F64 => data.extend(x.to_le_bytes()),
                other => panic!("{other:?}"),
            }
        }
        Self { dtype, shape: array.shape().to_vec(), data }
    }

    pub fn floats(&self) -> ArrayD<f64> {
        let values = match self.dtype {
            Dtype::F16 => self.data.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f64()).collect(),
            Dtype::BF16 => self.data.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64()).collect(),
            Dtype::F32 => self.data.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
            Dtype::F64 => self.data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            other => panic!("{other:?}"),
        };
        ArrayD::from_shape_vec(&self.shape[..], values).unwrap()
    }
}

pub fn read_tensors(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let raw = |view: TensorView| Raw {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, raw(view))).collect()
}

pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let model = HashMap::from([("model".to_owned(), "attention".to_owned())]);
    let views = tensors
        .iter()
        .map(|(name, raw)| (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.data).unwrap()));
    safetensors::serialize_to_file(views, Some(model), path).unwrap();
}

/// Returns generated tokens: quarters between −2 and 2, exact in every type, without a pattern.
pub fn tokens(shape: &[usize], seed: u64) -> ArrayD<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    ArrayD::from_shape_simple_fn(shape, || {
        // This is xorshift64; any generator will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 17) as f32 / 4.0 - 2.0
    })
}
