use std::collections::BTreeMap;
use std::io::Write as _;

use half::{bf16, f16};
use ndarray::{Array2, ShapeBuilder, array};
use ndarray_npy::NpzWriter;
use nmem::io::{Dtype, METADATA_KEY, Tensor, TensorFile, write_safetensors};
use nmem::real::ElementType;

use crate::{TestDirectory, go_on, npy};

fn open(path: &std::path::Path) -> nmem::Result<TensorFile> {
    TensorFile::open(path, &mut go_on)
}

fn sample() -> BTreeMap<String, Tensor> {
    let bits16 = |bits: &[u16]| bits.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<_>>();
    let nan64 = f64::from_bits(0x7ff0_0000_0000_0001);
    let nan32 = f32::from_bits(0xffa0_1234);
    BTreeMap::from([
        (
            "half".into(),
            Tensor::new(Dtype::F16, vec![2, 2], bits16(&[0x7c01, 0xfe00, 0x0001, 0x8000])).unwrap(),
        ),
        ("brain".into(), Tensor::new(Dtype::BF16, vec![3], bits16(&[0x7f81, 0xffc1, 0x3f80])).unwrap()),
        ("state.update.0".into(), Tensor::from_array(&array![[1.5_f64, nan64], [-0.0, 5e-324]].view())),
        ("memory_model.weights.0".into(), Tensor::from_array(&array![[nan32, -0.0], [1e-45, 2.0]].view())),
        ("state.counts".into(), Tensor::from_counters(&[u64::MAX, 0, 7])),
        ("empty".into(), Tensor::new(Dtype::F32, vec![0, 4], vec![]).unwrap()),
        ("scalar".into(), Tensor::new(Dtype::F32, vec![], 3_f32.to_le_bytes().to_vec()).unwrap()),
        ("ünïcode \"quoted\"".into(), Tensor::new(Dtype::Bool, vec![1], vec![1]).unwrap()),
    ])
}

#[test]
fn safetensors_round_trip_bit_for_bit() {
    let directory = TestDirectory::new();
    let path = directory.path("memory.safetensors");
    let json = "{\"chunk_size\": 16, \"text\": \"zwölf \\\"\"}";
    write_safetensors(&path, &sample(), json).unwrap();
    let file = open(&path).unwrap();
    assert_eq!(file.tensors(), &sample());
    assert_eq!(file.memory_json(), Some(json));
    assert_eq!(file.metadata().keys().collect::<Vec<_>>(), [METADATA_KEY]);
    assert_eq!(file.get("state.counts").unwrap().to_counters().unwrap(), [u64::MAX, 0, 7]);
    assert_eq!(file.array::<f64>("state.update.0").unwrap().shape(), [2, 2]);
    assert_eq!(file.array::<f32>("scalar").unwrap()[[]], 3.0);
    assert_eq!(file.array::<f32>("empty").unwrap().shape(), [0, 4]);
    assert_eq!(file.array::<f64>("brain").unwrap()[[2]], 1.0);
    // Written again, and rewritten from the read file, the bytes are the same.
    let first = std::fs::read(&path).unwrap();
    for _ in 0..5 {
        write_safetensors(&path, file.tensors(), json).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }
    // The format's own reader agrees.
    let read = safetensors::SafeTensors::deserialize(&first).unwrap();
    assert_eq!(read.len(), sample().len());
    assert_eq!(read.tensor("half").unwrap().data(), sample()["half"].data());
    assert_eq!(read.names().len(), 8);
}

/// The exact bytes: a change of order or layout would change every memory's hash.
#[test]
fn safetensors_bytes_stay_the_same() {
    let directory = TestDirectory::new();
    let path = directory.path("x.safetensors");
    let tensors = BTreeMap::from([
        ("b".to_owned(), Tensor::new(Dtype::F16, vec![1], vec![1, 2]).unwrap()),
        ("z".to_owned(), Tensor::from_counters(&[5])),
        ("a".to_owned(), Tensor::new(Dtype::F16, vec![1], vec![3, 4]).unwrap()),
    ]);
    write_safetensors(&path, &tensors, "{}").unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let header = "{\"__metadata__\":{\"nmem\":\"{}\"},\
        \"z\":{\"dtype\":\"U64\",\"shape\":[1],\"data_offsets\":[0,8]},\
        \"a\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[8,10]},\
        \"b\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[10,12]}}";
    let padded = header.len().next_multiple_of(8);
    assert_eq!(bytes[..8], (padded as u64).to_le_bytes());
    assert_eq!(std::str::from_utf8(&bytes[8..8 + padded]).unwrap().trim_end_matches(' '), header);
    assert_eq!(bytes[8 + padded..], [5, 0, 0, 0, 0, 0, 0, 0, 3, 4, 1, 2]);
}

/// Every type that nmem writes, each with the numbers 0, 1, 2 … as bytes.
#[test]
fn safetensors_of_every_type() {
    let types = [
        (Dtype::F16, 2),
        (Dtype::BF16, 2),
        (Dtype::F32, 4),
        (Dtype::F64, 8),
        (Dtype::I8, 1),
        (Dtype::I16, 2),
        (Dtype::I32, 4),
        (Dtype::I64, 8),
        (Dtype::U8, 1),
        (Dtype::U16, 2),
        (Dtype::U32, 4),
        (Dtype::U64, 8),
        (Dtype::Bool, 1),
    ];
    let tensors: BTreeMap<_, _> = types
        .map(|(dtype, bytes)| {
            let data = (0..3 * bytes).collect();
            (dtype.name().to_owned(), Tensor::new(dtype, vec![3, 1], data).unwrap())
        })
        .into();
    let directory = TestDirectory::new();
    let path = directory.path("x.safetensors");
    write_safetensors(&path, &tensors, "{}").unwrap();
    assert_eq!(open(&path).unwrap().tensors(), &tensors);
    // The format's own reader agrees on the names of types.
    let bytes = std::fs::read(&path).unwrap();
    for (name, tensor) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
        assert_eq!(tensor.dtype().to_string().to_lowercase(), name);
    }
}

/// Types that only other programs write can be inspected, and cannot be written.
#[test]
fn safetensors_of_other_types() {
    let directory = TestDirectory::new();
    for (code, name, bytes) in [
        ("C64", "complex", 8),
        ("F4", "f4", 1),
        ("F6_E2M3", "f6", 3),
        ("F6_E3M2", "f6", 3),
        ("F8_E5M2", "f8", 1),
        ("F8_E4M3", "f8", 1),
        ("F8_E8M0", "f8", 1),
        ("F8_E4M3FNUZ", "f8", 1),
        ("F8_E5M2FNUZ", "f8", 1),
    ] {
        let count = match code.get(..2) {
            Some("F4") => 2,
            Some("F6") => 4,
            _ => 1,
        };
        let header = format!(r#"{{"a":{{"dtype":"{code}","shape":[{count}],"data_offsets":[0,{bytes}]}}}}"#);
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; bytes]].concat();
        let file = open(&directory.file("x.safetensors", &file)).unwrap();
        assert_eq!(file.get("a").unwrap().dtype(), Dtype::Other(name), "{code}");
        let error = write_safetensors(directory.path("y"), file.tensors(), "{}").unwrap_err();
        assert_eq!(directory.message(error), format!("y: cannot write: a has the type {name}"));
    }
}

fn npz(directory: &TestDirectory, name: &str, compressed: bool) -> std::path::PathBuf {
    let path = directory.path(name);
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = if compressed { NpzWriter::new_compressed(file) } else { NpzWriter::new(file) };
    let c = Array2::from_shape_fn((3, 4), |(i, j)| (10 * i + j) as f32);
    let mut fortran = Array2::zeros((3, 4).f());
    fortran.assign(&c.mapv(f64::from));
    writer.add_array("c", &c).unwrap();
    writer.add_array("fortran", &fortran).unwrap();
    writer.add_array("count", &array![1_u64, 2]).unwrap();
    writer.finish().unwrap();
    path
}

#[test]
fn npz_stored_and_deflated_in_either_order() {
    let directory = TestDirectory::new();
    for compressed in [false, true] {
        let file = open(&npz(&directory, "weights.any", compressed)).unwrap();
        assert_eq!(file.tensors().keys().collect::<Vec<_>>(), ["c", "count", "fortran"]);
        assert_eq!(file.array::<f64>("c").unwrap(), file.array::<f64>("fortran").unwrap());
        assert_eq!(file.array::<f32>("fortran").unwrap()[[2, 1]], 21.0);
        assert_eq!(file.get("count").unwrap().to_counters().unwrap(), [1, 2]);
        assert_eq!(file.memory_json(), None);
    }
}

fn zip(directory: &TestDirectory, members: &[(&str, &[u8])]) -> std::path::PathBuf {
    let path = directory.path("x.npz");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    for (name, bytes) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    path
}

#[test]
fn npz_archives_have_a_limit_of_members() {
    let directory = TestDirectory::new();
    let array = npy("'|u1'", false, "(1,)", &[7]);
    let names: Vec<String> = (0..1 << 14).map(|i| format!("{i}")).collect();
    let mut members: Vec<(&str, &[u8])> = names[1..].iter().map(|name| (&name[..], &b""[..])).collect();
    members.push(("a.npy", &array));
    assert_eq!(open(&zip(&directory, &members)).unwrap().get("a").unwrap().data(), [7]);
    members.push((&names[0], b""));
    assert_eq!(
        directory.message(open(&zip(&directory, &members)).unwrap_err()),
        "x.npz: expected a .npz archive of at most 16384 members, got more"
    );
}

/// Counts in the end of an archive's directory are checked before memory is allocated for them.
#[test]
fn npz_archives_that_claim_too_many_members() {
    let directory = TestDirectory::new();
    for place in [20, 28] {
        let mut end = [0; 36];
        end[place + 2] = 1;
        let path = directory.file("x.npz", &[b"PK\x03\x04PK\x06\x06", &end[..]].concat());
        assert_eq!(
            directory.message(open(&path).unwrap_err()),
            "x.npz: expected a .npz archive of at most 16384 members, got more"
        );
    }
}

#[test]
fn safetensors_headers_have_a_limit() {
    let directory = TestDirectory::new();
    let read = |length: usize| {
        let header = "{}".to_owned() + &" ".repeat(length - 2);
        let bytes = [&(length as u64).to_le_bytes()[..], header.as_bytes()].concat();
        open(&directory.file("x.safetensors", &bytes)).map(drop).map_err(|error| directory.message(error))
    };
    assert_eq!(read(8 << 20), Ok(()));
    let expected = "x.safetensors: expected a header of at most 8388608 bytes, got 8388609";
    assert_eq!(read((8 << 20) + 1), Err(expected.to_owned()));
}

#[test]
fn npz_big_endian_fortran_members() {
    let directory = TestDirectory::new();
    let mut data = Vec::new();
    for x in [1_i16, 4, 2, 5, 3, 6] {
        data.extend(f16::from_f32(f32::from(x)).to_be_bytes());
    }
    let path =
        zip(&directory, &[("a/b.npy", &npy("'>f2'", true, "(2, 3)", &data)), ("README", b"not an array")]);
    let file = open(&path).unwrap();
    assert_eq!(file.array::<f32>("a/b").unwrap(), array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]].into_dyn());
    assert_eq!(file.get("a/b").unwrap().dtype(), Dtype::F16);
    assert_eq!(file.tensors().len(), 1);
}

/// Members in Fortran order whose elements have 1, 2, 4 and 8 bytes, of no to three axes.
#[test]
fn npz_fortran_members_of_every_width() {
    let directory = TestDirectory::new();
    let little: Vec<u8> = (1..=24).collect();
    for (descr, width) in [("'|u1'", 1_usize), ("'<u2'", 2), ("'<u4'", 4), ("'<u8'", 8)] {
        // The element with index (i, j, k) of shape (2, 3, 4) is stored at i + 2·j + 6·k in Fortran order.
        let element = |n: usize| [&little[n..=n], &vec![0; width - 1]].concat();
        let fortran: Vec<u8> = (0..24).flat_map(element).collect();
        let c_order: Vec<u8> =
            (0..24).flat_map(|at| element(at / 12 + 2 * (at / 4 % 3) + 6 * (at % 4))).collect();
        let file = open(&zip(
            &directory,
            &[
                ("cube.npy", &npy(descr, true, "(2, 3, 4)", &fortran)),
                ("row.npy", &npy(descr, true, "(24,)", &fortran)),
                ("one.npy", &npy(descr, true, "()", &element(0))),
            ],
        ))
        .unwrap();
        assert_eq!(file.get("cube").unwrap().data(), c_order, "{descr}");
        assert_eq!(file.get("cube").unwrap().shape(), [2, 3, 4], "{descr}");
        assert_eq!(file.get("row").unwrap().data(), fortran, "{descr}");
        assert_eq!(file.get("one").unwrap().data(), element(0), "{descr}");
    }
}

#[test]
fn rejections() {
    let directory = TestDirectory::new();
    let message = |path: &std::path::Path| directory.message(open(path).err().unwrap());

    let good = npy("'<f4'", false, "(2,)", &[0; 8]);
    assert_eq!(
        message(&zip(&directory, &[("w.npy", &good[..good.len() - 2])])),
        "x.npz: w: expected 136 bytes (a header of 128, f32 of shape (2,)), got 134"
    );
    assert_eq!(
        message(&zip(&directory, &[("ok.npy", &good), ("o.npy", &npy("'|O'", false, "(1,)", b"pickle"))])),
        "x.npz: o: expected numbers, got object (|O)"
    );
    assert_eq!(
        message(&zip(&directory, &[("archive/data.pkl", b"")])),
        "x.npz: expected a .safetensors or .npz file, got a PyTorch checkpoint \
         (save its state_dict with safetensors.torch.save_file)"
    );
    assert_eq!(
        message(&zip(&directory, &[("notes.txt", b"")])),
        "x.npz: expected a .safetensors or .npz file, got a zip archive without .npy members"
    );
    // With one bit of the data flipped, the archive's checksum fails.
    let path = zip(&directory, &[("w.npy", &npy("'<f4'", false, "(200,)", &[7; 800]))]);
    let mut bytes = std::fs::read(&path).unwrap();
    let stored = npz(&directory, "stored.npz", false);
    let mut stored_bytes = std::fs::read(&stored).unwrap();
    let at = stored_bytes.windows(4).position(|w| w == 11_f32.to_le_bytes()).unwrap();
    stored_bytes[at] ^= 1;
    assert_eq!(
        message(&directory.file("stored.npz", &stored_bytes)),
        "stored.npz: c: expected readable data, got Invalid checksum"
    );
    bytes.truncate(bytes.len() / 2);
    let text = message(&directory.file("cut.npz", &bytes));
    assert!(text.starts_with("cut.npz: expected an intact .npz archive, got a damaged one ("), "{text}");

    assert_eq!(
        message(&directory.file("x.npy", &good)),
        "x.npy: expected a .safetensors or .npz file, got a .npy file"
    );
    assert_eq!(
        message(&directory.file("x.txt", b"text")),
        "x.txt: expected a .safetensors or .npz file, got unrecognised content"
    );

    let path = directory.path("m.safetensors");
    write_safetensors(&path, &sample(), "{}").unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(
        message(&directory.file("m.safetensors", &bytes[..bytes.len() - 1])),
        "m.safetensors: expected 91 bytes of tensors after the header, got 90"
    );
    assert_eq!(
        message(&directory.file("m.safetensors", &bytes[..100])),
        format!("m.safetensors: expected a header of {header} bytes, got 92 bytes after its length")
    );
    let mut garbled = bytes.clone();
    garbled[20] = b'{';
    let text = message(&directory.file("m.safetensors", &garbled));
    assert!(text.starts_with("m.safetensors: expected a .safetensors header, got "), "{text}");
    for length in 0..bytes.len() {
        assert!(open(&directory.file("m.safetensors", &bytes[..length])).is_err(), "{length} bytes");
    }

    let file = open(&directory.file("m.safetensors", &bytes)).unwrap();
    assert_eq!(
        directory.message(file.get("absent").unwrap_err()),
        "m.safetensors: absent: expected a tensor of this name, got none"
    );
    assert_eq!(
        directory.message(file.array::<f32>("state.counts").unwrap_err()),
        "m.safetensors: state.counts: expected type f16, bf16, f32 or f64, got u64"
    );
    assert_eq!(
        directory.message(file.check_finite(ElementType::F64).unwrap_err()),
        "m.safetensors: expected finite numbers, got NaN at tensor brain, element [0] (--allow-nonfinite lets it through)"
    );
    assert_eq!(file.get("state.update.0").unwrap().first_nonfinite(ElementType::F64).unwrap().0, [0, 1]);
    assert!(file.get("scalar").unwrap().first_nonfinite(ElementType::F64).is_none());
    assert!(file.get("state.counts").unwrap().first_nonfinite(ElementType::F64).is_none());
}

#[test]
fn lengths_that_do_not_fit_make_no_tensor() {
    assert!(Tensor::new(Dtype::F32, vec![2], vec![0; 7]).is_none());
    assert!(Tensor::new(Dtype::F32, vec![0, usize::MAX, 2], vec![]).is_none());
    assert_eq!(bf16::from_f32(1.0).to_le_bytes(), [0x80, 0x3f]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let error = write_safetensors("/dev/full", &sample(), "{}").unwrap_err();
    assert_eq!(
        format!("{:#}", anyhow::Error::from(error)),
        "/dev/full: cannot write: No space left on device (os error 28)"
    );
}
