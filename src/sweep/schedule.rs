//! Parallel execution of runs. Together they never use more threads than there are cores.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

use super::directory::SweepDirectory;
use super::plan::{Inputs, Plan, PlannedRun, Ready, chain};
use super::record::{Lags, Record, RecordWriter, host, now};
use super::results::{Results, Status};
use crate::cuda::Devices;
use crate::error::{Error, Result};
use crate::run::{Build, Keep, Run, RunOutput, start_threads};
use crate::storage::{ResultsDirectory, publish_all};
use crate::train::{Ended, TrainReport, Training};

/// Options of a sweep's execution.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Number of runs at once.
    pub jobs: usize,
    /// Number of threads that all runs together may use.
    pub cores: usize,
    /// Files of each run that are kept.
    pub keep: Keep,
    /// Whether the first run that fails or diverges ends the sweep.
    pub fail_fast: bool,
    /// See [`crate::run::RunStatistics::new`].
    pub unstable_ratio: f64,
    /// Time after which a run fails.
    pub timeout: Option<Duration>,
}

impl Options {
    /// Returns the number of threads of a run: those that it requests, or an equal part of the cores.
    fn threads(&self, run: &PlannedRun) -> usize {
        let asked = run.ready.as_ref().ok().and_then(|ready| ready.config.threads);
        let cores = self.cores.max(1);
        asked.unwrap_or(cores / self.jobs.clamp(1, cores)).clamp(1, cores)
    }
}

/// Progress event of a sweep.
#[derive(Clone, Copy)]
pub enum SweepEvent<'a> {
    /// A run has started.
    Started(&'a PlannedRun),
    /// A run has finished, failed or diverged.
    Finished(&'a PlannedRun, &'a Record),
    /// A run is in progress.
    Working,
}

/// Callback for every [`SweepEvent`], called from any thread. An error ends the sweep, and unfinished runs leave nothing.
pub type Observe<'a> = &'a (dyn Fn(SweepEvent) -> Result<()> + Sync);

/// State shared by the workers.
struct State<'a> {
    waiting: std::slice::Iter<'a, usize>,
    /// Next run, while it waits for threads.
    next: Option<usize>,
    free: usize,
    idle: Vec<ThreadPool>,
    stopped: Option<Error>,
    finished: Vec<(usize, Record)>,
}

struct Scheduler<'a> {
    directory: &'a SweepDirectory,
    plan: &'a Plan,
    options: &'a Options,
    devices: &'a Devices,
    observe: Observe<'a>,
    host: String,
    state: Mutex<State<'a>>,
    changed: Condvar,
}

/// A run that has ended, but is not yet published or recorded.
struct FinishedRun {
    place: usize,
    record: Record,
    directory: Option<ResultsDirectory>,
}

/// Maximum number of ended runs that wait for the disk; further runs block. Each holds a file open, and up to the same
/// number is being written. Some systems allow a process 256 open files.
const MAX_WAITING: usize = 64;

/// Guard that ends the sweep if its thread panics, because the other threads would wait forever.
struct StopOnPanic<'s, 'a>(&'s Scheduler<'a>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(Error::Interrupted);
        }
    }
}

/// Executes the runs at the given places of the plan in parallel, and records each as it finishes.
///
/// `devices` holds the devices that they name. Runs on the same GPU compute one after the other. Returns the records in the
/// plan's order, and an error if the sweep ended early.
pub fn run(
    directory: &SweepDirectory,
    plan: &Plan,
    places: &[usize],
    options: &Options,
    devices: &Devices,
    observe: Observe,
) -> (Vec<Record>, Result<()>) {
    let scheduler = Scheduler {
        directory,
        plan,
        options,
        devices,
        observe,
        host: host(),
        state: Mutex::new(State {
            waiting: places.iter(),
            next: None,
            free: options.cores.max(1),
            idle: Vec::new(),
            stopped: None,
            finished: Vec::new(),
        }),
        changed: Condvar::new(),
    };
    let (results, finished) = sync_channel(MAX_WAITING);
    std::thread::scope(|scope| {
        for worker in 0..options.jobs.clamp(1, places.len().max(1)) {
            let results = results.clone();
            let spawned = std::thread::Builder::new().spawn_scoped(scope, || scheduler.work(results));
            if let Err(error) = spawned {
                // Fewer workers than requested do the same work.
                if worker == 0 {
                    scheduler.stop(Error::rejected("--jobs", format!("no thread can be started ({error})")));
                }
                break;
            }
        }
        drop(results);
        scheduler.keep(finished);
    });
    let State { mut finished, stopped, .. } = scheduler.state.into_inner().expect("no worker panicked");
    finished.sort_by_key(|(place, _)| *place);
    (finished.into_iter().map(|(_, record)| record).collect(), stopped.map_or(Ok(()), Err))
}

impl Scheduler<'_> {
    /// Runs one worker, which executes one run after the other until none is left.
    fn work(&self, results: SyncSender<FinishedRun>) {
        let _ending = StopOnPanic(self);
        while let Some((place, threads)) = self.take() {
            let ended = self.pool(threads).and_then(|pool| {
                let (record, directory) = self.one(&self.plan.runs[place], &pool)?;
                self.check(&record);
                Ok((pool, FinishedRun { place, record, directory }))
            });
            let mut state = self.state.lock().expect("no worker panics while it holds the lock");
            state.free += threads;
            let ended = match ended {
                Ok((pool, ended)) => {
                    state.idle.push(pool);
                    Some(ended)
                }
                Err(error) => {
                    state.stopped.get_or_insert(error);
                    None
                }
            };
            drop(state);
            self.changed.notify_all();
            if ended.is_some_and(|ended| results.send(ended).is_err()) {
                // The recording thread has panicked and has printed its own message.
                self.stop(Error::Interrupted);
            }
        }
    }

    fn stop(&self, error: Error) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Ends the sweep if `fail_fast` is set and the run did not end normally.
    fn check(&self, record: &Record) {
        if self.options.fail_fast && matches!(record.status, Status::Failed | Status::Diverged) {
            let reason = record.error.clone().unwrap_or_default();
            let reason = format!("stopped at run {}: {reason}", record.run);
            self.stop(Error::rejected("--fail-fast", reason));
        }
    }

    /// Publishes and records runs in the order in which they end. Runs that end while the disk is busy are published together.
    /// So a run is on the disk as early as possible, and thousands of short runs do not wait for one sync each.
    fn keep(&self, finished: Receiver<FinishedRun>) {
        let _ending = StopOnPanic(self);
        let mut records = RecordWriter::new(&self.directory.path().join("records"));
        while let Ok(first) = finished.recv() {
            let mut ended: Vec<_> =
                std::iter::once(first).chain(finished.try_iter().take(MAX_WAITING)).collect();
            let with_directory = ended.iter_mut().filter(|ended| ended.directory.is_some());
            let (of, directories): (Vec<_>, Vec<_>) =
                with_directory.map(|ended| (ended.place, ended.directory.take())).unzip();
            let published = publish_all(directories.into_iter().flatten().collect());
            for (place, error) in
                of.into_iter().zip(published).filter_map(|(place, done)| Some((place, done.err()?)))
            {
                if let Some(ended) = ended.iter_mut().find(|ended| ended.place == place) {
                    ended.record.fail(chain(&error));
                    self.check(&ended.record);
                }
            }
            let written = records.write(ended.iter().map(|ended| &ended.record));
            if let Err(error) = written {
                self.stop(error);
                continue;
            }
            for FinishedRun { place, record, .. } in ended {
                if let Err(error) = (self.observe)(SweepEvent::Finished(&self.plan.runs[place], &record)) {
                    self.stop(error);
                }
                self.state
                    .lock()
                    .expect("no worker panics while it holds the lock")
                    .finished
                    .push((place, record));
            }
        }
    }

    /// Returns the place and threads of the next run, as soon as enough threads are free.
    fn take(&self) -> Option<(usize, usize)> {
        let mut state = self.state.lock().expect("no worker panics while it holds the lock");
        loop {
            if state.stopped.is_some() {
                return None;
            }
            let place = match state.next {
                Some(place) => place,
                None => *state.waiting.next()?,
            };
            let threads = self.options.threads(&self.plan.runs[place]);
            if threads <= state.free {
                state.free -= threads;
                state.next = None;
                return Some((place, threads));
            }
            state.next = Some(place);
            state = self.changed.wait(state).expect("no worker panics while it holds the lock");
        }
    }

    /// Returns the idle pool of an earlier run, or a new one.
    fn pool(&self, threads: usize) -> Result<ThreadPool> {
        let mut state = self.state.lock().expect("no worker panics while it holds the lock");
        let idle = state.idle.iter().position(|pool| pool.current_num_threads() == threads);
        let pool = idle.map(|idle| state.idle.swap_remove(idle));
        drop(state);
        pool.map_or_else(|| start_threads(threads), Ok)
    }

    fn one(&self, run: &PlannedRun, pool: &ThreadPool) -> Result<(Record, Option<ResultsDirectory>)> {
        (self.observe)(SweepEvent::Started(run))?;
        let (started, begin) = (now(), Instant::now());
        let output = match &run.ready {
            Err(reason) => Err(reason.clone()),
            Ok(ready) => match self.execute_or_fail(run, ready, pool) {
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                output => output.map_err(|error| chain(&error)),
            },
        };
        let took = begin.elapsed().as_secs_f64();
        let (executed, directory) = match output {
            Err(reason) => (Executed::failed(reason), None),
            Ok((output, directory)) => (Executed::new(&output, took), directory),
        };
        let Executed { status, error, results, lags, device } = executed;
        let command = run.ready.as_ref().map_or(String::new(), |ready| {
            let line = run.row.command_line(ready.command, &run.id);
            // Only text that no command line can hold is an error.
            shlex::try_join(line.iter().map(String::as_str)).unwrap_or_default()
        });
        let record = Record {
            run: run.id.clone(),
            parameters: run.parameters.clone(),
            resolved: run.resolved.clone(),
            status,
            error,
            results,
            lags,
            keep: self.options.keep,
            host: self.host.clone(),
            device,
            started,
            took,
            command,
            build: Build::current()?.clone(),
            inputs: run.ready.as_ref().map_or_else(|_| BTreeMap::new(), |ready| ready.inputs.hashes()),
        };
        Ok((record, directory))
    }

    /// Executes a run. A panic, a bug of nmem, fails this run but no other.
    fn execute_or_fail(
        &self,
        run: &PlannedRun,
        ready: &Ready,
        pool: &ThreadPool,
    ) -> Result<(Output, Option<ResultsDirectory>)> {
        let execute = AssertUnwindSafe(|| self.execute(run, ready, pool));
        catch_unwind(execute).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Error::rejected(
                "nmem",
                format!("internal error: {text}; please report it with the command line"),
            ))
        })
    }

    fn execute(
        &self,
        run: &PlannedRun,
        ready: &Ready,
        pool: &ThreadPool,
    ) -> Result<(Output, Option<ResultsDirectory>)> {
        let begin = Instant::now();
        let observe = || {
            if let Some(timeout) = self.options.timeout.filter(|timeout| begin.elapsed() > *timeout) {
                let reason = format!("the run had not ended after {} s", timeout.as_secs_f64());
                return Err(Error::rejected("--timeout", reason));
            }
            if self.state.lock().expect("no worker panics while it holds the lock").stopped.is_some() {
                return Err(Error::Interrupted);
            }
            (self.observe)(SweepEvent::Working)
        };
        let keep = self.options.keep;
        let out = self.directory.run(&run.id);
        let directory = (keep > Keep::None).then(|| ResultsDirectory::open_among(&out, true)).transpose()?;
        let mut config = ready.config.clone();
        config.out = out;
        let device = self.devices.get(config.device).expect("opened for every run that is ready");
        let command_line = run.row.command_line(ready.command, &run.id);
        let into = directory.as_ref().map(|directory| (directory.path(), keep));
        let output = match &ready.inputs {
            Inputs::Run(inputs) => {
                let run = Run {
                    command: ready.command,
                    config: &config,
                    device: &device,
                    command_line,
                    threads: pool.current_num_threads(),
                    pool: Some(pool),
                    unstable_ratio: self.options.unstable_ratio,
                    opening: 0.0,
                    note: None,
                    stop_when: self.plan.stop_when.as_ref(),
                    checkpoint: None,
                };
                let output = run.execute(inputs, into, &mut |_| observe());
                output
                    .and_then(|output| inputs.check_unchanged(false).map(|()| Output::Run(Box::new(output))))
            }
            Inputs::Train(of) => {
                let (inputs, train) = &**of;
                let training = Training {
                    config: &config,
                    train,
                    command_line,
                    directory: into,
                    saved: None,
                    inputs,
                    load: Duration::ZERO,
                };
                let report = training.execute(pool, &mut |_| observe());
                report.and_then(|report| {
                    inputs.check_unchanged(false).map(|()| Output::Train(Box::new(report)))
                })
            }
        };
        let output = output.map_err(|error| match &directory {
            Some(directory) => directory.explain(error),
            None => error,
        })?;
        Ok((output, directory))
    }
}

/// Outcome of a run, besides its files.
enum Output {
    Run(Box<RunOutput>),
    Train(Box<TrainReport>),
}

/// Part of a record that a run determines.
struct Executed {
    status: Status,
    error: Option<String>,
    results: Results,
    lags: Lags,
    device: Option<String>,
}

impl Executed {
    fn failed(reason: String) -> Self {
        let (results, lags) = (Results::default(), Lags::default());
        Self { status: Status::Failed, error: Some(reason), results, lags, device: None }
    }

    /// Describes a run that took this many seconds.
    fn new(output: &Output, took: f64) -> Self {
        match output {
            Output::Run(output) => {
                let report = &output.report;
                let divergence = report.diverged.as_ref().map(|at| format!("diverged at {at}"));
                let stop = report.stopped.as_ref().map(|at| format!("stopped at {at}"));
                let status = match (&divergence, &stop) {
                    (Some(_), _) => Status::Diverged,
                    (None, Some(_)) => Status::Stopped,
                    (None, None) => Status::Ok,
                };
                Self {
                    status,
                    error: divergence.or(stop),
                    results: Results::from_output(output, took - output.waited.as_secs_f64()),
                    lags: Lags::from_statistics(&output.statistics),
                    device: Some(report.device.clone()),
                }
            }
            Output::Train(report) => {
                let diverged = report.ended == Ended::Diverged;
                Self {
                    status: if diverged { Status::Diverged } else { Status::Ok },
                    error: diverged.then(|| format!("diverged at step {}", report.steps + 1)),
                    results: Results::from_training(report, took),
                    lags: Lags::default(),
                    device: Some("cpu".to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::{GridRow, Parameters};

    #[test]
    fn runs_share_the_cores() {
        let run = PlannedRun {
            id: String::new(),
            parameters: Parameters::new(),
            resolved: Parameters::new(),
            row: GridRow::default(),
            ready: Err(String::new()),
        };
        for (cores, jobs, threads) in
            [(8, 1, 8), (8, 2, 4), (8, 3, 2), (8, 8, 1), (8, 9, 1), (1, 4, 1), (0, 4, 1), (8, 0, 8)]
        {
            let options = Options {
                jobs,
                cores,
                keep: Keep::None,
                fail_fast: false,
                unstable_ratio: f64::INFINITY,
                timeout: None,
            };
            assert_eq!(options.threads(&run), threads, "{jobs} runs on {cores} cores");
        }
    }
}
