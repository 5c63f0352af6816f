//! An experiment file and the settings on the command line that override it. Settings, lists and explicit rows become the
//! ordered rows of the grid.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

use super::row::{GridRow, Setting, check_key, known};
use super::values::{self, MAX_VALUES};
use crate::condition::Condition;
use crate::error::{Error, Result};
use crate::io::text::TextFile;
use crate::run::stop_names;

/// Command that each row runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `nmem store`
    Store,
    /// `nmem retrieve --online`
    RetrieveOnline,
    /// `nmem train`
    Train,
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "store" => Some(Self::Store),
            "retrieve-online" => Some(Self::RetrieveOnline),
            "train" => Some(Self::Train),
            _ => None,
        }
    }
}

/// An experiment before its grid is expanded into rows.
#[derive(Clone, Debug, Default)]
pub struct Experiment {
    kind: Option<Kind>,
    fixed: Vec<Setting>,
    axes: Vec<Axis>,
    rows: Vec<Vec<Setting>>,
    /// Axes from the command line that apply to the explicit rows.
    row_axes: Vec<Axis>,
    /// Whether the axes form rows. False if there are only explicit rows.
    product: bool,
    /// Axes that apply to the rows at which a condition holds.
    conditional: Vec<(Condition, Vec<Axis>)>,
    /// Conditions of rows that are omitted.
    exclude: Vec<Condition>,
    stop_when: Option<Condition>,
}

/// Columns of equal length that advance together: one of `[grid]`, or all of `[zip]`.
#[derive(Clone, Debug)]
struct Axis {
    zip: bool,
    columns: Vec<Vec<Setting>>,
}

impl Axis {
    fn len(&self) -> usize {
        self.columns[0].len()
    }

    fn column(&mut self, key: &str) -> Option<&mut Vec<Setting>> {
        self.columns.iter_mut().find(|column| column[0].key == key)
    }
}

/// Maximum number of rows of a grid. With a dozen settings each they need half a gigabyte until their runs are done.
const MAX_ROWS: usize = 1 << 16;
/// Maximum estimated size of all rows of a grid in bytes.
const MAX_GRID_BYTES: usize = 768 << 20;
/// Bytes of a row without its settings (measured).
const ROW_BYTES: usize = 3000;
/// Bytes of a setting without its text (measured).
const SETTING_BYTES: usize = 700;
/// Number of copies of a setting's text: as written and as resolved, in the plan and in its file.
const TEXT_COPIES: usize = 6;

/// Text of an experiment file, for parsing values and locating errors.
struct ExperimentText<'a> {
    path: &'a Path,
    /// Directory that relative paths start from.
    directory: &'a Path,
    text: &'a str,
}

impl ExperimentText<'_> {
    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn error(&self, at: usize, expected: impl Into<String>, got: &str) -> Error {
        Error::file(self.path, expected, format!("{got} in line {}", self.line(at)))
    }

    fn rejected(&self, at: usize, key: &str, reason: &str) -> Error {
        Error::rejected(self.path.display().to_string(), format!("{key}: {reason} in line {}", self.line(at)))
    }

    fn condition(&self, key: &str, value: &Spanned<DeValue>, names: &[&str]) -> Result<Condition> {
        let at = value.span().start;
        let Some(text) = value.get_ref().as_str() else {
            return Err(self.error(at, format!("a text for `{key}`, such as \"seed < 3\""), "another type"));
        };
        Condition::parse(text, names).map_err(|reason| self.rejected(at, key, &reason))
    }

    fn setting(&self, key: &str, value: &Spanned<DeValue>) -> Result<Setting> {
        let at = value.span().start;
        check_key(key).map_err(|invalid| self.error(at, invalid.expected, &invalid.got))?;
        let written = plain(value.get_ref()).ok_or_else(|| match value.get_ref() {
            DeValue::Integer(_) => {
                self.error(at, format!("an integer from −2^63 to 2^64 − 1 for `{key}`"), "one outside")
            }
            _ => self.error(at, format!("a number, string or boolean for `{key}`"), "another type"),
        })?;
        Setting::new(key, written, self.directory)
            .map_err(|invalid| self.error(at, invalid.expected, &invalid.got))
    }

    /// Parses the values of one key of `[grid]` or `[zip]`.
    fn column(&self, key: &str, value: &Spanned<DeValue>) -> Result<Vec<Setting>> {
        let at = value.span().start;
        check_key(key).map_err(|invalid| self.error(at, invalid.expected, &invalid.got))?;
        let column: Vec<Setting> = match value.get_ref() {
            DeValue::Array(items) if items.len() > MAX_VALUES => {
                let expected = format!("at most {MAX_VALUES} values for `{key}`");
                return Err(self.error(at, expected, &items.len().to_string()));
            }
            DeValue::Array(items) => {
                items.iter().map(|item| self.setting(key, item)).collect::<Result<_>>()?
            }
            DeValue::String(text) if let Some(range) = values::range(text) => {
                let range = range.map_err(|got| self.error(at, format!("values for `{key}`"), &got))?;
                let setting = |value| Setting::new(key, value, Path::new(""));
                let column: Result<_, _> = range.into_iter().map(setting).collect();
                column.map_err(|invalid| self.error(at, invalid.expected, &invalid.got))?
            }
            _ => vec![self.setting(key, value)?],
        };
        if column.is_empty() {
            return Err(self.error(at, format!("at least one value for `{key}`"), "none"));
        }
        Ok(column)
    }

    fn table<'t, 'i>(&self, name: &str, value: &'t Spanned<DeValue<'i>>) -> Result<Keys<'t, 'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(in_order(table)),
            _ => Err(self.error(value.span().start, format!("a table, [{name}]"), &format!("`{name}`"))),
        }
    }
}

type Keys<'t, 'i> = Vec<(usize, &'t str, &'t Spanned<DeValue<'i>>)>;

/// Returns the keys and values of a table in the order of the file, with their places.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Keys<'t, 'i> {
    let mut keys: Vec<_> =
        table.iter().map(|(key, value)| (key.span().start, &**key.get_ref(), value)).collect();
    keys.sort_by_key(|(at, ..)| *at);
    keys
}

/// Converts a string, a boolean or a number; `None` for a list, a table or a date.
fn plain(value: &DeValue) -> Option<Value> {
    match value {
        DeValue::String(text) => Some(Value::String(text.to_string())),
        DeValue::Boolean(truth) => Some(Value::Boolean(*truth)),
        // TOML's integers end at 2^63 − 1, but a seed may be larger.
        DeValue::Integer(number) => {
            let small = i64::from_str_radix(number.as_str(), number.radix()).map(Value::Integer);
            let large = || u64::from_str_radix(number.as_str(), number.radix());
            small.or_else(|_| large().map(|number| Value::String(number.to_string()))).ok()
        }
        DeValue::Float(number) => number.as_str().parse().ok().map(Value::Float),
        _ => None,
    }
}

impl Experiment {
    /// Creates an experiment without a file. It has one row until settings are added.
    pub fn empty() -> Self {
        Self { product: true, ..Self::default() }
    }

    /// Parses an experiment file. Relative paths in it start from [`TextFile::directory`].
    pub fn read(file: &TextFile) -> Result<Self> {
        let (path, text) = (file.path(), file.text()?);
        let source = ExperimentText { path, directory: file.directory(), text };
        let document = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            source.error(
                at,
                "an experiment in TOML",
                &format!("a syntax error ({})", error.message().replace('\n', ", ")),
            )
        })?;
        let mut this = Self::default();
        for (at, name, value) in in_order(document.get_ref()) {
            match name {
                "run" if value.get_ref().is_array() => this.read_rows(&source, value)?,
                "run" => {
                    let kind = value.get_ref().as_str().and_then(Kind::parse);
                    let expected = "run = \"store\", \"retrieve-online\" or \"train\", or tables [[run]]";
                    this.kind =
                        Some(kind.ok_or_else(|| source.error(at, expected, "another value of `run`"))?);
                }
                "fixed" => {
                    for (_, key, value) in source.table(name, value)? {
                        this.fixed.push(source.setting(key, value)?);
                    }
                }
                "grid" => {
                    for (_, key, value) in source.table(name, value)? {
                        let columns = vec![source.column(key, value)?];
                        this.axes.push(Axis { zip: false, columns });
                    }
                }
                "zip" => this.read_zip(&source, value)?,
                "when" => this.read_conditional(&source, value)?,
                "exclude" => {
                    let items = value
                        .get_ref()
                        .as_array()
                        .map_or_else(|| vec![value], |items| items.iter().collect());
                    for item in items {
                        this.exclude.push(source.condition(name, item, &setting_names())?);
                    }
                }
                "stop_when" => {
                    this.stop_when =
                        Some(source.condition(name, value, &stop_names().collect::<Vec<_>>())?);
                }
                // A setting before the first table counts as fixed.
                key => this.fixed.push(source.setting(key, value)?),
            }
        }
        let mut seen = HashSet::new();
        let varied = this.axes.iter().flat_map(|axis| &axis.columns).map(|column| &column[0].key);
        for key in this.fixed.iter().map(|setting| &setting.key).chain(varied) {
            if !seen.insert(key) {
                let reason = format!("`{key}` is set twice; set it once in [fixed], [grid] or [zip]");
                return Err(Error::rejected(path.display().to_string(), reason));
            }
        }
        this.product = !this.axes.is_empty() || this.rows.is_empty();
        Ok(this)
    }

    fn read_zip(&mut self, source: &ExperimentText, value: &Spanned<DeValue>) -> Result<()> {
        let mut axis = Axis { zip: true, columns: Vec::new() };
        for (at, key, value) in source.table("zip", value)? {
            let column = source.column(key, value)?;
            if let Some(first) = axis.columns.first().filter(|first| first.len() != column.len()) {
                let expected =
                    format!("{} values for `{key}`, as for `{}` in [zip]", first.len(), first[0].key);
                return Err(source.error(at, expected, &column.len().to_string()));
            }
            axis.columns.push(column);
        }
        if !axis.columns.is_empty() {
            self.axes.push(axis);
        }
        Ok(())
    }

    fn read_conditional(&mut self, source: &ExperimentText, value: &Spanned<DeValue>) -> Result<()> {
        let names = setting_names();
        for (at, condition, table) in source.table("when", value)? {
            let condition =
                Condition::parse(condition, &names).map_err(|reason| source.rejected(at, "when", &reason))?;
            let mut axes = Vec::new();
            for (_, key, value) in source.table("when.\"…\"", table)? {
                axes.push(Axis { zip: false, columns: vec![source.column(key, value)?] });
            }
            self.conditional.push((condition, axes));
        }
        Ok(())
    }

    fn read_rows(&mut self, source: &ExperimentText, value: &Spanned<DeValue>) -> Result<()> {
        for row in value.get_ref().as_array().into_iter().flat_map(|rows| rows.iter()) {
            let keys = source.table("[run]", row)?;
            let row = keys.into_iter().map(|(_, key, value)| source.setting(key, value));
            self.rows.push(row.collect::<Result<_>>()?);
        }
        Ok(())
    }

    /// Overrides a setting of the file in every run, by `key=value` or `key=a,b,c` from the command line. Relative paths
    /// are relative to the working directory.
    pub fn override_setting(&mut self, argument: &str) -> Result<()> {
        let reject = |expected: &str, got: &str| Err(Error::setting(argument, expected, got));
        if is_broken_range(argument) {
            let reason = "the shell has taken a range apart; quote it: seed='range(0,5)'";
            return Err(Error::rejected(argument, reason));
        }
        let Some((key, list)) = argument.split_once('=') else {
            return reject("key=value or key=a,b,c", "no `=`");
        };
        let key = key.trim();
        if key == "stop_when" {
            let condition = Condition::parse(list, &stop_names().collect::<Vec<_>>());
            self.stop_when = Some(condition.map_err(|reason| Error::rejected(key, reason))?);
            return Ok(());
        }
        if key == "run" {
            let Some(kind) = Kind::parse(list) else {
                return reject("store, retrieve-online or train", list);
            };
            self.kind = Some(kind);
            return Ok(());
        }
        let values = values::list(list);
        let values = values.or_else(|got| reject("values between commas", &got).map(|()| Vec::new()))?;
        let setting = |value| Setting::new(key, value, &PathBuf::new());
        let column: Result<Vec<Setting>, _> = values.into_iter().map(setting).collect();
        let column = column.map_err(|invalid| Error::setting(argument, invalid.expected, invalid.got))?;

        self.fixed.retain(|setting| setting.key != key);
        for row in &mut self.rows {
            row.retain(|setting| setting.key != key);
        }
        self.row_axes.retain(|axis| axis.columns[0][0].key != key);
        for (_, axes) in &mut self.conditional {
            axes.retain(|axis| axis.columns[0][0].key != key);
        }
        if let [setting] = &column[..] {
            for axis in &mut self.axes {
                axis.columns.retain(|column| column[0].key != key);
            }
            self.axes.retain(|axis| !axis.columns.is_empty());
            self.fixed.push(setting.clone());
            return Ok(());
        }
        let axis = Axis { zip: false, columns: vec![column.clone()] };
        self.row_axes.push(axis.clone());
        match self.axes.iter_mut().find_map(|axis| Some((axis.zip, axis.len(), axis.column(key)?))) {
            Some((true, length, _)) if length != column.len() => {
                let expected = format!("one value, or {length} as for the other keys of [zip]");
                reject(&expected, &column.len().to_string())
            }
            Some((.., old)) => {
                *old = column;
                Ok(())
            }
            None => {
                self.axes.push(axis);
                Ok(())
            }
        }
    }

    /// Returns the first sequence, as written.
    pub fn data(&self) -> Option<&str> {
        let axes = self.axes.iter().flat_map(|axis| axis.columns.iter().map(|column| &column[0]));
        let mut settings = self.fixed.iter().chain(axes).chain(self.rows.iter().flatten());
        settings.find(|setting| setting.key == "data")?.written.as_str()
    }

    /// Returns the condition that stops a run.
    pub fn stop_when(&self) -> Option<&Condition> {
        self.stop_when.as_ref()
    }

    /// Returns the command to run, if the experiment names one.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// Returns the settings of every row, including `online` if the command needs it.
    fn fixed(&self) -> Vec<Setting> {
        let mut fixed = self.fixed.clone();
        if self.kind == Some(Kind::RetrieveOnline) && fixed.iter().all(|setting| setting.key != "online") {
            let (written, value) = (Value::Boolean(true), Value::Boolean(true));
            fixed.push(Setting { key: "online".to_owned(), written, value });
        }
        fixed
    }

    /// Returns all rows: the product of the axes, the first one slowest, then the explicit rows.
    pub fn expand(&self) -> Result<Vec<GridRow>> {
        let count =
            |axes: &[Axis]| axes.iter().try_fold(1_usize, |count, axis| count.checked_mul(axis.len()));
        let products = count(&self.axes).zip(count(&self.row_axes));
        let rows = products.and_then(|(all, each)| {
            (self.rows.len().checked_mul(each)?).checked_add(if self.product { all } else { 0 })
        });
        if rows.is_none_or(|rows| rows > MAX_ROWS) {
            let got = rows.map_or("too many to count".to_owned(), |rows| rows.to_string());
            return Err(Error::setting("the grid", format!("at most {MAX_ROWS} rows"), got));
        }
        let fixed = self.fixed();
        self.check_bytes(rows.unwrap_or_default(), &fixed)?;
        let mut rows = Vec::new();
        if self.product {
            multiply(&self.axes, &mut |varied| rows.push(GridRow::new(&[&fixed, varied])));
        }
        for explicit in &self.rows {
            multiply(&self.row_axes, &mut |varied| rows.push(GridRow::new(&[&fixed, explicit, varied])));
        }
        for (condition, axes) in &self.conditional {
            rows = self.extend(rows, condition, axes)?;
        }
        let excluded = |row: &GridRow| self.exclude.iter().any(|of| of.holds(&|name| row.value(name)));
        rows.retain(|row| !excluded(row));
        if rows.is_empty() {
            return Err(Error::rejected("exclude", "no row is left; narrow the conditions"));
        }
        Ok(rows)
    }

    /// Multiplies the rows at which a condition holds by axes.
    fn extend(&self, rows: Vec<GridRow>, condition: &Condition, axes: &[Axis]) -> Result<Vec<GridRow>> {
        let more = axes.iter().try_fold(1_usize, |count, axis| count.checked_mul(axis.len()));
        let holds: Vec<bool> = rows.iter().map(|row| condition.holds(&|name| row.value(name))).collect();
        let held = holds.iter().filter(|holds| **holds).count();
        let all = more.and_then(|more| held.checked_mul(more)?.checked_add(rows.len() - held));
        let Some(all) = all.filter(|all| *all <= MAX_ROWS) else {
            let got = all.map_or("too many to count".to_owned(), |rows| rows.to_string());
            return Err(Error::setting("the grid", format!("at most {MAX_ROWS} rows"), got));
        };
        let fixed = self.fixed();
        let settings: Vec<Setting> = fixed
            .into_iter()
            .chain(axes.iter().flat_map(|axis| axis.columns.iter().map(|column| column[0].clone())))
            .collect();
        self.check_bytes(all, &settings)?;
        let mut extended = Vec::new();
        for (row, holds) in rows.into_iter().zip(holds) {
            if holds {
                multiply(axes, &mut |varied| extended.push(row.with(varied)));
            } else {
                extended.push(row);
            }
        }
        Ok(extended)
    }

    /// Rejects rows that need more memory than most machines can spare.
    fn check_bytes(&self, rows: usize, fixed: &[Setting]) -> Result<()> {
        let bytes =
            |setting: &Setting| SETTING_BYTES + TEXT_COPIES * setting.written.as_str().map_or(0, str::len);
        let of_row = |row: &[Setting]| row.iter().map(bytes).sum::<usize>();
        let widest = |column: &Vec<Setting>| column.iter().map(bytes).max().unwrap_or_default();
        let of_axes = |axes: &[Axis]| axes.iter().flat_map(|axis| &axis.columns).map(widest).sum::<usize>();
        let explicit = self.rows.iter().map(|row| of_row(row)).max().unwrap_or_default();
        let varied = of_axes(&self.axes).max(explicit + of_axes(&self.row_axes));
        let all = (ROW_BYTES + of_row(fixed) + varied).saturating_mul(rows);
        if all <= MAX_GRID_BYTES {
            return Ok(());
        }
        let expected = format!("rows that need at most {MAX_GRID_BYTES} bytes of memory");
        Err(Error::setting("the grid", expected, format!("{rows} rows that need about {all}")))
    }

    /// Returns all keys, those that may vary first.
    pub fn keys(&self) -> Vec<String> {
        let conditional = self.conditional.iter().flat_map(|(_, axes)| axes);
        let axes = self.axes.iter().chain(conditional);
        let axes = axes.flat_map(|axis| axis.columns.iter().map(|column| &column[0]));
        let rows = self.rows.iter().flatten();
        let fixed = self.fixed();
        let mut seen = HashSet::new();
        let keys = axes.chain(rows).chain(&fixed).filter(|setting| seen.insert(&setting.key));
        keys.map(|setting| setting.key.clone()).collect()
    }
}

/// Returns the names that a condition on a row may have.
pub(super) fn setting_names() -> Vec<&'static str> {
    known().collect()
}

/// Returns whether an argument is a piece of a range with parentheses that no quotes kept together.
fn is_broken_range(argument: &str) -> bool {
    let Some((_, value)) = argument.split_once('=') else {
        return argument.starts_with('(') || argument.ends_with(')');
    };
    let is_cut =
        |name: &str| value == name || (value.starts_with(&format!("{name}(")) && !value.contains(')'));
    ["range", "linspace", "logspace"].into_iter().any(is_cut)
}

/// Calls `each` with every combination of the axes' values, the first axis slowest.
fn multiply(axes: &[Axis], each: &mut dyn FnMut(&[Setting])) {
    fn descend(all: &[Axis], chosen: &mut Vec<Setting>, each: &mut dyn FnMut(&[Setting])) {
        let Some((axis, rest)) = all.split_first() else { return each(chosen) };
        for i in 0..axis.len() {
            let before = chosen.len();
            chosen.extend(axis.columns.iter().map(|column| column[i].clone()));
            descend(rest, chosen, each);
            chosen.truncate(before);
        }
    }
    descend(axes, &mut Vec::new(), each);
}
