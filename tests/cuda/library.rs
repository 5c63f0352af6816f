//! kernels.cu compiled for the processor: a library that runs kernels by name, as shim.cpp says.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const HEADER: &str = include_str!("cuda_shim.h");
const SHIM: &str = include_str!("shim.cpp");
const KERNELS: &str = include_str!("../../src/cuda/kernels.cu");
const FLAGS: [&str; 12] = [
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    // An address that a GPU would not take ends the program.
    "-fsanitize=alignment",
    "-fsanitize-undefined-trap-on-error",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-x",
    "c++",
];

/// Where the library is, compiled if no process has done so. A copy for each order: a library has one set of shared memory.
pub fn library(backwards: bool) -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let hash = Sha256::new()
        .chain_update([HEADER, SHIM, KERNELS, &compiler, &FLAGS.join(" ")].join("\0"))
        .finalize();
    let hash = u64::from_be_bytes(*hash.first_chunk().expect("32 bytes"));
    let within = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let within = if within.is_dir() { within.to_owned() } else { std::env::temp_dir() };
    let order = if backwards { "backwards" } else { "forwards" };
    let path = within.join(format!("kernels-{hash:016x}-{order}.so"));
    if path.exists() {
        return Ok(path);
    }
    let say = |error: std::io::Error| error.to_string();
    let folder = tempfile::tempdir_in(&within).map_err(say)?;
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).map_err(say);
    write("cuda_shim.h", HEADER)?;
    write("shim.cpp", SHIM)?;
    write("kernels.cu", KERNELS)?;
    let names = names().map(|name| format!("KERNEL({name})\n"));
    write("kernels.inc", &names.collect::<String>())?;
    let mut command = Command::new(&compiler);
    command.args(FLAGS).args(["shim.cpp", "-o", "kernels.so"]).current_dir(folder.path());
    let ran = command.output().map_err(|error| format!("{compiler}: {error} (a C++ compiler is needed)"))?;
    if !ran.status.success() {
        return Err(format!("{compiler}: {}\n{}", ran.status, String::from_utf8_lossy(&ran.stderr)));
    }
    std::fs::rename(folder.path().join("kernels.so"), &path).map_err(say)?;
    Ok(path)
}

/// Kernels of kernels.cu, without the element types of their names.
pub fn names() -> impl Iterator<Item = &'static str> {
    let defined = |line: &'static str| {
        let rest = line.strip_prefix("BOTH(")?;
        rest.split(',').next()
    };
    KERNELS.lines().filter_map(defined)
}
