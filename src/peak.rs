//! The most memory that the process has used. Linux reports the peak of the resident set, but only the current
//! size of its anonymous part (without mapped files). So that part is sampled between blocks.

use std::time::{Duration, Instant};

/// Shortest time between two samples: reading the process's status takes some 20 µs.
const INTERVAL: Duration = Duration::from_millis(10);

/// Largest values seen.
#[derive(Debug, Default)]
pub struct PeakMemory {
    sampled: Option<Instant>,
    anonymous: Option<u64>,
    resident: Option<u64>,
}

impl PeakMemory {
    /// Takes a sample, unless the last one is recent.
    pub fn sample(&mut self) {
        if self.sampled.is_none_or(|at| at.elapsed() >= INTERVAL) {
            self.sample_now();
        }
    }

    /// Takes a sample.
    #[cfg(target_os = "linux")]
    pub fn sample_now(&mut self) {
        let status = procfs::process::Process::myself().and_then(|process| process.status());
        if let Ok(status) = status {
            let bytes = |kibibytes: Option<u64>| kibibytes.map(|k| k * 1024);
            self.anonymous = self.anonymous.max(bytes(status.rssanon));
            self.resident = self.resident.max(bytes(status.vmhwm));
        }
        self.sampled = Some(Instant::now());
    }

    /// Does nothing: other systems do not report these values.
    #[cfg(not(target_os = "linux"))]
    pub fn sample_now(&mut self) {
        self.sampled = Some(Instant::now());
    }

    /// Returns the peak of memory without mapped files, in bytes.
    pub fn anonymous(&self) -> Option<u64> {
        self.anonymous
    }

    /// Returns the peak of the resident set, in bytes.
    pub fn resident(&self) -> Option<u64> {
        self.resident
    }
}
