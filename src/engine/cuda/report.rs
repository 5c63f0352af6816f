//! Results of a block: metrics of chunks, and places of non-finite values.

use std::borrow::Cow;

use ndarray::ArrayView2;

use super::RANGES;
use super::buffers::{DeviceBuffers, DeviceState, padded};
use super::step::Step;
use crate::cuda::Array;
use crate::engine::Divergence;
use crate::engine::driver::BlockResults;
use crate::engine::head::{ChunkLosses, metrics};
use crate::engine::panel::Norms;
use crate::error::{Error, Result};
use crate::memory::GateValues;
use crate::metrics::ChunkMetrics;
use crate::norm::{saturated, trusted};
use crate::real::{ElementType, Real};

/// Marks that nothing was found.
const NONE: u32 = u32::MAX;

/// Measurements of a block from one run of the fused updates.
#[derive(Default)]
pub struct Measurements<T> {
    steps: Vec<T>,
    losses: [Vec<T>; 3],
    zero_losses: Vec<T>,
    norms: Vec<f64>,
    findings: Vec<u32>,
}

impl<T: Real> Step<'_, T> {
    /// Returns the findings of `measure` and the fused updates.
    pub(super) fn measured(&self, buffers: &DeviceBuffers<'_, T>) -> Result<Measurements<T>> {
        let places = self.heads() * self.chunks();
        let take = |array: &Array<'_, T>, elements: usize| {
            let mut taken = vec![T::zero(); elements];
            array.download(0, &mut taken)?;
            Ok::<_, Error>(taken)
        };
        let probed = if buffers.sizes.probe { places } else { 0 };
        let [at_w, before, after] = &buffers.chunk_losses;
        Ok(Measurements {
            steps: take(&buffers.steps, 3 * places)?,
            losses: [take(at_w, places)?, take(before, probed)?, take(after, probed)?],
            zero_losses: take(&buffers.zero_losses, places)?,
            norms: self.norms(buffers)?,
            findings: buffers.findings.to_vec()?,
        })
    }

    fn norms(&self, buffers: &DeviceBuffers<'_, T>) -> Result<Vec<f64>> {
        let mut norms = vec![0.0; self.heads() * self.chunks() * 16];
        buffers.norms.download(0, &mut norms)?;
        Ok(norms)
    }

    /// Recomputes norms whose squares left the range of T, by fused updates with other scales.
    pub(super) fn rescale(
        &self,
        buffers: &mut DeviceBuffers<'_, T>,
        state: &mut DeviceState<'_, T>,
        measured: &mut Measurements<T>,
    ) -> Result<()> {
        // Large enough to bring the smallest and the largest numbers, and the sums of their squares, into range.
        let exponent = match T::TYPE {
            ElementType::F32 => 80,
            ElementType::F64 => 560,
        };
        for (range, scale) in [2f64.powi(-exponent), 2f64.powi(exponent)].into_iter().enumerate() {
            if measured.findings[range] == NONE {
                continue;
            }
            for layer in 0..2 {
                self.fused_update(buffers, state, layer, scale)?;
            }
            self.weight_norms(buffers)?;
            let large = range == 0;
            for (norm, scaled) in measured.norms.iter_mut().zip(self.norms(buffers)?) {
                if !trusted::<T>(*norm * *norm) && (*norm > 1.0) == large {
                    // As on the CPU, a norm of finite numbers is finite.
                    *norm = if scaled.is_finite() { saturated(scaled / scale) } else { scaled };
                }
            }
        }
        Ok(())
    }

    /// Downloads the output rows of the block.
    pub(super) fn receive_output(&self, buffers: &mut DeviceBuffers<'_, T>) -> Result<()> {
        let elements = self.sequences * self.block.read.len() * self.memory.dimensions.dim;
        buffers.output.resize(elements, T::zero());
        let output = buffers.combined.as_ref().unwrap_or(&buffers.merged);
        output.download(0, &mut buffers.output)
    }

    /// Returns the results of sequence `i` of the group. A head's non-finite read comes before one of the combined heads.
    pub(super) fn results<'a>(
        &self,
        buffers: &'a DeviceBuffers<'_, T>,
        sequence: usize,
        i: usize,
    ) -> Result<BlockResults<'a, T>> {
        let (h, c, chunks) = (self.memory.dimensions.heads, self.c(), self.chunks());
        let first = self.block.start() / c;
        let [mut divergence, mut bad_read]: [Option<Divergence>; 2] = [None, None];
        let earlier =
            |known: &mut Option<Divergence>, chunk: usize, head, quantity: &'static str, value: f64| {
                let quantity = quantity.into();
                if known.as_ref().is_none_or(|at| first + chunk < at.chunk) {
                    let value = value.to_string();
                    *known = Some(Divergence { sequence, chunk: first + chunk, head, quantity, value });
                }
            };
        let mut of_heads = Vec::new();
        for head in 0..h {
            let place = i * h + head;
            let retrieved = Some(buffers.measured.findings[RANGES + place])
                .filter(|&row| row != NONE)
                .map(|row| row as usize);
            let row = |chunk: usize| {
                self.row(&buffers.measured, (sequence, first + chunk, head), place * chunks + chunk)
            };
            let mut rows: Vec<_> = (0..chunks).map(row).collect();
            let bad = rows.iter().enumerate().find_map(|(chunk, row)| Some((chunk, row.first_nonfinite()?)));
            if let Some((chunk, (quantity, value))) = bad {
                earlier(&mut divergence, chunk, Some(head), quantity, value);
                rows.truncate(chunk);
            }
            if let Some(row) = retrieved {
                let start = (place * padded(self.block.read.len(), c) + row) * self.d();
                earlier(
                    &mut bad_read,
                    row / c,
                    Some(head),
                    "retrieved",
                    nonfinite(&buffers.readers[0].outputs, start, self.d())?,
                );
            }
            of_heads.push(rows.into_iter());
        }
        let row = buffers.measured.findings[RANGES + self.heads() + i];
        if row != NONE {
            let dim = self.memory.dimensions.dim;
            let output = buffers.combined.as_ref().unwrap_or(&buffers.merged);
            let start = (i * self.block.read.len() + row as usize) * dim;
            earlier(&mut bad_read, row as usize / c, None, "retrieved", nonfinite(output, start, dim)?);
        }
        let end = divergence.as_ref().map_or(usize::MAX, |at| at.chunk);
        let mut reported = Vec::with_capacity(h * chunks);
        for _ in 0..chunks {
            reported.extend(of_heads.iter_mut().filter_map(Iterator::next).filter(|row| row.chunk < end));
        }
        let rows = self.block.read.len();
        let shape = (rows, self.memory.dimensions.dim);
        let output = &buffers.output[i * rows * shape.1..][..rows * shape.1];
        Ok(BlockResults {
            metrics: Cow::Owned(reported),
            output: ArrayView2::from_shape(shape, output).expect("as many elements"),
            retained: &[],
            unstored: &[],
            spectra: &[],
            divergence,
            bad_read,
        })
    }

    fn row(&self, measured: &Measurements<T>, of: (usize, usize, usize), place: usize) -> ChunkMetrics {
        let [at_w, before, after] = &measured.losses;
        let probed = before
            .get(place)
            .zip(after.get(place))
            .map(|(&before, &after)| [before.to_f64(), after.to_f64()]);
        let (loss, zero) = (at_w[place].to_f64(), measured.zero_losses[place].to_f64());
        let losses = ChunkLosses { loss, zero, probed };
        let [learning_rate, momentum, decay] =
            [0, 1, 2].map(|gate| measured.steps[place * 3 + gate].to_f64());
        let gates = GateValues { learning_rate, momentum, decay };
        let of_weight = |norms: &[f64]| Norms {
            surprise: norms[0],
            momentum: norms[1],
            update: norms[2],
            weight: norms[3],
        };
        let norms: Vec<_> = measured.norms[place * 16..][..16].chunks(4).map(of_weight).collect();
        metrics::<T>(of, self.c(), losses, (gates, false), &norms)
    }
}

/// Returns the first non-finite number of a range.
fn nonfinite<T: Real>(array: &Array<'_, T>, start: usize, number: usize) -> Result<f64> {
    let mut values = vec![T::zero(); number];
    array.download(start, &mut values)?;
    Ok(values.into_iter().find(|x| !x.is_finite()).map_or(f64::NAN, Real::to_f64))
}
