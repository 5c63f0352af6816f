//! `nmem plot`: figures drawn again from the CSV files alone.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use super::{check_interrupt, note, print};
use crate::config::whole;
use crate::error::Error;
use crate::escape::for_terminal;
use crate::io::labels::Labels;
use crate::io::text::check_streams;
use crate::plot::terminal::Screen;
use crate::plot::{
    self, CsvSource, Figure, FigureFormat, FigureStyle, Figures, INCH, Inches, Kind, LogAxes, Request, Theme,
    Venue,
};
use crate::storage;

/// Draw figures again from CSV, with another format, width or columns
///
/// PATH is the directory of a run, a sweep or a scan-bench, or one of their files: metrics.csv, retention.csv, results.csv,
/// scan_bench.csv. Several runs are overlaid in one figure; other results get separate figures. Prints the names of
/// the files written.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Result directories, or their CSV files
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Kind of figure: timeline, gates, heads or columns (of metrics.csv), retention, sweep or map (of results.csv), scan
    /// [default: chosen by the file]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true, help_heading = "What")]
    kind: Option<Kind>,
    /// Column along the x axis
    #[arg(long, value_name = "COLUMN", help_heading = "What")]
    x: Option<String>,
    /// Columns to draw. Each column of results.csv gets its own figure; a/b divides one column by another
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',', help_heading = "What")]
    y: Vec<String>,
    /// Column whose values become separate lines, or the rows of a map
    #[arg(long, value_name = "COLUMN", help_heading = "What")]
    hue: Option<String>,
    /// Labels that mark changes of topic and repeats: columns position, segment and optionally repeat
    #[arg(long, value_name = "FILE.csv", help_heading = "What")]
    labels: Option<PathBuf>,
    /// Draw the moving mean over N chunks as the bold line
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "What")]
    smooth: Option<usize>,
    /// Logarithmic axes: none, x, y (also --log alone), xy [default: chosen by the values]
    #[arg(
        long,
        value_enum,
        value_name = "AXES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "y",
        hide_possible_values = true,
        help_heading = "What"
    )]
    log: Option<LogAxes>,

    /// Venue whose column width is used: icml, neurips, iclr, acl, nature
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "VENUE",
        hide_possible_values = true,
        help_heading = "Look"
    )]
    venue: Option<Venue>,
    /// Use the width of both columns of the venue
    #[arg(long, requires = "venue", help_heading = "Look")]
    wide: bool,
    /// Width in inches [default: 6.75]
    #[arg(
        long,
        value_name = "IN",
        conflicts_with = "venue",
        allow_negative_numbers = true,
        help_heading = "Look"
    )]
    width: Option<Inches>,
    /// Height in inches [default: chosen by the number of panels]
    #[arg(long, value_name = "IN", allow_negative_numbers = true, help_heading = "Look")]
    height: Option<Inches>,
    /// Theme: print, screen (larger by a quarter) or mono (greys and dashes)
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "print|screen|mono",
        hide_possible_values = true,
        help_heading = "Look"
    )]
    theme: Theme,
    /// Title above the figure
    #[arg(long, value_name = "TEXT", help_heading = "Look")]
    title: Option<String>,

    /// Directory for the figures, file for a single figure, or - for stdout [default: beside the CSV]
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Formats of the figures, separated by commas: svg, pdf, png, pgfplots (TeX for \input, with its data) [default: the
    /// extension of --out, or svg]
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LIST",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    figure_format: Vec<FigureFormat>,
    /// Draw with characters on stdout, as wide as the terminal (or COLUMNS, or 80). Colours are used on a terminal unless
    /// NO_COLOR is set. The number of values that cannot be drawn is reported on stderr
    #[arg(long, conflicts_with_all = ["out", "figure_format"], help_heading = "Output")]
    terminal: bool,
    /// Print nothing but errors
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  nmem plot results/passages-store --venue icml --figure-format pdf
  nmem plot results/passages-store --kind heads
  nmem plot results/passages-store --terminal
  nmem plot results/passages-store --figure-format pgfplots --venue icml --out figures
  nmem plot results/run-1 results/run-2 --y surprise --smooth 16
  nmem plot results/passages-store/metrics.csv --x loss --y update_norm,surprise --log=xy
  nmem plot results/chunk-size-sweep --y loss_before_mean --theme mono --out figure.pdf";

/// Destination of the figures.
enum Target {
    Stdout,
    /// A single file.
    File(PathBuf),
    Directory(PathBuf),
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    check_streams(args.paths.iter().chain(&args.labels).map(PathBuf::as_path))?;
    let sources = CsvSource::find_all(&args.paths, args.kind)?;
    let request = args.request()?;
    let target = args.target(&sources)?;
    let formats = args.formats(&target)?;
    if let Some(text) = plot::ignored_flags(&sources, &request).filter(|_| !args.quiet) {
        note("note: ", &text);
    }
    if args.terminal {
        let view = plot::terminal::view(&sources, &request, &screen(), &mut check_interrupt)?;
        print(&view.text)?;
        if !args.quiet {
            view.notes.iter().for_each(|text| note("note: ", text));
        }
        return Ok(ExitCode::SUCCESS);
    }

    let drawn = plot::draw(&sources, &request, &mut check_interrupt)?;
    if !args.quiet {
        drawn.notes.iter().for_each(|text| note("note: ", text));
    }
    let files = match target {
        Target::Stdout => {
            let bytes = one(&drawn, "-")?.encode(formats[0])?;
            let mut out = std::io::stdout().lock();
            match out.write_all(&bytes).and_then(|()| out.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                result => result.context("standard output")?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        Target::File(path) => {
            let bytes = one(&drawn, &path.display().to_string())?.encode(formats[0])?;
            storage::replace(&path, &bytes)?;
            vec![path]
        }
        Target::Directory(directory) => {
            storage::create_directories(&directory)?;
            let of_pgfplots = if formats.contains(&FigureFormat::Pgfplots) {
                plot::pgfplots::files(&sources, &request, &directory, &mut check_interrupt)?
            } else {
                Vec::new()
            };
            storage::replace_all(drawn.files(&directory, &formats).chain(of_pgfplots.into_iter().map(Ok)))?
        }
    };
    if !args.quiet {
        let names = files.iter().map(|file| for_terminal(&file.display().to_string()).into_owned());
        let names: Vec<_> = names.collect();
        print(&if names.is_empty() { String::new() } else { names.join("\n") + "\n" })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Maximum width in characters, because COLUMNS may hold any number. A wider figure shows no more.
const MAX_COLUMNS: usize = 1000;

/// Returns the width (COLUMNS, the terminal's, or 80) and whether to use colours: only on a terminal, without NO_COLOR.
fn screen() -> Screen {
    let out = std::io::stdout();
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || terminal_size::terminal_size_of(&out).map(|(width, _)| usize::from(width.0));
    let columns = said.filter(|&columns| columns > 0).or_else(terminal).unwrap_or(80).min(MAX_COLUMNS);
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    Screen { columns, colours: out.is_terminal() && !set("NO_COLOR") && !dumb }
}

/// Returns the only figure, or an error if there are several.
fn one<'a>(drawn: &'a Figures, out: &str) -> crate::Result<&'a Figure> {
    match &drawn.figures[..] {
        [figure] => Ok(figure),
        figures => {
            let names: Vec<_> = figures.iter().map(|figure| &figure.name[..]).collect();
            let (number, names) = (names.len(), names.join(", "));
            let reason = format!(
                "{out} cannot hold {number} figures ({names}); name a directory, or choose one figure with --y or --kind"
            );
            Err(Error::rejected("--out", reason))
        }
    }
}

impl Args {
    fn request(&self) -> crate::Result<Request> {
        let venue = self.venue.map(|venue| {
            let (column, both) = venue.widths();
            if self.wide { both } else { column }
        });
        let width = venue.or(self.width.map(|width| width.0)).map(|inches| inches * INCH);
        let default = FigureStyle::default();
        let style = FigureStyle {
            theme: self.theme,
            width: width.unwrap_or(default.width),
            height: self.height.map(|height| height.0 * INCH),
            title: self.title.clone(),
            log: self.log,
            smooth: self.smooth,
        };
        style.check()?;
        Ok(Request {
            style,
            labels: self.labels.as_deref().map(Labels::read).transpose()?,
            x: self.x.clone(),
            y: self.y.clone(),
            hue: self.hue.clone(),
        })
    }

    fn target(&self, sources: &[CsvSource]) -> crate::Result<Target> {
        Ok(match &self.out {
            Some(out) if out == Path::new("-") => Target::Stdout,
            Some(out) if of_ending(out).is_some() && !storage::is_directory(out)? => {
                Target::File(out.clone())
            }
            Some(out) => Target::Directory(out.clone()),
            None => {
                let beside = sources.first().and_then(|source| source.csv.parent());
                Target::Directory(
                    beside.filter(|directory| *directory != Path::new("")).unwrap_or(Path::new(".")).into(),
                )
            }
        })
    }

    /// Returns the formats to write: at least one, and exactly one for a single file.
    fn formats(&self, target: &Target) -> crate::Result<Vec<FigureFormat>> {
        let mut formats = self.figure_format.clone();
        formats.dedup();
        let of_file = if let Target::File(path) = target { of_ending(path) } else { None };
        if formats.is_empty() {
            formats.push(of_file.unwrap_or_default());
        }
        let is_one = !matches!(target, Target::Directory(_));
        if is_one && (formats.len() > 1 || of_file.is_some_and(|format| format != formats[0])) {
            let names: Vec<_> = formats.iter().map(|format| format.ending()).collect();
            let reason =
                format!("{} does not fit the single file of --out; name a directory", names.join(","));
            return Err(Error::rejected("--figure-format", reason));
        }
        if is_one && formats[0] == FigureFormat::Pgfplots {
            let reason = "pgfplots writes a .tex and its data; name a directory instead of a file";
            return Err(Error::rejected("--out", reason));
        }
        formats.iter().try_for_each(|format| format.check())?;
        Ok(formats)
    }
}

fn of_ending(path: &Path) -> Option<FigureFormat> {
    let ending = path.extension()?;
    let all = [FigureFormat::Svg, FigureFormat::Pdf, FigureFormat::Png, FigureFormat::Pgfplots];
    all.into_iter().find(|format| ending == format.ending())
}
