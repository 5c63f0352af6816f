//! Warnings about a run: its settings, its inputs, and what storing did to the memory.

use super::RunStatistics;
use super::inputs::ResolvedInputs;
use crate::config::Mode;
use crate::engine::Outcome;
use crate::io::labels::OutOfRangeLabels;
use crate::memory::program::Reads;
use crate::memory::{Gate, Program, State};
use crate::real::Real;

/// Returns warnings about a run's settings and inputs.
pub(super) fn warnings_before(inputs: &ResolvedInputs) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Gate::Fixed(momentum) = inputs.gates.momentum
        && momentum > 1.0
    {
        warnings.push(format!(
            "momentum {momentum} is above 1: past surprise grows from chunk to chunk instead of fading"
        ));
    }
    let tokens = inputs.store().dims().tokens;
    if let Some(OutOfRangeLabels { positions, last }) =
        inputs.labels.as_ref().and_then(|labels| labels.beyond(tokens as u64))
    {
        warnings.push(format!(
            "labels of {positions} positions, up to {last}, are beyond the {tokens} tokens of the data"
        ));
    }
    warnings
}

/// Returns a warning if storing made the memory much worse, at some chunk or after the last one.
pub(super) fn warning_of_instability(statistics: &RunStatistics, ratio: f64) -> Option<String> {
    let worse = format!("more than {ratio} times the loss at the weights of the gradients");
    let advice = "a smaller learning rate or momentum, or a larger decay, may help";
    if let Some(chunk) = statistics.first_unstable_chunk() {
        return Some(format!(
            "storing made the memory worse: loss_before of chunk {chunk} is {worse}; {advice}"
        ));
    }
    let mean =
        |name: &str| statistics.last().columns().find(|(column, _)| *column == name).map(|(_, of)| of.mean);
    let (after, loss) = mean("loss_after").zip(mean("loss"))?;
    let unstable = after.is_nan() || (loss >= 0.0 && after > ratio * loss);
    unstable
        .then(|| format!("storing made the memory worse: loss_after of the last chunk is {worse}; {advice}"))
}

pub(super) fn warnings_after<T: Real>(
    outcome: &Outcome,
    program: &Program,
    state: &State<T>,
    mode: Mode,
) -> Vec<String> {
    let c = program.chunk_size();
    let stored = state.stored.tokens;
    let mut warnings = Vec::new();
    if let Some(chunk) = outcome.read_past_store.filter(|_| stored >= c) {
        let read = state.read.tokens - program.read_offset();
        warnings.push(format!(
            "{stored} tokens stored and {read} read so far: from chunk {chunk} on, reads used the last weights"
        ));
    }
    if outcome.rows == 0 {
        let kept = stored % c;
        warnings.push(match mode {
            _ if stored >= c => format!("no chunk completed: {kept} of the {c} tokens of a chunk"),
            Mode::Online => {
                let reads = match program.schedule.reads {
                    Reads::Behind | Reads::CompleteOrZeros => "all reads are zeros",
                    Reads::Complete => "reads used the initial weights",
                };
                format!("nothing stored yet, {reads}: {kept} of the {c} tokens of a chunk")
            }
            _ => format!("nothing stored yet: {kept} of the {c} tokens of a chunk"),
        });
    }
    warnings
}
