//! A Slurm of one node, started for a test and stopped with it: munged, slurmctld and slurmd on loopback, with
//! all their files in one directory.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Returns the reason why Slurm cannot be started here; `None` if it can.
pub fn missing() -> Option<String> {
    let programs = ["munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo"];
    let paths: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin".into()])
        .collect();
    let absent = programs.into_iter().find(|program| !paths.iter().any(|path| path.join(program).is_file()));
    let root = || Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    match absent {
        Some(program) => Some(format!("{program} is not installed")),
        None if !root() => Some("slurmd needs root".to_owned()),
        None => None,
    }
}

/// Daemons that run until this is dropped.
pub struct Cluster {
    directory: TempDir,
}

impl Cluster {
    pub fn start() -> Self {
        let this = Self { directory: tempfile::Builder::new().prefix("nmem-slurm-").tempdir().unwrap() };
        this.run("chmod", ["755", this.text(".")]);
        for name in ["state", "spool", "log", "munge"] {
            std::fs::create_dir(this.path(name)).unwrap();
        }
        let hostname = this.run("hostname", ["-s"]);
        let [control_port, node_port] = free_ports();
        let cpus = std::thread::available_parallelism().unwrap().to_string();
        let conf = include_str!("slurm.conf")
            .replace("@DIR@", this.text(".").trim_end_matches("/."))
            .replace("@HOST@", hostname.trim())
            .replace("@CONTROL_PORT@", &control_port.to_string())
            .replace("@NODE_PORT@", &node_port.to_string())
            .replace("@CPUS@", &cpus);
        std::fs::write(this.path("slurm.conf"), conf).unwrap();
        std::fs::write(this.path("cgroup.conf"), "CgroupAutomount=no\n").unwrap();

        let key: Vec<u8> = (0..128_u32).map(|i| (i.wrapping_mul(std::process::id()) >> 3) as u8).collect();
        std::fs::write(this.path("munge/munge.key"), key).unwrap();
        this.run("chmod", ["600", this.text("munge/munge.key")]);
        let file = |flag: &str, name: &str| format!("--{flag}={}", this.text(name));
        this.run(
            "/usr/sbin/munged",
            [
                "--force".to_owned(),
                file("key-file", "munge/munge.key"),
                file("socket", "munge/munge.sock"),
                file("pid-file", "munge/munged.pid"),
                file("log-file", "munge/munged.log"),
                file("seed-file", "munge/munged.seed"),
            ],
        );
        this.run("/usr/sbin/slurmctld", ["-c"]);
        this.run("/usr/sbin/slurmd", ["-N", hostname.trim()]);
        this.wait("an idle node", || this.try_run("sinfo", ["-h", "-o", "%T"]).stdout == b"idle\n");
        this
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> &'static str {
        // A test leaks only a handful of short names.
        self.path(name).to_str().unwrap().to_owned().leak()
    }

    /// Returns the configuration file for commands.
    pub fn conf(&self) -> PathBuf {
        self.path("slurm.conf")
    }

    fn try_run<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Output {
        Command::new(program).args(arguments).env("SLURM_CONF", self.conf()).output().unwrap()
    }

    /// Runs a command that must succeed, and returns its stdout.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> String {
        let output = self.try_run(program, arguments);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{program}: {}{}", text(&output.stderr), self.logs());
        text(&output.stdout)
    }

    /// Polls for at most two minutes.
    pub fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_mins(2), "{what} in two minutes{}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until no job is queued or running.
    pub fn wait_for_jobs(&self) {
        self.wait("an empty queue", || self.run("squeue", ["-h"]).is_empty());
    }

    /// Returns a field of a job or of an array task, as scontrol prints it.
    pub fn job(&self, id: &str, field: &str) -> String {
        let shown = self.run("scontrol", ["-o", "show", "job", id]);
        let value = shown.split_whitespace().find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{field} in {shown}")).to_owned()
    }

    fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("\n{name}:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        tail("log/slurmctld.log") + &tail("log/slurmd.log")
    }

    fn pid(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path(name)).ok()?;
        Some(text.trim().to_owned())
            .filter(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

impl Drop for Cluster {
    /// Stops the daemons by their pid files; they would outlive the test otherwise.
    fn drop(&mut self) {
        let gone = |pid: &String| !Path::new("/proc").join(pid).exists();
        let pause = || std::thread::sleep(Duration::from_millis(50));
        let daemons = ["slurmctld.pid", "slurmd.pid"].map(|name| self.pid(name));
        if daemons.iter().all(Option::is_some) {
            self.try_run("scancel", ["--user=root"]);
            (0..100).take_while(|_| !self.try_run("squeue", ["-h"]).stdout.is_empty()).for_each(|_| pause());
        }
        for pid in daemons.iter().flatten() {
            self.try_run("kill", ["-TERM", pid]);
        }
        for pid in daemons.iter().flatten() {
            (0..200).take_while(|_| !gone(pid)).for_each(|_| pause());
            if !gone(pid) {
                self.try_run("kill", ["-KILL", pid]);
            }
        }
        if let Some(pid) = self.pid("munge/munged.pid") {
            self.try_run("kill", ["-TERM", &pid]);
            (0..100).take_while(|_| !gone(&pid)).for_each(|_| pause());
        }
    }
}

/// Returns two ports on which nothing listens.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
