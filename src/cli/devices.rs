//! `nmem devices`: the devices of this machine that `--device` accepts.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::table::aligned;
use super::{Format, print};
use crate::cuda::{self, Description, Listed, Unusable};
use crate::error::Error;
use crate::scan_bench::Machine;

/// List the devices that --device accepts: the CPU, and the GPUs or the reason why none can be used
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Output on stdout: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "table|json")]
    format: Format,
}

/// Output of `--format json`.
#[derive(Serialize)]
struct DeviceReport {
    cpu: Processor,
    /// Usable GPUs, by index.
    cuda: Vec<Description>,
    /// Unusable GPUs, with the reason.
    cuda_unusable: Vec<Unusable>,
    /// Reason why no GPU can be used.
    cuda_error: Option<String>,
}

#[derive(Serialize)]
struct Processor {
    name: Option<String>,
    /// Number of logical cores, on which the operating system schedules.
    cores: usize,
    vector_isa: String,
    memory_bytes: Option<u64>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Machine { cpu, logical_cores, vector_isa, memory_bytes, .. } = Machine::detect();
    let (Listed { usable, unusable }, cuda_error) = match cuda::list() {
        Ok(listed) if listed.usable.is_empty() => (listed, Some("none can be used".to_owned())),
        Ok(listed) => (listed, None),
        Err(Error::Cuda(reason)) => (Listed::default(), Some(reason)),
        Err(error) => (Listed::default(), Some(error.to_string())),
    };
    let cpu = Processor { name: cpu, cores: logical_cores, vector_isa, memory_bytes };
    let report = DeviceReport { cpu, cuda: usable, cuda_unusable: unusable, cuda_error };
    print(&match args.format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
        Format::Table => report.table(),
    })?;
    Ok(ExitCode::SUCCESS)
}

const HEADINGS: [&str; 7] =
    ["device", "name", "capability", "multiprocessors", "free GiB", "all GiB", "driver's CUDA"];
/// Number of left-aligned text columns; numbers are aligned to the right.
const LEFT: usize = 2;

impl DeviceReport {
    fn table(&self) -> String {
        let gib = |bytes: u64| format!("{:.1}", bytes as f64 / (1_u64 << 30) as f64);
        let dash = || "-".to_owned();
        let Processor { name, cores, vector_isa, memory_bytes } = &self.cpu;
        let name = name.as_deref().unwrap_or("unknown CPU");
        let cpu = [
            "cpu".to_owned(),
            format!("{name}, {cores} cores, {vector_isa}"),
            dash(),
            dash(),
            dash(),
            memory_bytes.map_or_else(dash, gib),
            dash(),
        ];
        let gpus = self.cuda.iter().map(|gpu| {
            let (major, minor) = gpu.compute_capability;
            [
                format!("cuda:{}", gpu.index),
                gpu.name.clone(),
                format!("{major}.{minor}"),
                gpu.multiprocessors.to_string(),
                gib(gpu.free_bytes),
                gib(gpu.bytes),
                gpu.driver.clone(),
            ]
        });
        let rows = [HEADINGS.map(str::to_owned), cpu].into_iter().chain(gpus);
        let rows: Vec<_> = rows.map(|row| row.to_vec()).collect();
        let mut text = String::new();
        for line in aligned(&rows, LEFT) {
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for Unusable { index, error } in &self.cuda_unusable {
            let _ = writeln!(text, "no cuda:{index}: {error}");
        }
        if let Some(reason) = &self.cuda_error {
            let _ = writeln!(text, "no GPU: {reason}");
        }
        text
    }
}
