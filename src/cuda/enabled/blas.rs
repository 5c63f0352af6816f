//! Matrix products by cuBLAS, in the precision of their elements: no TF32.

use std::ffi::c_uint;

use super::library::{Cublas, Handle};
use crate::cuda::blas_sizes::Sizes;
use crate::cuda::{Matrix, Product};
use crate::error::{Error, Result};
use crate::real::ElementType;

/// Bytes of scratch memory for cuBLAS: its documentation recommends this for the H100, and it is ample for older
/// GPUs. With caller-provided memory, one handle and one stream, cuBLAS promises the same bits from run to run. The
/// promise holds for GPUs of the same kind and the same version of the library.
pub const WORKSPACE: usize = 32 << 20;

/// `CUBLAS_DEFAULT_MATH`: products in the precision of their elements.
const DEFAULT_MATH: c_uint = 0;

/// `CUBLAS_STATUS_NOT_SUPPORTED`: sizes that cuBLAS does not accept.
const NOT_SUPPORTED: c_uint = 15;

/// Major, minor and patch of `libraryPropertyType`.
const VERSION: [c_uint; 3] = [0, 1, 2];

/// cuBLAS on one stream.
pub struct Blas {
    library: Cublas,
    handle: Handle,
    /// Version, like "13.1.0".
    pub version: String,
}

impl Blas {
    /// Opens cuBLAS, which must be [present](Self::is_present). `workspace` has [`WORKSPACE`] bytes. The
    /// context must be current on the calling thread.
    pub fn open(stream: Handle, workspace: u64) -> Result<Self> {
        // SAFETY: the caller checked that the library is present.
        let library = unsafe { Cublas::load() }.map_err(|missing| {
            Error::Cuda(format!("libcublas is too old: it has no {missing}; update it, or set NMEM_CUBLAS=0"))
        })?;
        let mut handle = 0;
        // SAFETY: the pointer is valid for the handle.
        check(unsafe { (library.cublasCreate_v2)(&raw mut handle) }, "cublasCreate")?;
        let mut this = Self { library, handle, version: String::new() };
        let library = &this.library;
        // SAFETY: the handle was just created. The stream is set first, because setting it removes the workspace.
        unsafe {
            check((library.cublasSetStream_v2)(handle, stream), "cublasSetStream")?;
            check((library.cublasSetWorkspace_v2)(handle, workspace, WORKSPACE), "cublasSetWorkspace")?;
            check((library.cublasSetMathMode)(handle, DEFAULT_MATH), "cublasSetMathMode")?;
        }
        let mut version = [0; VERSION.len()];
        for (part, number) in VERSION.into_iter().zip(&mut version) {
            // SAFETY: the pointer is valid for the number.
            check(unsafe { (library.cublasGetProperty)(part, number) }, "cublasGetProperty")?;
        }
        this.version = version.map(|number| number.to_string()).join(".");
        Ok(this)
    }

    /// Returns whether there is a libcublas.
    pub fn is_present() -> bool {
        // SAFETY: loads a library, which is NVIDIA's.
        unsafe { cudarc::cublas::sys::is_culib_present() }
    }

    /// Queues the products; returns false if cuBLAS cannot compute them. Its matrices are column-major, so it
    /// sees the transpose of each of ours: Cᵀ = op(B)ᵀ op(A)ᵀ.
    pub fn multiply(&self, product: &Product) -> Result<bool> {
        let Some(Sizes { rows, cols, depth, batch, a, b, c }) = Sizes::from_product(product) else {
            return Ok(false);
        };
        let Product { a: of_a, b: of_b, c: of_c, scale, .. } = product;
        let transposed = |matrix: &Matrix| c_uint::from(matrix.transposed);
        let stride = |matrix: &Matrix| matrix.stride.cast_signed() as i64;
        macro_rules! gemm {
            ($gemm:ident, $real:ty) => {
                // SAFETY: sizes are checked, addresses are the device's, and α and β are read before this returns.
                unsafe {
                    (self.library.$gemm)(
                        self.handle,
                        transposed(of_b),
                        transposed(of_a),
                        cols,
                        rows,
                        depth,
                        &(*scale as $real),
                        of_b.address,
                        b,
                        stride(of_b),
                        of_a.address,
                        a,
                        stride(of_a),
                        &0.0,
                        of_c.address,
                        c,
                        stride(of_c),
                        batch,
                    )
                }
            };
        }
        let (status, name) = match product.dtype {
            ElementType::F32 => (gemm!(cublasSgemmStridedBatched, f32), "cublasSgemmStridedBatched"),
            ElementType::F64 => (gemm!(cublasDgemmStridedBatched, f64), "cublasDgemmStridedBatched"),
        };
        if status == NOT_SUPPORTED {
            return Ok(false);
        }
        check(status, name)?;
        Ok(true)
    }
}

/// Destroys the handle. The context must be current on the calling thread.
impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more.
        unsafe { (self.library.cublasDestroy_v2)(self.handle) };
    }
}

fn check(status: c_uint, what: &str) -> Result<()> {
    let reason = match status {
        0 => return Ok(()),
        1 => "it could not be started",
        3 => "out of memory",
        7 => "an argument is wrong",
        8 => "it does not know this GPU",
        13 => "the GPU failed",
        _ => "",
    };
    let text = format!("cuBLAS: {what} failed with status {status} {reason}");
    Err(Error::Cuda(format!("{} (NMEM_CUBLAS=0 disables cuBLAS)", text.trim_end())))
}
