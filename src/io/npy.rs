//! The `.npy` header, which describes the bytes after it. It serves `.npy` files and members of `.npz`
//! archives. The dictionary is parsed here in one pass: a general parser of Python literals takes exponential
//! time for a few nested braces. Format: numpy.lib.format, versions 1 to 3.

use std::io::Read;
use std::path::Path;

use ndarray_npy::npy::header::{Header, Layout};

use crate::error::Error;
use crate::io::dtype::{Dtype, element_count, shape_text};
use crate::io::mapped::{UNRECOGNISED, guess};
use crate::real::ElementType;

/// Most bytes of a header: the most of format 1. Numpy itself reads at most 10,000 by default.
const MAX_HEADER: u64 = 1 << 16;

/// Deepest nesting of brackets. A structured type within a structured type takes two more levels; deeper types
/// are rare.
const MAX_NESTING: usize = 16;

/// Most axes; this is numpy's own limit.
const MAX_AXES: usize = 64;

/// The expected and the actual contents, before the file's name is known.
#[derive(Debug)]
pub(crate) struct FormatMismatch {
    pub expected: String,
    pub got: String,
}

impl FormatMismatch {
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

/// A header and the array that it describes.
#[derive(Clone, Debug)]
pub(crate) struct NpyHeader {
    pub dtype: Dtype,
    /// Type in the file's notation: "<f4".
    pub descr: String,
    /// Whether the most significant byte comes first.
    pub big_endian: bool,
    /// Whether the first axis varies fastest.
    pub fortran: bool,
    pub shape: Vec<usize>,
    /// Number of bytes before the data.
    pub offset: usize,
    /// Number of bytes after the header.
    pub data_bytes: usize,
}

/// Returns the header of a little-endian array in C order.
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
    /// Reads a header from the start of `len` bytes and checks that exactly the announced bytes follow. Further
    /// bytes are rejected: a second array saved to the same file would otherwise be lost silently.
    pub fn read(reader: &mut dyn Read, len: u64) -> Result<Self, FormatMismatch> {
        let head = read_head(reader, len)?;
        let Dictionary { descr, structured, fortran, shape } = Dictionary::parse(&head)?;
        let (dtype, item_bytes) =
            if structured { (Dtype::Other("structured"), None) } else { parse_descr(&descr) };
        let too_large =
            || FormatMismatch::new("an array that can be addressed", format!("shape {}", shape_text(&shape)));
        let elements = element_count(&shape).ok_or_else(too_large)?;
        let data_bytes = match item_bytes {
            Some(item) => elements.checked_mul(item).ok_or_else(too_large)?,
            // Objects and structures are not read, so their length is not needed.
            None => (len - head.len() as u64) as usize,
        };
        let this = Self {
            dtype,
            big_endian: descr.starts_with('>') || (cfg!(target_endian = "big") && !descr.starts_with('<')),
            descr,
            fortran,
            shape,
            offset: head.len(),
            data_bytes,
        };
        let all = this.offset as u64 + data_bytes as u64;
        if all != len {
            let kind = if matches!(dtype, Dtype::Other(_)) { &this.descr } else { dtype.name() };
            let parts = format!("a header of {}, {kind} of shape {}", this.offset, shape_text(&this.shape));
            return Err(FormatMismatch::new(format!("{all} bytes ({parts})"), format!("{len}")));
        }
        Ok(this)
    }

    /// Describes the type for people: "f32", "f32 big-endian", "f32 Fortran" …
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

/// Reads magic string, version, length and dictionary: the bytes before the data.
fn read_head(reader: &mut dyn Read, len: u64) -> Result<Vec<u8>, FormatMismatch> {
    let mut head = Vec::new();
    read_up_to(reader, &mut head, 10)?;
    if !head.starts_with(b"\x93NUMPY") {
        return Err(FormatMismatch::new("a .npy file", guess_short(reader, head)));
    }
    let truncated = |got: &Vec<u8>| {
        FormatMismatch::new("a .npy header", format!("a file that ends after {} bytes", got.len()))
    };
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
        major => {
            return Err(FormatMismatch::new(".npy format 1, 2 or 3", format!("version {major}.{}", head[7])));
        }
    };
    let all = head.len() as u64 + text_bytes;
    if all > len {
        return Err(FormatMismatch::new(format!("a .npy header of {all} bytes"), format!("a file of {len}")));
    }
    if text_bytes > MAX_HEADER {
        return Err(FormatMismatch::new(
            format!("a .npy header of at most {MAX_HEADER} bytes"),
            format!("{all}"),
        ));
    }
    read_up_to(reader, &mut head, text_bytes)?;
    if (head.len() as u64) < all {
        return Err(truncated(&head));
    }
    Ok(head)
}

/// Appends up to `bytes` bytes; fewer at the end of the stream.
pub(crate) fn read_up_to(
    reader: &mut dyn Read,
    into: &mut Vec<u8>,
    bytes: u64,
) -> Result<usize, FormatMismatch> {
    reader
        .take(bytes)
        .read_to_end(into)
        .map_err(|error| FormatMismatch::new("readable data", one_line(&error.to_string())))
}

/// Guesses the type of a short file. [`guess`] needs a few bytes more than the magic string.
fn guess_short(reader: &mut dyn Read, mut head: Vec<u8>) -> &'static str {
    match read_up_to(reader, &mut head, 16) {
        Ok(_) => guess(&head),
        Err(_) => UNRECOGNISED,
    }
}

/// Converts "<f4" to f32 and 4. Digits count bytes, except for text ("U", four bytes a character).
fn parse_descr(descr: &str) -> (Dtype, Option<usize>) {
    let bare = descr.trim_start_matches(['<', '>', '=', '|']);
    let mut letters = bare.chars();
    let letter = letters.next().unwrap_or_default();
    // Dates have their unit in brackets: M8[ns].
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

/// The contents of a header's dictionary.
#[derive(Debug, PartialEq, Eq)]
struct Dictionary {
    /// Text of a type, or the literal of a structured type.
    descr: String,
    structured: bool,
    fortran: bool,
    shape: Vec<usize>,
}

impl Dictionary {
    /// Parses a header from its magic string to its end.
    fn parse(head: &[u8]) -> Result<Self, FormatMismatch> {
        // The length takes two bytes in version 1 and four in later ones.
        let text = &head[if head[6] == 1 { 10 } else { 12 }..];
        let mut rest = Literal(text);
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        rest.expect(b'{')?;
        while !rest.eat(b'}') {
            let key = rest.string()?;
            rest.expect(b':')?;
            match &key[..] {
                "descr" if descr.is_none() => descr = Some(rest.descr()?),
                "fortran_order" if fortran.is_none() => fortran = Some(rest.truth()?),
                "shape" if shape.is_none() => shape = Some(rest.shape()?),
                other => {
                    let got = format!("an unknown or repeated key {:?}", one_line(other));
                    return Err(FormatMismatch::new("a .npy header", got));
                }
            }
            if !rest.eat(b',') {
                rest.expect(b'}')?;
                break;
            }
        }
        rest.end()?;
        let missing =
            |key: &str| FormatMismatch::new("a .npy header", format!("one without the key {key:?}"));
        let (descr, structured) = descr.ok_or_else(|| missing("descr"))?;
        Ok(Self {
            descr,
            structured,
            fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// The remaining text of a Python literal, with spaces between its parts.
struct Literal<'a>(&'a [u8]);

impl Literal<'_> {
    fn garbled() -> FormatMismatch {
        FormatMismatch::new("a .npy header", "text that is not a Python dictionary")
    }

    /// Consumes this byte if it is the next one.
    fn eat(&mut self, byte: u8) -> bool {
        self.0 = self.0.trim_ascii_start();
        let Some(rest) = self.0.strip_prefix(&[byte]) else { return false };
        self.0 = rest;
        true
    }

    fn expect(&mut self, byte: u8) -> Result<(), FormatMismatch> {
        if self.eat(byte) { Ok(()) } else { Err(Self::garbled()) }
    }

    /// Checks that only padding follows.
    fn end(&self) -> Result<(), FormatMismatch> {
        if self.0.trim_ascii().is_empty() { Ok(()) } else { Err(Self::garbled()) }
    }

    /// Parses a string in quotes of either kind. Escapes are kept as written.
    fn string(&mut self) -> Result<String, FormatMismatch> {
        let quote = if self.eat(b'\'') { b'\'' } else { self.expect(b'"').map(|()| b'"')? };
        let mut escaped = false;
        let end = self.0.iter().position(|&byte| {
            let is_end = byte == quote && !escaped;
            escaped = byte == b'\\' && !escaped;
            is_end
        });
        let (text, rest) = self.0.split_at(end.ok_or_else(Self::garbled)?);
        self.0 = &rest[1..];
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn truth(&mut self) -> Result<bool, FormatMismatch> {
        self.0 = self.0.trim_ascii_start();
        for (word, truth) in [(&b"True"[..], true), (b"False", false)] {
            if let Some(rest) = self.0.strip_prefix(word) {
                self.0 = rest;
                return Ok(truth);
            }
        }
        Err(Self::garbled())
    }

    /// Parses a type: its text, and whether it is the literal of a structured type.
    fn descr(&mut self) -> Result<(String, bool), FormatMismatch> {
        self.0 = self.0.trim_ascii_start();
        if !matches!(self.0, [b'[' | b'(', ..]) {
            return Ok((self.string()?, false));
        }
        let whole = self.0;
        let mut depth = 0;
        loop {
            match self.0 {
                [] => return Err(Self::garbled()),
                [b'\'' | b'"', ..] => {
                    self.string()?;
                    continue;
                }
                [b'(' | b'[' | b'{', ..] => depth += 1,
                [b')' | b']' | b'}', ..] => depth -= 1,
                _ => {}
            }
            if depth > MAX_NESTING {
                return Err(FormatMismatch::new("a .npy header", "brackets nested too deeply"));
            }
            self.0 = &self.0[1..];
            if depth == 0 {
                let text = &whole[..whole.len() - self.0.len()];
                return Ok((one_line(&String::from_utf8_lossy(text)), true));
            }
        }
    }

    /// Parses a tuple of integers.
    fn shape(&mut self) -> Result<Vec<usize>, FormatMismatch> {
        self.expect(b'(')?;
        let end = self.0.iter().position(|&byte| byte == b')').ok_or_else(Self::garbled)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        let text = String::from_utf8_lossy(text);
        let wrong =
            || FormatMismatch::new("a .npy header", format!("an invalid shape ({})", one_line(&text)));
        let mut axes: Vec<_> = text.split(',').map(str::trim).collect();
        // A comma follows a single axis; without axes there is none.
        if axes.last() == Some(&"") {
            axes.pop();
        } else if axes.len() == 1 {
            return Err(wrong());
        }
        if axes.len() > MAX_AXES {
            return Err(wrong());
        }
        // Python 2 wrote long integers as 3L.
        axes.iter().map(|axis| axis.trim_end_matches('L').parse().map_err(|_| wrong())).collect()
    }
}

/// Converts text from a file or a library to one line, for messages.
pub(crate) fn one_line(text: &str) -> String {
    let mut short: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::{Dictionary, MAX_HEADER, MAX_NESTING, NpyHeader};

    fn parse(dictionary: &str) -> Result<Dictionary, String> {
        let head = [b"\x93NUMPY\x01\0\0\0", dictionary.as_bytes()].concat();
        Dictionary::parse(&head).map_err(|mismatch| mismatch.got)
    }

    #[test]
    fn headers_that_numpy_writes() {
        let of = |descr: &str, structured, fortran, shape: &[usize]| {
            Ok(Dictionary { descr: descr.to_owned(), structured, fortran, shape: shape.to_vec() })
        };
        for (text, expected) in [
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n",
                of("<f4", false, false, &[2, 3]),
            ),
            ("{'descr': '|b1', 'fortran_order': True, 'shape': (), }\n", of("|b1", false, true, &[])),
            ("{\"shape\":(7,),\"fortran_order\":False,\"descr\":\">i8\"}", of(">i8", false, false, &[7])),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 4L)}", of("<f8", false, false, &[3, 4])),
            (
                "{'descr': [('a)', '<f4'), ('b', [('c', '<i2', (2,))])], 'fortran_order': False, 'shape': (1,), }",
                of("[('a)', '<f4'), ('b', [('c', '<i2', (2,))])]", true, false, &[1]),
            ),
            // A name with quotes of both kinds, one of which is escaped.
            (
                r#"{'descr': [('a\'"]', '<f4')], 'fortran_order': False, 'shape': (1,), }"#,
                of(r#"[('a\'"]', '<f4')]"#, true, false, &[1]),
            ),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn headers_that_numpy_does_not_write() {
        let dictionary =
            |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}");
        for text in [
            "",
            "{",
            "}",
            "{'descr'",
            "{'descr': [('a', '<f4')",
            "{'descr': '<f4'} x",
            "{'descr': '<f4' 'shape': ()}",
            "{1: 2}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        for shape in ["(5)", "(-1,)", "(1, 2", "(1,,2)", "(,)", "5", "(1.0,)", "(18446744073709551616,)"] {
            assert!(parse(&dictionary(shape)).is_err(), "{shape}");
        }
        assert!(parse(&dictionary("()")).is_ok() && parse(&(dictionary("()") + " x")).is_err());
        let axes = |count: usize| dictionary(&format!("({})", "1,".repeat(count)));
        assert!(parse(&axes(64)).is_ok() && parse(&axes(65)).is_err());
        for (key, again) in [("shape", "()"), ("descr", "'<f4'"), ("fortran_order", "True"), ("other", "1")] {
            let twice = format!("{{'shape': (), 'descr': '<f4', 'fortran_order': False, '{key}': {again}}}");
            assert_eq!(parse(&twice).unwrap_err(), format!("an unknown or repeated key {key:?}"));
        }
        let nested = |depth: usize| {
            let descr = "[".repeat(depth) + &"]".repeat(depth);
            parse(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': ()}}"))
        };
        assert!(nested(MAX_NESTING).unwrap().structured);
        for depth in [MAX_NESTING + 1, 1000] {
            assert_eq!(nested(depth).unwrap_err(), "brackets nested too deeply");
        }
    }

    #[test]
    fn the_header_has_a_limit() {
        let text = vec![b'{'; MAX_HEADER as usize + 1];
        let length = (text.len() as u32).to_le_bytes();
        let file = [b"\x93NUMPY\x02\0", &length[..], &text].concat();
        let mismatch = NpyHeader::read(&mut &file[..], file.len() as u64).unwrap_err();
        assert_eq!(mismatch.expected, "a .npy header of at most 65536 bytes");
        let text = format!("{:<65535}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }");
        let file = [b"\x93NUMPY\x02\0", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        assert!(NpyHeader::read(&mut &file[..], file.len() as u64).is_ok());
    }

    /// A member of an archive may unpack to fewer bytes than the archive says.
    #[test]
    fn a_stream_that_ends_early_is_truncated() {
        let text = format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }");
        let file = [b"\x93NUMPY\x01\0\x76\0", text.as_bytes()].concat();
        assert!(NpyHeader::read(&mut &file[..], 128).is_ok());
        for bytes in [9, 10, 127] {
            let mismatch = NpyHeader::read(&mut &file[..bytes], 128).unwrap_err();
            assert_eq!(mismatch.got, format!("a file that ends after {bytes} bytes"));
        }
    }
}
