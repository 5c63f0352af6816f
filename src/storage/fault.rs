//! Faults on demand. A debug build whose environment has `NMEM_FAULT=KIND:N:MARKER` counts its operations on the disk, and
//!
//! - `fail`: the N-th fails as by a defect of the disk;
//! - `full`: from the N-th on every write fails as on a full disk, the first one half done;
//! - `stop`: the process ends before the N-th as if it were killed;
//! - `panic`: the N-th panics;
//! - `noswap`: swaps of two directories are unknown to the system, and the process ends before the N-th operation.
//!
//! A file MARKER is created when that happens, so that a test knows when it has tried every N. Release builds have none of this.

use std::io;

#[cfg(debug_assertions)]
mod plan {
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        Fail,
        Full,
        Stop,
        Panic,
        NoSwap,
    }

    pub struct Plan {
        pub kind: Kind,
        at: u64,
        marker: PathBuf,
    }

    static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
        let text = std::env::var("NMEM_FAULT").ok()?;
        let (kind, rest) = text.split_once(':')?;
        let (at, marker) = rest.split_once(':')?;
        let kind = match kind {
            "fail" => Kind::Fail,
            "full" => Kind::Full,
            "stop" => Kind::Stop,
            "panic" => Kind::Panic,
            "noswap" => Kind::NoSwap,
            _ => return None,
        };
        Some(Plan { kind, at: at.parse().ok()?, marker: marker.into() })
    });
    static REACHED: AtomicU64 = AtomicU64::new(0);

    impl Plan {
        /// Counts an operation; its number and the plan where there is one.
        pub fn count() -> Option<(u64, &'static Self)> {
            let plan = PLAN.as_ref()?;
            Some((REACHED.fetch_add(1, Ordering::SeqCst) + 1, plan))
        }

        /// Whether this operation is the one; or, of a full disk, one after it.
        pub fn strikes(&self, number: u64) -> bool {
            if number == self.at {
                let _ = std::fs::write(&self.marker, "");
                match self.kind {
                    Kind::Stop | Kind::NoSwap => std::process::abort(),
                    Kind::Panic => panic!("injected by a test"),
                    Kind::Fail | Kind::Full => {}
                }
            }
            number == self.at || self.kind == Kind::Full && number > self.at
        }

        pub fn has_no_swap() -> bool {
            PLAN.as_ref().is_some_and(|plan| plan.kind == Kind::NoSwap)
        }

        pub fn is_first(&self, number: u64) -> bool {
            number == self.at
        }
    }
}

/// Passes an operation other than a write.
#[cfg(debug_assertions)]
pub fn reach() -> io::Result<()> {
    let Some((number, plan)) = plan::Plan::count() else { return Ok(()) };
    if plan.strikes(number) && plan.kind == plan::Kind::Fail {
        return Err(io::Error::other("fault injected by a test"));
    }
    Ok(())
}

/// Passes a write: how many of its `bytes` may be written.
#[cfg(debug_assertions)]
pub fn reach_write(bytes: usize) -> io::Result<usize> {
    let Some((number, plan)) = plan::Plan::count() else { return Ok(bytes) };
    match plan.kind {
        _ if !plan.strikes(number) => Ok(bytes),
        plan::Kind::Full if plan.is_first(number) && bytes > 1 => Ok(bytes / 2),
        plan::Kind::Full => Err(io::ErrorKind::StorageFull.into()),
        _ => Err(io::Error::other("fault injected by a test")),
    }
}

/// Error of a file system that cannot swap two directories, where a test wants one.
#[cfg(all(debug_assertions, target_os = "linux"))]
pub fn reach_exchange() -> Option<rustix::io::Result<()>> {
    plan::Plan::has_no_swap().then_some(Err(rustix::io::Errno::INVAL))
}

/// None in a release build.
#[cfg(all(not(debug_assertions), target_os = "linux"))]
#[inline]
pub fn reach_exchange() -> Option<rustix::io::Result<()>> {
    None
}

/// Passes an operation other than a write.
#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "as in debug builds")]
#[inline]
pub fn reach() -> io::Result<()> {
    Ok(())
}

/// Passes a write: how many of its `bytes` may be written.
#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "as in debug builds")]
#[inline]
pub fn reach_write(bytes: usize) -> io::Result<usize> {
    Ok(bytes)
}
