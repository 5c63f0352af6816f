//! Sweeps on a real Slurm of one node. If none can be started, the tests are listed as ignored, with the reason
//! on stderr. With `NMEM_REQUIRE_SLURM=1` they fail instead.

mod cluster;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use cluster::Cluster;
use libtest_mimic::{Arguments, Trial};
use ndarray::Array2;
use tempfile::TempDir;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = cluster::missing();
    let required = std::env::var_os("NMEM_REQUIRE_SLURM").is_some_and(|value| value == "1");
    if let (Some(reason), false) = (&missing, arguments.list) {
        eprintln!("tests on a real Slurm: {}: {reason}", if required { "failing" } else { "skipped" });
    }
    let skipped = missing.is_some() && !required;
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(skipped)
    };
    let trials = vec![
        trial("an_array_does_what_one_machine_does", an_array_does_what_one_machine_does),
        trial(
            "a_cancelled_task_is_missing_until_it_is_done_again",
            a_cancelled_task_is_missing_until_it_is_done_again,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A directory with a sequence and an experiment of twelve runs.
struct Sandbox {
    directory: TempDir,
    cluster: Cluster,
}

impl Sandbox {
    fn new(fixed: &str) -> Self {
        let sandbox = Self { directory: tempfile::tempdir().unwrap(), cluster: Cluster::start() };
        let tokens = Array2::from_shape_fn((203, 8), |(i, j)| ((i * 7 + j * 13) % 17) as f32 / 4.0 - 2.0);
        ndarray_npy::write_npy(sandbox.path("tokens.npy"), &tokens).unwrap();
        let text = format!(
            "[fixed]\ndata = \"tokens.npy\"\n{fixed}\n[grid]\nchunk_size = [4, 8, 16]\ndecay = [0.1, 0.5]\nseed = [1, 2]\n"
        );
        std::fs::write(sandbox.path("grid.toml"), text).unwrap();
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn nmem(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_nmem"))
            .args(line.split(' '))
            .current_dir(self.directory.path())
            .env("SLURM_CONF", self.cluster.conf())
            // Like sbatch --export=NONE: jobs inherit nothing of this environment.
            .env("SBATCH_EXPORT", "NONE")
            .output()
            .unwrap()
    }

    /// Runs a command that must end with this status, and returns its stdout and stderr.
    fn ends(&self, line: &str, code: i32) -> String {
        let output = self.nmem(line);
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "nmem {line}: {text}");
        text
    }

    /// Submits a sweep. Returns the ids of the array and of the collecting job.
    fn submit(&self, line: &str) -> (String, String) {
        let text = self.ends(line, 0);
        let ids: Vec<_> = text
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        assert!(ids.len() >= 2, "{text}");
        let id = |script: &str| {
            let shown = self.cluster.run("squeue", ["-h", "-a", "-o", "%F %o"]);
            let line = shown
                .lines()
                .find(|line| line.ends_with(script))
                .unwrap_or_else(|| panic!("{script} in {shown}"));
            line.split(' ').next().unwrap().to_owned()
        };
        let (array, collect) = (id("sweep.sbatch"), id("collect.sbatch"));
        assert!(ids.contains(&&array[..]) && ids.contains(&&collect[..]), "{text}");
        (array, collect)
    }

    /// Returns the output of the jobs.
    fn logs(&self, directory: &str) -> String {
        let logs = std::fs::read_dir(self.path(directory).join("slurm")).unwrap();
        let texts = logs.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
        texts.collect()
    }

    /// Checks that both directories have the same tables and files of runs, apart from timings.
    fn same(&self, one: &str, other: &str) {
        for (name, timed) in
            [("results.csv", ["tokens_per_s", "wall_s"]), ("summary.csv", ["tokens_per_s.", "wall_s."])]
        {
            let [a, b] = [one, other].map(|directory| untimed(&self.path(directory).join(name), &timed));
            assert!(a.len() > 6, "{name}");
            assert_eq!(a, b, "{name}");
        }
        let runs = |directory: &str| {
            let runs = std::fs::read_dir(self.path(directory).join("runs")).unwrap();
            let mut runs: Vec<_> = runs.map(|entry| entry.unwrap().path()).collect();
            runs.sort();
            runs
        };
        let (a, b) = (runs(one), runs(other));
        assert_eq!(a.len(), 12);
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(a.file_name(), b.file_name());
            let read = |run: &Path| std::fs::read(run.join("metrics.csv")).unwrap();
            assert!(read(a) == read(b), "{}", a.display());
        }
    }
}

/// Returns the rows without columns whose names start with these prefixes.
fn untimed(path: &Path, timed: &[&str]) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_path(path).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let kept: Vec<_> =
        (0..rows[0].len()).filter(|&i| !timed.iter().any(|timed| rows[0][i].starts_with(timed))).collect();
    assert!(kept.len() + timed.len() <= rows[0].len(), "{:?}", rows[0]);
    rows.iter().map(|row| kept.iter().map(|&i| row[i].to_owned()).collect()).collect()
}

fn an_array_does_what_one_machine_does() {
    let sandbox = Sandbox::new("");
    sandbox.ends("sweep grid.toml --out here", 0);
    let (array, collect) =
        sandbox.submit("sweep grid.toml --out there --slurm --shards 4 --partition debug --time 5");
    sandbox.cluster.wait_for_jobs();
    for task in 1..=4 {
        assert_eq!(
            sandbox.cluster.job(&format!("{array}_{task}"), "JobState"),
            "COMPLETED",
            "{}",
            sandbox.logs("there")
        );
    }
    assert_eq!(sandbox.cluster.job(&collect, "JobState"), "COMPLETED", "{}", sandbox.logs("there"));
    sandbox.same("here", "there");
    assert_eq!(std::fs::read_dir(sandbox.path("there/records")).unwrap().count(), 4, "one file per shard");
    assert!(sandbox.path("there/plots/loss_before_mean.svg").is_file());
    sandbox.ends("sweep --collect there", 0);
    sandbox.same("here", "there");
}

fn a_cancelled_task_is_missing_until_it_is_done_again() {
    // Long enough that the runs can be interrupted.
    let sandbox = Sandbox::new("repeat = 600");
    sandbox.ends("sweep grid.toml --out here", 0);
    let (array, collect) =
        sandbox.submit("sweep grid.toml --out there --slurm --shards 4 --array-parallelism 1");
    let task = format!("{array}_3");
    sandbox.cluster.wait("a running task", || sandbox.cluster.job(&task, "JobState") == "RUNNING");
    sandbox.cluster.run("scancel", [&task]);
    sandbox.cluster.wait_for_jobs();
    assert_eq!(sandbox.cluster.job(&task, "JobState"), "CANCELLED");
    // The last job reports the missing runs and exits with 1.
    assert_eq!(sandbox.cluster.job(&collect, "ExitCode"), "1:0", "{}", sandbox.logs("there"));
    assert!(sandbox.logs("there").contains("missing"), "{}", sandbox.logs("there"));
    let rows = untimed(&sandbox.path("there/results.csv"), &["tokens_per_s", "wall_s"]).len() - 1;
    assert!((9..12).contains(&rows), "{rows} of 12 runs");
    sandbox.ends("sweep --collect there", 1);

    // Only that shard runs again; the script contains the number of shards.
    let script = sandbox.path("there/sweep.sbatch");
    sandbox.cluster.run("sbatch", ["--array=3", script.to_str().unwrap()]);
    sandbox.cluster.wait_for_jobs();
    sandbox.ends("sweep --collect there", 0);
    sandbox.same("here", "there");
}
