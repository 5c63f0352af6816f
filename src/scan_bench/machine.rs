//! machine.json: what a benchmark ran on.

use pulp::Arch;
use serde::Serialize;
use sysinfo::{CpuRefreshKind, RefreshKind, System};

use crate::cuda::Description;
use crate::engine::budget::installed_bytes;
use crate::run::commit;

/// The machine and the build. What the system does not tell is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: Option<String>,
    /// Cores, without their second threads.
    pub physical_cores: Option<usize>,
    /// What the operating system schedules on.
    pub logical_cores: usize,
    /// Of the first core (Linux).
    pub caches: Vec<Cache>,
    /// Installed memory, or what a container is allowed of it.
    pub memory_bytes: Option<u64>,
    /// Operating system and version.
    pub os: Option<String>,
    /// Its kernel.
    pub kernel: Option<String>,
    /// Vector instructions chosen at run time.
    pub vector_isa: String,
    /// GPUs, where one of them was used.
    pub gpus: Vec<Description>,
    /// Version of the program.
    pub nmem: &'static str,
    /// Commit that it was built from.
    pub commit: Option<&'static str>,
    /// Compiler that built it.
    pub rustc: &'static str,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1, 2, 3
    pub level: u8,
    /// "Data", "Instruction" or "Unified".
    pub kind: String,
    /// Size.
    pub bytes: u64,
}

impl Machine {
    /// Asks the system.
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

/// What pulp chose, by its customary name.
fn isa() -> String {
    let arch = format!("{:?}", Arch::new());
    match arch.split('(').next().unwrap_or_default() {
        "V4" => "x86-64-v4 (AVX-512)".to_owned(),
        "V3" => "x86-64-v3 (AVX2, FMA)".to_owned(),
        other => other.to_owned(),
    }
}

/// Linux tells in files, other systems are not asked.
fn caches() -> Vec<Cache> {
    let folders = (0..).map(|i| format!("/sys/devices/system/cpu/cpu0/cache/index{i}"));
    folders
        .map_while(|folder| {
            let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).ok();
            let size = read("size")?;
            let kibibytes: u64 = size.trim().strip_suffix('K')?.parse().ok()?;
            let level = read("level")?.trim().parse().ok()?;
            Some(Cache { level, kind: read("type")?.trim().to_owned(), bytes: kibibytes * 1024 })
        })
        .collect()
}
