//! Early ends of the program: by a signal, by a panic or by lack of memory. Each prints one line on stderr and removes
//! the output that was being written.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use memmap2::MmapMut;

use super::{COULD_NOT_RUN, INTERRUPTED, note};
use crate::error::{Error, Result};
use crate::storage;

/// Whether the user wants to stop.
static INTERRUPT: AtomicBool = AtomicBool::new(false);
/// Whether the signal was SIGTERM, with which schedulers end a job.
static TERMINATED: AtomicBool = AtomicBool::new(false);
/// Whether work is running that checks for interrupts and ends itself.
static WORKING: AtomicBool = AtomicBool::new(false);
/// Whether another thread is ending the process.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Memory that is unmapped when the system has no more, so that files can be removed. The removal takes some kilobytes, in the
/// heap of whichever thread ran out, so the reserve is not part of another heap.
static RESERVE: Mutex<Option<MmapMut>> = Mutex::new(None);
const RESERVED: usize = 1 << 20;

/// Installs the handlers of signals and panics.
pub fn install() {
    panic::set_hook(Box::new(report_panic));
    if let Ok(mut reserve) = RESERVE.lock() {
        *reserve = MmapMut::map_anon(RESERVED).ok();
    }
    // Ctrl-C, SIGTERM or SIGHUP. The first signal ends a program that only reads, and asks running work to stop and clean
    // up. A second signal does not wait for that. If no thread can be started, signals have their default effect.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPT.swap(true, Ordering::Relaxed) {
            at_once("", "interrupted again; stopped without waiting for the current work", INTERRUPTED);
        }
        if !WORKING.load(Ordering::Relaxed) {
            at_once("error: ", "interrupted", INTERRUPTED);
        }
    });
    #[cfg(unix)]
    signals::install();
}

/// Marks the start of interruptible work: from now on the first signal only sets the flag of [`check_interrupt`].
pub fn begin_work() {
    WORKING.store(true, Ordering::Relaxed);
}

/// Returns an error if the user wants to stop.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPT.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Returns whether the process was asked to end by SIGTERM, so that work that can be resumed should save its state.
pub fn is_preempted() -> bool {
    TERMINATED.load(Ordering::Relaxed)
}

/// Ends the process from a thread other than the working one.
fn at_once(kind: &str, message: &str, status: u8) -> ! {
    ENDING.store(true, Ordering::Relaxed);
    storage::remove_all();
    note(kind, message);
    std::process::exit(status.into());
}

/// Blocks if another thread is ending the process, so that errors caused by the end are not printed.
pub fn wait_if_ending() {
    while ENDING.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn report_panic(panic: &PanicHookInfo) {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message =
        message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    let version = env!("CARGO_PKG_VERSION");
    note(
        "internal error: ",
        &format!("{message}{place}, nmem {version}; please report it with the command line"),
    );
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        let _ = writeln!(std::io::stderr(), "{trace}");
    }
}

/// Lets the allocator keep freed memory for the next arrays. A gradient allocates and frees large arrays repeatedly, and glibc
/// would return each one, so that its pages are cleared and mapped anew. That took up to a fifth of the time of gradients. A
/// process keeps up to its earlier peak in return.
///
/// On few cores all threads share one arena. With an arena each, what one thread frees is not there for another one: gradients at
/// widths of 384 took up to a fifth more memory. On many cores threads would wait for each other.
///
/// Settings in the environment come first.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::env::var_os;
        /// Largest array that is kept: what glibc itself adapts to at most. Larger ones are returned.
        const LARGEST_KEPT: libc::c_int = 32 << 20;
        /// Most cores whose threads share an arena.
        const FEW_CORES: usize = 4;
        if var_os("GLIBC_TUNABLES").is_some_and(|value| value.to_string_lossy().contains("glibc.malloc.")) {
            return;
        }
        let few = std::thread::available_parallelism().is_ok_and(|cores| cores.get() <= FEW_CORES);
        let settings = [
            ("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, Some(LARGEST_KEPT)),
            ("MALLOC_TRIM_THRESHOLD_", libc::M_TRIM_THRESHOLD, Some(libc::c_int::MAX)),
            ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, few.then_some(1)),
        ];
        for (variable, setting, value) in settings {
            if let Some(value) = value.filter(|_| var_os(variable).is_none()) {
                // SAFETY: the call has no conditions. Numbers that glibc does not accept change nothing.
                unsafe { libc::mallopt(setting, value) };
            }
        }
    }
}

/// System allocator that ends the program with one line and status 2, instead of an abort, if memory runs out.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: every method passes its arguments unchanged to the system's allocator. A null pointer is never returned, because
// the process ends instead.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees the conditions of `GlobalAlloc`.
        or_end(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller guarantees the conditions of `GlobalAlloc`.
        or_end(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller guarantees the conditions of `GlobalAlloc`.
        or_end(unsafe { System.realloc(pointer, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees the conditions of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[inline]
fn or_end(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        out_of_memory(bytes);
    }
    pointer
}

#[cold]
fn out_of_memory(bytes: usize) -> ! {
    thread_local!(static ENDS: Cell<bool> = const { Cell::new(false) });
    // If even the removal runs out of memory, the next run removes the files.
    if !ENDING.swap(true, Ordering::Relaxed) {
        ENDS.set(true);
        // The text is built on the stack and written without a lock, which this thread may already hold.
        let mut text = [0_u8; 160];
        let size = text.len();
        let mut rest = &mut text[..];
        let _ = writeln!(rest, "error: out of memory: cannot allocate {bytes} more bytes");
        let written = size - rest.len();
        write_to_stderr(&text[..written]);
        if let Ok(mut reserve) = RESERVE.try_lock() {
            drop(reserve.take());
        }
        storage::remove_all();
    } else if !ENDS.get() {
        // Another thread is already ending the process.
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    exit_at_once(COULD_NOT_RUN)
}

#[cfg(unix)]
fn write_to_stderr(text: &[u8]) {
    // SAFETY: the bytes outlive the call.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

#[cfg(not(unix))]
fn write_to_stderr(text: &[u8]) {
    let _ = std::io::stderr().write_all(text);
}

#[cfg(unix)]
fn exit_at_once(status: u8) -> ! {
    // SAFETY: the call has no conditions. It intentionally skips destructors.
    unsafe { libc::_exit(status.into()) }
}

#[cfg(not(unix))]
fn exit_at_once(status: u8) -> ! {
    std::process::exit(status.into())
}

#[cfg(unix)]
mod signals {
    use std::ffi::c_int;
    use std::mem::zeroed;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::{COULD_NOT_RUN, TERMINATED, exit_at_once, write_to_stderr};
    use crate::storage;

    /// Handler of SIGTERM that the crate ctrlc has installed. Its handlers do not say which signal arrived.
    static OF_CTRLC: AtomicUsize = AtomicUsize::new(0);

    /// Notes the arrival of SIGTERM, and turns two signals into errors: SIGXFSZ, when an output exceeds the limit of file
    /// sizes, into an error of writing, and SIGBUS, when a mapped input is truncated, into an error of reading.
    pub fn install() {
        let handler: extern "C" fn(c_int) = truncated;
        // SAFETY: an all-zero sigaction is valid. Its handler is set before use and ends the process.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());

            // A second signal must still reach the handler of ctrlc, so it is called, not replaced.
            let handler: extern "C" fn(c_int) = terminated;
            let mut before: libc::sigaction = zeroed();
            libc::sigaction(libc::SIGTERM, ptr::null(), &raw mut before);
            if ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction)
                && before.sa_flags & libc::SA_SIGINFO == 0
            {
                OF_CTRLC.store(before.sa_sigaction, Ordering::Relaxed);
                before.sa_sigaction = handler as libc::sighandler_t;
                libc::sigaction(libc::SIGTERM, &raw const before, ptr::null_mut());
            }
        }
    }

    /// Handles SIGTERM: notes it, then passes it on.
    extern "C" fn terminated(signal: c_int) {
        TERMINATED.store(true, Ordering::Relaxed);
        let handler = OF_CTRLC.load(Ordering::Relaxed);
        // SAFETY: `install` has stored the address of a handler without SA_SIGINFO, which has this type.
        unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal) };
    }

    /// Handles SIGBUS. The thread was reading a mapped file, so it holds neither the allocator's lock nor one of nmem's.
    extern "C" fn truncated(_: c_int) {
        static FIRST: AtomicBool = AtomicBool::new(true);
        if !FIRST.swap(false, Ordering::Relaxed) {
            // Another thread that reads the same file is already ending the process.
            loop {
                // SAFETY: the call has no conditions.
                unsafe { libc::pause() };
            }
        }
        write_to_stderr(b"error: an input file was truncated while nmem was reading it, or its disk failed; run again once the file is complete\n");
        storage::remove_all();
        exit_at_once(COULD_NOT_RUN);
    }
}
