//! Grids of runs. An experiment file ([`Experiment`]) becomes a list of runs with identities ([`Plan`]). They run in parallel
//! ([`run`]), and a directory records each as it finishes ([`SweepDirectory`], [`Record`]). [`collect`] makes tables of them.
//! On several machines each process runs one shard ([`Shard`]), and [`slurm`] starts such processes.
//!
//! Layout of the directory:
//!
//! ```text
//! results.csv summary.csv joblog.tsv   tables (and retention.csv), rebuilt from the records when a sweep ends or is collected
//! plans/HASH.json                      the runs of each sweep that was started there
//! records/HOST-PID-….jsonl             finished runs, one per line; one append-only file per process
//! runs/ID/                             the files of one run
//! plots/                               figures of results.csv
//! sweep.sbatch collect.sbatch slurm/   job scripts and their output, if the sweep was submitted to Slurm
//! ```

mod directory;
mod experiment;
mod plan;
mod record;
mod results;
mod row;
mod schedule;
mod shard;
pub mod slurm;
mod state;
mod tables;
mod values;

pub(crate) use directory::is_figure_of_sweep;
pub use directory::{Collected, DirectoryLock, SweepDirectory, collect};
pub use experiment::{Experiment, Kind};
pub use plan::{Plan, PlanEntry, PlanFile, PlannedRun, Ready};
pub use record::{Lags, Record, Records};
pub use results::{Results, Status, UNTIMED};
pub use row::{GridRow, Parameters, condition_on_row};
pub use schedule::{Observe, Options, SweepEvent, run};
pub use shard::Shard;
pub use state::{RerunIf, RunState};
pub use tables::{Means, TableRow};
