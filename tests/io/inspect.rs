use std::collections::BTreeMap;

use assert_cmd::cargo::cargo_bin_cmd;
use ndarray::array;
use nmem::io::summary::{Ranges, summarise};
use nmem::io::{Tensor, write_safetensors};
use nmem::memory::parameters::{Init, random_tensors};
use nmem::memory::{Dimensions, Program};

use crate::{TestDirectory, go_on, npy};

fn inspect(directory: &TestDirectory, args: &[&str]) -> (String, String, i32) {
    let output =
        cargo_bin_cmd!("nmem").current_dir(directory.path("")).arg("inspect").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

/// Writes a random memory of dim 6 with 3 heads of 2, without post-norm, and with a NaN in one weight.
fn memory(directory: &TestDirectory) {
    let dimensions = Dimensions { dim: 6, heads: 3, dim_head: 2, pre_norm: true, post_norm: false };
    let random = random_tensors(&dimensions, &Program::titans_0_0_17(2), Init::Xavier, 0).into_iter().map(
        |(name, mut tensor)| {
            if name == "store_norm.weight" {
                tensor[[2]] = f32::NAN;
            }
            (name, Tensor::from_array(&tensor.view()))
        },
    );
    let mut tensors: BTreeMap<_, _> = random.collect();
    write_safetensors(directory.path("fresh.safetensors"), &tensors, "{}").unwrap();
    tensors.insert("state.counts".to_owned(), Tensor::from_counters(&[12, 18_000_000_000_000_000_000]));
    tensors.insert("state.update.0".to_owned(), Tensor::from_array(&array![[1e-9_f64, -1234.5678]].view()));
    let json = "{\"chunk_size\": 16, \"gates\": {\"decay\": 0.25, \"momentum\": null}, \"shape\": [1, 2]}";
    write_safetensors(directory.path("memory.safetensors"), &tensors, json).unwrap();
}

#[test]
fn a_memory_as_a_table() {
    let directory = TestDirectory::new();
    memory(&directory);
    let (out, err, code) = inspect(&directory, &["memory.safetensors"]);
    assert_eq!((&err[..], code), ("", 0));
    insta::assert_snapshot!(out, @r"
    memory.safetensors: a memory, .safetensors, 2144 bytes
      dim 6, heads 3, dim_head 2; norms: before, not after

      configuration
        chunk_size      16
        gates.decay     0.25
        gates.momentum  -
        shape           [1,2]

      parameters
        name                       type  shape          min                   max         mean  nan  inf  bytes
        combine_heads.weight       f32   (6, 6)   -0.384267              0.388471    0.0175093    0    0    144
        memory_model.weights.0     f32   (2, 2)    -1.19709              0.233127    -0.452409    0    0     16
        memory_model.weights.1     f32   (2, 2)   -0.468467              0.893484     0.224202    0    0     16
        memory_model.weights.2     f32   (2, 2)   -0.653969               1.06713    0.0345882    0    0     16
        memory_model.weights.3     f32   (2, 2)     -1.0769               0.16149    -0.539579    0    0     16
        retrieve_norm.weight       f32   (6,)             1                     1            1    0    0     24
        store_norm.weight          f32   (6,)             1                     1            1    1    0     24
        to_adaptive_step.1.weight  f32   (3, 6)   -0.279795               0.31401  -0.00209305    0    0     72
        to_decay_factor.1.weight   f32   (3, 6)   -0.339259              0.362841   -0.0492536    0    0     72
        to_keys_values.weight      f32   (12, 6)  -0.403098              0.398422    0.0348976    0    0    288
        to_momentum.1.weight       f32   (3, 6)   -0.399961              0.274051   -0.0884372    0    0     72
        to_queries.weight          f32   (6, 6)   -0.403677               0.37698    0.0203473    0    0    144

      state
        name                       type  shape          min                   max         mean  nan  inf  bytes
        state.counts               u64   (2,)            12  18000000000000000000         9e18    0    0     16
        state.update.0             f64   (1, 2)    -1234.57                  1e-9     -617.284    0    0     16
    ");
    let (out, _, code) = inspect(&directory, &["fresh.safetensors"]);
    assert!(out.ends_with("  state\n    none: nothing has been stored\n"), "{out}");
    assert_eq!(code, 0);
}

#[test]
fn sequences_as_a_table() {
    let directory = TestDirectory::new();
    let data: Vec<u8> =
        [1.5_f64, f64::NAN, -2.0, f64::INFINITY].iter().flat_map(|x| x.to_be_bytes()).collect();
    directory.file("x.npy", &npy("'>f8'", true, "(2, 2)", &data));
    directory.file("i.npy", &npy("'<i8'", false, "()", &i64::MIN.to_le_bytes()));
    directory.file("o.npy", &npy("'|O'", false, "(1,)", b"pickle"));
    let (out, err, code) = inspect(&directory, &["x.npy", "i.npy", "o.npy"]);
    assert_eq!((&err[..], code), ("", 0));
    insta::assert_snapshot!(out, @r"
    x.npy: .npy, 160 bytes

      type                    shape   min  max   mean  nan  inf  bytes
      f64 big-endian Fortran  (2, 2)   -2  1.5  -0.25    1    1     32

    i.npy: .npy, 136 bytes

      type  shape                   min                   max         mean  nan  inf  bytes
      i64   ()     -9223372036854775808  -9223372036854775808  -9.22337e18    0    0      8

    o.npy: .npy, 134 bytes

      type       shape  min  max  mean  nan  inf  bytes
      object |O  (1,)     -    -     -    -    -      6
    ");
}

/// Type, byte order, range and counts of arrays of every type.
#[test]
fn summaries_of_every_type() {
    let directory = TestDirectory::new();
    let summary =
        |bytes: &[u8]| summarise(directory.file("x.npy", bytes), &mut go_on).unwrap().arrays.remove(0);
    // The code in files, the name, the bytes of an element, and the bit pattern of 1.
    for (code, name, width, one) in [
        ("i1", "i8", 1, 1_u64),
        ("i2", "i16", 2, 1),
        ("i4", "i32", 4, 1),
        ("i8", "i64", 8, 1),
        ("u1", "u8", 1, 1),
        ("u2", "u16", 2, 1),
        ("u4", "u32", 4, 1),
        ("u8", "u64", 8, 1),
        ("b1", "bool", 1, 1),
        ("f2", "f16", 2, 0x3c00),
        ("f4", "f32", 4, 0x3f80_0000),
        ("f8", "f64", 8, 0x3ff0_0000_0000_0000),
    ] {
        for big in [false, true] {
            // Zero, one, one.
            let data: Vec<u8> = [0, one, one]
                .iter()
                .flat_map(|x| {
                    let mut bytes = x.to_le_bytes()[..width].to_vec();
                    if big {
                        bytes.reverse();
                    }
                    bytes
                })
                .collect();
            let prefix = if big { '>' } else { '<' };
            let array = summary(&npy(&format!("'{prefix}{code}'"), false, "(3,)", &data));
            let is_big = big && width > 1;
            assert_eq!((&array.dtype[..], array.big_endian), (name, is_big), "{prefix}{code}");
            assert_eq!(array.described, if is_big { format!("{name} big-endian") } else { name.to_owned() });
            let Ranges { min, max, mean, nan, infinite } = array.ranges;
            let number = |number: Option<serde_json::Number>| number.unwrap().as_f64();
            assert_eq!((number(min), number(max)), (Some(0.0), Some(1.0)), "{prefix}{code}");
            assert!((mean.unwrap() - 2.0 / 3.0).abs() < 1e-12, "{prefix}{code}");
            assert_eq!((nan, infinite), (Some(0), Some(0)));
        }
    }
}

/// More than one piece of a quarter of a mebibyte: range, sum and counts span them.
#[test]
fn summaries_of_long_arrays() {
    let directory = TestDirectory::new();
    let numbers = 100_000_usize;
    let mut floats: Vec<f64> = (0..numbers).map(|i| i as f64).collect();
    (floats[0], floats[70_000], floats[99_998]) = (f64::NAN, f64::NEG_INFINITY, f64::INFINITY);
    floats[99_999] = f64::NAN;
    let data: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut seen = 0;
    let path = directory.file("f.npy", &npy("'<f8'", false, "(100000,)", &data));
    let summary = summarise(&path, &mut |bytes| {
        seen += bytes;
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, data.len() as u64);
    let ranges = &summary.arrays[0].ranges;
    assert_eq!((ranges.nan, ranges.infinite), (Some(2), Some(2)));
    assert_eq!(ranges.min.as_ref().unwrap().as_f64(), Some(1.0));
    assert_eq!(ranges.max.as_ref().unwrap().as_f64(), Some(99_997.0));
    let sum: f64 = floats.iter().filter(|x| x.is_finite()).sum();
    assert!((ranges.mean.unwrap() - sum / 99_996.0).abs() < 1e-6);

    let data: Vec<u8> = (0..100_000_i64).flat_map(|i| (7 - i).to_le_bytes()).collect();
    let path = directory.file("i.npy", &npy("'<i8'", false, "(100000,)", &data));
    let summary = summarise(&path, &mut go_on).unwrap();
    let ranges = &summary.arrays[0].ranges;
    assert_eq!(ranges.min.as_ref().unwrap().as_i64(), Some(7 - 99_999));
    assert_eq!(ranges.max.as_ref().unwrap().as_i64(), Some(7));
    assert!((ranges.mean.unwrap() - (7.0 - 49_999.5)).abs() < 1e-6);
}

/// No mean is shown where the sum overflows, and no numbers where the array has none.
#[test]
fn summaries_without_a_mean() {
    let directory = TestDirectory::new();
    let ranges = |shape: &str, numbers: &[f64]| {
        let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let path = directory.file("x.npy", &npy("'<f8'", false, shape, &data));
        summarise(&path, &mut go_on).unwrap().arrays.remove(0).ranges
    };
    let huge = ranges("(2,)", &[f64::MAX, f64::MAX]);
    assert_eq!((huge.mean, huge.max.unwrap().as_f64()), (None, Some(f64::MAX)));
    for (shape, numbers, nan) in [("(0,)", &[][..], 0), ("(1,)", &[f64::NAN][..], 1)] {
        let none = ranges(shape, numbers);
        assert_eq!((none.min, none.max, none.mean, none.nan), (None, None, None, Some(nan)));
    }
}

#[test]
fn json_for_programs() {
    let directory = TestDirectory::new();
    memory(&directory);
    directory.file("x.npy", &npy("'<f4'", false, "(1, 2)", &[0, 0, 128, 63, 0, 0, 192, 127]));
    let (out, _, code) = inspect(&directory, &["--format", "json", "memory.safetensors", "absent", "x.npy"]);
    assert_eq!(code, 1);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    let memory = &json[0];
    assert_eq!(memory["kind"], "memory");
    assert_eq!(memory["configuration"]["gates"]["decay"], 0.25);
    assert_eq!(memory["parameters"]["dim_head"], 2);
    assert_eq!(memory["parameters"]["post_norm"], false);
    let counts = memory["arrays"].as_array().unwrap().iter().find(|a| a["name"] == "state.counts").unwrap();
    assert_eq!(counts["max"], 18_000_000_000_000_000_000_u64);
    let array = &json[1]["arrays"][0];
    assert_eq!((&array["dtype"], &array["nan"], &array["max"]), (&"f32".into(), &1.into(), &1.0.into()));
}

#[test]
fn exit_status_and_messages() {
    let directory = TestDirectory::new();
    directory.file("x.npy", &npy("'<f4'", false, "(1, 2)", &[0; 8]));
    directory.file("bad.npy", b"\x93NUMPY");
    let bad = "error: bad.npy: expected a .npy header, got a file that ends after 6 bytes\n";
    let (out, err, code) = inspect(&directory, &["bad.npy", "x.npy"]);
    assert_eq!((&err[..], code), (bad, 1));
    assert!(out.starts_with("x.npy: .npy, 136 bytes\n"), "{out}");
    let (out, err, code) = inspect(&directory, &["bad.npy"]);
    assert_eq!((&out[..], &err[..], code), ("", bad, 2));
    let (out, _, code) = inspect(&directory, &["--format", "json", "bad.npy"]);
    assert_eq!((&out[..], code), ("[]\n", 2));
}

#[test]
fn standard_input_is_a_file_too() {
    let bytes = npy("'<f4'", false, "(1, 2)", &[0; 8]);
    let output = cargo_bin_cmd!("nmem").args(["inspect", "-"]).write_stdin(bytes).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("-: .npy, 136 bytes\n"));
    let output = cargo_bin_cmd!("nmem").args(["inspect", "-"]).write_stdin("").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: standard input: expected a .npy, .npz or .safetensors file, got an empty file\n"
    );
}

/// The case of `nmem inspect … | head -1`.
#[test]
#[cfg(unix)]
fn a_closed_pipe_is_not_a_failure() {
    use std::process::{Command, Stdio};
    let directory = TestDirectory::new();
    directory.file("x.npy", &npy("'<f4'", false, "(1, 2)", &[0; 8]));
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("nmem"))
        .current_dir(directory.path(""))
        .arg("inspect")
        .args(["x.npy"; 500])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
}
