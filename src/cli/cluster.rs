//! Options of `sweep` for more than one machine. A process runs one shard, named by a flag or by an array's environment.
//! A sweep can also be submitted to Slurm.

use std::path::Path;

use super::note;
use crate::config::whole;
use crate::error::{Error, Result};
use crate::sweep::Shard;
use crate::sweep::slurm::{ARRAY_SCRIPT, Job, Request};

/// Default limit of tasks in an array. Each task has a start-up cost, and more are rarely useful. The value is a guess.
const SHARDS: usize = 16;

/// Options for shards and Slurm.
#[derive(clap::Args, Debug)]
pub struct ClusterArgs {
    /// Run only shard I of N, with I from 1 to N. A shard always has the same runs
    #[arg(long, value_name = "I/N", conflicts_with = "no_shard", help_heading = "Shards and Slurm")]
    shard: Option<Shard>,
    /// Run everything, even in a task of an array
    #[arg(long, help_heading = "Shards and Slurm")]
    no_shard: bool,
    /// Number of shards. With --slurm, the size of the array [default: 16, or the number of runs if that is smaller]. In
    /// a HyperQueue task, HQ_TASK_ID (1 to N) selects the shard
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, conflicts_with = "shard", help_heading = "Shards and Slurm")]
    shards: Option<usize>,
    /// Submit the sweep to Slurm: an array with one shard per task, then a job that collects the results
    #[arg(long, conflicts_with_all = ["shard", "no_shard"], help_heading = "Shards and Slurm")]
    slurm: bool,
    /// Print the array's script without submitting it
    #[arg(long, conflicts_with_all = ["shard", "no_shard"], help_heading = "Shards and Slurm")]
    slurm_dry_run: bool,
    /// Slurm partition of both jobs
    #[arg(long, value_name = "NAME", help_heading = "Shards and Slurm")]
    partition: Option<String>,
    /// Number of cores per task, and of runs at once in it [default: 1]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Shards and Slurm")]
    cpus_per_task: Option<usize>,
    /// Time limit of each task in the format of sbatch: 30, 2:00:00, 1-12
    #[arg(long, value_name = "TIME", help_heading = "Shards and Slurm")]
    time: Option<String>,
    /// Number of tasks that run at once [default: all]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Shards and Slurm")]
    array_parallelism: Option<usize>,
    /// Additional sbatch option for both jobs, for example --sbatch-arg=--account=me. Can be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true, help_heading = "Shards and Slurm")]
    sbatch_arg: Vec<String>,
}

impl ClusterArgs {
    /// Returns the shard that this process runs. Prints a note on stderr if the environment selects it.
    pub fn shard(&self, quiet: bool) -> Result<Shard> {
        if let Some(shard) = self.shard {
            return Ok(shard);
        }
        if self.no_shard {
            return Ok(Shard::WHOLE);
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let found = Shard::of_environment(self.shards, variable)?;
        if found.is_none() && !quiet && variable("HQ_TASK_ID").is_some() {
            note("note: ", "HQ_TASK_ID is set without --shards N, so this task runs the whole sweep");
        }
        Ok(found.map_or(Shard::WHOLE, |(shard, notice)| {
            if !quiet {
                note("note: ", &notice);
            }
            shard
        }))
    }

    /// Returns whether the sweep is meant for Slurm instead of this machine.
    pub fn is_for_slurm(&self) -> bool {
        self.slurm || self.slurm_dry_run
    }

    /// Returns whether the submission is only printed.
    pub fn is_dry_run(&self) -> bool {
        self.slurm_dry_run
    }

    /// Rejects Slurm's options without `--slurm`, and all options of this group if results are only `collected`.
    pub fn check(&self, collected: bool) -> Result<()> {
        let sharded = self.shard.is_some() || self.shards.is_some() || self.no_shard;
        if collected && (sharded || self.is_for_slurm()) {
            let other = if sharded { "the options of a shard" } else { "--slurm" };
            return Err(Error::rejected("--collect", format!("cannot be combined with {other}")));
        }
        if self.is_for_slurm() {
            for (flag, number) in [
                ("--shards", self.shards),
                ("--cpus-per-task", self.cpus_per_task),
                ("--array-parallelism", self.array_parallelism),
            ] {
                if number == Some(0) {
                    return Err(Error::setting(flag, "at least 1", "0"));
                }
            }
            return Ok(());
        }
        let given = [
            ("--partition", self.partition.is_some()),
            ("--cpus-per-task", self.cpus_per_task.is_some()),
            ("--time", self.time.is_some()),
            ("--array-parallelism", self.array_parallelism.is_some()),
            ("--sbatch-arg", !self.sbatch_arg.is_empty()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::rejected(flag, "needs --slurm or --slurm-dry-run")),
            None => Ok(()),
        }
    }

    /// Submits a sweep of `runs` runs, or only renders its script. Returns the text to print.
    ///
    /// `arguments` are the arguments of `nmem sweep` that select the runs. Unless the script is only rendered, `directory`
    /// must already be a sweep's directory.
    pub fn submit(
        &self,
        directory: &Path,
        runs: usize,
        arguments: Vec<String>,
        collect_arguments: Vec<String>,
    ) -> Result<String> {
        let request = Request {
            shards: self.shards.unwrap_or_else(|| runs.clamp(1, SHARDS)),
            parallelism: self.array_parallelism,
            cpus_per_task: self.cpus_per_task.unwrap_or(1),
            partition: self.partition.clone(),
            time: self.time.clone(),
            sbatch_args: self.sbatch_arg.clone(),
        };
        let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io(path, "find"));
        let directory = absolute(directory)?;
        let job = Job {
            program: std::env::current_exe().map_err(Error::io("nmem", "find"))?,
            working_directory: absolute(Path::new("."))?,
            name: directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            directory,
            arguments,
            collect_arguments,
        };
        if self.slurm_dry_run {
            return job.array_script(&request);
        }
        let submitted = job.submit(&request)?;
        Ok(format!(
            "array     job {}, {} shards of {runs} runs\ncollect   job {}, after it\nscripts   {}\n",
            submitted.array,
            request.shards,
            submitted.collect,
            job.directory.join(ARRAY_SCRIPT).display(),
        ))
    }
}

/// Returns the number of cores this process may use: those of its Slurm task, or all that the machine allows it.
pub fn cores() -> usize {
    let of_machine = std::thread::available_parallelism().map_or(1, usize::from);
    let of_task = std::env::var("SLURM_CPUS_PER_TASK").ok().and_then(|text| text.parse().ok());
    of_task.map_or(of_machine, |cores: usize| cores.clamp(1, of_machine))
}
