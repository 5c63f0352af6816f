//! The progress bar of a run, on stderr where that is a terminal.

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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("templates are constants")
}
