//! What `sweep` takes to run on more than one machine: shards of a sweep, said or taken from an array's environment, and
//! its submission to Slurm.

use std::path::Path;

use super::note;
use crate::config::whole;
use crate::error::{Error, Result};
use crate::sweep::Shard;
use crate::sweep::slurm::{ARRAY_SCRIPT, Job, Request};

/// More tasks than that are rarely wanted, and each has to start; a hunch.
const SHARDS: usize = 16;

/// Shares and Slurm.
#[derive(clap::Args, Debug)]
pub struct ClusterArgs {
    /// Do share I of N only, I from 1 to N: the same runs each time
    #[arg(long, value_name = "I/N", conflicts_with = "no_shard", help_heading = "Shares and Slurm")]
    shard: Option<Shard>,
    /// Do all runs, even in a task of an array
    #[arg(long, help_heading = "Shares and Slurm")]
    no_shard: bool,
    /// Number of shares: of the array that --slurm submits [default: 16, or as many as runs], or of HyperQueue's, whose
    /// HQ_TASK_ID, from 1 on, is then the share
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, conflicts_with = "shard", help_heading = "Shares and Slurm")]
    shards: Option<usize>,
    /// Submit the sweep to Slurm: an array with a share each task, and a job that collects after it
    #[arg(long, conflicts_with_all = ["shard", "no_shard"], help_heading = "Shares and Slurm")]
    slurm: bool,
    /// Print the array's script and submit nothing
    #[arg(long, conflicts_with_all = ["shard", "no_shard"], help_heading = "Shares and Slurm")]
    slurm_dry_run: bool,
    /// Partition of both jobs
    #[arg(long, value_name = "NAME", help_heading = "Shares and Slurm")]
    partition: Option<String>,
    /// Cores of each task, and runs at once on it [default: 1]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Shares and Slurm")]
    cpus_per_task: Option<usize>,
    /// Limit of each task, as sbatch takes it: 30, 2:00:00, 1-12
    #[arg(long, value_name = "TIME", help_heading = "Shares and Slurm")]
    time: Option<String>,
    /// Tasks at once [default: all]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Shares and Slurm")]
    array_parallelism: Option<usize>,
    /// Another option of sbatch for both jobs, as --sbatch-arg=--account=me; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true, help_heading = "Shares and Slurm")]
    sbatch_arg: Vec<String>,
}

impl ClusterArgs {
    /// The shard that this process does, with a line on stderr where the environment says which.
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
            note("note: ", "HQ_TASK_ID is set, but not --shards N: this task does all runs");
        }
        Ok(found.map_or(Shard::WHOLE, |(shard, notice)| {
            if !quiet {
                note("note: ", &notice);
            }
            shard
        }))
    }

    /// Whether the sweep is for Slurm, not for this machine.
    pub fn is_for_slurm(&self) -> bool {
        self.slurm || self.slurm_dry_run
    }

    /// Whether nothing is submitted.
    pub fn is_dry_run(&self) -> bool {
        self.slurm_dry_run
    }

    /// Options of Slurm make no sense without it, and none does where only is `collected`.
    pub fn check(&self, collected: bool) -> Result<()> {
        let sharded = self.shard.is_some() || self.shards.is_some() || self.no_shard;
        if collected && (sharded || self.is_for_slurm()) {
            let expected = "neither shares nor --slurm beside it";
            return Err(Error::setting("--collect", expected, if sharded { "a share" } else { "--slurm" }));
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
            Some((flag, _)) => Err(Error::setting(flag, "--slurm or --slurm-dry-run beside it", "neither")),
            None => Ok(()),
        }
    }

    /// Submits a sweep of so many runs, or only shows what would be; returns what to print. `arguments` are those of
    /// `nmem sweep` that say what is run; `folder` must be a sweep's already, unless only shown.
    pub fn submit(
        &self,
        folder: &Path,
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
        let folder = absolute(folder)?;
        let job = Job {
            program: std::env::current_exe().map_err(Error::io("nmem", "find"))?,
            working_folder: absolute(Path::new("."))?,
            name: folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            folder,
            arguments,
            collect_arguments,
        };
        if self.slurm_dry_run {
            return job.array_script(&request);
        }
        let submitted = job.submit(&request)?;
        Ok(format!(
            "array     job {}, {} shares of {runs} runs\ncollect   job {}, after it\nscripts   {}\n",
            submitted.array,
            request.shards,
            submitted.collect,
            job.folder.join(ARRAY_SCRIPT).display(),
        ))
    }
}

/// Cores that this process may use: those of the Slurm task that it is, or all of the machine that are open to it.
pub fn cores() -> usize {
    let of_machine = std::thread::available_parallelism().map_or(1, usize::from);
    let of_task = std::env::var("SLURM_CPUS_PER_TASK").ok().and_then(|text| text.parse().ok());
    of_task.map_or(of_machine, |cores: usize| cores.clamp(1, of_machine))
}
