//! Text for snapshots of messages: wordings are there, not in the tests.

use std::fmt::{self, Display, Formatter};

use crate::{CommandOutput, Sandbox};

/// Command lines, each followed by its exit status and stderr.
#[derive(Default)]
pub struct Transcript(String);

impl Transcript {
    pub fn new() -> Self {
        Self::default()
    }

    /// Each line is rejected, checked by `Sandbox::rejected`.
    pub fn of_rejected(sandbox: &Sandbox, lines: &[&str]) -> Self {
        let mut this = Self::new();
        for line in lines {
            this.reject(sandbox, line);
        }
        this
    }

    /// Adds a line that is rejected, checked by `Sandbox::rejected`; returns its message.
    pub fn reject(&mut self, sandbox: &Sandbox, line: &str) -> String {
        let message = sandbox.rejected(line);
        self.error(line, 2, &message);
        message
    }

    /// Adds an error that `Sandbox::one_error` returned.
    pub fn error(&mut self, line: &str, code: i32, message: &str) {
        self.entry(line, Some(code), &format!("error: {message}"));
    }

    /// Adds exit status and stderr.
    pub fn ran(&mut self, sandbox: &Sandbox, line: &str, output: &CommandOutput) {
        self.entry(line, output.code, &sandbox.without_own_path(&output.err));
    }

    /// Adds any text, such as a part of stdout.
    pub fn entry(&mut self, line: &str, code: Option<i32>, text: &str) {
        let code = code.map_or_else(|| "signal".to_owned(), |code| code.to_string());
        let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let entry = format!("$ nmem {line}\n{code} {text}");
        self.0.extend([entry.trim_end(), "\n\n"]);
    }

    /// Adds a comment on the next line: a signal, a file, a variable.
    pub fn given(&mut self, text: &str) {
        for line in text.lines() {
            self.0.extend(["# ", line, "\n"]);
        }
    }
}

impl Display for Transcript {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Replaces every number by N, where they depend on the machine.
pub fn without_numbers(text: &str) -> String {
    let mut masked = String::new();
    for c in text.chars() {
        if !c.is_ascii_digit() {
            masked.push(c);
        } else if !masked.ends_with('N') {
            masked.push('N');
        }
    }
    masked.replace("N.N", "N")
}

/// Replaces the limit by N where --max-bytes is not given: it is a share of the machine's memory.
pub fn without_max_bytes(text: &str) -> String {
    let Some((before, after)) = text.rsplit_once(" (--max-bytes)") else { return text.to_owned() };
    format!("{}N (--max-bytes){after}", before.trim_end_matches(|c: char| c.is_ascii_digit()))
}

/// Replaces every identity of a run by RUN: it depends on the version.
pub fn without_runs(text: &str) -> String {
    let is_run = |word: &str| word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let parts = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let masked = parts.map(|part| {
        let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        if is_run(word) { format!("RUN{}", &part[word.len()..]) } else { part.to_owned() }
    });
    masked.collect()
}

/// The whole numbers in a line, in order.
pub fn counts(line: &str) -> Vec<usize> {
    line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}
