//! One row of a grid: settings named as in a configuration, each checked separately when it is read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use toml::{Table, Value};

use super::experiment::Kind;
use super::results::Results;
use super::values::text;
use crate::condition::{Condition, Value as Operand};
use crate::config::{Command, Config, Settings, TrainConfig, TrainSettings, nearest};
use crate::error::{Error, Result};

/// Parameters by name, as in results.csv.
pub type Parameters = BTreeMap<String, String>;

/// Maximum length of a value in bytes, the same as for a path on Linux.
const MAX_TEXT: usize = 4096;

/// Settings that are paths.
const PATHS: [&str; 12] = [
    "data",
    "memory",
    "past",
    "store_seq",
    "target",
    "candidates",
    "old_target",
    "blocks",
    "validation",
    "validation_store",
    "validation_target",
    "validation_layouts",
];

/// Settings that only apply to single runs, with the reason.
const REJECTED: [(&str, &str); 4] = [
    ("out", "a setting of single runs (--out names the sweep's directory)"),
    ("no_plots", "a setting of single runs (they draw no figures in a sweep)"),
    ("figure_format", "a setting of single runs (--figure-format sets the format of the sweep's figures)"),
    ("labels", "a setting of single runs (labels mark figures, which runs of a sweep do not draw)"),
];

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub key: String,
    /// Value as written, for results.csv.
    pub written: Value,
    /// Value with the directory that a relative path starts from.
    pub value: Value,
}

/// Reason why a setting is invalid.
#[derive(Debug)]
pub(super) struct InvalidSetting {
    pub expected: String,
    pub got: String,
}

/// Names of all settings, those of trainings included.
static KNOWN: LazyLock<Vec<String>> =
    LazyLock::new(|| Settings::names().into_iter().chain(OF_TRAINING.iter().cloned()).collect());
/// Names of the settings that only trainings have.
static OF_TRAINING: LazyLock<Vec<String>> = LazyLock::new(TrainSettings::names);

/// Parses a condition on the settings and notes of a run and, if `results` exist, on its results.
pub fn condition_on_row(text: &str, results: bool) -> Result<Condition, String> {
    let of_results = Results::NAMES.iter().copied().chain(["status", "version", "commit"]);
    let names: Vec<&str> = known().chain(of_results.filter(|_| results)).collect();
    Condition::parse(text, &names)
}

/// Returns the names of all settings.
pub(super) fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(String::as_str)
}

/// Returns whether a key is a note: a column of results.csv that runs ignore, such as the meaning of a file name.
fn is_note(key: &str) -> bool {
    key.starts_with('_')
}

/// Rejects a key unless it is a note or a setting that each run has for itself.
pub(super) fn check_key(key: &str) -> Result<(), InvalidSetting> {
    if is_note(key) {
        return Ok(());
    }
    if !KNOWN.iter().any(|known| known == key) {
        let others = ["run", "fixed", "grid", "zip", "when", "exclude", "stop_when"];
        let near = nearest(key, KNOWN.iter().map(String::as_str).chain(others));
        return Err(InvalidSetting { expected: "a known setting".into(), got: format!("`{key}`{near}") });
    }
    match REJECTED.iter().find(|(rejected, _)| *rejected == key) {
        None => Ok(()),
        Some((_, why)) => {
            Err(InvalidSetting { expected: "a setting of each run".into(), got: format!("`{key}`, {why}") })
        }
    }
}

impl Setting {
    pub fn new(key: &str, mut written: Value, directory: &Path) -> Result<Self, InvalidSetting> {
        check_key(key)?;
        if let Some(text) = written.as_str().filter(|text| text.len() > MAX_TEXT) {
            let expected = format!("a value of at most {MAX_TEXT} bytes for `{key}`");
            return Err(InvalidSetting { expected, got: format!("{} bytes", text.len()) });
        }
        if !is_note(key)
            && let Err(error) = check(key, &written)
        {
            // A number from a range may be meant as an integer, and digits may be meant as a float.
            let whole = written.as_float().filter(|x| x.fract() == 0.0 && x.abs() < 2_f64.powi(53));
            let whole = whole.map(|x| Value::Integer(x as i64));
            let other = whole.or_else(|| {
                let digits =
                    written.as_str().filter(|text| text.bytes().all(|byte| b"-0123456789".contains(&byte)));
                digits?.parse().ok().map(Value::Float)
            });
            let message = ["usize", "u64"].iter().fold(error, |text, of| text.replace(of, "a whole number"));
            written = other.filter(|other| check(key, other).is_ok()).ok_or_else(|| InvalidSetting {
                expected: format!("a value for `{key}`"),
                got: format!("{} ({message})", text(&written)),
            })?;
        }
        let mut value = written.clone();
        if let Some(path) = written.as_str().filter(|_| PATHS.contains(&key)) {
            if path == "-" {
                let expected = "a file (standard input can be read only once)".to_owned();
                return Err(InvalidSetting { expected, got: format!("`-` for `{key}`") });
            }
            value = Value::String(directory.join(path).to_string_lossy().into_owned());
        }
        Ok(Self { key: key.to_owned(), written, value })
    }
}

fn check(key: &str, value: &Value) -> Result<(), String> {
    let table = Table::from_iter([(key.to_owned(), value.clone())]);
    let checked = if OF_TRAINING.iter().any(|of| of == key) {
        table.try_into::<TrainSettings>().map(drop)
    } else {
        table.try_into::<Settings>().map(drop)
    };
    checked.map_err(|error| error.message().replace('\n', ", "))
}

/// Settings of one run.
#[derive(Clone, Debug, Default)]
pub struct GridRow {
    /// Parameters as written.
    pub parameters: Parameters,
    /// Settings with paths relative to the working directory.
    pub settings: Table,
}

impl GridRow {
    /// Merges layers of settings. Later layers override earlier ones.
    pub(super) fn new(layers: &[&[Setting]]) -> Self {
        let mut row = Self::default();
        for setting in layers.iter().copied().flatten() {
            row.parameters.insert(setting.key.clone(), text(&setting.written));
            if !is_note(&setting.key) {
                row.settings.insert(setting.key.clone(), setting.value.clone());
            }
        }
        row
    }

    /// Returns the value of a parameter, for a condition.
    pub(super) fn value(&self, name: &str) -> Option<Operand<'_>> {
        self.parameters.get(name).map(|text| Operand::Text(text))
    }

    /// Adds settings, which override earlier ones.
    pub(super) fn with(&self, settings: &[Setting]) -> Self {
        let mut row = self.clone();
        let more = Self::new(&[settings]);
        row.parameters.extend(more.parameters);
        row.settings.extend(more.settings);
        row
    }

    /// Returns all settings, with files as absolute paths.
    pub(super) fn resolved(&self) -> Parameters {
        let resolve = |(key, value): (&String, &Value)| {
            let text = text(value);
            let path = PATHS.contains(&&**key).then(|| std::fs::canonicalize(&text).ok()).flatten();
            (key.clone(), path.map_or(text, |path| path.to_string_lossy().into_owned()))
        };
        self.settings.iter().map(resolve).collect()
    }

    /// Returns the run's configuration, and that of a training, checked like those of a single run.
    pub fn config(&self, kind: Option<Kind>) -> Result<(Command, Config, Option<TrainConfig>)> {
        let is_of_training = |key: &String| OF_TRAINING.contains(key);
        let (of_training, others): (Table, Table) =
            self.settings.clone().into_iter().partition(|(key, _)| is_of_training(key));
        let mut settings: Settings = others.try_into().expect("each was checked when it was read");
        let online = settings.online == Some(true) || settings.store_seq.is_some();
        let command = match kind {
            None if !online => Command::Store,
            Some(Kind::Store) => Command::Store,
            Some(Kind::RetrieveOnline) | None => Command::Retrieve,
            Some(Kind::Train) => Command::Train,
        };
        if command == Command::Train {
            let of_training: TrainSettings =
                of_training.try_into().expect("each was checked when it was read");
            settings.check_flags(command, &settings)?;
            settings.no_plots = Some(true);
            let (config, train) = of_training.validate(settings)?;
            return Ok((command, config, Some(train)));
        }
        if let Some(key) = of_training.keys().next() {
            let reason = "a setting of trainings; write run = \"train\" at the top of the file, or omit it";
            return Err(Error::rejected(key, reason));
        }
        if command == Command::Retrieve {
            if settings.online == Some(false) {
                let expected = "a run that stores (store, or retrieve-online)";
                return Err(Error::setting("online", expected, "false"));
            }
            settings.online = Some(true);
        }
        settings.check_flags(command, &settings)?;
        settings.no_plots = Some(true);
        Ok((command, settings.validate(command)?, None))
    }

    /// Returns the command line of an equivalent single run into the directory `out`.
    pub fn command_line(&self, command: Command, out: &str) -> Vec<String> {
        let mut line = vec!["nmem".to_owned(), command.name().to_owned()];
        line.extend(self.settings.get("data").map(text));
        if command == Command::Retrieve {
            line.push("--online".to_owned());
        }
        for (key, value) in self.settings.iter().filter(|(key, _)| !["data", "online"].contains(&&***key)) {
            let flag = format!("--{}", key.replace('_', "-"));
            match value {
                Value::Boolean(true) => line.push(flag),
                Value::Boolean(false) => line.push(format!("{flag}=false")),
                value => line.extend([flag, text(value)]),
            }
        }
        line.extend(["--no-plots", "--out", out].map(str::to_owned));
        line
    }
}
