//! The files that the engine's results stream into, and the statistics collected on the way.

use std::path::{Path, PathBuf};

use ndarray::{ArrayView2, s};

use super::Keep;
use super::inputs::ResolvedInputs;
use super::statistics::RunStatistics;
use super::stop::StopRule;
use crate::config::{Config, Mode};
use crate::engine::Sink;
use crate::error::{Error, Result};
use crate::io::RetrievedWriter;
use crate::metrics::{
    ChunkMetrics, MetricsWriter, Retained, RetentionWriter, Spectrum, SpectrumWriter, read_metrics, rounded,
};
use crate::norm::norm;
use crate::real::Real;
use crate::recall::{Cue, Recall, RecallReport};
use crate::storage;

/// Part of a run that the engine does. A run that stores before it reads has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Store,
    Reads,
    Both,
}

/// Receives the engine's results. Adds rows to the statistics, and writes them to files if there is a directory.
pub(super) struct Files<'a, T: Real> {
    metrics: Option<MetricsWriter>,
    retention: Option<RetentionWriter>,
    unstored: Option<RetentionWriter>,
    spectrum: Option<SpectrumWriter>,
    retrieved: Option<(PathBuf, RetrievedWriter<T>)>,
    recall: Option<(Option<PathBuf>, Recall<T>)>,
    /// The part that the engine runs.
    pub stage: Stage,
    /// Number of times that each query is presented. The first row of each is its answer.
    repeats: usize,
    pub statistics: RunStatistics,
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
        let recall = inputs.targets.clone().map(|targets| {
            let csv = directory.filter(|(_, keep)| *keep >= Keep::Metrics);
            let csv = csv.map(|(directory, _)| directory.join("recall.csv"));
            let recall = Recall::new(targets, csv.as_deref());
            recall.map(|recall| (csv, recall))
        });
        let mut files = Self {
            metrics: None,
            retention: None,
            unstored: None,
            spectrum: None,
            retrieved: None,
            recall: recall.transpose()?,
            stage: Stage::Both,
            repeats: inputs.repeats(config),
            statistics,
            stop,
        };
        let Some((directory, keep)) = directory else { return Ok(files) };
        let mode = config.mode;
        if mode != Mode::Read && keep >= Keep::Metrics {
            files.metrics = Some(MetricsWriter::create(&directory.join("metrics.csv"), weights)?);
        }
        if config.retention.is_some() && keep >= Keep::Metrics {
            files.retention = Some(RetentionWriter::create(&directory.join("retention.csv"))?);
            files.unstored = Some(RetentionWriter::create(&directory.join("unstored.csv"))?);
        }
        if config.probes.spectrum.is_some() && keep >= Keep::Metrics {
            files.spectrum = Some(SpectrumWriter::create(&directory.join("spectrum.csv"))?);
        }
        if mode != Mode::Store && keep >= Keep::All {
            let path = directory.join("retrieved.npy");
            let writer = RetrievedWriter::create(&path, inputs.data.dims(), inputs.data.rank())?;
            files.retrieved = Some((path, writer));
        }
        Ok(files)
    }

    /// Adds the rows of files in `from`, in which the first `done` sequences are complete.
    pub fn resume(&mut self, from: &Path, done: usize) -> Result<()> {
        let metrics = from.join("metrics.csv");
        self.metrics.as_mut().map_or(Ok(()), |writer| writer.resume(&metrics, done))?;
        self.spectrum.as_mut().map_or(Ok(()), |writer| writer.resume(&from.join("spectrum.csv"), done))?;
        let mut complete = 0;
        read_metrics(&metrics, T::TYPE, &mut |row| {
            let before = row.sequence.min(done);
            (complete..before).for_each(|sequence| self.statistics.sequence_done(sequence));
            complete = complete.max(before);
            self.statistics.add(&row);
            Ok(())
        })?;
        (complete..done).for_each(|sequence| self.statistics.sequence_done(sequence));
        Ok(())
    }

    /// Completes the files. Removes retrieved.npy and recall.csv if they are not `whole`. Returns the statistics, and the
    /// quality of what was read.
    pub fn finish(self, whole: bool, cue: Cue) -> Result<(RunStatistics, Option<RecallReport>)> {
        let mut report = None;
        if let Some((path, recall)) = self.recall {
            report = recall.finish(cue)?.filter(|_| whole);
            path.filter(|_| !whole).map_or(Ok(()), |path| storage::remove_file(&path))?;
        }
        if let Some(metrics) = self.metrics {
            metrics.finish()?;
        }
        for retention in [self.retention, self.unstored].into_iter().flatten() {
            retention.finish()?;
        }
        if let Some(spectrum) = self.spectrum {
            spectrum.finish()?;
        }
        if let Some((path, retrieved)) = self.retrieved {
            retrieved.finish()?;
            if !whole {
                storage::remove_file(&path)?;
            }
        }
        Ok((self.statistics, report))
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
        let first = start.next_multiple_of(self.repeats);
        let rows = rows.slice(s![(first - start).min(rows.nrows())..; self.repeats, ..]);
        let start = first / self.repeats;
        if rows.nrows() == 0 {
            return Ok(());
        }
        for row in rows.rows() {
            let root = row.iter().map(|&x| Real::to_f64(x).powi(2)).sum::<f64>().sqrt();
            // Squares of finite numbers may be beyond f64.
            let size = if root.is_finite() { root } else { norm(&row.to_vec()) };
            self.statistics.add_read(rounded::<T>(size));
        }
        if let Some((_, recall)) = &mut self.recall {
            recall.add(sequence, start, &rows)?;
        }
        self.retrieved.as_mut().map_or(Ok(()), |(_, retrieved)| retrieved.write_rows(sequence, start, &rows))
    }

    fn retained(&mut self, rows: &[Retained]) -> Result<()> {
        let rows = self.stop.as_ref().map_or(rows, |stop| stop.retained(rows));
        for row in rows {
            self.statistics.add_retained(row);
        }
        self.retention.as_mut().map_or(Ok(()), |retention| retention.write::<T>(rows))
    }

    fn unstored(&mut self, rows: &[Retained]) -> Result<()> {
        self.unstored.as_mut().map_or(Ok(()), |unstored| unstored.write::<T>(rows))
    }

    fn spectra(&mut self, spectra: &[Spectrum]) -> Result<()> {
        let spectra = self.stop.as_ref().map_or(spectra, |stop| stop.spectra(spectra));
        self.spectrum.as_mut().map_or(Ok(()), |spectrum| spectrum.write::<T>(spectra))
    }

    fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        if self.stage != Stage::Reads {
            if let Some(stop) = &mut self.stop {
                stop.sequence_done(sequence);
            }
            self.statistics.sequence_done(sequence);
            for retention in [&mut self.retention, &mut self.unstored].into_iter().flatten() {
                retention.sequence_done(sequence)?;
            }
            self.spectrum.as_mut().map_or(Ok(()), |spectrum| spectrum.sequence_done(sequence))?;
            self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.sequence_done(sequence))?;
        }
        if self.stage != Stage::Store
            && let Some((_, recall)) = &mut self.recall
        {
            recall.sequence_done(sequence)?;
        }
        Ok(())
    }
}
