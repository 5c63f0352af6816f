//! Compiles kernels.cu for the CPU: a library that runs kernels by name, through shim.cpp.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const HEADER: &str = include_str!("cuda_shim.h");
const SHIM: &str = include_str!("shim.cpp");
const KERNELS: &str = include_str!("../../src/cuda/kernels.cu");
const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    // An address that a GPU would reject ends the program.
    "-fsanitize=alignment",
    "-fsanitize-undefined-trap-on-error",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-fPIC",
    "-fvisibility=hidden",
];

/// The order of threads. Each has its own library, because a library has one set of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each test binary has its own")]
pub enum Kind {
    /// Forward order.
    Forwards,
    /// Backward order.
    Backwards,
    /// Forward order, with accesses of shared memory checked for races.
    Watched,
}

/// Returns the path of the library, and compiles it unless another process has done so.
pub fn library(kind: Kind) -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    // The compiler inserts a call at every access, which the shim implements: it is not linked with the
    // sanitizer's library.
    let watched: &[&str] =
        if kind == Kind::Watched { &["-DSHIM_RACES", "-fsanitize=thread", "-Wno-tsan"] } else { &[] };
    let steps = [
        [&FLAGS, watched, &["-c", "shim.cpp", "-o", "kernels.o"]].concat(),
        vec!["-shared", "-Wl,-z,defs", "kernels.o", "-o", "kernels.so"],
    ];
    let of = [HEADER, SHIM, KERNELS, &compiler, &steps.concat().join(" ")];
    let hash = Sha256::digest(of.join("\0"));
    let hash = u64::from_be_bytes(*hash.first_chunk().expect("32 bytes"));
    let within = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let within = if within.is_dir() { within.to_owned() } else { std::env::temp_dir() };
    let path = within.join(format!("kernels-{hash:016x}-{kind:?}.so"));
    if path.exists() {
        return Ok(path);
    }
    let say = |error: std::io::Error| error.to_string();
    let directory = tempfile::tempdir_in(&within).map_err(say)?;
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).map_err(say);
    write("cuda_shim.h", HEADER)?;
    write("shim.cpp", SHIM)?;
    write("kernels.cu", KERNELS)?;
    let names = names().map(|name| format!("KERNEL({name})\n"));
    write("kernels.inc", &names.collect::<String>())?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&compiler);
        command.args(arguments).current_dir(directory.path());
        let output =
            command.output().map_err(|error| format!("{compiler}: {error} (a C++ compiler is needed)"))?;
        let message = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{compiler}: {}\n{message}", output.status))
        }
    };
    steps.iter().try_for_each(|step| run(step))?;
    std::fs::rename(directory.path().join("kernels.so"), &path).map_err(say)?;
    Ok(path)
}

/// Yields the kernels of kernels.cu, without the element types in their names.
pub fn names() -> impl Iterator<Item = &'static str> {
    let defined = |line: &'static str| {
        let rest = line.strip_prefix("BOTH(")?;
        rest.split(',').next()
    };
    KERNELS.lines().filter_map(defined)
}
