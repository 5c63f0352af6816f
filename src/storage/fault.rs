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
    use std::io;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Kind {
        Fail,
        Full,
        Stop,
        Pause,
        Panic,
        NoSwap,
    }

    pub struct Plan {
        kind: Kind,
        at: u64,
        marker: PathBuf,
        /// Operations so far.
        reached: AtomicU64,
    }

    /// The plan of this process, if it has one.
    pub static PLAN: LazyLock<Option<Plan>> =
        LazyLock::new(|| std::env::var("NMEM_FAULT").ok().as_deref().and_then(Plan::parse));

    fn pause() {
        #[cfg(unix)]
        // SAFETY: raise has no preconditions, and SIGSTOP runs no handler.
        unsafe {
            libc::raise(libc::SIGSTOP);
        }
    }

    fn injected() -> io::Error {
        io::Error::other("fault injected by a test")
    }

    impl Plan {
        fn parse(text: &str) -> Option<Self> {
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
            Some(Self { kind, at: at.parse().ok()?, marker: marker.into(), reached: AtomicU64::new(0) })
        }

        /// Counts an operation. Returns its number and whether it fails: the N-th, or on a full disk any later write.
        fn count(&self) -> (u64, bool) {
            let number = self.reached.fetch_add(1, Ordering::SeqCst) + 1;
            if number == self.at {
                let _ = std::fs::write(&self.marker, "");
                match self.kind {
                    Kind::Stop | Kind::NoSwap => std::process::abort(),
                    Kind::Panic => panic!("injected by a test"),
                    Kind::Pause => pause(),
                    Kind::Fail | Kind::Full => {}
                }
            }
            let fails = match self.kind {
                Kind::Fail => number == self.at,
                Kind::Full => number >= self.at,
                Kind::Stop | Kind::Pause | Kind::Panic | Kind::NoSwap => false,
            };
            (number, fails)
        }

        /// Counts an operation other than a write.
        pub fn operation(&self) -> io::Result<()> {
            let (_, fails) = self.count();
            if fails && self.kind == Kind::Fail { Err(injected()) } else { Ok(()) }
        }

        /// Counts a write. Returns how many of its `bytes` may be written.
        pub fn write(&self, bytes: usize) -> io::Result<usize> {
            match self.count() {
                (_, false) => Ok(bytes),
                _ if self.kind == Kind::Fail => Err(injected()),
                (number, true) if number == self.at && bytes > 1 => Ok(bytes / 2),
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }

        #[cfg(target_os = "linux")]
        pub fn has_no_swap(&self) -> bool {
            self.kind == Kind::NoSwap
        }
    }

    #[cfg(test)]
    mod tests {
        use std::io;
        use std::panic::{AssertUnwindSafe, catch_unwind};

        use super::{Kind, Plan};

        /// Makes the plan of a fault at the third operation. `struck` says whether its marker exists.
        fn with_plan(kind: &str, test: impl FnOnce(&Plan, &dyn Fn() -> bool)) {
            let directory = tempfile::tempdir().unwrap();
            let marker = directory.path().join("struck:here");
            let plan = Plan::parse(&format!("{kind}:3:{}", marker.display())).unwrap();
            test(&plan, &|| marker.exists());
        }

        /// The bytes of a write, or its error.
        fn said(result: io::Result<usize>) -> String {
            result.map_or_else(|error| error.to_string(), |bytes| bytes.to_string())
        }

        #[test]
        fn a_defective_disk_fails_once() {
            for write in [false, true] {
                with_plan("fail", |plan, struck| {
                    plan.operation().unwrap();
                    assert_eq!(said(plan.write(8)), "8");
                    assert!(!struck());
                    let third = if write { plan.write(8).map(drop) } else { plan.operation() };
                    assert_eq!(third.unwrap_err().to_string(), "fault injected by a test");
                    assert!(struck());
                    plan.operation().unwrap();
                    assert_eq!(said(plan.write(8)), "8");
                });
            }
        }

        #[test]
        fn a_full_disk_takes_half_of_a_write() {
            let full = io::Error::from(io::ErrorKind::StorageFull).to_string();
            for (bytes, taken) in [(8, "4"), (3, "1"), (2, "1"), (1, &full)] {
                with_plan("full", |plan, struck| {
                    plan.operation().unwrap();
                    assert_eq!(said(plan.write(8)), "8");
                    assert!(!struck());
                    assert_eq!(said(plan.write(bytes)), taken);
                    assert!(struck());
                    plan.operation().unwrap();
                    assert_eq!([plan.write(8), plan.write(1)].map(said), [&*full; 2]);
                });
            }
        }

        #[test]
        fn a_panic_in_the_third_operation() {
            with_plan("panic", |plan, struck| {
                plan.operation().unwrap();
                plan.operation().unwrap();
                assert!(!struck());
                catch_unwind(AssertUnwindSafe(|| plan.operation())).unwrap_err();
                assert!(struck());
                plan.operation().unwrap();
            });
        }

        #[test]
        fn only_plans_are_parsed() {
            for text in ["", "fail", "fail:3", "fail:x:marker", "other:3:marker"] {
                assert!(Plan::parse(text).is_none(), "{text:?}");
            }
            let kinds = [
                ("fail", Kind::Fail),
                ("full", Kind::Full),
                ("stop", Kind::Stop),
                ("pause", Kind::Pause),
                ("panic", Kind::Panic),
                ("noswap", Kind::NoSwap),
            ];
            for (name, kind) in kinds {
                assert!(Plan::parse(&format!("{name}:3:marker")).unwrap().kind == kind, "{name}");
            }
        }
    }
}

/// Counts an operation other than a write, and fails it if the plan says so.
#[cfg(debug_assertions)]
pub fn reach() -> io::Result<()> {
    plan::PLAN.as_ref().map_or(Ok(()), plan::Plan::operation)
}

/// Counts a write. Returns how many of its `bytes` may be written.
#[cfg(debug_assertions)]
pub fn reach_write(bytes: usize) -> io::Result<usize> {
    plan::PLAN.as_ref().map_or(Ok(bytes), |plan| plan.write(bytes))
}

/// Returns the error of a file system that cannot swap two directories, if a test injects it.
#[cfg(all(debug_assertions, target_os = "linux"))]
pub fn reach_exchange() -> Option<rustix::io::Result<()>> {
    plan::PLAN.as_ref().filter(|plan| plan.has_no_swap()).map(|_| Err(rustix::io::Errno::INVAL))
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
