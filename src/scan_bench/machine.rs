//! machine.json: the machine and the build that ran a benchmark.

use pulp::Arch;
use serde::Serialize;
use sysinfo::{CpuRefreshKind, RefreshKind, System};

use crate::cuda::Description;
use crate::engine::budget::installed_bytes;
use crate::run::commit;

/// The machine and the build. Values that the system does not report are `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: Option<String>,
    /// Physical cores.
    pub physical_cores: Option<usize>,
    /// Logical cores, on which the operating system schedules threads.
    pub logical_cores: usize,
    /// Caches of the first core (Linux only).
    pub caches: Vec<Cache>,
    /// Installed memory in bytes, or a container's limit if that is lower.
    pub memory_bytes: Option<u64>,
    /// Operating system and version.
    pub os: Option<String>,
    /// Version of the kernel.
    pub kernel: Option<String>,
    /// Vector instruction set chosen at run time.
    pub vector_isa: String,
    /// GPUs, if one of them was used.
    pub gpus: Vec<Description>,
    /// Version of the program.
    pub nmem: &'static str,
    /// Commit that the program was built from.
    pub commit: Option<&'static str>,
    /// Compiler that built the program.
    pub rustc: &'static str,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// Level: 1, 2 or 3.
    pub level: u8,
    /// Kind: "Data", "Instruction" or "Unified".
    pub kind: String,
    /// Size in bytes.
    pub bytes: u64,
}

impl Machine {
    /// Queries the system.
    pub fn detect() -> Self {
        let what = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(what).ok();
        let cpu = system.as_ref().and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()));
        Self {
            cpu,
            physical_cores: System::physical_core_count().ok(),
            logical_cores: std::thread::available_parallelism().map_or(1, usize::from),
            caches: caches(),
            memory_bytes: installed_bytes(),
            os: System::long_os_version().ok(),
            kernel: System::kernel_version().ok(),
            vector_isa: isa(),
            gpus: Vec::new(),
            nmem: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            rustc: env!("NMEM_RUSTC"),
        }
    }
}

/// Returns the usual name of the instruction set that pulp chose.
fn isa() -> String {
    let arch = format!("{:?}", Arch::new());
    match arch.split('(').next().unwrap_or_default() {
        "V4" => "x86-64-v4 (AVX-512)".to_owned(),
        "V3" => "x86-64-v3 (AVX2, FMA)".to_owned(),
        other => other.to_owned(),
    }
}

/// Reads the caches from files of Linux; returns none on other systems.
fn caches() -> Vec<Cache> {
    let directories = (0..).map(|i| format!("/sys/devices/system/cpu/cpu0/cache/index{i}"));
    directories
        .map_while(|directory| {
            let read = |name: &str| std::fs::read_to_string(format!("{directory}/{name}")).ok();
            let size = read("size")?;
            let kibibytes: u64 = size.trim().strip_suffix('K')?.parse().ok()?;
            let level = read("level")?.trim().parse().ok()?;
            Some(Cache { level, kind: read("type")?.trim().to_owned(), bytes: kibibytes * 1024 })
        })
        .collect()
}
