//! `nmem man`: manual pages.

use std::process::ExitCode;

use anyhow::Context;
use clap_mangen::Man;

/// Print a manual page (roff)
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Subcommand to print the page of [default: the page of nmem itself]
    subcommand: Option<String>,
}

pub fn run(args: &Args, command: &mut clap::Command) -> anyhow::Result<ExitCode> {
    // Gives the subcommands their full names, such as nmem-store.
    command.build();
    let page = match &args.subcommand {
        Some(name) => command
            .find_subcommand(name)
            .with_context(|| format!("{name} is not a subcommand of nmem (see --help)"))?,
        None => command,
    };
    let mut text = Vec::new();
    Man::new(page.clone()).render(&mut text)?;
    super::print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}
