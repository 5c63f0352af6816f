//! Grids of runs: what an experiment file asks for ([`Experiment`]), as runs with identities ([`Plan`]), run side by side
//! ([`run`]) into a folder that keeps each as it finishes ([`Folder`], [`Record`]), and tables of all that finished there
//! ([`collect`]). Beyond one machine a process does a shard of them ([`Shard`]), and [`slurm`] starts such processes.
//!
//! The folder:
//!
//! ```text
//! results.csv summary.csv joblog.tsv   (and retention.csv) made anew from the records, whole, whenever a sweep ends or is collected
//! plans/HASH.json                      the runs of each sweep that was started there
//! records/HOST-PID-….jsonl             finished runs, one line each: a file a process, only ever appended to
//! runs/ID/                             a run's own files
//! plots/                               figures of results.csv
//! sweep.sbatch collect.sbatch slurm/   where it was submitted to Slurm: the jobs' scripts and what they printed
//! ```

mod experiment;
mod folder;
mod plan;
mod record;
mod results;
mod row;
mod schedule;
mod shard;
pub mod slurm;
mod tables;
mod values;

pub use experiment::{Experiment, Kind};
pub(crate) use folder::is_figure_of_sweep;
pub use folder::{Collected, DirectoryLock, Folder, collect};
pub use plan::{Plan, PlanEntry, PlanFile, PlannedRun, Ready};
pub use record::{Lags, Record, Records};
pub use results::{Results, Status, UNTIMED};
pub use row::{GridRow, Parameters};
pub use schedule::{Observe, Options, SweepEvent, run};
pub use shard::Shard;
