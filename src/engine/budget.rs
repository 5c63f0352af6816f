//! Counts the memory that a run needs before any of it is allocated. A failed allocation would abort the whole
//! process, and with it the other runs of a sweep.

use std::sync::OnceLock;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::Memory;
use super::cpu::Scratch;
use super::gradient::Factors;
use super::plan::{Plan, Sizes};
use crate::error::{Error, Result};
use crate::memory::limits::OutOfRange;
use crate::packed::PanelRow;
use crate::real::Real;

/// Most bytes of a run where the system does not report its memory: 1 TiB, more than most servers have.
const MAX_UNREPORTED: u64 = 1 << 40;

/// Returns the installed memory in bytes, or a container's limit; `None` where the system reports neither.
pub fn installed_bytes() -> Option<u64> {
    static INSTALLED: OnceLock<Option<u64>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(memory).ok()?;
        let allowed = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
        Some(system.total_memory().min(allowed)).filter(|bytes| *bytes > 0)
    })
}

/// Rejects a run that does not fit in this machine.
pub fn check(bytes: u128) -> Result<()> {
    check_against(bytes, installed_bytes().unwrap_or(MAX_UNREPORTED))
}

fn check_against(bytes: u128, limit: u64) -> Result<()> {
    if bytes <= u128::from(limit) {
        return Ok(());
    }
    let gigabytes = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
    let problem = format!(
        "is more than the {} of this machine; use smaller chunks, fewer sequences, heads or threads",
        gigabytes(limit as f64)
    );
    Err(Error::limit("memory for the run:")(OutOfRange::new(gigabytes(bytes as f64), problem)))
}

impl<T: Real> Memory<T> {
    /// Returns the bytes of the state of a number of sequences.
    pub fn state_bytes(&self, sequences: usize) -> u128 {
        let elements = self.dimensions.heads * self.graph.elements() * size_of::<T>();
        let point = usize::from(self.program.schedule.refresh.is_some());
        (self.program.rule.arrays().len() + point) as u128 * sequences as u128 * elements as u128
    }

    /// Returns the bytes of everything else that the engine allocates for a plan: the buffers of `runners`
    /// sequences side by side, their kept chunks, and the scratch of each thread. The result is at least what
    /// [`Engine::bytes`](super::Engine::bytes) returns later.
    pub(super) fn buffer_bytes(&self, plan: &Plan<'_, T>, runners: usize, threads: usize) -> u128 {
        let Sizes { stored, read, storing, probe, scratch } = plan.sizes();
        let [dim, inner, heads] = [self.dimensions.dim, self.dimensions.inner(), self.dimensions.heads];
        let d = self.dimensions.dim_head;
        // Columns of a head's matrices for each row that is read, and for each row that is stored.
        let columns = self.places.block_columns();
        let factors = Factors::<ndarray::Array2<T>>::columns(&self.graph);
        let panel_rows: usize = self.base_panels(0).iter().map(Vec::len).sum();
        let arrays = if storing { self.program.rule.arrays().len() } else { 1 };

        let rates = if self.projections.token_rates.is_some() { heads } else { 0 };
        let read_gates = if self.projections.read_gate.is_some() { heads } else { 0 };
        let probes = 2 * usize::from(probe) * (columns + d);
        let stored_row = 2 * dim + 2 * inner + 3 * heads + rates + heads * (factors + probes);
        let read_row = 3 * dim + 2 * inner + read_gates + heads * columns;
        let numbers = stored as u128 * stored_row as u128 + read as u128 * read_row as u128;
        let losses = stored as u128 * heads as u128 * size_of::<f64>() as u128;
        let panels = heads * panel_rows * arrays * size_of::<PanelRow<T>>();
        // A point of gradients of its own, plain and prepared.
        let refreshes = storing && self.program.schedule.refresh.is_some();
        let of_point = self.graph.elements() * size_of::<T>() + self.point(0).bytes();
        let point = if refreshes { heads * of_point } else { 0 };
        let kept = plan.kept_chunks() as u128;
        let kept_chunk = heads * (2 * self.chunk_size() * d * size_of::<T>() + size_of::<f64>());
        let runner =
            numbers * size_of::<T>() as u128 + losses + (panels + point) as u128 + kept * kept_chunk as u128;

        let scratch = Scratch::numbers(self, scratch, storing) * size_of::<T>();
        runners as u128 * runner + threads as u128 * scratch as u128
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ndarray::Array3;

    use super::check_against;
    use crate::engine::plan::Plan;
    use crate::engine::{Discard, Engine, Memory, Work};
    use crate::memory::parameters::{Init, random_tensors};
    use crate::memory::program::Preset;
    use crate::memory::{Dimensions, Gates, Parameters};

    /// The bytes counted in advance equal those allocated, except for padding.
    #[test]
    fn counted_bytes_match_allocated_buffers() {
        let sizes = [(8, 1, 8), (12, 3, 40), (40, 12, 5)];
        let presets = [Preset::Titans0017, Preset::Titans055, Preset::TitansPaper];
        for ((dim, heads, dim_head), preset) in
            sizes.into_iter().flat_map(|sizes| presets.map(|of| (sizes, of)))
        {
            let dimensions = Dimensions { dim, heads, dim_head, pre_norm: true, post_norm: true };
            let program = preset.program(16, heads);
            let tensors: BTreeMap<_, _> =
                random_tensors(&dimensions, &program, Init::Xavier, 1).into_iter().collect();
            let parameters = Parameters::<f32>::collect(dimensions, &program, |name| tensors[name].clone());
            let memory = Memory::new(parameters, program, Gates::default(), None).unwrap();
            let tokens = Array3::<f32>::zeros((3, 700, dim));
            for (work, retention) in [
                (Work::Read(&tokens), None),
                (Work::Store { sequences: &tokens, probe: true }, None),
                (Work::Store { sequences: &tokens, probe: false }, Some(3)),
                (Work::Online { read: &tokens, store: &tokens, probe: true }, Some(100)),
            ] {
                let mut state = memory.initial_state(3);
                let arrays = state.arrays.iter().chain(&state.gradient_point).map(Array3::len).sum::<usize>();
                assert_eq!(memory.state_bytes(3), (arrays * size_of::<f32>()) as u128);
                let plan = Plan::new(&memory, &state, work, retention).unwrap();
                let counted = memory.buffer_bytes(&plan, memory.group(3), 0);
                let mut engine = Engine::new(&memory).with_retention(retention);
                engine.run(&mut state, work, &mut Discard, &mut |_| Ok(())).unwrap();
                let taken = engine.bytes() as u128;
                assert!(
                    (taken..=taken * 5 / 4).contains(&counted),
                    "{dimensions}, {preset:?}: {counted}, took {taken}"
                );
            }
        }
    }

    #[test]
    fn runs_beyond_the_machine_are_rejected() {
        check_against(8_000_000_000, 8_000_000_000).unwrap();
        assert_eq!(
            check_against(4_400_000_000_000, 8_000_000_000).unwrap_err().to_string(),
            "memory for the run: 4400.0 GB is more than the 8.0 GB of this machine; use smaller chunks, fewer \
             sequences, heads or threads"
        );
        assert!(check_against(u128::MAX, u64::MAX).is_err());
    }
}
