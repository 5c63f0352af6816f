//! The state of a training on disk, bit for bit: training.safetensors and train.csv in `OUT.checkpoint`.
//!
//! | tensor | content |
//! | --- | --- |
//! | `counters` | u64: steps taken, step of the best validation (2⁶⁴ − 1: none yet), its loss (bits of the f64), validations since, loss of the last step (bits; NaN: none) |
//! | `learned.i` | numbers of the i-th parameter that is learned |
//! | `first.i`, `second.i` | the optimiser's running means of its gradient and of the square |
//! | `mean.i` | its moving average, if there is one |
//! | `best.i` | the parameter at the best validation |

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::ArrayView1;

use super::log::Log;
use super::optimizer::{AdamW, Learned};
use super::{Best, Progress};
use crate::error::{Error, Result};
use crate::io::tensors::{Tensor, TensorFile, write_safetensors};
use crate::real::Real;

const FILE: &str = "training.safetensors";

/// Writes the state into a directory.
pub fn write<T: Real>(progress: &Progress<T>, directory: &Path) -> Result<()> {
    let Progress { step, loss: last, learned, adam, mean, best, since_best, log } = progress;
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, numbers: &[T]| {
        tensors.insert(name, Tensor::from_array(&ArrayView1::from(numbers)));
    };
    for (i, (_, numbers)) in learned.each().into_iter().enumerate() {
        add(format!("learned.{i}"), numbers);
        add(format!("first.{i}"), &adam.first[i]);
        add(format!("second.{i}"), &adam.second[i]);
    }
    for (i, (_, numbers)) in mean.iter().flat_map(Learned::each).enumerate() {
        add(format!("mean.{i}"), numbers);
    }
    for (i, (_, numbers)) in best.iter().flat_map(|best| best.learned.each()).enumerate() {
        add(format!("best.{i}"), numbers);
    }
    let (best_step, loss) =
        best.as_ref().map_or((u64::MAX, 0), |best| (best.step as u64, best.loss.to_bits()));
    let last = last.unwrap_or(f64::NAN).to_bits();
    let counters = [*step as u64, best_step, loss, *since_best as u64, last];
    tensors.insert("counters".to_owned(), Tensor::from_counters(&counters));
    write_safetensors(directory.join(FILE), &tensors, "{}")?;
    log.write(directory)
}

/// Reads the state into that of a training that has not begun.
///
/// # Errors
/// Files that cannot be read, and tensors of other shapes.
pub fn read<T: Real>(progress: &mut Progress<T>, directory: &Path) -> Result<()> {
    let path = directory.join(FILE);
    let file = TensorFile::open(&path, &mut |_| Ok(()))?;
    let counters = file.get("counters")?.to_counters().filter(|counters| counters.len() == 5);
    let Some(&[step, best_step, loss, since_best, last]) = counters.as_deref() else {
        return Err(Error::file(&path, "five counters", "others"));
    };
    let copy = |name: String, to: &mut [T]| -> Result<()> {
        let numbers = file.array::<T>(&name)?;
        if numbers.len() != to.len() {
            return Err(Error::file(
                &path,
                format!("{name} of {} numbers", to.len()),
                numbers.len().to_string(),
            ));
        }
        to.iter_mut().zip(&numbers).for_each(|(to, &x)| *to = x);
        Ok(())
    };
    let copy_all = |learned: &mut Learned<T>, kind: &str| {
        learned
            .each_mut()
            .into_iter()
            .enumerate()
            .try_for_each(|(i, (_, to))| copy(format!("{kind}.{i}"), to))
    };
    copy_all(&mut progress.learned, "learned")?;
    let AdamW { first, second } = &mut progress.adam;
    first.iter_mut().enumerate().try_for_each(|(i, to)| copy(format!("first.{i}"), to))?;
    second.iter_mut().enumerate().try_for_each(|(i, to)| copy(format!("second.{i}"), to))?;
    if let Some(mean) = &mut progress.mean {
        copy_all(mean, "mean")?;
    }
    progress.best = None;
    if best_step != u64::MAX {
        let mut learned = progress.learned.clone();
        copy_all(&mut learned, "best")?;
        progress.best = Some(Best { step: best_step as usize, loss: f64::from_bits(loss), learned });
    }
    progress.step = step as usize;
    progress.since_best = since_best as usize;
    progress.loss = Some(f64::from_bits(last)).filter(|loss| !loss.is_nan());
    progress.log = Log::read(&directory.join("train.csv"))?;
    Ok(())
}
