//! Runs side by side, never with more threads between them than there are cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use rayon::ThreadPool;

use super::folder::Folder;
use super::plan::{Plan, PlannedRun, Ready, chain};
use super::record::{Lags, Record, RecordWriter, host, now};
use super::results::{Results, Status};
use crate::cuda::Devices;
use crate::error::{Error, Result};
use crate::run::{Keep, Run, RunOutput, start_threads};
use crate::storage::{ResultsDirectory, publish_all};

/// How runs are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Runs at once.
    pub jobs: usize,
    /// Threads that all runs together may use.
    pub cores: usize,
    /// Which files of each are written.
    pub keep: Keep,
    /// Whether the first failure ends the sweep.
    pub fail_fast: bool,
    /// See [`crate::run::RunStatistics::new`].
    pub unstable_ratio: f64,
}

impl Options {
    /// Threads of a run that asks for `threads`, or for none in particular.
    fn threads(&self, run: &PlannedRun) -> usize {
        let asked = run.ready.as_ref().ok().and_then(|ready| ready.config.threads);
        let cores = self.cores.max(1);
        asked.unwrap_or(cores / self.jobs.clamp(1, cores)).clamp(1, cores)
    }
}

/// What a sweep is doing.
#[derive(Clone, Copy)]
pub enum SweepEvent<'a> {
    /// This run has begun.
    Started(&'a PlannedRun),
    /// It has finished, well or not.
    Finished(&'a PlannedRun, &'a Record),
    /// A run goes on.
    Working,
}

/// Told of every [`SweepEvent`], from any thread. An error ends the sweep: runs that are not finished leave nothing.
pub type Observe<'a> = &'a (dyn Fn(SweepEvent) -> Result<()> + Sync);

/// What the workers share.
struct State<'a> {
    waiting: std::slice::Iter<'a, usize>,
    /// The run whose turn it is, until there are threads for it.
    next: Option<usize>,
    free: usize,
    idle: Vec<ThreadPool>,
    stopped: Option<Error>,
    finished: Vec<(usize, Record)>,
}

struct Scheduler<'a> {
    folder: &'a Folder,
    plan: &'a Plan,
    options: &'a Options,
    devices: &'a Devices,
    observe: Observe<'a>,
    host: String,
    state: Mutex<State<'a>>,
    changed: Condvar,
}

/// A run that has ended: what it wrote is neither in its place nor recorded.
struct FinishedRun {
    place: usize,
    record: Record,
    directory: Option<ResultsDirectory>,
}

/// Most runs that have ended and are not yet on the disk: beyond, runs wait for the disk. Each holds a file open, and as many more
/// are on their way to the disk; some systems allow a process 256.
const MAX_WAITING: usize = 64;

/// Ends the sweep where the thread that holds it panics: the others would wait for ever.
struct StopOnPanic<'s, 'a>(&'s Scheduler<'a>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(Error::Interrupted);
        }
    }
}

/// Runs those of the plan's runs whose places are given, several at once, and records each as it finishes. `devices` are those
/// that they name; runs on the same GPU share it, one computing after the other. How the sweep
/// ended is beside the records, in the plan's order: an error where it was ended early.
pub fn run(
    folder: &Folder,
    plan: &Plan,
    places: &[usize],
    options: &Options,
    devices: &Devices,
    observe: Observe,
) -> (Vec<Record>, Result<()>) {
    let scheduler = Scheduler {
        folder,
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
                // Fewer threads than asked for do the same work.
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
    /// One worker: a run after the other, for as long as there are any.
    fn work(&self, results: SyncSender<FinishedRun>) {
        let _ending = StopOnPanic(self);
        while let Some((place, threads)) = self.take() {
            let ended = self.pool(threads).and_then(|pool| {
                let (record, directory) = self.one(&self.plan.runs[place], &pool)?;
                self.check(&record);
                Ok((pool, FinishedRun { place, record, directory }))
            });
            let mut state = self.state.lock().expect("no worker panics with it");
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
                // Nobody records them any more: that thread has panicked, and says so.
                self.stop(Error::Interrupted);
            }
        }
    }

    fn stop(&self, error: Error) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stopped.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Ends the sweep where this run's end shall do that.
    fn check(&self, record: &Record) {
        if self.options.fail_fast && record.status != Status::Ok {
            let reason = record.error.clone().unwrap_or_default();
            let got = format!("run {}: {reason}", record.run);
            self.stop(Error::setting("--fail-fast", "runs that end well", got));
        }
    }

    /// Puts the results of runs in their places and records them, in the order in which they end. Those that end while the
    /// disk is busy go to it together: a run is on the disk as soon as it can be, and thousands of short ones do not wait for
    /// a sync each.
    fn keep(&self, finished: Receiver<FinishedRun>) {
        let _ending = StopOnPanic(self);
        let mut records = RecordWriter::new(&self.folder.path().join("records"));
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
                self.state.lock().expect("no worker panics with it").finished.push((place, record));
            }
        }
    }

    /// The next run, once there are threads for it.
    fn take(&self) -> Option<(usize, usize)> {
        let mut state = self.state.lock().expect("no worker panics with it");
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
            state = self.changed.wait(state).expect("no worker panics with it");
        }
    }

    /// Threads that another run has left, or new ones.
    fn pool(&self, threads: usize) -> Result<ThreadPool> {
        let mut state = self.state.lock().expect("no worker panics with it");
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
        let (mut device, mut directory) = (None, None);
        let (status, error, results, lags) = match output {
            Err(reason) => (Status::Failed, Some(reason), Results::default(), Lags::default()),
            Ok((output, written)) => {
                directory = written;
                let divergence = output.report.diverged.as_ref().map(|at| format!("diverged at {at}"));
                let status = if divergence.is_some() { Status::Diverged } else { Status::Ok };
                device = Some(output.report.device.clone());
                let wall_s = took - output.waited.as_secs_f64();
                (
                    status,
                    divergence,
                    Results::from_output(&output, wall_s),
                    Lags::from_statistics(&output.statistics),
                )
            }
        };
        let command = run.ready.as_ref().map_or(String::new(), |ready| {
            let line = run.row.command_line(ready.command, &run.id);
            // Refused is only what no command line can hold.
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
        };
        Ok((record, directory))
    }

    /// A panic, our own mistake, costs its run and no other.
    fn execute_or_fail(
        &self,
        run: &PlannedRun,
        ready: &Ready,
        pool: &ThreadPool,
    ) -> Result<(RunOutput, Option<ResultsDirectory>)> {
        let execute = AssertUnwindSafe(|| self.execute(run, ready, pool));
        catch_unwind(execute).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Error::setting("nmem", "a run without a mistake in the program", text.to_owned()))
        })
    }

    fn execute(
        &self,
        run: &PlannedRun,
        ready: &Ready,
        pool: &ThreadPool,
    ) -> Result<(RunOutput, Option<ResultsDirectory>)> {
        let mut observe = |_| {
            if self.state.lock().expect("no worker panics with it").stopped.is_some() {
                return Err(Error::Interrupted);
            }
            (self.observe)(SweepEvent::Working)
        };
        let keep = self.options.keep;
        let out = self.folder.run(&run.id);
        let directory = (keep > Keep::None).then(|| ResultsDirectory::open_among(&out, true)).transpose()?;
        let mut config = ready.config.clone();
        config.out = out;
        let device = self.devices.get(config.device).expect("opened for every run that is ready");
        let engine_run = Run {
            command: ready.command,
            config: &config,
            device: &device,
            command_line: run.row.command_line(ready.command, &run.id),
            threads: pool.current_num_threads(),
            pool: Some(pool),
            unstable_ratio: self.options.unstable_ratio,
            opening: 0.0,
        };
        let into = directory.as_ref().map(|directory| (directory.path(), keep));
        let output = engine_run.execute(&ready.inputs, into, &mut observe);
        let output = output.map_err(|error| match &directory {
            Some(directory) => directory.explain(error),
            None => error,
        })?;
        ready.inputs.check_unchanged(false)?;
        Ok((output, directory))
    }
}
