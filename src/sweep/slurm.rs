//! A sweep as a Slurm array: its self-contained scripts and their submission. Each task runs one shard. A second job waits
//! for all tasks, even failed ones, and collects the results.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::storage;

/// Resources requested from Slurm.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of tasks in the array.
    pub shards: usize,
    /// Number of tasks at once; all if `None`.
    pub parallelism: Option<usize>,
    /// Number of cores per task, and of runs at once in it.
    pub cpus_per_task: usize,
    /// Partition; the site's default if `None`.
    pub partition: Option<String>,
    /// Time limit of a task, in the format of sbatch.
    pub time: Option<String>,
    /// Additional options of sbatch for both jobs.
    pub sbatch_args: Vec<String>,
}

/// Program and arguments of the jobs.
#[derive(Clone, Debug)]
pub struct Job {
    /// Path of this program.
    pub program: PathBuf,
    /// Directory that paths on the command line are relative to.
    pub working_directory: PathBuf,
    /// Directory of the sweep; must exist when the job is submitted.
    pub directory: PathBuf,
    /// Name of the sweep, shown in the queue.
    pub name: String,
    /// Arguments of `nmem sweep`, without the directory, the shard and -j.
    pub arguments: Vec<String>,
    /// Additional arguments of `nmem sweep --collect DIR`.
    pub collect_arguments: Vec<String>,
}

/// Ids of the submitted jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Id of the array.
    pub array: String,
    /// Id of the job that collects.
    pub collect: String,
}

/// Name of the array's script in the sweep's directory.
pub const ARRAY_SCRIPT: &str = "sweep.sbatch";
/// Name of the second job's script.
pub const COLLECT_SCRIPT: &str = "collect.sbatch";
/// Name of the directory for the jobs' output, in the sweep's directory.
pub const LOGS: &str = "slurm";

/// Text of a script that is being written.
struct Script(String);

impl Script {
    fn new(title: &str) -> Self {
        Self(format!("#!/bin/sh\n# {title}\n"))
    }

    /// Appends an option for sbatch, which reads quotes like a shell.
    fn directive(&mut self, option: &str, value: &str) -> Result<()> {
        let value = quoted(value)?;
        let _ = writeln!(self.0, "#SBATCH --{option}={value}");
        Ok(())
    }

    fn directives(&mut self, request: &Request) -> Result<()> {
        if let Some(partition) = &request.partition {
            self.directive("partition", partition)?;
        }
        for argument in &request.sbatch_args {
            let name = argument.split('=').next().unwrap_or_default();
            // sbatch also accepts abbreviations of its options.
            let own =
                ["--array", "--dependency", "--wrap", "--parsable"].iter().any(|own| own.starts_with(name))
                    || ["-a", "-d"].iter().any(|short| name.starts_with(short));
            // sbatch would read a name with spaces as one word.
            if !argument.starts_with('-') || own || name.contains(char::is_whitespace) {
                let expected = "an option of sbatch that nmem does not set itself, such as --mem=4G";
                return Err(Error::setting("--sbatch-arg", expected, argument));
            }
            let _ = writeln!(self.0, "#SBATCH {}", quoted(argument)?);
        }
        Ok(())
    }
}

impl Job {
    /// Returns the script of the array.
    pub fn array_script(&self, request: &Request) -> Result<String> {
        let mut script = Script::new(
            "Each task runs one shard of a sweep. Submit again to do missing runs; --array selects shards.",
        );
        script.directive("job-name", &format!("nmem-{}", self.name))?;
        let at_once = request.parallelism.map_or_else(String::new, |tasks| format!("%{tasks}"));
        script.directive("array", &format!("1-{}{at_once}", request.shards))?;
        script.directive("cpus-per-task", &request.cpus_per_task.to_string())?;
        if let Some(time) = &request.time {
            script.directive("time", time)?;
        }
        script.directive("output", &self.log("%A_%a.log")?)?;
        script.directives(request)?;
        let mut line = self.line(&self.arguments)?;
        let _ = write!(line, " --out {}", path(&self.directory)?);
        let _ = write!(
            line,
            " --shard \"$SLURM_ARRAY_TASK_ID/{}\" -j \"${{SLURM_CPUS_PER_TASK:-1}}\"",
            request.shards
        );
        self.finish(script, &line)
    }

    /// Returns the script of the job that collects.
    pub fn collect_script(&self, request: &Request) -> Result<String> {
        let mut script = Script::new("Merges the shards of a sweep, draws figures, and lists missing runs.");
        script.directive("job-name", &format!("nmem-{}-collect", self.name))?;
        script.directive("output", &self.log("%j_collect.log")?)?;
        script.directives(request)?;
        let mut line = self.line(&self.collect_arguments)?;
        let _ = write!(line, " --collect {}", path(&self.directory)?);
        self.finish(script, &line)
    }

    /// Returns the path of a log, with % escaped, because Slurm replaces patterns that begin with it.
    fn log(&self, name: &str) -> Result<String> {
        let directory = utf8(&self.directory)?.replace('%', "%%");
        Ok(format!("{directory}/{LOGS}/{name}"))
    }

    fn line(&self, arguments: &[String]) -> Result<String> {
        let mut line = format!("exec {} sweep", path(&self.program)?);
        for argument in arguments {
            let _ = write!(line, " {}", quoted(argument)?);
        }
        Ok(line)
    }

    fn finish(&self, Script(mut text): Script, line: &str) -> Result<String> {
        let _ = writeln!(text, "\ncd -- {} || exit 2\n{line}", path(&self.working_directory)?);
        Ok(text)
    }

    /// Writes both scripts into the directory and submits them.
    pub fn submit(&self, request: &Request) -> Result<Submitted> {
        let logs = self.directory.join(LOGS);
        storage::create_directories(&logs)?;
        let scripts = [
            (self.directory.join(ARRAY_SCRIPT), self.array_script(request)?),
            (self.directory.join(COLLECT_SCRIPT), self.collect_script(request)?),
        ];
        for (path, text) in &scripts {
            storage::replace(path, text.as_bytes())?;
        }
        let array = sbatch(&[], &scripts[0].0)?;
        let collect =
            sbatch(&[format!("--dependency=afterany:{array}")], &scripts[1].0).map_err(|error| {
                let reason = format!(
                    "submitted job {array}, but not the job that collects ({error}); run nmem sweep --collect by hand"
                );
                Error::rejected("--slurm", reason)
            })?;
        Ok(Submitted { array, collect })
    }
}

/// Submits a script and returns the id of its job.
fn sbatch(options: &[String], script: &Path) -> Result<String> {
    let reject = |problem: String| {
        Error::rejected(
            "--slurm",
            format!("sbatch failed: {problem} (--slurm-dry-run only prints the script)"),
        )
    };
    let output = Command::new("sbatch").arg("--parsable").args(options).arg(script).output();
    let output = output.map_err(|error| reject(error.to_string()))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // "ID" or "ID;CLUSTER".
    let id = out.trim().split(';').next().unwrap_or_default();
    if output.status.success() && !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(id.to_owned())
    } else if output.status.success() {
        Err(reject(format!("it printed no job id but {:?}", out.trim())))
    } else {
        Err(reject(format!("{}: {}", output.status, err.split_whitespace().collect::<Vec<_>>().join(" "))))
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::rejected("--slurm", format!("{} is not UTF-8; rename it", path.display())))
}

fn path(path: &Path) -> Result<String> {
    quoted(utf8(path)?)
}

/// Quotes text for a shell and for sbatch, whose parser of options knows quotes but not every rule of a shell.
fn quoted(text: &str) -> Result<String> {
    if text.contains(['\'', '"', '\\', '\n', '\r', '\0']) {
        let expected = "paths and arguments without quotes, backslashes or line breaks";
        return Err(Error::setting("--slurm", expected, text));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    let bare = !text.is_empty() && text.chars().all(plain);
    Ok(if bare { text.to_owned() } else { format!("'{text}'") })
}

#[cfg(test)]
mod tests {
    use super::{Job, Request};

    fn job() -> Job {
        Job {
            program: "/opt/nmem 1/nmem".into(),
            working_directory: "/home/a".into(),
            directory: "/scratch/100%/sweep".into(),
            name: "chunk-size".to_owned(),
            arguments: ["/home/a/sweep.toml", "decay=range(0,3)"].map(str::to_owned).to_vec(),
            collect_arguments: ["--x", "decay"].map(str::to_owned).to_vec(),
        }
    }

    fn request() -> Request {
        Request {
            shards: 4,
            parallelism: Some(2),
            cpus_per_task: 8,
            partition: Some("debug".to_owned()),
            time: Some("1-00:30".to_owned()),
            sbatch_args: vec!["--mem=4G".to_owned(), "--comment=a b".to_owned()],
        }
    }

    #[test]
    fn scripts_hold_what_they_need() {
        let script = job().array_script(&request()).unwrap();
        assert_eq!(
            script,
            "#!/bin/sh\n\
             # Each task runs one shard of a sweep. Submit again to do missing runs; --array selects shards.\n\
             #SBATCH --job-name=nmem-chunk-size\n\
             #SBATCH --array=1-4%2\n\
             #SBATCH --cpus-per-task=8\n\
             #SBATCH --time=1-00:30\n\
             #SBATCH --output=/scratch/100%%/sweep/slurm/%A_%a.log\n\
             #SBATCH --partition=debug\n\
             #SBATCH --mem=4G\n\
             #SBATCH '--comment=a b'\n\
             \n\
             cd -- /home/a || exit 2\n\
             exec '/opt/nmem 1/nmem' sweep /home/a/sweep.toml 'decay=range(0,3)' --out /scratch/100%/sweep \
             --shard \"$SLURM_ARRAY_TASK_ID/4\" -j \"${SLURM_CPUS_PER_TASK:-1}\"\n"
        );
        let script = job().collect_script(&request()).unwrap();
        assert!(
            script.ends_with("exec '/opt/nmem 1/nmem' sweep --x decay --collect /scratch/100%/sweep\n"),
            "{script}"
        );
        assert!(script.contains("#SBATCH --mem=4G\n") && !script.contains("--array"), "{script}");
    }

    #[test]
    fn text_that_sbatch_could_misread_is_rejected() {
        let mut odd = job();
        odd.directory = "/home/o'hara".into();
        let message = odd.array_script(&request()).unwrap_err().to_string();
        assert_eq!(
            message,
            "--slurm: expected paths and arguments without quotes, backslashes or line breaks, got /home/o'hara/slurm/%A_%a.log"
        );
        for argument in [
            "mem=4G",
            "--array=1-9",
            "-a",
            "--dependency=afterok:1",
            "--arr=1-9",
            "--d=1",
            "--wra=id",
            "--",
            "-",
        ] {
            let request = Request { sbatch_args: vec![argument.to_owned()], ..request() };
            let message = job().array_script(&request).unwrap_err().to_string();
            assert!(message.starts_with("--sbatch-arg: expected an option of sbatch"), "{message}");
        }
    }
}
