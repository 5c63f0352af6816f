//! Faults injected by tests. A debug build with `NMEM_FAULT=KIND:N:MARKER` in its environment counts its disk operations.
//! KIND selects the fault:
//!
//! - `fail`: the N-th operation fails like on a defective disk.
//! - `full`: every write from the N-th on fails like on a full disk. The first of them writes half of its bytes.
//! - `stop`: the process ends before the N-th operation as if it were killed.
//! - `pause`: the process stops itself with SIGSTOP before the N-th operation, which then succeeds.
//! - `panic`: the N-th operation panics.
//! - `noswap`: the system cannot swap two directories, and the process ends before the N-th operation.
//!
//! The file MARKER is created at the fault, so that a test knows when it has tried every N. Release builds inject no faults.

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
        Pause,
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
            "pause" => Kind::Pause,
            "panic" => Kind::Panic,
            "noswap" => Kind::NoSwap,
            _ => return None,
        };
        Some(Plan { kind, at: at.parse().ok()?, marker: marker.into() })
    });
    static REACHED: AtomicU64 = AtomicU64::new(0);

    fn pause() {
        #[cfg(unix)]
        // SAFETY: raise has no preconditions, and SIGSTOP runs no handler.
        unsafe {
            libc::raise(libc::SIGSTOP);
        }
    }

    impl Plan {
        /// Counts an operation. Returns its number and the plan, if there is one.
        pub fn count() -> Option<(u64, &'static Self)> {
            let plan = PLAN.as_ref()?;
            Some((REACHED.fetch_add(1, Ordering::SeqCst) + 1, plan))
        }

        /// Returns whether the fault hits this operation: the N-th, or on a full disk any later one.
        pub fn strikes(&self, number: u64) -> bool {
            if number == self.at {
                let _ = std::fs::write(&self.marker, "");
                match self.kind {
                    Kind::Stop | Kind::NoSwap => std::process::abort(),
                    Kind::Panic => panic!("injected by a test"),
                    Kind::Pause => pause(),
                    Kind::Fail | Kind::Full => {}
                }
            }
            self.kind != Kind::Pause && number == self.at || self.kind == Kind::Full && number > self.at
        }

        pub fn has_no_swap() -> bool {
            PLAN.as_ref().is_some_and(|plan| plan.kind == Kind::NoSwap)
        }

        pub fn is_first(&self, number: u64) -> bool {
            number == self.at
        }
    }
}

/// Counts an operation other than a write, and fails it if the plan says so.
#[cfg(debug_assertions)]
pub fn reach() -> io::Result<()> {
    let Some((number, plan)) = plan::Plan::count() else { return Ok(()) };
    if plan.strikes(number) && plan.kind == plan::Kind::Fail {
        return Err(io::Error::other("fault injected by a test"));
    }
    Ok(())
}

/// Counts a write. Returns how many of its `bytes` may be written.
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

/// Returns the error of a file system that cannot swap two directories, if a test injects it.
#[cfg(all(debug_assertions, target_os = "linux"))]
pub fn reach_exchange() -> Option<rustix::io::Result<()>> {
    plan::Plan::has_no_swap().then_some(Err(rustix::io::Errno::INVAL))
}

/// Returns no error in a release build.
#[cfg(all(not(debug_assertions), target_os = "linux"))]
#[inline]
pub fn reach_exchange() -> Option<rustix::io::Result<()>> {
    None
}

/// Counts an operation other than a write, and fails it if the plan says so.
#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "same signature as in debug builds")]
#[inline]
pub fn reach() -> io::Result<()> {
    Ok(())
}

/// Counts a write. Returns how many of its `bytes` may be written.
#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "same signature as in debug builds")]
#[inline]
pub fn reach_write(bytes: usize) -> io::Result<usize> {
    Ok(bytes)
}
