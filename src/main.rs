//! nmem
use clap::Parser;

#[derive(Parser)]
enum Nmem {
    Inspect(nmem::cli::inspect::Args),
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let Nmem::Inspect(args) = Nmem::parse();
    nmem::cli::inspect::run(&args, &mut |_| Ok(()))
}
