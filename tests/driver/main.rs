//! `--device cuda` on broken machines: no driver, a driver without a device, and drivers that are too old or
//! fail. `program` tests a complete fake driver, whose kernels run on the CPU. A C compiler builds the drivers
//! from driver.c and a C++ compiler their kernels; without these compilers the tests fail. Tests of [`Gpu`]
//! itself run this program again, with such a driver in LD_LIBRARY_PATH.

#![cfg(target_os = "linux")]

#[path = "../cuda/library.rs"]
mod library;
mod program;
#[path = "../support/sandbox.rs"]
mod sandbox;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output};

use nmem::cuda::{Argument, Array, Device, Gpu, Launch, Matrix, Product};
use nmem::real::ElementType;
use tempfile::TempDir;

/// Creates a directory with libraries built with these definitions.
fn libraries(of: &[(&str, &str, &[&str])]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (source, library, definitions) in of {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver").join(source);
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut command = Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).arg(directory.path().join(library)).arg(source);
        let made = command.args(definitions.iter().map(|definition| format!("-D{definition}"))).output();
        let made = made.unwrap_or_else(|error| {
            panic!("no driver to test with: {}: {error} (a C compiler is needed)", compiler.display())
        });
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    directory
}

fn driver(definitions: &[&str]) -> TempDir {
    libraries(&[("driver.c", "libcuda.so", definitions)])
}

fn nmem(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nmem"));
    command.args(arguments).env("LD_LIBRARY_PATH", directory).envs(variables.iter().copied());
    command.output().unwrap()
}

/// Runs a command that must fail and returns its one line on stderr.
fn rejected(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = nmem(directory, arguments, variables);
    let text = String::from_utf8(output.stderr).unwrap();
    // driver.c reports that nothing is left allocated.
    let text = text.replace("left: 0\n", "");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(!text.contains("panicked") && text.lines().count() == 1, "{arguments:?}: {text}");
    text.trim_end().to_owned()
}

const SCAN: [&str; 3] = ["scan-bench", "--device", "cuda"];

#[test]
fn no_driver() {
    let empty = tempfile::tempdir().unwrap();
    let listed = nmem(empty.path(), &["devices"], &[]);
    let text = String::from_utf8(listed.stdout).unwrap();
    if !text.contains("no GPU") {
        println!("not tested: this machine has a GPU");
        return;
    }
    if text.contains("libcuda.so.1 not found") {
        assert_eq!(listed.status.code(), Some(0));
        assert_eq!(
            rejected(empty.path(), &SCAN, &[]),
            "error: cuda: no NVIDIA driver (libcuda.so.1 not found); install one, or use --device cpu"
        );
    }
}

#[test]
fn drivers_that_do_not_start() {
    for (definitions, expected) in [
        (&["INIT=100"][..], "the NVIDIA driver finds no GPU"),
        (
            &["INIT=803"],
            "the NVIDIA driver is too old, or its kernel module is of another version (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: a meaning of two lines)",
        ),
        (&["INIT=36"], "the NVIDIA driver is too old, or its kernel module is of another version (error 36)"),
        (&["INIT=34"], "libcuda is the toolkit's stub, not a driver"),
        (&["INIT=999"], "the NVIDIA driver does not start (CUDA_ERROR_SOME: a meaning of two lines)"),
        // This driver starts and has no other functions.
        (&["INIT=0"], "the NVIDIA driver is too old (it has no cuDriverGetVersion, of CUDA 11.2)"),
        (
            &["INIT=0", "WHOLE", "cuMemAllocAsync=other"],
            "the NVIDIA driver is too old (it has no cuMemAllocAsync, of CUDA 11.2)",
        ),
        (
            &["INIT=0", "cuGetErrorName=other"],
            "the NVIDIA driver is too old (it has no cuGetErrorName, of CUDA 11.2)",
        ),
    ] {
        let directory = driver(definitions);
        let directory = directory.path();
        let message = rejected(directory, &SCAN, &[]);
        assert!(message.starts_with(&format!("error: cuda: {expected}")), "{definitions:?}: {message}");
        let listed = nmem(directory, &["devices"], &[]);
        let text = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(listed.status.code(), Some(0), "{definitions:?}");
        assert!(text.contains(&format!("\nno GPU: {expected}")), "{definitions:?}: {text}");
    }
}

#[test]
fn devices_that_cannot_be_used() {
    let directory = driver(&["INIT=0", "WHOLE"]);
    let directory = directory.path();
    let device = |name| ["scan-bench", "--device", name];
    let message = rejected(directory, &device("cuda:2"), &[]);
    assert_eq!(
        message,
        "error: cuda: no GPU with index 2: the GPUs are cuda:0 to cuda:1 (see `nmem devices`)"
    );
    for (code, expected) in [
        ("222", "the NVIDIA driver (of CUDA 11.4) is too old for the kernels' PTX "),
        ("218", "the NVIDIA driver (of CUDA 11.4) is too old for the kernels' PTX "),
        ("2", "out of memory on the GPU: loading the kernels"),
        ("999", "loading the kernels failed: CUDA_ERROR_SOME"),
    ] {
        let message = rejected(directory, &device("cuda:1"), &[("LOAD", code)]);
        assert!(message.starts_with(&format!("error: cuda: {expected}")), "{code}: {message}");
    }
    // A driver reports either code for PTX of newer GPUs.
    for code in ["209", "218"] {
        let message = rejected(directory, &device("cuda"), &[("LOAD", code), ("MAJOR", "7"), ("MINOR", "5")]);
        let expected = "error: cuda: the GPU (compute capability 7.5) is too old for the kernels' PTX, which needs 8.0 or later ";
        assert!(message.starts_with(expected), "{code}: {message}");
    }
    let message = rejected(directory, &device("cuda"), &[("NMEM_NVRTC", "1")]);
    assert!(
        message.starts_with("error: cuda: NMEM_NVRTC=1, but libnvrtc is not found")
            || message.contains("NVRTC"),
        "{message}"
    );

    let listed = nmem(directory, &["devices"], &[]);
    let text = String::from_utf8(listed.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[2], ["cuda:0", "Make-believe", "10", "8.0", "4", "7.0", "8.0", "11.4"], "{text}");
    assert_eq!(rows[3], ["cuda:1", "Make-believe", "11", "8.0", "4", "7.0", "8.0", "11.4"], "{text}");
    assert_eq!(String::from_utf8(listed.stderr).unwrap(), "left: 0\nleft: 0\n");
}

#[test]
fn a_device_that_is_broken_hides_no_other() {
    let directory = driver(&["INIT=0", "WHOLE"]);
    let directory = directory.path();
    let broken = |index: usize| {
        format!("no cuda:{index}: opening cuda:{index} failed: CUDA_ERROR_SOME: a meaning of two lines")
    };
    for (which, usable, unusable) in [("1", &[1][..], &[0][..]), ("2", &[0], &[1]), ("3", &[], &[0, 1])] {
        let variables = [("BROKEN", which)];
        let listed = nmem(directory, &["devices"], &variables);
        let text = String::from_utf8(listed.stdout).unwrap();
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(listed.status.code(), Some(0), "{text}");
        let mut expected: Vec<_> = usable.iter().map(|index| format!("cuda:{index}  Make-believe")).collect();
        expected.extend(unusable.iter().map(|&index| broken(index)));
        if usable.is_empty() {
            expected.push("no GPU: none can be used".to_owned());
        }
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, expected) in lines.iter().zip(&expected) {
            assert!(line.starts_with(expected), "{expected}: {text}");
        }

        let listed = nmem(directory, &["devices", "--format", "json"], &variables);
        let found: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let indices = |name: &str| -> Vec<_> {
            found[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|gpu| gpu["index"].as_u64().unwrap() as usize)
                .collect()
        };
        assert_eq!((&indices("cuda")[..], &indices("cuda_unusable")[..]), (usable, unusable));
        assert_eq!(found["cuda_error"].is_string(), usable.is_empty());
        assert!(broken(unusable[0]).ends_with(found["cuda_unusable"][0]["error"].as_str().unwrap()));
    }
    // The usable device is used, and its driver has no such kernels.
    let message = rejected(directory, &SCAN, &[("BROKEN", "2")]);
    assert!(message.starts_with("error: cuda: finding kernel "), "{message}");
    let message = rejected(directory, &SCAN, &[("BROKEN", "1")]);
    assert!(message.starts_with("error: cuda: opening cuda:0 failed"), "{message}");
}

#[test]
fn device_auto_is_the_cpu_with_a_note() {
    let directory = driver(&["INIT=100"]);
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    let arguments = [
        "scan-bench",
        "--steps",
        "3",
        "--channels",
        "2",
        "--batch",
        "1",
        "--seconds",
        "0",
        "--no-plots",
        "--device",
        "auto",
        "--out",
    ];
    let output = nmem(directory.path(), &[&arguments[..], &[out.to_str().unwrap()]].concat(), &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("note: --device auto: cpu (cuda: the NVIDIA driver finds no GPU"), "{text}");
    let csv = std::fs::read_to_string(out.join("scan_bench.csv")).unwrap();
    assert!(csv.lines().skip(1).all(|line| line.contains(",cpu,")), "{csv}");
}

/// Runs an otherwise ignored test of this program, and returns its stderr.
fn inside(test: &str, directory: &Path, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("LD_LIBRARY_PATH", directory);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("1 passed"), "{test}: {out}\n{message}");
    message
}

#[test]
fn memory_and_kernels() {
    let directory = driver(&["INIT=0", "WHOLE"]);
    for pools in ["1", "0"] {
        // Everything is freed before the context.
        let text =
            inside("memory_and_kernels_inside", directory.path(), &[("POOLS", pools), ("NMEM_CUBLAS", "0")]);
        assert!(text.contains("left: 0\n"), "{text}");
    }
}

#[test]
#[ignore = "runs inside memory_and_kernels"]
fn memory_and_kernels_inside() {
    let gpu = Gpu::open(1).unwrap();
    let pooled = std::env::var("POOLS").unwrap() == "1";
    assert_eq!((&*gpu.name(), gpu.multiprocessors(), gpu.shared_bytes()), ("Make-believe 11", 4, 166_912));
    assert_eq!(gpu.free_bytes().unwrap(), (7 << 30) + if pooled { 900 } else { 0 });

    // More than all pieces of an upload, and a remainder.
    let numbers: Vec<u32> = (0..(5 << 18) + 3).collect();
    let mut array = Array::from_slice(&gpu, &numbers).unwrap();
    assert_eq!(array.to_vec().unwrap(), numbers);
    // Parts larger and smaller than a piece; the surrounding bytes do not change.
    let parts = [1, 0, (1 << 18) + 5, 7, 1 << 18, 3].map(|len| vec![len as u32; len]);
    array.upload_parts(2, &parts.each_ref().map(Vec::as_slice)).unwrap();
    let mut expected = numbers.clone();
    let joined = parts.concat();
    expected[2..2 + joined.len()].copy_from_slice(&joined);
    assert_eq!(array.to_vec().unwrap(), expected);
    let mut other = Array::<u32>::zeros(&gpu, 7).unwrap();
    gpu.copy(other.address(1), array.address(numbers.len() - 2), 8).unwrap();
    assert_eq!(other.to_vec().unwrap(), [0, (5 << 18) + 1, (5 << 18) + 2, 0, 0, 0, 0]);
    other.upload(7, &[]).unwrap();
    other.download(7, &mut []).unwrap();

    // Any thread may launch, with arguments of every kind.
    let shown = Array::<f64>::new(&gpu, 7).unwrap();
    let arguments = [
        shown.argument(),
        Argument::U32(u32::MAX),
        Argument::I64(-5),
        Argument::F32(0.5),
        Argument::F64(1e300),
    ];
    for shared in [0, 100_000, 60_000] {
        let launch = Launch { grid: [3, 2, 1], block: 32, shared };
        std::thread::scope(|scope| scope.spawn(|| gpu.launch("show", launch, &arguments)).join().unwrap())
            .unwrap();
        let expected = [f64::from(u32::MAX), -5.0, 0.5, 1e300, 30_201.0, 320_101.0, f64::from(shared)];
        assert_eq!(shown.to_vec().unwrap(), expected);
    }
    gpu.launch("show", Launch { grid: [0, 1, 1], block: 1, shared: 0 }, &[]).unwrap();
    let too_much =
        gpu.launch("show", Launch { grid: [1; 3], block: 1, shared: 200_000 }, &arguments).unwrap_err();
    let expected = "cuda: kernel show with 200000 of 166912 bytes of shared memory failed: ";
    assert!(too_much.to_string().starts_with(expected), "{too_much}");
    let unknown = gpu.launch("absent", Launch { grid: [1; 3], block: 1, shared: 0 }, &[]).unwrap_err();
    assert!(unknown.to_string().starts_with("cuda: finding kernel absent failed: "), "{unknown}");
    let large = gpu.allocate(9 << 30).unwrap_err();
    assert!(
        large.to_string().starts_with("cuda: out of memory on the GPU: 9663676416 bytes requested, 75"),
        "{large}"
    );

    let (mut from, to) = (gpu.mark().unwrap(), gpu.mark().unwrap());
    assert!((gpu.seconds(&from, &to).unwrap() - 0.25).abs() < 1e-6);
    gpu.mark_anew(&mut from).unwrap();
    assert!((gpu.seconds(&to, &from).unwrap() - 0.25).abs() < 1e-6);

    // With NMEM_CUBLAS=0 the kernel computes the product.
    let results = Array::<f32>::zeros(&gpu, LARGE).unwrap();
    let matrix = |row| Matrix { address: results.address(0), row, stride: 0, transposed: false };
    let (a, b, c) = (matrix(LARGE), matrix(1), matrix(1));
    let size = [1, 1, LARGE];
    gpu.multiply(&Product { dtype: ElementType::F32, batch: 1, size, scale: 1.0, a, b, c }).unwrap();
    assert_eq!(results.to_vec().unwrap()[..1], [1234.0]);
    assert_eq!(gpu.products(), "kernel");

    // A kernel's failure appears in the call that waits for it, and persists. The remaining objects are freed
    // without a panic.
    gpu.launch("fault", Launch { grid: [1; 3], block: 1, shared: 0 }, &[]).unwrap();
    for failed in [gpu.synchronize(), array.to_vec().map(drop), gpu.upload(other.address(0), &[&[1]])] {
        let failed = failed.unwrap_err().to_string();
        assert!(
            failed.contains("after launching kernel fault failed: CUDA_ERROR_SOME") && !failed.contains('\n'),
            "{failed}"
        );
    }
}

/// A depth of products that are too large for the kernel.
const LARGE: usize = 129;

#[test]
fn products_in_rows_are_products_in_columns() {
    let directory =
        libraries(&[("driver.c", "libcuda.so", &["INIT=0", "WHOLE"]), ("blas.c", "libcublas.so", &[])]);
    let text = inside("products_inside", directory.path(), &[]);
    assert!(text.contains("left: 0\n"), "{text}");
}

#[test]
#[ignore = "runs inside products_in_rows_are_products_in_columns"]
fn products_inside() {
    let gpu = Gpu::open(0).unwrap();
    let (batch, [rows, cols, depth]) = (3, [2, 3, LARGE]);
    let numbers = |len: usize, seed: usize| -> Vec<f64> {
        (0..len).map(|i| ((i * 7 + seed) % 11) as f64 - 5.0).collect()
    };
    for ta in [false, true] {
        for tb in [false, true] {
            for shared in [false, true] {
                let of = |transposed, [down, across]: [usize; 2], stride| {
                    let (down, across) = if transposed { (across, down) } else { (down, across) };
                    // Rows are longer than the part used.
                    let row = across + 2;
                    Matrix { address: 0, row, stride: stride * down * row, transposed }
                };
                let (mut a, mut b) = (of(ta, [rows, depth], 1), of(tb, [depth, cols], usize::from(!shared)));
                let mut c = of(false, [rows, cols], 1);
                let (in_a, in_b) = (numbers(2000, 1), numbers(2000, 4));
                let (on_a, on_b) =
                    (Array::from_slice(&gpu, &in_a).unwrap(), Array::from_slice(&gpu, &in_b).unwrap());
                let on_c = Array::<f64>::zeros(&gpu, batch * rows * c.row).unwrap();
                (a.address, b.address, c.address) = (on_a.address(0), on_b.address(0), on_c.address(0));
                let size = [rows, cols, depth];
                gpu.multiply(&Product { dtype: ElementType::F64, batch, size, scale: 0.5, a, b, c }).unwrap();
                let got = on_c.to_vec().unwrap();
                for p in 0..batch {
                    for i in 0..rows {
                        for j in 0..cols {
                            let at = |m: &Matrix, values: &[f64], i: usize, j: usize| {
                                let (i, j) = if m.transposed { (j, i) } else { (i, j) };
                                values[p * m.stride + i * m.row + j]
                            };
                            let terms = (0..depth).map(|l| at(&a, &in_a, i, l) * at(&b, &in_b, l, j));
                            let (expected, got) = (0.5 * terms.sum::<f64>(), at(&c, &got, i, j));
                            assert!(
                                (got - expected).abs() < 1e-10,
                                "{ta} {tb} {shared}: {got} for {expected}"
                            );
                        }
                    }
                }
                assert!(
                    got.chunks(c.row).all(|row| row[cols..] == [0.0; 2]),
                    "numbers beside the results change"
                );
            }
        }
    }
    assert_eq!(gpu.products(), "cuBLAS 13.4.2");

    // The kernel computes products that cuBLAS rejects.
    let results = Array::<f32>::zeros(&gpu, 1 << 16).unwrap();
    let one = Matrix { address: results.address(0), row: LARGE, stride: 0, transposed: false };
    let product = Product {
        dtype: ElementType::F32,
        batch: 1 << 16,
        size: [1, 1, LARGE],
        scale: 1.0,
        a: one,
        b: one,
        c: one,
    };
    gpu.multiply(&product).unwrap();
    assert_eq!(results.to_vec().unwrap()[..1], [1234.0]);
}
