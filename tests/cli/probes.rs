//! `--probe`: further columns of metrics.csv, against the oracle, beside results that they leave alone.

use ndarray::{Array2, Axis, s};
use ndarray_npy::read_npy;
use nmem::memory::reference::Reference;
use nmem::memory::{Gates, Program};

use crate::support::{self, assert_close_to_largest};
use crate::{Sandbox, Transcript, tokens};

const MEMORY: &str = "--memory passages.safetensors --chunk-size 16 --no-plots -q --dtype f64";

#[test]
fn gradients_and_keys_are_those_of_the_oracle() {
    let sandbox = Sandbox::with_passages();
    let passages = read_npy::<_, Array2<f32>>(sandbox.path("passages.npy")).unwrap();
    let beginning = passages.slice(s![..160, ..]).to_owned();
    sandbox.npy("seq.npy", &beginning.clone().into_dyn());
    sandbox.ok(&format!("store seq.npy {MEMORY} --out plain"));
    sandbox.ok(&format!("store seq.npy {MEMORY} --probe=gradient,keys --out probed"));
    assert_eq!(sandbox.bytes("plain/memory.safetensors"), sandbox.bytes("probed/memory.safetensors"));
    let (plain, probed) = (sandbox.csv("plain/metrics.csv"), sandbox.csv("probed/metrics.csv"));
    for column in plain.header.iter().filter(|name| !["surprise_now", "key_cosine"].contains(&&***name)) {
        assert_eq!(plain.texts(column), probed.texts(column), "{column}");
    }
    assert!(plain.texts("surprise_now").iter().all(|text| text.is_empty()));
    assert!(probed.texts("read_shift").iter().all(|text| text.is_empty()));

    let parameters = support::parameters(&sandbox.path("passages.safetensors"));
    let program = Program::titans_0_0_17(16);
    let mut oracle = Reference::new(parameters, program, Gates::default(), f64::EPSILON, None, 1);
    let rows = oracle.store(&beginning.mapv(f64::from).insert_axis(Axis(0)));
    let expected = support::columns(&rows);
    for column in ["surprise_now", "key_cosine", "loss_zero"] {
        let got = ndarray::Array1::from(probed.numbers(column)).into_dyn();
        assert_close_to_largest(column, got.view(), expected[column].view().into_dyn(), 1e-10);
    }
    // In the first chunk nothing is stored, so both gradients are at W.
    let (now, at_w) = (probed.numbers("surprise_now"), probed.numbers("surprise"));
    assert!(now[..4].iter().zip(&at_w).all(|(now, at_w)| (now - at_w).abs() < 1e-12 * at_w));
    assert!(now[4..].iter().zip(&at_w[4..]).all(|(now, at_w)| (now - at_w).abs() > 1e-6 * at_w));
}

#[test]
fn the_shift_of_reads_is_that_of_two_memories() {
    let sandbox = Sandbox::new();
    let seq = tokens(&[20, 8], 4);
    sandbox.npy("seq.npy", &seq);
    sandbox.npy("first.npy", &seq.slice(s![..12, ..]).to_owned().into_dyn());
    sandbox.npy("next.npy", &seq.slice(s![12..16, ..]).to_owned().into_dyn());
    let settings = "--model mlp --no-post-norm --chunk-size 4 --learning-rate 0.05 --dtype f64 -q";
    sandbox.ok(&format!("retrieve seq.npy --online --probe=read {settings} --no-plots --out online"));
    sandbox.ok(&format!("store first.npy {settings} --no-plots --out stored"));
    sandbox.ok("retrieve next.npy --memory stored/memory.safetensors --dtype f64 --out now -q");
    sandbox.ok("retrieve next.npy --model mlp --no-post-norm --chunk-size 4 --dtype f64 --out at_w -q");
    let (now, at_w) = (sandbox.f64s("now/retrieved.npy"), sandbox.f64s("at_w/retrieved.npy"));
    let norm = |of: &ndarray::ArrayD<f64>| of.iter().map(|x| x * x).sum::<f64>().sqrt();
    let expected = norm(&(&now - &at_w)) / norm(&at_w);
    let shifts = sandbox.csv("online/metrics.csv").numbers("read_shift");
    assert_eq!(shifts[0], 0.0, "nothing is stored before the first chunk");
    assert!((shifts[3] - expected).abs() < 1e-12 * expected, "{} for {expected}", shifts[3]);
}

/// The squares of singular values add up to those of the update's elements. Other results stay, and so do they with threads.
#[test]
fn singular_values_are_those_of_the_updates() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[2, 44, 12], 4));
    for (model, weights, decay_of) in
        [("attention", 4, "update"), ("mlp", 2, "weights"), ("linear", 1, "update")]
    {
        let settings = format!(
            "--model {model} --decay-of {decay_of} --heads 2 --dim-head 6 --chunk-size 4 --learning-rate 0.05 \
             --decay 0.01 --dtype f64 -q --force"
        );
        sandbox.ok(&format!("store seq.npy {settings} --no-plots --out plain"));
        sandbox.ok(&format!("store seq.npy {settings} --probe=spectrum:3 --threads 1 --out one"));
        sandbox
            .ok(&format!("store seq.npy {settings} --probe=spectrum:3 --threads 3 --no-plots --out three"));
        for file in ["metrics.csv", "memory.safetensors"] {
            assert_eq!(
                sandbox.bytes(&format!("plain/{file}")),
                sandbox.bytes(&format!("one/{file}")),
                "{model}"
            );
        }
        assert_eq!(sandbox.bytes("one/spectrum.csv"), sandbox.bytes("three/spectrum.csv"), "{model}");
        assert!(sandbox.names("one/plots").contains(&"spectrum.svg".to_owned()));

        let (spectra, metrics) = (sandbox.csv("one/spectrum.csv"), sandbox.csv("one/metrics.csv"));
        let [sequence, chunk, head, weight] =
            ["sequence", "chunk", "head", "weight"].map(|name| spectra.numbers(name));
        let (index, values) = (spectra.numbers("index"), spectra.numbers("singular_value"));
        let rows = metrics.numbers("chunk");
        let mut seen = 0;
        for start in (0..index.len()).filter(|&row| index[row] == 0.0) {
            let end = (start + 1..index.len()).find(|&row| index[row] == 0.0).unwrap_or(index.len());
            let values = &values[start..end];
            assert!(values.is_sorted_by(|a, b| a >= b) && *values.last().unwrap() >= 0.0);
            let same = |row: &usize| {
                rows[*row] == chunk[start]
                    && metrics.numbers("sequence")[*row] == sequence[start]
                    && metrics.numbers("head")[*row] == head[start]
            };
            let row = (0..rows.len()).find(same).unwrap();
            let norm = metrics.numbers(&format!("update_norm.{}", weight[start]))[row];
            let squares: f64 = values.iter().map(|value| value * value).sum();
            assert!((squares.sqrt() - norm).abs() <= 1e-12 * norm, "{model}: {squares} for {norm}²");
            let rank: f64 = spectra.texts("stable_rank")[start].parse().unwrap();
            assert!((rank - squares / values[0].powi(2)).abs() < 1e-12 * rank);
            let rank: f64 = spectra.texts("effective_rank")[start].parse().unwrap();
            assert!(rank >= 1.0 && rank <= values.len() as f64);
            seen += 1;
        }
        // Chunks 2, 5, 8 and the last, 10, of two sequences and two heads.
        assert_eq!(seen, 4 * 2 * 2 * weights, "{model}");
        assert_eq!(
            spectra.texts("chunk").into_iter().collect::<std::collections::BTreeSet<_>>(),
            ["10", "2", "5", "8"].into()
        );
    }
    // Retention and other probes cut blocks too.
    let settings = "--model linear --chunk-size 4 --dtype f64 -q --no-plots --force";
    sandbox.ok(&format!("store seq.npy {settings} --probe=spectrum:3 --out one"));
    sandbox.ok(&format!("store seq.npy {settings} --probe=gradient,spectrum:3 --retention 2 --out two"));
    assert_eq!(sandbox.bytes("one/spectrum.csv"), sandbox.bytes("two/spectrum.csv"));
    assert_eq!(sandbox.json("one/run.json")["config"]["probes"], serde_json::json!(["spectrum:3"]));
    let drawn = sandbox.ok("plot one --kind spectrum --terminal").out;
    assert!(drawn.contains("effective rank") && drawn.contains("stable rank"), "{drawn}");
}

/// A run without a stored chunk has no spectrum, and a deep model has more weights than panels.
#[test]
fn spectra_of_nothing_and_of_many_weights() {
    let sandbox = Sandbox::new();
    let text = |name: &str| String::from_utf8(sandbox.bytes(name)).unwrap();
    sandbox.npy("short.npy", &tokens(&[3, 4], 4));
    sandbox.npy("seq.npy", &tokens(&[8, 4], 4));
    sandbox.ok("store short.npy --chunk-size 4 --probe=spectrum --out short -q");
    assert_eq!(sandbox.csv("short/spectrum.csv").rows.len(), 0);
    assert!(text("short/plots/spectrum.svg").contains("nothing was stored"));
    // The largest K leaves the spectrum after the last chunk.
    let every = usize::MAX;
    sandbox.ok(&format!(
        "store seq.npy --model mlp --depth 9 --chunk-size 4 --probe=spectrum:{every} --out deep -q"
    ));
    let table = sandbox.csv("deep/spectrum.csv");
    let chunks = table.texts("chunk");
    assert!(!chunks.is_empty() && chunks.iter().all(|chunk| *chunk == "1"));
    assert!(text("deep/plots/spectrum.svg").contains("weights from 8 on are not drawn"));
}

#[test]
fn lists_and_rejections() {
    let sandbox = Sandbox::new();
    sandbox.npy("wide.npy", &tokens(&[4, 1100], 4));
    sandbox.npy("seq.npy", &tokens(&[8, 4], 4));
    sandbox.file("a.toml", "probe = \"keys\"\nchunk_size = 4\n");
    // A file of that name is a sequence.
    std::fs::copy(sandbox.path("seq.npy"), sandbox.path("keys")).unwrap();
    sandbox.ok("retrieve --online --chunk-size 4 --out named -q --no-plots --probe keys");
    sandbox.ok("store seq.npy --config a.toml --out run -q --no-plots");
    assert_eq!(sandbox.json("run/run.json")["config"]["probes"], serde_json::json!(["keys"]));
    assert!(sandbox.csv("run/metrics.csv").texts("key_cosine").iter().all(|text| !text.is_empty()));
    // Losses are not among the probes of this list.
    sandbox.ok("retrieve seq.npy --online --probe=keys --chunk-size 4 --out read -q --no-plots");
    assert!(sandbox.csv("read/metrics.csv").texts("loss_before").iter().all(|text| text.is_empty()));
    let lines = [
        "store seq.npy --probe=read",
        "store seq.npy --probe=surprise",
        "store seq.npy --probe gradient,keys",
        "store --probe spectrum:2 seq.npy",
        "retrieve seq.npy --online false --probe=keys",
        "store seq.npy --probe=spectrum:0",
        "store seq.npy --probe=spectrum --device cuda",
        "store wide.npy --model linear --chunk-size 4 --probe=spectrum",
        "retrieve seq.npy --probe=keys",
        "retrieve seq.npy --probe=spectrum",
    ];
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines));
}
