//! A rule that stops a run: the first chunk of a sequence at which a condition holds is its last. Other sequences continue, so
//! that results do not depend on which sequences the engine runs side by side. The run ends once all have stopped.

use std::collections::BTreeMap;

use crate::condition::{Condition, Value};
use crate::metrics::{COLUMNS, ChunkMetrics, Retained, Spectrum};

/// A condition, and the sequences at which it has held.
pub(super) struct StopRule<'a> {
    condition: &'a Condition,
    sequences: usize,
    /// Last chunk of each sequence that has stopped.
    last: BTreeMap<usize, usize>,
    /// Rows of each sequence that is not done.
    pending: BTreeMap<usize, usize>,
    /// Rows of the sequences that are done.
    done: usize,
    next: usize,
}

/// Returns the names that a condition may have: the columns of metrics.csv except `sequence` and `head`. A quantity is the
/// mean over the heads of a chunk.
pub fn stop_names() -> impl Iterator<Item = &'static str> {
    COLUMNS.into_iter().filter(|name| !["sequence", "head"].contains(name))
}

impl<'a> StopRule<'a> {
    pub fn new(condition: &'a Condition, sequences: usize) -> Self {
        let (last, pending) = (BTreeMap::new(), BTreeMap::new());
        Self { condition, sequences, last, pending, done: 0, next: 0 }
    }

    /// Returns the rows up to the chunk at which their sequence stops.
    pub fn rows<'r>(&mut self, rows: &'r [ChunkMetrics]) -> &'r [ChunkMetrics] {
        let Some(first) = rows.first() else { return rows };
        if self.last.contains_key(&first.sequence) {
            return &[];
        }
        let mut kept = 0;
        for chunk in rows.chunk_by(|a, b| a.chunk == b.chunk) {
            kept += chunk.len();
            if self.condition.holds(&|name| value(chunk, name)) {
                self.last.insert(first.sequence, chunk[0].chunk);
                break;
            }
        }
        *self.pending.entry(first.sequence).or_default() += kept;
        &rows[..kept]
    }

    /// Returns the rows of the moments before their sequence stopped. The moments ascend.
    pub fn retained<'r>(&self, rows: &'r [Retained]) -> &'r [Retained] {
        let kept = |row: &Retained| self.last.get(&row.sequence).is_none_or(|last| row.after < *last);
        &rows[..rows.iter().take_while(|row| kept(row)).count()]
    }

    /// Returns the spectra of the chunks before their sequence stopped. The chunks ascend.
    pub fn spectra<'r>(&self, spectra: &'r [Spectrum]) -> &'r [Spectrum] {
        let kept = |of: &Spectrum| self.last.get(&of.sequence).is_none_or(|last| of.chunk < *last);
        &spectra[..spectra.iter().take_while(|of| kept(of)).count()]
    }

    pub fn sequence_done(&mut self, sequence: usize) {
        self.done += self.pending.remove(&sequence).unwrap_or_default();
        self.next = sequence + 1;
    }

    /// Returns the sequences that are not done yet.
    pub fn left(&self) -> std::ops::Range<usize> {
        self.next..self.sequences
    }

    /// Returns the number of rows of the sequences that are done.
    pub fn row_count(&self) -> usize {
        self.done
    }

    /// Returns whether all sequences have stopped.
    pub fn is_everywhere(&self) -> bool {
        self.last.len() == self.sequences
    }

    /// Describes where the first sequence stopped; `None` if none has.
    pub fn place(&self) -> Option<String> {
        let (sequence, chunk) = self.last.first_key_value()?;
        Some(format!("sequence {sequence}, chunk {chunk}: {}", self.condition))
    }
}

fn value(heads: &[ChunkMetrics], name: &str) -> Option<Value<'static>> {
    let first = heads.first()?;
    let count = match name {
        "chunk" => Some(first.chunk),
        "start" => Some(first.start),
        "end" => Some(first.end),
        _ => None,
    };
    if let Some(count) = count {
        return Some(Value::Number(count as f64));
    }
    let of_head = |row: &ChunkMetrics| row.quantities().into_iter().find(|(of, _)| *of == name)?.1;
    let sum: f64 = heads.iter().map(of_head).sum::<Option<f64>>()?;
    Some(Value::Number(sum / heads.len() as f64))
}
