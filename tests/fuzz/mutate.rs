//! Mutated inputs: pieces are moved, and numbers and words are replaced by ones that tend to cause errors.

use std::io::{Cursor, Read, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Words that replace others.
const WORDS: [&[u8]; 34] = [
    b"",
    b"0",
    b"-0",
    b"1",
    b"-1",
    b"2",
    b"NaN",
    b"inf",
    b"-inf",
    b"1e308",
    b"-1e308",
    b"1.7976931348623157e308",
    b"5e-324",
    b"1e-320",
    b"1e400",
    b"255",
    b"65536",
    b"1048577",
    b"4294967296",
    b"9007199254740993",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"learned",
    b"true",
    b"\x1b[31m",
    b"\"",
    b"\0",
    b"\xff",
    b"a/b",
    b"range(0,3)",
    b"10^{2}",
    b"\xef\xbf\xbf",
];
/// Numbers that replace those in binary headers.
const NUMBERS: [u64; 12] =
    [0, 1, 2, 255, 256, 0xffff, 0x10000, 0xffff_ffff, 1 << 32, 1 << 53, i64::MAX as u64, u64::MAX];

/// The splitmix64 generator: the same seed gives the same inputs.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number in 0 .. n; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Returns a range of at most `length` bytes; short ranges are more likely.
    fn piece(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.below(4) > 0 { 16 } else { length };
        start..(start + self.below(most + 1)).min(length)
    }
}

/// Mutates arbitrary bytes.
pub fn bytes(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = random.pick(inputs).clone();
    for _ in 0..=random.below(4) {
        let piece = random.piece(input.len());
        match random.below(8) {
            0 if !input.is_empty() => {
                let at = random.below(input.len());
                input[at] ^= 1 << random.below(8);
            }
            1 => drop(input.drain(piece)),
            2 => {
                let copy = input[piece].to_vec();
                let at = random.below(input.len() + 1);
                input.splice(at..at, copy);
            }
            3 => {
                let other = random.pick(inputs);
                let from = random.piece(other.len());
                input.splice(piece, other[from].iter().copied());
            }
            4 if input.len() >= 8 => {
                let (at, size) = (random.below(input.len() - 7), [1, 2, 4, 8][random.below(4)]);
                let number = random.pick(&NUMBERS).to_le_bytes();
                input[at..at + size].copy_from_slice(&number[..size]);
            }
            5 => {
                let word = random.pick(&WORDS);
                input.splice(piece, word.iter().copied());
            }
            _ => replace_word(&mut input, random),
        }
    }
    input
}

/// Replaces one word between separators.
fn replace_word(input: &mut Vec<u8>, random: &mut Random) {
    let separator = |byte: &u8| b" ,\n\t=:()[]{}'\"".contains(byte);
    let at = random.below(input.len());
    let start = input[..at].iter().rposition(separator).map_or(0, |place| place + 1);
    let end = input[start..].iter().position(separator).map_or(input.len(), |length| start + length);
    input.splice(start..end, random.pick(&WORDS).iter().copied());
}

/// Mutates rows and cells of a CSV.
pub fn csv(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    if random.below(4) == 0 {
        return bytes(inputs, random);
    }
    let input = random.pick(inputs);
    let lines =
        input.split(|&byte| byte == b'\n').map(|line| line.split(|&byte| byte == b',').map(<[u8]>::to_vec));
    let mut rows: Vec<Vec<Vec<u8>>> = lines.map(Iterator::collect).collect();
    for _ in 0..=random.below(6) {
        // The header is mutated less often than other rows.
        let row = random.below(rows.len()).max(usize::from(rows.len() > 1 && random.below(8) > 0));
        match random.below(6) {
            0 => {
                let copy = rows[row].clone();
                let at = random.below(rows.len());
                rows.insert(at.max(1).min(rows.len()), copy);
            }
            1 if rows.len() > 1 => drop(rows.remove(row)),
            2 => {
                let column = random.below(rows[row].len());
                let word = random.pick(&WORDS).to_vec();
                for row in rows.iter_mut().skip(1).filter(|row| row.len() > column) {
                    row[column].clone_from(&word);
                }
            }
            _ => {
                let column = random.below(rows[row].len());
                if let Some(cell) = rows[row].get_mut(column) {
                    *cell = random.pick(&WORDS).to_vec();
                }
            }
        }
    }
    rows.iter().map(|row| row.join(&b',')).collect::<Vec<_>>().join(&b'\n')
}

/// Makes a .npy whose header usually has the correct length.
pub fn npy(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = bytes(inputs, random);
    if random.below(3) > 0
        && let Some(end) = input.iter().position(|&byte| byte == b'\n')
        && input.len() > 10
        && input[6] == 1
    {
        let length = (end + 1).saturating_sub(10) as u16;
        input[8..10].copy_from_slice(&length.to_le_bytes());
    }
    input
}

/// Makes a .safetensors whose header usually has the correct length.
pub fn safetensors(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = bytes(inputs, random);
    if random.below(3) > 0
        && let Some(end) = input.iter().rposition(|&byte| byte == b'}')
        && end > 8
    {
        input[..8].copy_from_slice(&(end as u64 - 7).to_le_bytes());
    }
    input
}

/// Mutates the bytes of an archive, or makes an archive of other bytes.
pub fn npz(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let input = random.pick(inputs).clone();
    let archive = ZipArchive::new(Cursor::new(&input)).ok().filter(|_| random.below(3) > 0);
    let Some(mut archive) = archive else { return bytes(inputs, random) };
    let mut out = ZipWriter::new(Cursor::new(Vec::new()));
    let changed = random.below(archive.len());
    for i in 0..archive.len() {
        let Ok(mut member) = archive.by_index(i) else { continue };
        let (mut name, mut content) = (member.name().to_owned(), Vec::new());
        if member.size() > 1 << 16 || member.read_to_end(&mut content).is_err() {
            continue;
        }
        if i == changed {
            content = npy(&[content], random);
            if random.below(8) == 0 {
                name = String::from_utf8_lossy(&bytes(&[name.into_bytes()], random)).into_owned();
            }
        }
        let method =
            if random.below(2) == 0 { CompressionMethod::Stored } else { CompressionMethod::Deflated };
        let options = SimpleFileOptions::default().compression_method(method);
        if out.start_file(name, options).is_ok() {
            let _ = out.write_all(&content);
        }
    }
    out.finish().map_or(input, Cursor::into_inner)
}
