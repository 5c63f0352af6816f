//! Progress bars on stderr, where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::run::Event;

/// One bar: bytes while inputs are read, tokens while the engine runs.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `quiet` shows nothing.
    pub fn new(quiet: bool) -> Self {
        let bar = ProgressBar::no_length();
        bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.set_style(style("{spinner} reading {bytes} {binary_bytes_per_sec}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    /// Shows what a run is doing.
    pub fn show(&self, event: Event) {
        match event {
            Event::Loaded(bytes) => self.bar.inc(bytes),
            Event::Starting(tokens) => {
                self.bar.set_length(tokens);
                self.bar.set_position(0);
                self.bar.reset_eta();
                self.bar
                    .set_style(style("{bar:40} {human_pos} of {human_len} tokens, {per_sec}, {eta} left"));
            }
            Event::Computed(tokens) => self.bar.inc(tokens),
            Event::Writing => self.bar.set_style(style("{spinner} writing")),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar that counts things.
pub struct Bar(ProgressBar);

impl Bar {
    /// `quiet` shows nothing.
    pub fn new(quiet: bool, things: &str) -> Self {
        let bar = ProgressBar::no_length();
        bar.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.set_style(style(&format!("{{bar:40}} {{pos}} of {{len}} {things}, {{elapsed}}")));
        Self(bar)
    }

    /// So many there are.
    pub fn start(&self, count: u64) {
        self.0.set_length(count);
        self.0.set_position(0);
    }

    /// One is done.
    pub fn done(&self) {
        self.0.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("templates are constants")
}
