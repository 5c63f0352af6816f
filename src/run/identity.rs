//! The identity of a run: its settings and the content of its inputs. The program's version is not part of it, so results
//! stay after an upgrade.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{ResolvedInputs, commit};
use crate::config::{Command, Config};
use crate::error::{Error, Result};
use crate::io::text::TextFile;
use crate::real::ElementType;
use crate::storage::{self, OutFile};

/// Maximum size of a run.json in bytes. The longest part is the command line, which systems limit to some megabytes.
const MAX_JSON: usize = 16 << 20;

/// Settings that change neither numbers nor files other than figures and timings.
const WITHOUT_EFFECT: [&str; 2] = ["plots", "repeat"];

/// Settings and input content of a run.
///
/// A setting that is absent (null) is omitted, so that an option added by a later version, absent by default, leaves the
/// identities of earlier runs as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct RunIdentity {
    command: Command,
    config: Map<String, Value>,
    dtype: ElementType,
    /// SHA-256 by role.
    inputs: BTreeMap<String, String>,
}

impl RunIdentity {
    /// Returns the identity of a run that is ready.
    pub fn new(command: Command, config: &Config, inputs: &ResolvedInputs) -> Self {
        Self {
            command,
            config: settings(&inputs.resolved(config)),
            dtype: config.dtype,
            inputs: inputs.hashes(),
        }
    }

    /// Adds settings and inputs that the run has beside those of its memory.
    #[must_use]
    pub fn with(mut self, config: &impl Serialize, inputs: BTreeMap<String, String>) -> Self {
        self.config.extend(settings(config));
        self.inputs.extend(inputs);
        self
    }

    /// Returns the subcommand.
    pub fn command(&self) -> Command {
        self.command
    }

    /// Returns the element type of the run.
    pub fn dtype(&self) -> ElementType {
        self.dtype
    }

    /// Returns the settings as they are hashed.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Returns the SHA-256 of each input, by role.
    pub fn inputs(&self) -> &BTreeMap<String, String> {
        &self.inputs
    }

    /// Compares with the content of a run.json. Returns the first difference. With `older`, settings that the file does not
    /// have did not exist when it was written, and have their default now.
    pub fn difference(&self, run: &Value, older: bool) -> Option<String> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if text(&run["command"]) != self.command.name() {
            return Some(format!("the command was {}", text(&run["command"])));
        }
        if text(&run["dtype"]) != self.dtype.to_string() {
            return Some(format!("dtype was {}", text(&run["dtype"])));
        }
        let none = Map::new();
        let before = run["config"].as_object().unwrap_or(&none);
        let names =
            before.keys().chain(self.config.keys()).filter(|name| !WITHOUT_EFFECT.contains(&&***name));
        for name in names {
            let now = self.config.get(name).unwrap_or(&Value::Null);
            match before.get(name) {
                None if older => {}
                before if before.unwrap_or(&Value::Null) != now => {
                    return Some(format!("{name} was {}", before.map_or("absent".to_owned(), text)));
                }
                _ => {}
            }
        }
        let empty = Vec::new();
        let inputs = run["inputs"].as_array().unwrap_or(&empty).iter();
        let before: BTreeMap<String, String> =
            inputs.map(|input| (text(&input["role"]), text(&input["sha256"]))).collect();
        changed_input(&before, &self.inputs)
    }
}

/// Reads a JSON file; `None` if it does not exist.
pub fn read_json(path: &Path) -> Result<Option<Value>> {
    if !storage::exists(path)? {
        return Ok(None);
    }
    let file = TextFile::read(path, MAX_JSON)?;
    serde_json::from_slice(file.bytes())
        .map(Some)
        .map_err(|error| Error::file(path, "JSON", error.to_string()))
}

/// Writes a new file of indented JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_string_pretty(value).expect("text and numbers can be serialized");
    json.push('\n');
    OutFile::write_new(path, json.as_bytes())
}

/// Returns which input has other content than before.
pub fn changed_input(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Option<String> {
    let role = before.keys().chain(now.keys()).find(|role| before.get(*role) != now.get(*role))?;
    Some(format!("the content of {role} has changed"))
}

fn settings(config: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(settings)) => settings.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => unreachable!("a struct of settings is a JSON object"),
    }
}

/// Formats bytes in hexadecimal, like `sha256sum`.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Version and source of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Build {
    /// Version; `None` in records of nmem 0.2 and earlier.
    #[serde(default)]
    pub version: Option<String>,
    /// Commit, with "-modified" if the tree was not clean; `None` outside a checkout.
    #[serde(default)]
    pub commit: Option<String>,
    /// First digits of the SHA-256 of the executable, which tell one edit from another. Absent in builds of a commit.
    #[serde(default)]
    pub executable: Option<String>,
}

/// Number of hexadecimal digits of an executable's hash that are recorded, as many as name a run.
const DIGITS: usize = 12;

impl Build {
    /// Returns the build of this program.
    pub fn current() -> Result<&'static Self> {
        static BUILD: std::sync::LazyLock<std::io::Result<Build>> = std::sync::LazyLock::new(|| {
            use sha2::{Digest, Sha256};
            let commit = commit().map(str::to_owned);
            let is_clean = commit.as_ref().is_some_and(|commit| !commit.ends_with("-modified"));
            let executable = if is_clean {
                None
            } else {
                let digest = Sha256::digest(std::env::current_exe().and_then(std::fs::read)?);
                Some(hexadecimal(&digest[..DIGITS / 2]))
            };
            Ok(Build { version: Some(env!("CARGO_PKG_VERSION").to_owned()), commit, executable })
        });
        BUILD.as_ref().map_err(|error| {
            Error::io("nmem", "read its own executable, whose hash is recorded with runs")(
                error.kind().into(),
            )
        })
    }
}

impl std::fmt::Display for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(version) = &self.version else { return f.write_str("an older nmem") };
        write!(f, "nmem {version}")?;
        match &self.commit {
            None => Ok(()),
            // As many digits as git prints.
            Some(commit) if commit.ends_with("-modified") => write!(f, " ({commit:.8}, modified)"),
            Some(commit) => write!(f, " ({commit:.8})"),
        }
    }
}
