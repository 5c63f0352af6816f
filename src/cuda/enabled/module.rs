//! The kernels as a module of the GPU: from the PTX in this build, or with `NMEM_NVRTC=1` from their source.

use super::compiler;
use super::context::Context;
use super::library::Handle;
use crate::error::{Error, Result};

const PTX: &str = concat!(include_str!("../kernels.ptx"), "\0");
const SOURCE: &str = include_str!("../kernels.cu");

/// Loads the module and returns its handle, and a description of its source.
pub fn load(context: &Context) -> Result<(Handle, String)> {
    let driver = context.enter()?;
    let capability @ (major, minor) = context.capability()?;
    let compiled = std::env::var_os("NMEM_NVRTC").is_some_and(|value| !value.is_empty() && value != "0");
    let code = compiled.then(|| compiler::compile(SOURCE, capability)).transpose()?;
    let image = code.as_ref().map_or(PTX.as_ptr(), |(code, _)| code.as_ptr());
    let mut module = 0;
    // SAFETY: the pointer is valid for the module. The image is machine code, which contains its size, or PTX,
    // which ends in a zero.
    let status = unsafe { (driver.cuModuleLoadData)(&raw mut module, image.cast()) };
    let name = || context.loaded.start.name(status);
    let ptx = header(".version");
    // The form of the target is "sm_80".
    let target: u32 = header(".target").trim_start_matches("sm_").parse().unwrap_or(0);
    let reason = match status {
        0 => {
            let from = code.map_or_else(|| format!("PTX {ptx}"), |(_, version)| format!("NVRTC {version}"));
            return Ok((module, from));
        }
        // Some drivers report PTX for other GPUs as invalid.
        209 | 218 if code.is_none() && 10 * major + minor < target => {
            format!(
                "the GPU (compute capability {major}.{minor}) is too old for the kernels' PTX, which needs {}.{} or later ({}); set \
                 NMEM_NVRTC=1 (needs a libnvrtc that supports the GPU), or use --device cpu",
                target / 10,
                target % 10,
                name()
            )
        }
        // Invalid PTX, a PTX version that the driver does not support, or a missing PTX compiler.
        218 | 221 | 222 | 223 if code.is_none() => {
            format!(
                "the NVIDIA driver (of CUDA {}) is too old for the kernels' PTX {ptx} ({}); update the NVIDIA driver, or set \
                 NMEM_NVRTC=1 (needs libnvrtc, not newer than the driver)",
                context.loaded.version()?,
                name()
            )
        }
        _ => {
            context.check(status, || "loading the kernels".into())?;
            unreachable!("0 is above");
        }
    };
    Err(Error::Cuda(reason))
}

/// Returns the value of a directive at the head of the PTX.
fn header(name: &str) -> &'static str {
    let said = PTX.lines().find_map(|line| line.strip_prefix(name));
    said.expect("every PTX has this directive").trim()
}
