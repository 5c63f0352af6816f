use half::f16;
use ndarray::{Array2, Array3, ArrayD, IxDyn, ShapeBuilder, s};
use ndarray_npy::{ReadNpyExt, read_npy};
use nmem::Error;
use nmem::io::{Dtype, NpySequences, RetrievedWriter};
use nmem::real::{ElementType, Real};
use nmem::sequence::{Sequences, Shape};
use proptest::prelude::*;

use crate::{TestDirectory, go_on, npy, npy_of_header};

fn open(path: &std::path::Path) -> nmem::Result<NpySequences> {
    NpySequences::open(path, ElementType::F64, false, &mut go_on)
}

fn read_all<T: Real>(file: &NpySequences) -> Array3<T> {
    let Shape { sequences, tokens, dim } = file.dims();
    let mut all = Array3::from_elem((sequences, tokens, dim), T::from_f64(f64::NAN));
    for sequence in 0..sequences {
        file.read_rows(sequence, 0, all.slice_mut(s![sequence, .., ..])).unwrap();
    }
    all
}

const TYPES: [(&str, Dtype); 3] = [("f2", Dtype::F16), ("f4", Dtype::F32), ("f8", Dtype::F64)];

/// Returns the numbers of `values` as bytes in the file's order and type.
fn encode(values: &ArrayD<f64>, dtype: Dtype, fortran: bool, big: bool) -> Vec<u8> {
    let values = if fortran { values.t() } else { values.view() };
    let mut data = Vec::new();
    for &x in &values {
        let mut bytes = match dtype {
            Dtype::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
            Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        if big {
            bytes.reverse();
        }
        data.extend(bytes);
    }
    data
}

#[test]
fn every_accepted_form_reads_the_same_numbers() {
    let directory = TestDirectory::new();
    // Eighths are exact in all three types.
    for shape in [vec![7, 3], vec![2, 7, 3], vec![1, 1, 1], vec![3, 0, 2], vec![0, 4]] {
        let mut next = -9.0;
        let values = ArrayD::from_shape_simple_fn(IxDyn(&shape), || {
            next += 0.125;
            next
        });
        let expected = match shape[..] {
            [t, d] => values.clone().into_shape_with_order((1, t, d)).unwrap(),
            _ => values.clone().into_dimensionality().unwrap(),
        };
        for (code, dtype) in TYPES {
            for fortran in [false, true] {
                for big in [false, true] {
                    let descr = format!("'{}{code}'", if big { '>' } else { '<' });
                    let text = format!("{shape:?}").replace('[', "(").replace(']', ",)");
                    let bytes = npy(&descr, fortran, &text, &encode(&values, dtype, fortran, big));
                    let file = open(&directory.file("x.npy", &bytes)).unwrap();
                    assert_eq!(
                        (file.rank(), file.dtype(), file.file_shape()),
                        (shape.len(), dtype, &shape[..])
                    );
                    assert_eq!(file.bytes(), bytes.len() as u64);
                    assert_eq!(read_all::<f64>(&file), expected, "{descr} {fortran} {shape:?}");
                    assert_eq!(read_all::<f32>(&file), expected.mapv(|x| x as f32));
                }
            }
        }
    }
}

#[test]
fn other_header_versions_and_unprefixed_types() {
    let directory = TestDirectory::new();
    let v1 = npy("'f4'", false, "(1, 2)", &[0, 0, 128, 63, 0, 0, 0, 64]);
    for version in [2, 3] {
        let mut bytes = v1[..10].to_vec();
        bytes[6] = version;
        bytes.extend([0, 0]);
        bytes.extend(&v1[10..]);
        let file = open(&directory.file("x.npy", &bytes)).unwrap();
        assert_eq!(read_all::<f32>(&file).into_raw_vec_and_offset().0, [1.0, 2.0]);
    }
}

#[test]
fn sha256_is_that_of_the_whole_file() {
    let directory = TestDirectory::new();
    // Longer than one piece of the pass, and not a multiple of it.
    let data = vec![0; 300_000 * 4];
    let file = open(&directory.file("x.npy", &npy("'<f4'", false, "(100000, 3)", &data))).unwrap();
    // This is the output of sha256sum for the same bytes.
    assert_eq!(file.sha256(), "c4549ce121300ad5d4d415a2a3c919c7a6725cd99d95a5ed5511f1531531a1a2");
}

#[test]
fn progress_adds_up_and_stops() {
    let directory = TestDirectory::new();
    let path = directory.file("x.npy", &npy("'<f8'", false, "(100000, 1)", &vec![0; 800_000]));
    let mut seen = 0;
    let mut calls = 0;
    let file = NpySequences::open(&path, ElementType::F32, false, &mut |n| {
        seen += n;
        calls += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, file.bytes());
    assert!(calls > 2, "{calls}");
    let stopped = NpySequences::open(&path, ElementType::F32, false, &mut |_| Err(Error::Interrupted));
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

/// Each malformed file and its whole message.
#[test]
fn rejections() {
    let directory = TestDirectory::new();
    let f4 = |shape: &str, bytes: usize| npy("'<f4'", false, shape, &vec![0; bytes]);
    let whole = f4("(2, 3)", 24);
    let mut future = whole.clone();
    future[6] = 9;
    let mut long_header = whole.clone();
    long_header[6] = 2;
    long_header[8..12].copy_from_slice(&4_000_000_000_u32.to_le_bytes());
    let deep = format!("{{'descr': {}", "(".repeat(5000));
    let bad_type = |descr: &str, item: usize| npy(descr, false, "(2, 3)", &vec![0; 6 * item]);
    let numbers = "expected numbers of type f16, f32 or f64, got";
    let axes = "expected shape (tokens, dim) or (sequences, tokens, dim), got shape";
    let cases: Vec<(&str, Vec<u8>, String)> = vec![
        ("scalar", f4("()", 4), format!("{axes} ()")),
        ("rank1", f4("(3,)", 12), format!("{axes} (3,)")),
        ("rank4", f4("(1, 2, 3, 1)", 24), format!("{axes} (1, 2, 3, 1)")),
        ("dim 0", f4("(2, 3, 0)", 0), "expected a dim of at least 1, got shape (2, 3, 0)".into()),
        ("none", f4("(0, 2, 3)", 0), "expected at least one sequence, got shape (0, 2, 3)".into()),
        ("i8", bad_type("'<i8'", 8), format!("{numbers} i64 (<i8)")),
        ("u1", bad_type("'|u1'", 1), format!("{numbers} u8 (|u1)")),
        ("bool", bad_type("'|b1'", 1), format!("{numbers} bool (|b1)")),
        ("complex", bad_type("'<c8'", 8), format!("{numbers} complex (<c8)")),
        ("long", bad_type("'<f16'", 16), format!("{numbers} long double (<f16)")),
        ("text", bad_type("'<U5'", 20), format!("{numbers} text (<U5)")),
        ("time", bad_type("'<M8[ns]'", 8), format!("{numbers} time (<M8[ns])")),
        ("object", bad_type("'|O'", 3), format!("{numbers} object (|O)")),
        ("odd", bad_type("'?'", 1), format!("{numbers} unknown (?)")),
        (
            "structured",
            bad_type("[('a', '<f4'), ('b', '<i8')]", 12),
            format!("{numbers} structured ([('a', '<f4'), ('b', '<i8')])"),
        ),
        (
            "data",
            whole[..whole.len() - 1].to_vec(),
            "expected 152 bytes (a header of 128, f32 of shape (2, 3)), got 151".into(),
        ),
        (
            "extra",
            [&whole[..], &whole[..]].concat(),
            "expected 152 bytes (a header of 128, f32 of shape (2, 3)), got 304".into(),
        ),
        ("header", whole[..70].to_vec(), "expected a .npy header of 128 bytes, got a file of 70".into()),
        ("short", whole[..9].to_vec(), "expected a .npy header, got a file that ends after 9 bytes".into()),
        ("long header", long_header, "expected a .npy header of 4000000012 bytes, got a file of 152".into()),
        ("future", future, "expected .npy format 1, 2 or 3, got version 9.0".into()),
        (
            "garbled",
            npy_of_header("{'descr': <f4}", b""),
            "expected a .npy header, got text that is not a Python dictionary".into(),
        ),
        (
            "list",
            npy_of_header("[1, 2]", b""),
            "expected a .npy header, got text that is not a Python dictionary".into(),
        ),
        ("deep", npy_of_header(&deep, b""), "expected a .npy header, got brackets nested too deeply".into()),
        (
            "keys",
            npy_of_header("{'descr': '<f4', 'fortran_order': False}", b""),
            "expected a .npy header, got one without the key \"shape\"".into(),
        ),
        ("negative", f4("(2, -3)", 24), "expected a .npy header, got an invalid shape (2, -3)".into()),
        (
            "overflow",
            f4("(4294967296, 4294967296, 4)", 0),
            "expected an array that can be addressed, got shape (4294967296, 4294967296, 4)".into(),
        ),
        (
            "overflow with 0",
            f4("(0, 4294967296, 4294967296)", 0),
            "expected an array that can be addressed, got shape (0, 4294967296, 4294967296)".into(),
        ),
        ("empty", vec![], "expected a .npy file, got an empty file".into()),
        (
            "zip",
            b"PK\x03\x04rest of an archive".to_vec(),
            "expected a .npy file, got a zip archive, as of numpy.savez and torch.save (use numpy.save)"
                .into(),
        ),
        (
            "safetensors",
            b"\x10\0\0\0\0\0\0\0{\"a\":1}         ".to_vec(),
            "expected a .npy file, got a .safetensors file".into(),
        ),
        ("gzip", b"\x1f\x8b\x08".to_vec(), "expected a .npy file, got a gzip file (unpack it first)".into()),
        ("csv", b"1,2,3\n4,5,6\n".to_vec(), "expected a .npy file, got unrecognised content".into()),
    ];
    for (name, bytes, expected) in cases {
        let error =
            open(&directory.file(name, &bytes)).err().unwrap_or_else(|| panic!("{name} was accepted"));
        assert_eq!(directory.message(error), format!("{name}: {expected}"));
    }
    let error = open(&directory.path("absent.npy")).err().unwrap();
    assert_eq!(directory.message(error), "absent.npy: cannot open: No such file or directory (os error 2)");
    std::fs::create_dir(directory.path("directory.npy")).unwrap();
    let error = open(&directory.path("directory.npy")).err().unwrap();
    assert_eq!(directory.message(error), "directory.npy: expected a .npy file, got a directory");
}

/// Other types of arrays, and other files that are recognised by their first bytes.
#[test]
fn other_types_and_files() {
    let directory = TestDirectory::new();
    let numbers = "numbers of type f16, f32 or f64, got";
    for (name, bytes, expected) in [
        ("bytes", npy("'|S3'", false, "(2, 3)", &[0; 18]), format!("{numbers} bytes (|S3)")),
        ("void", npy("'|V3'", false, "(2, 3)", &[0; 18]), format!("{numbers} void (|V3)")),
        (
            "empty zip",
            b"PK\x05\x06rest".to_vec(),
            "a .npy file, got a zip archive, as of numpy.savez and torch.save (use numpy.save)".to_owned(),
        ),
        ("hdf5", b"\x89HDF\r\n\x1a\n".to_vec(), "a .npy file, got an HDF5 file".to_owned()),
        ("pickle", b"\x80\x04K\x01.".to_vec(), "a .npy file, got a Python pickle".to_owned()),
    ] {
        let error = open(&directory.file(name, &bytes)).err().unwrap();
        assert_eq!(directory.message(error), format!("{name}: expected {expected}"));
    }
}

#[test]
fn every_truncation_is_an_error() {
    let directory = TestDirectory::new();
    let whole = npy("'<f8'", true, "(2, 2, 1)", &[0; 32]);
    for length in 0..whole.len() {
        assert!(open(&directory.file("x.npy", &whole[..length])).is_err(), "{length} bytes");
    }
}

/// Returns the bytes of a mapped file that are in this process's memory, if pages have 4 KB.
#[cfg(target_os = "linux")]
fn resident(path: &std::path::Path) -> Option<usize> {
    let path = path.canonicalize().unwrap();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
    let mut size = |name: &str| {
        let line = lines.find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    };
    let page = size("KernelPageSize:");
    let resident = size("Rss:");
    (page == 4 << 10).then_some(resident)
}

#[cfg(not(target_os = "linux"))]
fn resident(_: &std::path::Path) -> Option<usize> {
    None
}

/// Bytes that may stay: a huge page that the system maps around the last one that was read, and some.
const AROUND: usize = 4 << 20;

#[test]
fn copied_sequences_are_those_that_are_read() {
    let directory = TestDirectory::new();
    for shape in [[2, 1500, 900], [900, 8, 384]] {
        let values = ArrayD::from_shape_fn(IxDyn(&shape), |i| (i[0] * 7 + i[1] * 3 + i[2]) as f64);
        let [sequences, tokens, dim] = shape;
        for (fortran, big) in [(false, false), (false, true), (true, false)] {
            let descr = if big { "'>f4'" } else { "'<f4'" };
            let data = encode(&values, Dtype::F32, fortran, big);
            let shape = format!("({sequences}, {tokens}, {dim})");
            let path = directory.file("x.npy", &npy(descr, fortran, &shape, &data));
            let file = open(&path).unwrap();
            let all = read_all::<f64>(&file);
            assert_eq!(all.view().into_dyn(), values);
            assert!(resident(&path).is_none_or(|bytes| bytes > AROUND));
            let mut copied = Array3::zeros(all.dim());
            for (sequence, rows) in copied.outer_iter_mut().enumerate() {
                file.copy_sequence::<f64>(sequence, rows).unwrap();
            }
            assert_eq!(copied, all);
            let after = resident(&path);
            assert!(after.is_none_or(|bytes| bytes <= AROUND), "{after:?} bytes after a copy of {shape}");
            assert_eq!(read_all::<f64>(&file), all, "from the file again");
            file.check_unchanged(true).unwrap();
            let after = resident(&path);
            assert!(after.is_none_or(|bytes| bytes <= AROUND), "{after:?} bytes after the check of {shape}");
        }
    }
}

#[test]
fn the_first_nonfinite_number_is_named_in_logical_order() {
    let directory = TestDirectory::new();
    for (code, dtype) in TYPES {
        for (fortran, big) in [(false, false), (false, true), (true, false), (true, true)] {
            let descr = format!("'{}{code}'", if big { '>' } else { '<' });
            let mut values = ArrayD::zeros(IxDyn(&[2, 20, 5]));
            // In Fortran order the second one comes first in the file.
            values[[0, 17, 3]] = f64::NAN;
            values[[1, 0, 0]] = f64::NEG_INFINITY;
            let path = directory
                .file("x.npy", &npy(&descr, fortran, "(2, 20, 5)", &encode(&values, dtype, fortran, big)));
            assert_eq!(
                directory.message(open(&path).err().unwrap()),
                "x.npy: expected finite numbers, got NaN at sequence 0, token 17, coordinate 3 \
                 (--allow-nonfinite lets it through)"
            );
            let file = NpySequences::open(&path, ElementType::F32, true, &mut go_on).unwrap();
            assert!(read_all::<f32>(&file)[[0, 17, 3]].is_nan());
            assert!(read_all::<f32>(&file)[[1, 0, 0]] == f32::NEG_INFINITY);

            let mut values = ArrayD::zeros(IxDyn(&[20, 5]));
            values[[19, 4]] = f64::INFINITY;
            let path = directory
                .file("x.npy", &npy(&descr, fortran, "(20, 5)", &encode(&values, dtype, fortran, big)));
            assert_eq!(
                directory.message(open(&path).err().unwrap()),
                "x.npy: expected finite numbers, got inf at token 19, coordinate 4 (--allow-nonfinite lets it through)"
            );
        }
    }
}

#[test]
fn a_nonfinite_number_far_into_the_file_is_found() {
    let directory = TestDirectory::new();
    let mut data = vec![0; 4 * 200_000];
    data[4 * 199_999..].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = directory.file("x.npy", &npy("'<f4'", false, "(200, 1000)", &data));
    assert!(
        matches!(open(&path), Err(Error::NonFinite { place, .. }) if place == "token 199, coordinate 999")
    );
}

#[test]
fn numbers_too_large_for_f32_are_rejected_only_there() {
    let directory = TestDirectory::new();
    let largest = (f64::from(f32::MAX) + 2_f64.powi(103)).next_down();
    let one = |x: f64| directory.file("x.npy", &npy("'<f8'", false, "(1, 1)", &x.to_le_bytes()));
    let file = NpySequences::open(one(-largest), ElementType::F32, false, &mut go_on).unwrap();
    assert_eq!(read_all::<f32>(&file)[[0, 0, 0]], -f32::MAX);
    let error =
        NpySequences::open(one(largest.next_up()), ElementType::F32, false, &mut go_on).err().unwrap();
    assert_eq!(
        directory.message(error),
        "x.npy: expected numbers that f32 can hold, got 3.4028235677973366e38 at token 0, coordinate 0 \
         (--dtype f64 holds it)"
    );
    open(&one(1e300)).unwrap();
    open(&one(f64::MAX)).unwrap();
    NpySequences::open(one(1e300), ElementType::F32, true, &mut go_on).unwrap();
}

#[test]
fn retrieved_rows_in_any_order() {
    let directory = TestDirectory::new();
    let path = directory.path("out.npy");
    let all = Array3::from_shape_fn((3, 5, 2), |(s, t, d)| (s * 100 + t * 10 + d) as f32);
    let shape = Shape { sequences: 3, tokens: 5, dim: 2 };
    let mut writer = RetrievedWriter::<f32>::create(&path, shape, 3).unwrap();
    for (sequence, start, end) in [(2, 3, 5), (0, 0, 5), (2, 0, 3), (1, 2, 4), (1, 4, 4)] {
        writer.write_rows(sequence, start, &all.slice(s![sequence, start..end, ..])).unwrap();
    }
    writer.finish().unwrap();
    let mut expected = all.clone();
    expected.slice_mut(s![1, ..2, ..]).fill(0.0);
    expected.slice_mut(s![1, 4.., ..]).fill(0.0);
    assert_eq!(read_npy::<_, Array3<f32>>(&path).unwrap(), expected);

    let shape = Shape { sequences: 1, tokens: 5, dim: 2 };
    let mut writer = RetrievedWriter::<f64>::create(&path, shape, 2).unwrap();
    let rows = all.slice(s![1, .., ..]).mapv(f64::from);
    // A view with rows that are not contiguous.
    let columns = Array2::from_shape_fn((2, 5), |(d, t)| rows[[t, d]]);
    writer.write_rows(0, 0, &columns.t()).unwrap();
    writer.finish().unwrap();
    assert_eq!(Array2::<f64>::read_npy(std::fs::File::open(&path).unwrap()).unwrap(), rows);

    let shape = Shape { sequences: 2, tokens: 0, dim: 4 };
    RetrievedWriter::<f32>::create(&path, shape, 3).unwrap().finish().unwrap();
    assert_eq!(read_npy::<_, Array3<f32>>(&path).unwrap().dim(), (2, 0, 4));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let shape = Shape { sequences: 1, tokens: 1, dim: 1 };
    let error = RetrievedWriter::<f32>::create("/dev/full", shape, 2).err().unwrap();
    assert_eq!(
        format!("{:#}", anyhow::Error::from(error)),
        "/dev/full: cannot write: No space left on device (os error 28)"
    );
}

/// A rewrite through a mapping changes neither size nor times while its page is dirty. Small files are read again.
#[test]
#[cfg(target_os = "linux")]
fn a_rewrite_that_leaves_size_and_times_is_found() {
    let directory = TestDirectory::new();
    let path = directory.file("x.npy", &npy("'<f4'", false, "(1, 2)", &[0; 8]));
    let writable = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: only this test has the file, and it is not cut short.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&writable) }.unwrap();
    let last = map.len() - 1;
    map[last] = 1;
    let file = open(&path).unwrap();
    file.check_unchanged(false).unwrap();
    file.check_unchanged(true).unwrap();
    map[last] = 2;
    let error = directory.message(file.check_unchanged(true).unwrap_err());
    assert_eq!(error, "x.npy: the file changed while nmem was reading it; run again once it is complete");
    // The same bytes again are the same file. So is one that has lost its name, or has given it to another.
    map[last] = 1;
    file.check_unchanged(true).unwrap();
    map[last] = 2;
    std::fs::rename(&path, directory.path("y.npy")).unwrap();
    file.check_unchanged(true).unwrap();
    directory.file("x.npy", b"another");
    file.check_unchanged(true).unwrap();
}

/// A name that is gone leaves the mapped file as it was. Any other error may hide a change.
#[test]
#[cfg(unix)]
fn a_name_that_cannot_be_followed_is_an_error() {
    let directory = TestDirectory::new();
    std::fs::create_dir(directory.path("a")).unwrap();
    let file = open(&directory.file("a/x.npy", &npy("'<f4'", false, "(1, 2)", &[0; 8]))).unwrap();
    std::fs::rename(directory.path("a"), directory.path("b")).unwrap();
    file.check_unchanged(false).unwrap();
    directory.file("a", b"no directory");
    let error = directory.message(file.check_unchanged(false).unwrap_err());
    assert!(error.starts_with("a/x.npy: cannot read"), "{error}");
}

/// Longer or shorter than it was, or other bytes with another time.
#[test]
fn a_file_that_changed_after_it_was_opened_is_an_error() {
    let directory = TestDirectory::new();
    let path = directory.file("x.npy", &npy("'<f4'", false, "(1, 2)", &[0; 8]));
    let file = open(&path).unwrap();
    let append = |bytes: &[u8]| {
        use std::io::Write as _;
        std::fs::File::options().append(true).open(&path).unwrap().write_all(bytes).unwrap();
    };
    append(&[0]);
    assert!(file.check_unchanged(false).is_err());
    let writable = std::fs::File::options().write(true).open(&path).unwrap();
    writable.set_len(file.bytes()).unwrap();
    // Other times and the same bytes.
    writable.set_modified(std::time::UNIX_EPOCH).unwrap();
    file.check_unchanged(false).unwrap();
    writable.set_len(file.bytes() - 1).unwrap();
    append(&[1]);
    assert!(file.check_unchanged(false).is_err());
}

proptest! {
    #[test]
    fn read_rows_agrees_with_ndarray(
        (sequences, tokens, dim) in (1_usize..4, 1_usize..40, 1_usize..9),
        start in 0_usize..40,
        rows in 0_usize..40,
        kind in 0_usize..3,
        fortran: bool,
        big: bool,
        transposed: bool,
        seed: u32,
    ) {
        let mut state = u64::from(seed);
        let values = Array3::from_shape_simple_fn((sequences, tokens, dim), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Halves up to 1000 are exact in f16.
            f64::from((state >> 33) as u32 % 2000) / 2.0 - 500.0
        });
        let start = start % tokens;
        let rows = rows.min(tokens - start);
        let (code, dtype) = TYPES[kind];
        let descr = format!("'{}{code}'", if big { '>' } else { '<' });
        let data = encode(&values.clone().into_dyn(), dtype, fortran, big);
        let directory = TestDirectory::new();
        let path = directory.file("x.npy", &npy(&descr, fortran, &format!("({sequences}, {tokens}, {dim})"), &data));
        let file = open(&path).unwrap();
        for sequence in 0..sequences {
            let mut out = Array2::from_elem((rows, dim).set_f(transposed), f32::NAN);
            file.read_rows(sequence, start, out.view_mut()).unwrap();
            let expected = values.slice(s![sequence, start..start + rows, ..]).mapv(|x| x as f32);
            prop_assert_eq!(out, expected);
        }
    }
}
