//! The files that the engine's results stream into, and the statistics collected on the way.

use std::path::{Path, PathBuf};

use ndarray::ArrayView2;

use super::Keep;
use super::inputs::ResolvedInputs;
use super::statistics::RunStatistics;
use super::stop::StopRule;
use crate::config::{Config, Mode};
use crate::engine::Sink;
use crate::error::{Error, Result};
use crate::io::RetrievedWriter;
use crate::metrics::{ChunkMetrics, MetricsWriter, Retained, RetentionWriter};
use crate::real::Real;
use crate::storage;

/// Receives the engine's results. Adds rows to the statistics, and writes them to files if there is a directory.
pub(super) struct Files<'a, T> {
    metrics: Option<MetricsWriter>,
    retention: Option<RetentionWriter>,
    retrieved: Option<(PathBuf, RetrievedWriter<T>)>,
    statistics: RunStatistics,
    pub stop: Option<StopRule<'a>>,
}

impl<'a, T: Real> Files<'a, T> {
    /// Creates the files. Each of the `weights` memory weights has its own columns.
    pub fn create(
        directory: Option<(&Path, Keep)>,
        config: &Config,
        inputs: &ResolvedInputs,
        weights: usize,
        statistics: RunStatistics,
        stop: Option<StopRule<'a>>,
    ) -> Result<Self> {
        let mut files = Self { metrics: None, retention: None, retrieved: None, statistics, stop };
        let Some((directory, keep)) = directory else { return Ok(files) };
        let mode = config.mode;
        if mode != Mode::Read && keep >= Keep::Metrics {
            files.metrics = Some(MetricsWriter::create(&directory.join("metrics.csv"), weights)?);
        }
        if config.retention.is_some() && keep >= Keep::Metrics {
            files.retention = Some(RetentionWriter::create(&directory.join("retention.csv"))?);
        }
        if mode != Mode::Store && keep >= Keep::All {
            let path = directory.join("retrieved.npy");
            let writer = RetrievedWriter::create(&path, inputs.data.dims(), inputs.data.rank())?;
            files.retrieved = Some((path, writer));
        }
        Ok(files)
    }

    /// Completes the files. Removes retrieved.npy if it is not `whole`.
    pub fn finish(self, whole: bool) -> Result<RunStatistics> {
        if let Some(metrics) = self.metrics {
            metrics.finish()?;
        }
        if let Some(retention) = self.retention {
            retention.finish()?;
        }
        if let Some((path, retrieved)) = self.retrieved {
            retrieved.finish()?;
            if !whole {
                storage::remove_file(&path)?;
            }
        }
        Ok(self.statistics)
    }
}

impl<T: Real> Sink<T> for Files<'_, T> {
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> Result<()> {
        let rows = self.stop.as_mut().map_or(rows, |stop| stop.rows(rows));
        for row in rows {
            self.statistics.add(row);
        }
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write::<T>(rows))?;
        match &self.stop {
            // Ends the engine: nothing that it would still compute counts.
            Some(stop) if stop.is_everywhere() => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }

    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()> {
        self.retrieved.as_mut().map_or(Ok(()), |(_, retrieved)| retrieved.write_rows(sequence, start, &rows))
    }

    fn retained(&mut self, rows: &[Retained]) -> Result<()> {
        let rows = self.stop.as_ref().map_or(rows, |stop| stop.retained(rows));
        for row in rows {
            self.statistics.add_retained(row);
        }
        self.retention.as_mut().map_or(Ok(()), |retention| retention.write::<T>(rows))
    }

    fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        if let Some(stop) = &mut self.stop {
            stop.sequence_done(sequence);
        }
        self.statistics.sequence_done(sequence);
        if let Some(retention) = &mut self.retention {
            retention.sequence_done(sequence)?;
        }
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.sequence_done(sequence))
    }
}
