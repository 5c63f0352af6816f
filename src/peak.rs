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
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            self.anonymous = self.anonymous.max(bytes(&status, "RssAnon:"));
            self.resident = self.resident.max(bytes(&status, "VmHWM:"));
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

/// Returns the bytes in a line of `/proc/self/status`, such as `VmHWM:     3964 kB`.
#[cfg(any(target_os = "linux", test))]
fn bytes(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn a_line_of_the_status_is_in_bytes() {
        let status = "Name:\tnmem\nVmHWM:\t    3964 kB\nRssAnon:\t  17 kB\nThreads:\t2\n";
        assert_eq!(bytes(status, "VmHWM:"), Some(3964 << 10));
        assert_eq!(bytes(status, "RssAnon:"), Some(17 << 10));
        assert_eq!(bytes(status, "Threads:"), None);
        assert_eq!(bytes(status, "RssFile:"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_reports_both() {
        let mut peak = super::PeakMemory::default();
        peak.sample_now();
        assert!(peak.anonymous().unwrap() > 0 && peak.resident() >= peak.anonymous());
    }
}
