//! `nmem completions`: completions for a shell.

use std::process::ExitCode;

use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Shell to print completions for
    shell: Shell,
}

pub fn run(args: Args, command: &mut clap::Command) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "nmem", &mut text);
    super::print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}
