//! How much memory the process has used at most. Linux tells the largest resident set itself; its anonymous part
//! (without mapped files) only as it is now, so that is sampled between blocks.

use std::time::{Duration, Instant};

/// Reading the process's status takes some 20 µs: at most once in this long.
const INTERVAL: Duration = Duration::from_millis(10);

/// Largest values seen.
#[derive(Debug, Default)]
pub struct PeakMemory {
    sampled: Option<Instant>,
    anonymous: Option<u64>,
    resident: Option<u64>,
}

impl PeakMemory {
    /// Looks, unless it looked a moment ago.
    pub fn sample(&mut self) {
        if self.sampled.is_none_or(|at| at.elapsed() >= INTERVAL) {
            self.sample_now();
        }
    }

    /// Looks.
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

    /// Other systems do not tell.
    #[cfg(not(target_os = "linux"))]
    pub fn sample_now(&mut self) {
        self.sampled = Some(Instant::now());
    }

    /// Bytes without mapped files.
    pub fn anonymous(&self) -> Option<u64> {
        self.anonymous
    }

    /// Bytes altogether.
    pub fn resident(&self) -> Option<u64> {
        self.resident
    }
}
