//! Progress bars on stderr, shown only on a terminal.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::sweep_report::one_line;
use crate::escape::for_terminal;
use crate::run::RunEvent;
use crate::sweep::{Status, SweepEvent};
use crate::train::TrainEvent;

/// Progress bar of one run: bytes while inputs are read, tokens while the engine runs.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Creates a bar, hidden if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bar = ProgressBar::no_length();
        bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.set_style(style("{spinner} reading {bytes} {binary_bytes_per_sec}"));
        tick(&bar);
        Self { bar }
    }

    /// Shows an event of a run.
    pub fn show(&self, event: RunEvent) {
        match event {
            RunEvent::Loaded(bytes) => self.bar.inc(bytes),
            RunEvent::Starting(tokens) => {
                self.bar.set_length(tokens);
                self.bar.set_position(0);
                self.bar.reset_eta();
                self.bar.set_style(style("{bar:40} {human_pos} of {human_len} tokens, {rate}, {eta} left"));
            }
            RunEvent::Computed(tokens) => self.bar.inc(tokens),
            RunEvent::Writing => self.bar.set_style(style("{spinner} writing")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Progress bar of a training: steps, and the two losses.
pub struct TrainProgress {
    bar: ProgressBar,
    validation: Mutex<Option<f64>>,
}

impl TrainProgress {
    /// Creates a bar, hidden if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bar = ProgressBar::no_length();
        bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.set_style(style("{spinner} reading {bytes}"));
        tick(&bar);
        Self { bar, validation: Mutex::default() }
    }

    /// Shows an event of a training.
    pub fn show(&self, event: TrainEvent) {
        match event {
            TrainEvent::Loaded(bytes) => self.bar.inc(bytes),
            TrainEvent::Starting { taken, steps } => {
                self.bar.set_length(steps as u64);
                self.bar.set_position(taken as u64);
                self.bar.reset_eta();
                self.bar.set_style(style("{bar:30} {human_pos} of {human_len} steps, {eta} left{wide_msg}"));
            }
            TrainEvent::Step { loss, validation } => {
                self.bar.inc(1);
                let mut last = self.validation.lock().expect("no thread panics while it holds the lock");
                *last = validation.or(*last);
                let validation = last.map_or(String::new(), |loss| format!(", validation {loss:.5}"));
                self.bar.set_message(format!("; loss {loss:.5}{validation}"));
            }
            TrainEvent::Writing => self.bar.set_style(style("{spinner} writing")),
        }
    }
}

impl Drop for TrainProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Progress bar that counts things.
pub struct Bar(ProgressBar);

impl Bar {
    /// Creates a bar, hidden if `quiet`.
    pub fn new(quiet: bool, things: &str) -> Self {
        let bar = ProgressBar::no_length();
        bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.set_style(style(&format!("{{bar:40}} {{pos}} of {{len}} {things}, {{elapsed}}")));
        Self(bar)
    }

    /// Starts counting from zero, up to `count`.
    pub fn start(&self, count: u64) {
        self.0.set_length(count);
        self.0.set_position(0);
    }

    /// Counts one more as done.
    pub fn done(&self) {
        self.0.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Progress bar of a sweep: the number of finished and failed runs, and the names of those that are running.
pub struct SweepProgress {
    bar: ProgressBar,
    state: Mutex<(usize, Vec<String>)>,
}

impl SweepProgress {
    /// Creates a bar, hidden if `quiet`.
    pub fn new(quiet: bool, runs: usize) -> Self {
        let bar = ProgressBar::new(runs as u64);
        bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.set_style(style("{bar:30} {human_pos} of {human_len} runs, {eta} left{wide_msg}"));
        tick(&bar);
        Self { bar, state: Mutex::default() }
    }

    /// Shows an event of a sweep. Runs are named by the parameters in `keys`.
    pub fn show(&self, event: SweepEvent, keys: &[String]) {
        let (run, finished) = match event {
            SweepEvent::Working => return,
            _ if self.bar.is_hidden() => return,
            SweepEvent::Started(run) => (run, None),
            SweepEvent::Finished(run, record) => (run, Some(record)),
        };
        let name = one_line(&run.parameters, keys);
        let mut state = self.state.lock().expect("no thread panics while it holds the lock");
        if let Some(record) = finished {
            state.0 += usize::from(record.status != Status::Ok);
            if let Some(at) = state.1.iter().position(|running| *running == name) {
                state.1.remove(at);
            }
            self.bar.inc(1);
        } else {
            state.1.push(name);
        }
        let failed = if state.0 > 0 { format!(", {} failed", state.0) } else { String::new() };
        let running = state.1.join(" | ");
        self.bar.set_message(format!("{failed}; {}", for_terminal(&running)));
    }
}

impl Drop for SweepProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("templates are constants");
    style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = out.write_str(&rate(state.per_sec()));
    })
}

/// Formats a rate as a whole number per second: 468,193/s.
#[expect(clippy::cast_sign_loss, reason = "not below 0")]
fn rate(per_second: f64) -> String {
    // The rate is infinite or NaN before the first step.
    format!("{}/s", HumanCount(per_second.round().max(0.0) as u64))
}

/// Animates a visible bar, if the system allows another thread.
fn tick(bar: &ProgressBar) {
    if !bar.is_hidden() && std::thread::Builder::new().spawn(|| ()).is_ok() {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn rates_are_whole() {
        assert_eq!([0.4, 12.0, 468_193.283_6].map(rate), ["0/s", "12/s", "468,193/s"]);
    }
}
