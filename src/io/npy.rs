//! The `.npy` header: what lies in the bytes after it. Shared by `.npy` files and the members of `.npz` archives.
//! The dictionary is parsed by ndarray-npy; around it stand the checks that keep a damaged header from costing memory
//! or time, and messages that say what is wrong. Format: numpy.lib.format, versions 1 to 3.

use std::io::Read;
use std::path::Path;

use ndarray_npy::npy::header::{Header, Layout, ParseHeaderError, ReadHeaderError};

use crate::error::Error;
use crate::io::dtype::{Dtype, element_count, shape_text};
use crate::io::mapped::guess;
use crate::real::ElementType;

/// Brackets of a structured type nest a few deep; the parser recurses, and takes twice as long for each level of
/// braces, so a damaged header must not go further.
const DEEPEST_NESTING: usize = 16;

/// What was expected and what was found, before the file's name is known.
#[derive(Debug)]
pub(crate) struct Misfit {
    pub expected: String,
    pub got: String,
}

impl Misfit {
    pub fn new(expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self { expected: expected.into(), got: got.into() }
    }

    pub fn in_file(self, path: &Path) -> Error {
        Error::file(path, self.expected, self.got)
    }

    pub fn in_tensor(self, path: &Path, tensor: &str) -> Error {
        Error::Tensor {
            path: path.to_path_buf(),
            tensor: tensor.to_owned(),
            expected: self.expected,
            got: self.got,
        }
    }
}

/// A header: the array that follows it.
#[derive(Clone, Debug)]
pub(crate) struct NpyHeader {
    pub dtype: Dtype,
    /// The type as the file writes it: "<f4".
    pub descr: String,
    /// Most significant byte first.
    pub big_endian: bool,
    /// The first axis varies fastest.
    pub fortran: bool,
    pub shape: Vec<usize>,
    /// Bytes before the data.
    pub offset: usize,
    /// Bytes after the header.
    pub data_bytes: usize,
}

/// The header of an array in C order, little-endian: what stands before its bytes.
pub fn header_bytes(element: ElementType, shape: &[usize]) -> Vec<u8> {
    let type_descriptor = match element {
        ElementType::F32 => "'<f4'",
        ElementType::F64 => "'<f8'",
    };
    let type_descriptor = type_descriptor.parse().expect("a Python string");
    let header = Header { type_descriptor, layout: Layout::Standard, shape: shape.to_vec() };
    header.to_bytes().expect("a few axes make a short header")
}

impl NpyHeader {
    /// Reads a header from the start of `len` bytes and checks that as many follow as it announces. Bytes beyond are
    /// refused: a second array saved to the same file would otherwise be lost in silence.
    pub fn read(reader: &mut dyn Read, len: u64) -> Result<Self, Misfit> {
        let head = read_head(reader, len)?;
        let header = Header::from_reader(&mut &head[..]).map_err(|error| describe(&error))?;
        let descr = match header.type_descriptor.as_string() {
            Some(text) => text.clone(),
            None => one_line(&header.type_descriptor.to_string()),
        };
        let (dtype, item_bytes) = match header.type_descriptor.as_string() {
            Some(text) => parse_descr(text),
            None => (Dtype::Other("structured"), None),
        };
        let too_large =
            || Misfit::new("an array that can be addressed", format!("shape {}", shape_text(&header.shape)));
        let elements = element_count(&header.shape).ok_or_else(too_large)?;
        let data_bytes = match item_bytes {
            Some(item) => elements.checked_mul(item).ok_or_else(too_large)?,
            // Objects and structures are not read, so their length need not be known.
            None => (len - head.len() as u64) as usize,
        };
        let this = Self {
            dtype,
            big_endian: descr.starts_with('>') || (cfg!(target_endian = "big") && !descr.starts_with('<')),
            descr,
            fortran: header.layout.is_fortran(),
            shape: header.shape,
            offset: head.len(),
            data_bytes,
        };
        let all = this.offset as u64 + data_bytes as u64;
        if all != len {
            let kind = if matches!(dtype, Dtype::Other(_)) { &this.descr } else { dtype.name() };
            let parts = format!("a header of {}, {kind} of shape {}", this.offset, shape_text(&this.shape));
            return Err(Misfit::new(format!("{all} bytes ({parts})"), format!("{len}")));
        }
        Ok(this)
    }

    /// "f32", "f32 big-endian", "f32 Fortran" …: the type as a person would say it.
    pub fn describe(&self) -> String {
        let mut text = self.dtype.name().to_owned();
        if matches!(self.dtype, Dtype::Other(_)) {
            text = format!("{text} {}", self.descr);
        } else if self.big_endian && self.dtype.item_bytes() > Some(1) {
            text += " big-endian";
        }
        if self.fortran {
            text += " Fortran";
        }
        text
    }
}

/// Magic, version, length and dictionary: the bytes before the data.
fn read_head(reader: &mut dyn Read, len: u64) -> Result<Vec<u8>, Misfit> {
    let mut head = Vec::new();
    read_up_to(reader, &mut head, 10)?;
    if !head.starts_with(b"\x93NUMPY") {
        return Err(Misfit::new("a .npy file", guess_short(reader, head)));
    }
    let truncated =
        |got: &Vec<u8>| Misfit::new("a .npy header", format!("a file that ends after {} bytes", got.len()));
    if head.len() < 10 {
        return Err(truncated(&head));
    }
    let text_bytes = match head[6] {
        1 => u64::from(u16::from_le_bytes([head[8], head[9]])),
        2 | 3 => {
            read_up_to(reader, &mut head, 2)?;
            match head[8..] {
                [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
                _ => return Err(truncated(&head)),
            }
        }
        major => return Err(Misfit::new(".npy format 1, 2 or 3", format!("version {major}.{}", head[7]))),
    };
    let all = head.len() as u64 + text_bytes;
    if all > len {
        return Err(Misfit::new(format!("a .npy header of {all} bytes"), format!("a file of {len}")));
    }
    read_up_to(reader, &mut head, text_bytes)?;
    if (head.len() as u64) < all {
        return Err(truncated(&head));
    }
    let mut depth = 0_usize;
    for byte in &head {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST_NESTING {
            return Err(Misfit::new("a .npy header", "brackets nested too deep"));
        }
    }
    Ok(head)
}

/// Appends up to `bytes` bytes, fewer at the end of the stream.
pub(crate) fn read_up_to(reader: &mut dyn Read, into: &mut Vec<u8>, bytes: u64) -> Result<usize, Misfit> {
    reader
        .take(bytes)
        .read_to_end(into)
        .map_err(|error| Misfit::new("readable data", one_line(&error.to_string())))
}

/// [`guess`] needs a few bytes more than the magic string.
fn guess_short(reader: &mut dyn Read, mut head: Vec<u8>) -> &'static str {
    match read_up_to(reader, &mut head, 16) {
        Ok(_) => guess(&head),
        Err(_) => "unrecognised content",
    }
}

/// "<f4" to f32 and 4. Digits count bytes, except for text ("U", four bytes a character).
fn parse_descr(descr: &str) -> (Dtype, Option<usize>) {
    let bare = descr.trim_start_matches(['<', '>', '=', '|']);
    let mut letters = bare.chars();
    let letter = letters.next().unwrap_or_default();
    // Units of dates follow in brackets: M8[ns].
    let size = letters.as_str().split('[').next().and_then(|digits| digits.parse::<usize>().ok());
    let dtype = match (letter, size) {
        ('f', Some(2)) => Dtype::F16,
        ('f', Some(4)) => Dtype::F32,
        ('f', Some(8)) => Dtype::F64,
        ('i', Some(1)) => Dtype::I8,
        ('i', Some(2)) => Dtype::I16,
        ('i', Some(4)) => Dtype::I32,
        ('i', Some(8)) => Dtype::I64,
        ('u', Some(1)) => Dtype::U8,
        ('u', Some(2)) => Dtype::U16,
        ('u', Some(4)) => Dtype::U32,
        ('u', Some(8)) => Dtype::U64,
        ('b', Some(1)) => Dtype::Bool,
        ('f', _) => Dtype::Other("long double"),
        ('c', _) => Dtype::Other("complex"),
        ('O', _) => return (Dtype::Other("object"), None),
        ('U', Some(n)) => return (Dtype::Other("text"), n.checked_mul(4)),
        ('S' | 'a', _) => Dtype::Other("bytes"),
        ('M' | 'm', _) => Dtype::Other("time"),
        ('V', _) => Dtype::Other("void"),
        _ => return (Dtype::Other("unknown"), None),
    };
    (dtype, size)
}

fn describe(error: &ReadHeaderError) -> Misfit {
    let got = match error {
        // The parser's own account of it has several lines.
        ReadHeaderError::Parse(ParseHeaderError::DictParse(_)) => {
            "one that is no Python dictionary".to_owned()
        }
        ReadHeaderError::Parse(ParseHeaderError::MissingKey(key)) => {
            // ndarray-npy writes "shaper" for a missing shape.
            format!("one without {}", if key == "shaper" { "shape" } else { key })
        }
        ReadHeaderError::Parse(error) => format!("one with an error: {}", one_line(&error.to_string())),
        ReadHeaderError::Io(error) => one_line(&error.to_string()),
    };
    Misfit::new("a .npy header", got)
}

/// Text from a file or a library, fit for a one-line message.
pub(crate) fn one_line(text: &str) -> String {
    let mut short: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}
