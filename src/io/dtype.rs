//! Element types of arrays in files, and their bytes: decoding either byte order, and finding non-finite numbers.

use std::path::Path;

use half::{bf16, f16};

use crate::error::Error;
use crate::real::ElementType;

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32; in `.safetensors` only.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed 8-bit integers.
    I8,
    /// Signed 16-bit integers.
    I16,
    /// Signed 32-bit integers.
    I32,
    /// Signed 64-bit integers.
    I64,
    /// Unsigned 8-bit integers.
    U8,
    /// Unsigned 16-bit integers.
    U16,
    /// Unsigned 32-bit integers.
    U32,
    /// Unsigned 64-bit integers: counters of a memory.
    U64,
    /// Booleans of one byte each, 0 or 1.
    Bool,
    /// Any other type, with a descriptive name. `nmem inspect` shows it; everything else rejects it.
    Other(&'static str),
}

impl Dtype {
    /// Returns the name: "f32", "u64", "bool", "complex" …
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::Bool => "bool",
            Self::Other(name) => name,
        }
    }

    /// Returns the bytes per element, if the type determines them.
    pub const fn item_bytes(self) -> Option<usize> {
        match self {
            Self::I8 | Self::U8 | Self::Bool => Some(1),
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => Some(2),
            Self::F32 | Self::I32 | Self::U32 => Some(4),
            Self::F64 | Self::I64 | Self::U64 => Some(8),
            Self::Other(_) => None,
        }
    }

    /// Returns whether the type is f16, bf16, f32 or f64.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the number of elements of a shape; `None` if the array could not be addressed. An axis of length 0
/// does not excuse the others: ndarray rejects such shapes too.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    let nonzero = shape.iter().filter(|&&n| n > 0).try_fold(1_usize, |count, &n| count.checked_mul(n))?;
    // The widest element has eight bytes.
    (nonzero <= isize::MAX as usize / 8).then_some(if shape.contains(&0) { 0 } else { nonzero })
}

/// Formats a shape like Python: "(4, 64)", "(7,)", "()".
pub(crate) fn shape_text(shape: &[usize]) -> String {
    match shape {
        [one] => format!("({one},)"),
        _ => format!("({})", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// A number stored as bytes, which need not be aligned.
pub(crate) trait Element: Copy {
    /// Bytes of one element.
    const BYTES: usize;
    /// Reads a number from exactly `BYTES` bytes, most significant byte first if `BIG`.
    fn read<const BIG: bool>(bytes: &[u8]) -> Self;
}

/// A floating-point element.
pub(crate) trait Float: Element {
    /// Converts to f64 exactly.
    fn to_f64(self) -> f64;
    /// Returns whether the number is NaN, infinite or, in f64, larger than `limit`.
    fn beyond(self, limit: f64) -> bool;
}

macro_rules! element {
    ($($type:ty),*) => {$(
        impl Element for $type {
            const BYTES: usize = size_of::<$type>();
            #[inline]
            fn read<const BIG: bool>(bytes: &[u8]) -> Self {
                let bytes = bytes.try_into().expect("as many bytes as an element has");
                if BIG { Self::from_be_bytes(bytes) } else { Self::from_le_bytes(bytes) }
            }
        }
    )*};
}
element!(f16, bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64);

/// Implements the floats whose finite numbers are all finite in f32 and f64.
macro_rules! narrow {
    ($($float:ty),*) => {$(
        impl Float for $float {
            #[inline]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline]
            fn beyond(self, _: f64) -> bool {
                !self.is_finite()
            }
        }
    )*};
}
narrow!(f16, bf16, f32);

impl Float for f64 {
    #[inline]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline]
    fn beyond(self, limit: f64) -> bool {
        self.is_nan() | (self.abs() > limit)
    }
}

/// Runs `$body` with the type alias `$E` for a float [`Dtype`]. Any other type is a bug of the caller.
macro_rules! with_float {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::io::Dtype::F16 => {
                type $E = half::f16;
                $body
            }
            $crate::io::Dtype::BF16 => {
                type $E = half::bf16;
                $body
            }
            $crate::io::Dtype::F32 => {
                type $E = f32;
                $body
            }
            $crate::io::Dtype::F64 => {
                type $E = f64;
                $body
            }
            other => unreachable!("{other} was let through as a float"),
        }
    };
}
pub(crate) use with_float;

/// Returns whether any of these elements is [`Float::beyond`] the limit. It has no branch per element, so that
/// it is vectorised.
pub(crate) fn any_beyond(dtype: Dtype, big: bool, bytes: &[u8], limit: f64) -> bool {
    fn scan<E: Float, const BIG: bool>(bytes: &[u8], limit: f64) -> bool {
        bytes.chunks_exact(E::BYTES).fold(false, |found, x| found | E::read::<BIG>(x).beyond(limit))
    }
    with_float!(dtype, E => if big { scan::<E, true>(bytes, limit) } else { scan::<E, false>(bytes, limit) })
}

/// Returns the error for a number that is not finite in the run's type.
pub(crate) fn beyond(path: &Path, value: f64, place: String) -> Error {
    if value.is_finite() {
        let got = format!("{value:e} at {place} (--dtype f64 holds it)");
        return Error::file(path, "numbers that f32 can hold", got);
    }
    Error::NonFinite { path: path.to_path_buf(), value, place }
}

/// Returns the largest f64 that rounds to a finite number of this type.
pub(crate) fn largest_finite(of: ElementType) -> f64 {
    match of {
        // This is just below half a step (2^103) above the largest f32.
        ElementType::F32 => (f64::from(f32::MAX) + (1_u128 << 103) as f64).next_down(),
        ElementType::F64 => f64::MAX,
    }
}

/// Returns every element beyond the limit: its index in the order of the bytes, and its value.
pub(crate) fn all_beyond(
    dtype: Dtype,
    big: bool,
    bytes: &[u8],
    limit: f64,
) -> Box<dyn Iterator<Item = (usize, f64)> + '_> {
    with_float!(dtype, E => Box::new(
        bytes
            .chunks_exact(E::BYTES)
            .map(move |x| if big { E::read::<true>(x) } else { E::read::<false>(x) })
            .enumerate()
            .filter(move |(_, x)| x.beyond(limit))
            .map(|(i, x)| (i, x.to_f64()))
    ))
}
