//! Early ends of the program: by a signal, a panic, or for lack of memory. Each is one line on stderr, and leaves nothing
//! behind of what it was writing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{COULD_NOT_RUN, INTERRUPTED, note};
use crate::error::{Error, Result};
use crate::storage;

/// Whether the user wants to stop.
static INTERRUPT: AtomicBool = AtomicBool::new(false);
/// Whether there is work that ends itself when it is asked to.
static WORKING: AtomicBool = AtomicBool::new(false);
/// Whether another thread is ending the process.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Given back where memory runs out, so that there is enough to remove files with. The removal takes some kilobytes.
static RESERVE: Mutex<Vec<u8>> = Mutex::new(Vec::new());
const RESERVED: usize = 1 << 20;

/// Takes over what the system and the library would do on signals and panics.
pub fn install() {
    panic::set_hook(Box::new(report_panic));
    if let Ok(mut reserve) = RESERVE.lock() {
        reserve.reserve_exact(RESERVED);
    }
    // Ctrl-C, SIGTERM or SIGHUP. A program that only reads is ended by the first one; work is asked to stop and clean up, and a
    // second one does not wait for that. Without a thread for this the signals do what they do to any program.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPT.swap(true, Ordering::Relaxed) {
            at_once("", "interrupted again: stopped at once", INTERRUPTED);
        }
        if !WORKING.load(Ordering::Relaxed) {
            at_once("error: ", "interrupted", INTERRUPTED);
        }
    });
    #[cfg(unix)]
    signals::install();
}

/// From here on the first signal only asks: see [`check_interrupt`].
pub fn begin_work() {
    WORKING.store(true, Ordering::Relaxed);
}

/// Whether the user wants to stop.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPT.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Ends the process from another thread than the one that works.
fn at_once(kind: &str, message: &str, status: u8) -> ! {
    ENDING.store(true, Ordering::Relaxed);
    storage::remove_all();
    note(kind, message);
    std::process::exit(status.into());
}

/// Waits for the end where another thread is about to end the process: errors that come of that are nobody's business.
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

/// The system's allocator. Where memory is not to be had the program ends with one line and status 2 instead of an abort.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: every method is the system's own, with its arguments as they are; a null pointer is not returned, as the process ends.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller has promised.
        or_end(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller has promised.
        or_end(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as the caller has promised.
        or_end(unsafe { System.realloc(pointer, layout, bytes) }, bytes)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
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
    // Where even the removal runs out of memory, the next run does it.
    if !ENDING.swap(true, Ordering::Relaxed) {
        ENDS.set(true);
        // On the stack, and not through a lock that this thread may hold.
        let mut text = [0_u8; 160];
        let size = text.len();
        let mut rest = &mut text[..];
        let _ = writeln!(rest, "error: out of memory: {bytes} bytes more are not to be had");
        let written = size - rest.len();
        write_to_stderr(&text[..written]);
        if let Ok(mut reserve) = RESERVE.try_lock() {
            drop(std::mem::take(&mut *reserve));
        }
        storage::remove_all();
    } else if !ENDS.get() {
        // Another thread is at it.
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    exit_at_once(COULD_NOT_RUN)
}

#[cfg(unix)]
fn write_to_stderr(text: &[u8]) {
    // SAFETY: the bytes are there for as long as the call takes.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

#[cfg(not(unix))]
fn write_to_stderr(text: &[u8]) {
    let _ = std::io::stderr().write_all(text);
}

#[cfg(unix)]
fn exit_at_once(status: u8) -> ! {
    // SAFETY: it has no conditions; destructors are not run, which is what is wanted.
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{COULD_NOT_RUN, exit_at_once, write_to_stderr};
    use crate::storage;

    /// A file that grows beyond a limit is an error of writing it (SIGXFSZ), an input that is cut while it is mapped one of
    /// reading it (SIGBUS).
    pub fn install() {
        let handler: extern "C" fn(c_int) = truncated;
        // SAFETY: an all-zero sigaction is a valid one; its fields are set before use, and the handler ends the process.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    }

    /// The thread was reading a mapped file, so it holds neither the allocator's lock nor ours.
    extern "C" fn truncated(_: c_int) {
        static FIRST: AtomicBool = AtomicBool::new(true);
        if !FIRST.swap(false, Ordering::Relaxed) {
            // Another thread, which reads the same file, is at it.
            loop {
                // SAFETY: it has no conditions.
                unsafe { libc::pause() };
            }
        }
        write_to_stderr(b"error: an input file was cut short while nmem was reading it, or its disk failed; run again once it is complete\n");
        storage::remove_all();
        exit_at_once(COULD_NOT_RUN);
    }
}
