//! Disks that lose power or fill up, and killed processes, tested on the program from outside. The tests need
//! root to mount file systems; without it they are listed as ignored. `just kills` runs those that take long.

#[path = "../support/sandbox.rs"]
mod sandbox;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use sandbox::{Sandbox, Table, shipped, tokens};

fn main() -> ExitCode {
    let required = std::env::var_os("NMEM_REQUIRE_MOUNT").is_some();
    let can_mount = Mounted::tmpfs("1m").is_ok() || required;
    let can_loop = Mounted::ext4(&Sandbox::new().path("image")).is_ok();
    let test = |name: &str, run: fn() -> Result<(), Failed>, possible: bool| {
        Trial::test(name, run).with_ignored_flag(!possible)
    };
    let tests = vec![
        test("a_power_loss_after_the_end_loses_nothing", a_power_loss_after_the_end_loses_nothing, can_loop),
        test("a_power_loss_after_a_sweep_loses_nothing", a_power_loss_after_a_sweep_loses_nothing, can_loop),
        test("a_sweep_on_a_full_disk_resumes", a_sweep_on_a_full_disk_resumes, can_mount),
        test("fifty_kills_lose_nothing", fifty_kills_lose_nothing, false),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn command(program: &str, words: &[&str]) -> Result<(), Failed> {
    let output = Command::new(program).args(words).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// A mounted file system, unmounted on drop.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn mount(words: &[&str]) -> Result<Self, Failed> {
        let place = tempfile::tempdir()?;
        command("mount", &[words, &[&place.path().display().to_string()]].concat())?;
        Ok(Self(place))
    }

    fn tmpfs(size: &str) -> Result<Self, Failed> {
        Self::mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    /// Creates the image if it does not exist. Its journal is committed every second.
    fn ext4(image: &Path) -> Result<Self, Failed> {
        let name = image.display().to_string();
        if !image.exists() {
            fs::File::create(image)?.set_len(64 << 20)?;
            command("mkfs.ext4", &["-q", "-F", &name])?;
        }
        Self::mount(&["-o", "loop,commit=1", &name])
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Simulates a loss of power, after the journal has had time to commit renames.
    fn lose_power(self) {
        std::thread::sleep(Duration::from_millis(2500));
        let directory = fs::File::open(self.path()).unwrap();
        // EXT4_IOC_SHUTDOWN (linux/fs/ext4/ext4.h), without flushing the log.
        let without_flush: u32 = 2;
        // SAFETY: the descriptor is open, and the argument is a u32 that lives as long as the call.
        let done = unsafe {
            libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&directory), 0x8004_587d, &raw const without_flush)
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let place = self.path().display().to_string();
        let _ = Command::new("umount").arg(place).stderr(Stdio::null()).status();
    }
}

/// Returns the files below a directory with their sizes.
fn sizes(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(sizes(&entry.path()));
        } else {
            found.push((entry.path(), entry.metadata().unwrap().len()));
        }
    }
    found
}

fn passages() -> String {
    let [data, memory] =
        ["data/passages.npy", "data/passages.safetensors"].map(|name| shipped(name).display().to_string());
    format!("{data} --memory {memory} --chunk-size 16")
}

/// A loss of power after the end of a run loses neither a new directory nor a replaced one.
fn a_power_loss_after_the_end_loses_nothing() -> Result<(), Failed> {
    let sandbox = Sandbox::new();
    for replaced in [false, true] {
        let image = sandbox.path(&format!("image-{replaced}"));
        let mounted = Mounted::ext4(&image)?;
        let line = format!("store {} --out {}/out -q", passages(), mounted.path().display());
        if replaced {
            sandbox.ok(&format!("{line} --decay 0.1"));
            command("sync", &[])?;
        }
        sandbox.ok(&format!("{line} --decay 0.7 --force"));
        let expected = sizes(&mounted.path().join("out")).len();
        let before = fs::read(mounted.path().join("out/metrics.csv"))?;
        mounted.lose_power();
        let mounted = Mounted::ext4(&image)?;
        let found = sizes(mounted.path().join("out").as_path());
        assert!(found.len() == expected && found.iter().all(|(_, size)| *size > 0), "{found:?}");
        assert_eq!(fs::read(mounted.path().join("out/metrics.csv"))?, before);
    }
    Ok(())
}

fn a_power_loss_after_a_sweep_loses_nothing() -> Result<(), Failed> {
    let sandbox = sweep_sandbox(20);
    let image = sandbox.path("image");
    let mounted = Mounted::ext4(&image)?;
    sandbox.ok(&format!("sweep grid.toml --out {}/out -q", mounted.path().display()));
    mounted.lose_power();
    let mounted = Mounted::ext4(&image)?;
    let out = mounted.path().join("out");
    let empty: Vec<_> =
        sizes(&out).into_iter().filter(|(path, size)| *size == 0 && !path.ends_with(".lock")).collect();
    assert!(empty.is_empty(), "{empty:?}");
    let output = sandbox.ok(&format!("sweep grid.toml --out {}", out.display()));
    assert!(output.out.starts_with("runs             20: 20 done before, 0 run now\n"), "{}", output.out);
    Ok(())
}

fn sweep_sandbox(runs: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 1));
    sandbox.file(
        "grid.toml",
        format!("data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[grid]\nseed = 'range(0, {runs})'\n"),
    );
    sandbox
}

/// The disk fills up at a different point each time and then has space again. The sweep resumes, whatever
/// happened to its records.
fn a_sweep_on_a_full_disk_resumes() -> Result<(), Failed> {
    let sandbox = sweep_sandbox(40);
    for kilobytes in (40..240).step_by(10) {
        let mounted = Mounted::tmpfs(&format!("{kilobytes}k"))?;
        let line = format!("sweep grid.toml --out {}/out --no-plots -q -j", mounted.path().display());
        let output = sandbox.run(&format!("{line} 8"));
        assert!(
            matches!(output.code, Some(0..=2)) && !output.err.contains("--force"),
            "{kilobytes}k: {}",
            output.err
        );
        command("mount", &["-o", "remount,size=20m", &mounted.path().display().to_string()])?;
        let output = sandbox.ok(&format!("{line} 2"));
        assert!(output.err.is_empty(), "{kilobytes}k: {}", output.err);
        let hidden: Vec<_> = sizes(mounted.path())
            .into_iter()
            .filter(|(path, _)| path.display().to_string().contains(".nmem-"))
            .collect();
        assert!(hidden.is_empty(), "{kilobytes}k: {hidden:?}");
    }
    Ok(())
}

/// Runs 200 runs with 50 kills. In the end every run exists once, with the results of an uninterrupted sweep.
fn fifty_kills_lose_nothing() -> Result<(), Failed> {
    let sandbox = sweep_sandbox(200);
    // Each run computes 21 times, so that 50 kills hit runs.
    let line = "sweep grid.toml repeat=20 --no-plots -q --out";
    let mut kills = 0;
    for n in 0..50_u64 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nmem"));
        command.args(line.split(' ')).arg("out").current_dir(sandbox.path(".")).stderr(Stdio::null());
        let mut child = command.spawn()?;
        std::thread::sleep(Duration::from_millis(20 + n * 7919 % 180));
        if child.try_wait()?.is_none() {
            child.kill()?;
            kills += 1;
        }
        child.wait()?;
    }
    println!("{kills} of 50 were killed before their end");
    sandbox.ok(&format!("{line} out"));
    sandbox.ok(&format!("{line} whole"));
    let rows = |name: &str| {
        let Table { header, rows } = sandbox.csv(&format!("{name}/results.csv"));
        let kept: Vec<_> =
            (0..header.len()).filter(|&i| !["tokens_per_s", "wall_s"].contains(&&*header[i])).collect();
        rows.iter().map(|row| kept.iter().map(|&i| row[i].clone()).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    assert!(rows("out").len() == 200 && rows("out") == rows("whole"));
    assert_eq!(sandbox.names("out/runs"), sandbox.names("whole/runs"));
    assert_eq!(sandbox.names("out"), sandbox.names("whole"));
    Ok(())
}
