//! `nmem scan-bench --device cuda` on a device: correct results, times, bytes.

use std::sync::Arc;

use nmem::cuda::OpenDevice;
use nmem::real::ElementType;
use nmem::scan_bench::{Algorithm, BenchRow, BenchShape, Config, Gate, Layout, execute};

use crate::device::devices;

fn config() -> Config {
    Config {
        algorithms: vec![Algorithm::Auto, Algorithm::Sequential, Algorithm::Pair, Algorithm::PairLast],
        shapes: vec![
            BenchShape { batch: 2, steps: 37, channels: 70 },
            BenchShape { batch: 1, steps: 300, channels: 1 },
        ],
        threads: vec![1],
        layouts: vec![Layout::StepsChannels, Layout::ChannelsSteps],
        gates: vec![Gate::Step, Gate::Element],
        dtypes: vec![ElementType::F32, ElementType::F64],
        runs: 3,
        seconds: 0.0,
        max_bytes: None,
        out: "elsewhere".into(),
        plots: false,
        figure_format: Vec::new(),
    }
}

fn rows(config: Config, devices: &[OpenDevice]) -> Vec<BenchRow> {
    let directory = tempfile::tempdir().unwrap();
    let config = Config { out: directory.path().join("out"), ..config };
    execute(config, devices, false, &mut |_| Ok(())).unwrap().rows
}

#[test]
fn every_case_is_correct_and_timed() {
    for (name, device) in devices() {
        let rows = rows(config(), &[OpenDevice::from_gpu(0, Arc::clone(device))]);
        // 2 types × 2 shapes × (auto in 4 kinds, and the pair twice in one).
        assert_eq!(rows.len(), 2 * 2 * 6, "{name}");
        for row in &rows {
            assert!(row.correct && row.device == "cuda" && row.threads == 0, "{name}: {row:?}");
            assert!(row.median_ms.is_some_and(|ms| ms > 0.0) && row.runs >= 3, "{name}: {row:?}");
            assert!(row.copy_fraction.is_some_and(|fraction| fraction > 0.0), "{name}: {row:?}");
            let pair = matches!(row.algorithm, Algorithm::Pair | Algorithm::PairLast);
            let rows_ = row.layout == Layout::ChannelsSteps || row.channels == 1;
            let chosen = if rows_ { Algorithm::Time } else { Algorithm::Channels };
            assert_eq!(row.chosen, if pair { row.algorithm } else { chosen }, "{name}: {row:?}");
        }
    }
}

#[test]
fn rows_distinguish_gpus() {
    for (name, device) in devices() {
        let config = Config {
            algorithms: vec![Algorithm::PairLast],
            shapes: vec![BenchShape { batch: 1, steps: 5, channels: 3 }],
            dtypes: vec![ElementType::F32],
            ..config()
        };
        let gpu = |index| OpenDevice::from_gpu(index, Arc::clone(device));
        let rows = rows(config, &[gpu(2), gpu(0), OpenDevice::default()]);
        let devices: Vec<_> = rows.iter().map(|row| &row.device[..]).collect();
        assert_eq!(devices, ["cuda:2", "cuda", "cpu"], "{name}");
    }
}
