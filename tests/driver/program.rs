//! The program with `--device cuda`, on a driver whose kernels run on the CPU: everything but the GPU itself.

use ndarray::{Array1, ArrayD};
use safetensors::Dtype;
use serde_json::Value;

use crate::library::{Kind, library};
use crate::sandbox::{COUNTS, Sandbox, Table, tokens};
use crate::support::{assert_close, assert_close_to_largest};
use crate::{driver, libraries};

/// Tolerance in f32 relative to the largest number: the sums are in another order.
const F32: f64 = 2e-5;
const F64: f64 = 1e-10;
/// Name of the first GPU of driver.c.
const GPU: &str = "cuda:0 Make-believe 10";

/// A working directory whose commands find that driver and perhaps a libcublas.
struct Bench {
    sandbox: Sandbox,
    _libraries: tempfile::TempDir,
}

impl Bench {
    fn new(cublas: bool) -> Self {
        let whole = ("driver.c", "libcuda.so", &["INIT=0", "WHOLE"][..]);
        let directory =
            if cublas { libraries(&[whole, ("blas.c", "libcublas.so", &[])]) } else { driver(whole.2) };
        let kernels = library(Kind::Forwards).expect("kernels compiled for the CPU");
        let sandbox = Sandbox::new().set("LD_LIBRARY_PATH", directory.path()).set("KERNELS", kernels);
        Self { sandbox, _libraries: directory }
    }

    fn set(self, name: &'static str, value: &str) -> Self {
        Self { sandbox: self.sandbox.set(name, value), ..self }
    }

    /// Runs a command that must succeed, leave nothing on the GPU, and print nothing else on stderr.
    fn ok(&self, line: &str) -> String {
        let output = self.sandbox.ok(line);
        assert_eq!(output.err, "left: 0\n", "nmem {line}");
        output.out
    }

    /// Checks that two result directories agree: metrics, retrieved tokens, and the memory.
    fn agree(&self, got: &str, expected: &str, rel: f64) {
        let sandbox = &self.sandbox;
        assert_eq!(sandbox.names(got), sandbox.names(expected), "{got}: files");
        for name in sandbox.names(got) {
            let [got, expected] = [got, expected].map(|directory| format!("{directory}/{name}"));
            match name.rsplit('.').next() {
                Some("csv") => {
                    let [got, expected] = [&got, &expected].map(|name| sandbox.csv(name));
                    assert_eq!(got.header, expected.header);
                    for column in &expected.header {
                        let what = format!("{name}, {column}");
                        if COUNTS.contains(&&column[..]) {
                            assert_eq!(got.texts(column), expected.texts(column), "{what}");
                            continue;
                        }
                        // Cells are empty without a probe.
                        let numbers = |table: &Table| -> Vec<Option<f64>> {
                            let cells = table
                                .texts(column)
                                .into_iter()
                                .map(|cell| (!cell.is_empty()).then_some(cell));
                            cells.map(|cell| cell.map(|cell| cell.parse().unwrap())).collect()
                        };
                        let (got, expected) = (numbers(&got), numbers(&expected));
                        assert!(
                            got.iter().map(Option::is_some).eq(expected.iter().map(Option::is_some)),
                            "{what}"
                        );
                        let [got, expected] = [got, expected]
                            .map(|cells| cells.into_iter().flatten().collect::<Array1<f64>>().into_dyn());
                        let largest = expected.fold(0.0_f64, |largest, x| largest.max(x.abs()));
                        assert_close(&what, got.view(), expected.view(), rel * largest, rel);
                    }
                }
                Some("npy") => {
                    let [got, expected] = [&got, &expected].map(|name| sandbox.floats(name));
                    assert_close_to_largest(&name, got.view(), expected.view(), rel);
                }
                Some("safetensors") => {
                    let [got, expected] = [&got, &expected].map(|name| sandbox.tensors(name));
                    assert!(got.keys().eq(expected.keys()), "{name}: names");
                    for (tensor, expected) in &expected {
                        let got = &got[tensor];
                        if expected.dtype == Dtype::U64 {
                            assert_eq!(got, expected, "{name}, {tensor}");
                            continue;
                        }
                        let (got, expected) = (got.floats(), expected.floats());
                        assert_close_to_largest(
                            &format!("{name}, {tensor}"),
                            got.view(),
                            expected.view(),
                            rel,
                        );
                    }
                }
                _ => {}
            }
        }
    }

    /// Runs a command on either device and checks that the results agree.
    fn same(&self, name: &str, line: &str, rel: f64) {
        for device in ["cuda", "cpu"] {
            let out = self.ok_on(device, &format!("{line} --out {name}-{device}"));
            assert!(out.contains(&format!("results          {name}-{device}")), "{out}");
        }
        self.agree(&format!("{name}-cuda"), &format!("{name}-cpu"), rel);
        assert_eq!(self.sandbox.json(&format!("{name}-cuda/run.json"))["device"], GPU);
        assert_eq!(self.sandbox.json(&format!("{name}-cpu/run.json"))["device"], "cpu");
    }

    fn ok_on(&self, device: &str, line: &str) -> String {
        let line = format!("{line} --device {device}");
        if device == "cpu" { self.sandbox.ok(&line).out } else { self.ok(&line) }
    }
}

fn data(bench: &Bench, shape: &[usize]) {
    bench.sandbox.npy("data.npy", &tokens(shape, 7));
}

#[test]
fn store_then_retrieve_then_continue() {
    let bench = Bench::new(false);
    data(&bench, &[2, 47, 12]);
    for (dtype, rel) in [("f32", F32), ("f64", F64)] {
        let name = |what: &str| format!("{what}-{dtype}");
        let random = format!("--heads 2 --dim-head 5 --chunk-size 4 --dtype {dtype} --seed 3");
        bench.same(&name("store"), &format!("store data.npy {random}"), rel);
        // Both start from the state that the CPU has stored.
        let memory = format!("--memory store-{dtype}-cpu/memory.safetensors --dtype {dtype}");
        bench.same(&name("read"), &format!("retrieve data.npy {memory}"), rel);
        bench.same(&name("online"), &format!("retrieve data.npy --online --probe {random} --no-plots"), rel);
        bench.same(&name("on"), &format!("store data.npy {memory}"), rel);
    }
    let phases = &bench.sandbox.json("store-f32-cuda/run.json")["wall_s"]["engine_phases"];
    let run = bench.sandbox.json("store-f32-cuda/run.json");
    assert_eq!(run["software"], "driver of CUDA 11.4, kernels from PTX 9.0");
    assert_eq!((&run["products"], &run["threads_used"]), (&Value::Null, &Value::from(1)), "none are large");
    let verbose = bench.sandbox.ok("store data.npy --chunk-size 4 --device cuda -v --no-plots --out verbose");
    assert!(verbose.out.contains(&format!("\ndevice           {GPU}\n")), "{}", verbose.out);
    assert!(verbose.err.contains("\nengine: fused_update "), "{}", verbose.err);
    // Events of driver.c are 250 ms apart.
    assert_eq!(phases["fused_update"], 0.5, "{phases}");
}

/// Shapes that are measured elsewhere, divided as for the multiprocessors of an H200: many time segments, whole tiles.
#[test]
fn a_gpu_of_many_multiprocessors() {
    let bench = Bench::new(true).set("MULTIPROCESSORS", "132").set("SHARED", "232448");
    for [dim, tokens, chunk] in [[64, 1024, 16], [384, 1024, 64], [64, 2048, 2]] {
        data(&bench, &[tokens, dim]);
        let line = format!("retrieve data.npy --online --probe --chunk-size {chunk} --no-plots");
        bench.same(&format!("{dim}-{chunk}"), &line, F32);
        // Few multiprocessors have fewer segments, whose starts are rounded elsewhere.
        let few = Bench::new(true).set("MULTIPROCESSORS", "1").set("SHARED", "232448");
        data(&few, &[tokens, dim]);
        few.ok(&format!("{line} --device cuda --out few"));
        let many = bench.sandbox.bytes(&format!("{dim}-{chunk}-cuda/retrieved.npy"));
        assert!(few.sandbox.bytes("few/retrieved.npy") != many, "{dim}, {chunk}: as many segments");
    }
}

#[test]
fn large_products_by_cublas_or_by_the_kernel() {
    for (cublas, products) in [(true, "cuBLAS 13.4.2"), (false, "kernel")] {
        let bench = Bench::new(cublas);
        data(&bench, &[23, 130]);
        bench.same("run", "retrieve data.npy --online --heads 2 --chunk-size 8 --no-plots", F32);
        assert_eq!(bench.sandbox.json("run-cuda/run.json")["products"], products);
        // The result does not depend on another run of the process.
        bench.sandbox.npy("small.npy", &tokens(&[20, 8], 1));
        bench.sandbox.file("both.toml", "device = 'cuda'\n[grid]\ndata = ['data.npy', 'small.npy']\n");
        bench.sandbox.ok("sweep both.toml -j 1 --keep metrics --out both");
        let table = bench.sandbox.csv("both/results.csv");
        let of = |run: &str| bench.sandbox.json(&format!("both/runs/{run}/run.json"))["products"].clone();
        let of_runs: Vec<_> = table.texts("run").into_iter().map(of).collect();
        let large = usize::from(table.texts("data")[0].contains("small"));
        assert_eq!((&of_runs[large], &of_runs[1 - large]), (&Value::from(products), &Value::Null));
    }
}

#[test]
fn a_sweep_whose_runs_share_the_gpu() {
    let bench = Bench::new(false);
    data(&bench, &[40, 8]);
    let experiment = "data = 'data.npy'\nchunk_size = 4\n[grid]\nlearning_rate = [0.01, 0.1]\n\
                      device = ['cpu', 'cuda:0', 'auto', 'cuda:1']\n";
    bench.sandbox.file("experiment.toml", experiment);
    let output = bench.sandbox.ok("sweep experiment.toml --jobs 3 --out all");
    assert!(output.err.ends_with("left: 0\n"), "{}", output.err);
    let lines = |name: String| bench.sandbox.bytes(&format!("all/records/{name}"));
    let text =
        String::from_utf8(bench.sandbox.names("all/records").into_iter().flat_map(lines).collect()).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The choice that `auto` made.
    for (asked, device) in [("cpu", "cpu"), ("auto", GPU), ("cuda:1", "cuda:1 Make-believe 11")] {
        let of = |record: &&Value| record["parameters"]["device"] == asked;
        assert!(records.iter().filter(of).all(|record| record["device"] == device), "{records:?}");
        assert_eq!(records.iter().filter(of).count(), 2);
    }
    let table = bench.sandbox.csv("all/results.csv");
    let (devices, rates) = (table.texts("device"), table.numbers("learning_rate"));
    let losses = table.numbers("loss_mean");
    assert_eq!(losses.len(), 8);
    for (i, device) in devices.iter().enumerate() {
        let on_cpu = (0..8).find(|&j| devices[j] == "cpu" && (rates[j] - rates[i]).abs() < 1e-9).unwrap();
        let [got, expected] = [losses[i], losses[on_cpu]].map(|loss| ArrayD::from_elem(vec![1], loss));
        assert_close(device, got.view(), expected.view(), 0.0, F32);
    }
}

#[test]
fn scan_bench_on_both() {
    let bench = Bench::new(false);
    let out = bench.ok(
        "scan-bench --batch 2 --steps 3,70 --channels 5,33 --seconds 0 --runs 2 --device cpu,cuda --dtype f32,f64 --out scans",
    );
    let table = bench.sandbox.csv("scans/scan_bench.csv");
    let devices = table.texts("device");
    assert!(devices.contains(&"cpu") && devices.contains(&"cuda"), "side by side: {devices:?}");
    assert!(table.texts("correct").iter().all(|&correct| correct == "true"), "{out}");
    assert!(bench.sandbox.names("scans/plots").contains(&"bandwidth.svg".to_owned()));
    assert!(out.contains(&format!("\n          {GPU}\n")), "{out}");
    let gpu = &bench.sandbox.json("scans/machine.json")["gpus"][0];
    assert_eq!((&gpu["name"], &gpu["driver"]), (&Value::from("Make-believe 10"), &Value::from("11.4")));

    // On GPUs alone there are more shapes, fewer algorithms and no threads, whatever name selected the GPU.
    for device in ["cuda", "auto"] {
        let line = "scan-bench --algorithm tree,pair --max-bytes 9000000 --threads 2 --seconds 0 --runs 1 --no-plots --force --out none";
        let output = bench.sandbox.ok(&format!("{line} --device {device}"));
        assert!(output.err.contains("\nskipped: 8 × 65536 × 1536"), "{}", output.err);
        let notes = "skipped: tree: a GPU runs only auto, pair and pair-last\nnote: --threads has no effect on a GPU\n";
        assert!(output.err.starts_with(notes), "{}", output.err);
    }
}

#[test]
fn device_auto_is_the_gpu() {
    let bench = Bench::new(false);
    data(&bench, &[20, 6]);
    bench.ok("store data.npy --no-plots --device auto --out out");
    assert_eq!(bench.sandbox.json("out/run.json")["device"], GPU);
    // An unsupported algorithm is an error.
    let output = bench.sandbox.run("scan-bench --algorithm tree --device cuda --out none");
    assert_eq!(
        output.err,
        "left: 0\nerror: --algorithm: expected auto, pair or pair-last on a GPU, got tree\n"
    );
    let output = bench.sandbox.ok("store data.npy --no-plots --retention 1 --device auto --out kept");
    assert_eq!(output.err, "note: --device auto: cpu, because --retention runs on the CPU only\n");
    assert_eq!(bench.sandbox.json("kept/run.json")["device"], "cpu");
}

#[test]
fn a_divergence_is_reported_as_on_the_cpu() {
    let bench = Bench::new(false);
    data(&bench, &[2, 60, 6]);
    // In one case reads leave the range of f32 and the memory does not; in the other both do.
    for (options, files) in [
        ("--learning-rate 1e22", &["memory.safetensors", "metrics.csv", "run.json"][..]),
        ("--learning-rate 1e38 --momentum 1e30", &["metrics.csv", "run.json"]),
    ] {
        let output = |device: &str| {
            let line = format!(
                "retrieve data.npy --online {options} --no-plots --force --device {device} --out {device}"
            );
            let output = bench.sandbox.run(&line);
            assert_eq!(output.code, Some(1), "{}", output.err);
            assert_eq!(bench.sandbox.names(device), files);
            let diverged = bench.sandbox.json(&format!("{device}/run.json"))["diverged"].clone();
            (output.err.replace("left: 0\n", "").replace(device, "DEVICE"), diverged)
        };
        assert_eq!(output("cuda"), output("cpu"));
    }
}

#[test]
fn a_gpu_that_fails_leaves_no_results() {
    for (name, value, expected) in [
        ("FAILING", "fused_update_f32", "after launching kernel "),
        ("FAILING", "gate_values_f32", "after launching kernel "),
        ("BYTES", "10000", "out of memory on the GPU: "),
        // The parameters fit, but the buffers do not.
        ("BYTES", "300000", "out of memory on the GPU: "),
    ] {
        let bench = Bench::new(false).set(name, value);
        data(&bench, &[200, 64]);
        let before = bench.sandbox.contents();
        let output = bench.sandbox.run("store data.npy --device cuda --out out");
        let message = output.err.replace("left: 0\n", "");
        assert_eq!((output.code, &output.out[..]), (Some(2), ""), "{name}={value}: {message}");
        assert!(message.starts_with("error: ") && message.lines().count() == 1, "{name}={value}: {message}");
        assert!(message.contains(expected), "{name}={value}: {message}");
        assert_eq!(bench.sandbox.contents(), before, "{name}={value}: files in the directory");
        assert!(output.err.contains("left: 0\n"), "{name}={value}: not freed: {}", output.err);
    }
}
