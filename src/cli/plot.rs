//! `nmem plot`: figures drawn again from the CSV files alone.

use std::io::{IsTerminal as _, Write as _};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use super::{check_interrupt, figure_file, note, print, stdin};
use crate::config::whole;
use crate::error::Error;
use crate::escape::for_terminal;
use crate::io::labels::Labels;
use crate::io::text::check_streams;
use crate::plot::terminal::Screen;
use crate::plot::{
    self, CsvSource, Figure, FigureFormat, FigureStyle, Figures, Font, INCH, Inches, Kind, LegendPlace,
    Limits, LogAxes, Palette, Part, Reference, Request, Theme, Venue,
};
use crate::statistics::{Center, Interval};
use crate::storage;

/// Draw figures again from CSV, with another format, width or columns
///
/// PATH is the directory of a run, a sweep or a scan-bench, or one of their files: metrics.csv, recall.csv, retention.csv,
/// results.csv, scan_bench.csv, spectrum.csv, train.csv; - is a CSV file on stdin. Several runs are overlaid in one figure;
/// other results get separate figures.
/// A PATH that ends in .toml lists figures to draw. Prints the names of the files written.
#[derive(clap::Args, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Result directories, or their CSV files, or a file of figures
    #[arg(value_name = "PATH", required = true)]
    pub(super) paths: Vec<PathBuf>,

    /// Kind of figure: timeline, gates, heads, columns, boxes or topics (of metrics.csv), retention or lags, recall,
    /// spectrum, sweep, map, ablation, pareto or curves (of results.csv), training, scan or speedup [default: chosen by the
    /// file and the columns]
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true, help_heading = "What")]
    kind: Option<Kind>,
    /// Column along the x axis. For results.csv a parameter, or a result to compare two results; lag for what is kept
    #[arg(long, value_name = "COLUMN", help_heading = "What")]
    x: Option<String>,
    /// Columns to draw. Each column of results.csv gets its own figure; a/b divides one column by another, and loss_ratio is
    /// known everywhere. For recall.csv accuracy, top_k, ratio, mean_square or cosine
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',', help_heading = "What")]
    y: Vec<String>,
    /// Column whose values become separate lines, or the rows of a map; sweep for several sweeps in one figure
    #[arg(long, value_name = "COLUMN", help_heading = "What")]
    hue: Option<String>,
    /// Parameter whose values become rows of panels
    #[arg(long, value_name = "COLUMN", help_heading = "What")]
    rows: Option<String>,
    /// Parameter whose values become columns of panels
    #[arg(long, value_name = "COLUMN", help_heading = "What")]
    cols: Option<String>,
    /// Draw several columns of results.csv as panels of one figure
    #[arg(long, help_heading = "What")]
    panels: bool,
    /// Rows to draw, such as `decay=0.1,0.3` or `seed < 3 and loss_mean < loss_zero_mean`; may be repeated
    #[arg(long, value_name = "CONDITION", help_heading = "What")]
    r#where: Vec<String>,
    /// Heads to draw, such as 0,2-4
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = heads, help_heading = "What")]
    heads: Vec<RangeInclusive<u64>>,
    /// Tokens to draw, FROM:TO; either may be missing
    #[arg(long, value_name = "FROM:TO", value_parser = tokens, help_heading = "What")]
    tokens: Option<Range<u64>>,
    /// Labels that mark changes of topic and repeats: columns position, segment and optionally repeat [default: those of the
    /// run]
    #[arg(long, value_name = "FILE.csv", help_heading = "What")]
    pub(super) labels: Option<PathBuf>,
    /// Draw the moving mean over N chunks as the bold line. For recall.csv, N tokens make a point
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "What")]
    smooth: Option<usize>,

    /// Centre of repeated runs: mean, median or geomean [default: geomean on logarithmic axes, or else mean]
    #[arg(long, value_enum, value_name = "CENTRE", hide_possible_values = true, help_heading = "Statistics")]
    center: Option<Center>,
    /// Interval of repeated runs: ci95, sd or sem (not of medians), iqr, minmax, bootstrap or none [default: ci95, or bootstrap
    /// of medians, and the runs themselves where they are fewer than 5]
    #[arg(
        long,
        value_enum,
        value_name = "INTERVAL",
        hide_possible_values = true,
        help_heading = "Statistics"
    )]
    interval: Option<Interval>,
    /// Draw differences to the runs with this setting that agree in all others, such as the seed; for speedup, the algorithm
    #[arg(long, value_name = "PARAMETER=VALUE,…", value_delimiter = ',', value_parser = pair, help_heading = "Statistics")]
    baseline: Vec<(String, String)>,

    /// Logarithmic axes: none, x, y (also --log alone; colours of maps), xy [default: chosen by the values]
    #[arg(
        long,
        value_enum,
        value_name = "AXES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "y",
        hide_possible_values = true,
        help_heading = "Axes"
    )]
    log: Option<LogAxes>,
    /// Ends of the x axes, LOW:HIGH; either may be missing
    #[arg(long, value_name = "LOW:HIGH", allow_hyphen_values = true, help_heading = "Axes")]
    xlim: Option<Limits>,
    /// Ends of the y axes
    #[arg(long, value_name = "LOW:HIGH", allow_hyphen_values = true, help_heading = "Axes")]
    ylim: Option<Limits>,
    /// Ends of the colours of maps
    #[arg(long, value_name = "LOW:HIGH", allow_hyphen_values = true, help_heading = "Axes")]
    clim: Option<Limits>,
    /// Title of the x axes
    #[arg(long, value_name = "TEXT", help_heading = "Axes")]
    xlabel: Option<String>,
    /// Title of the y axes, or of the colours of maps
    #[arg(long, value_name = "TEXT", help_heading = "Axes")]
    ylabel: Option<String>,
    /// Dashed vertical lines at these x
    #[arg(long, value_name = "X,…", value_delimiter = ',', value_parser = finite, allow_hyphen_values = true, help_heading = "Axes")]
    ref_x: Vec<f64>,
    /// Dashed horizontal lines at these y
    #[arg(long, value_name = "Y,…", value_delimiter = ',', value_parser = finite, allow_hyphen_values = true, help_heading = "Axes")]
    ref_y: Vec<f64>,

    /// Venue whose column width is used: icml, neurips, iclr, acl, nature, cvpr, aaai, colm, jmlr, tmlr
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
    #[arg(long, value_name = "IN", value_parser = Inches::height, allow_negative_numbers = true, help_heading = "Look")]
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
    /// Colours of lines: okabe-ito, tol or viridis
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "okabe-ito|tol|viridis",
        hide_possible_values = true,
        help_heading = "Look"
    )]
    palette: Palette,
    /// Typeface: sans, or serif with the metrics of Times
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "sans|serif",
        hide_possible_values = true,
        help_heading = "Look"
    )]
    font: Font,
    /// Title above the figure
    #[arg(long, value_name = "TEXT", help_heading = "Look")]
    title: Option<String>,
    /// Place of the legend: top, inside, right or none
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "top|inside|right|none",
        hide_possible_values = true,
        help_heading = "Look"
    )]
    legend: LegendPlace,
    /// New name of a line, as in the legend; may be repeated, in the order of the legend
    #[arg(long, value_name = "OLD=NEW", value_parser = renaming, help_heading = "Look")]
    rename: Vec<(String, String)>,
    /// Print no remarks below the legend, for figures whose caption has them
    #[arg(long, help_heading = "Look")]
    no_notes: bool,
    /// Print no letters of panels
    #[arg(long, help_heading = "Look")]
    no_letters: bool,

    /// Directory for the figures, file for a single figure, or - for stdout [default: beside the CSV]
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    pub(super) out: Option<PathBuf>,
    /// Formats of the figures, separated by commas: svg, pdf, png, pgfplots (TeX for \input), csv (the data drawn) [default: the
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
    pub(super) quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  nmem plot results/passages-store --venue icml --figure-format pdf
  nmem plot results/passages-store --kind heads
  nmem plot results/passages-store --terminal
  nmem plot results/passages-store --figure-format pgfplots --venue icml --out figures
  nmem plot results/run-1 results/run-2 --y surprise --smooth 16
  nmem plot results/queries-retrieve/recall.csv --hue updated
  nmem plot results/passages-store/metrics.csv --x loss --y update_norm,surprise --log=xy
  nmem plot results/grid-sweep --y loss_ratio --where 'momentum=0' --rows decay --cols heads
  nmem plot results/chunk-size-sweep --y loss_before_mean --theme mono --out figure.pdf
  nmem plot figures.toml";

/// Parses a head or a range of heads.
fn heads(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let parsed = first.trim().parse().ok().zip(last.trim().parse().ok());
    let range = parsed.filter(|(first, last)| first <= last).map(|(first, last)| first..=last);
    range.ok_or_else(|| "expected a head or a range of heads, such as 2 or 0-3".to_owned())
}

/// Parses a range of tokens.
fn tokens(text: &str) -> Result<Range<u64>, String> {
    let expected = || "expected FROM:TO, whole numbers of which one may be missing, as in 0:512".to_owned();
    let (from, to) = text.split_once(':').ok_or_else(expected)?;
    let end = |text: &str, default: u64| match text.trim() {
        "" => Ok(default),
        text => text.parse().map_err(|_| expected()),
    };
    let range = end(from, 0)?..end(to, u64::MAX)?;
    if range.is_empty() { Err("expected FROM below TO".to_owned()) } else { Ok(range) }
}

/// Parses a setting, or a value alone.
#[expect(clippy::unnecessary_wraps, reason = "a parser of clap")]
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or(("", text));
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Parses a new name. Names of lines may hold an equals sign, as in `α = 0.1`.
fn renaming(text: &str) -> Result<(String, String), String> {
    let (old, new) = text.rsplit_once('=').unwrap_or_default();
    if old.trim().is_empty() || new.trim().is_empty() {
        return Err("expected OLD=NEW, with OLD as in the legend".to_owned());
    }
    Ok((old.trim().to_owned(), new.trim().to_owned()))
}

fn finite(text: &str) -> Result<f64, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|x: &f64| x.is_finite())
        .ok_or_else(|| "expected a finite number".to_owned())
}

/// Destination of the figures.
enum Target {
    Stdout,
    /// A single file.
    File(PathBuf),
    Directory(PathBuf),
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let [path] = &args.paths[..]
        && path.extension().is_some_and(|ending| ending == "toml")
    {
        let mut written = Vec::new();
        for figure in figure_file::read(path, &args)? {
            let files = draw(figure.args, Some(&figure.name), &written)?;
            written.extend(files);
        }
        return Ok(ExitCode::SUCCESS);
    }
    draw(args, None, &[])?;
    Ok(ExitCode::SUCCESS)
}

/// Draws the figures of a command line, or of an entry of a figure file, and returns their files. Those that earlier entries
/// have written are not replaced.
fn draw(mut args: Args, entry: Option<&str>, earlier: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    check_streams(args.paths.iter().chain(&args.labels).map(PathBuf::as_path))?;
    let stdin = stdin::keep(&mut args.paths)?;
    let sources = CsvSource::find_all(&args.paths, args.kind, args.x.as_deref())?;
    let mut request = args.request(entry)?;
    let target = args.target(&sources, stdin.is_some())?;
    let formats = args.formats(&target)?;
    if let Some(text) = plot::ignored_flags(&sources, &request).filter(|_| !args.quiet) {
        note("note: ", &text);
    }
    if request.labels.is_none() {
        request.labels = labels_of_run(&sources, args.quiet)?;
    }
    if args.terminal {
        let view = plot::terminal::view(&sources, &request, &screen(), &mut check_interrupt)?;
        print(&view.text)?;
        if !args.quiet {
            view.notes.iter().for_each(|text| note("note: ", text));
        }
        return Ok(Vec::new());
    }

    let drawn = plot::draw(&sources, &request, &mut check_interrupt)?;
    if !args.quiet {
        drawn.notes.iter().for_each(|text| note("note: ", text));
    }
    let inputs: Vec<&Path> = sources
        .iter()
        .map(|source| &*source.csv)
        .chain(args.labels.as_deref())
        .chain(sources.iter().filter_map(|source| source.run.labels.as_deref()))
        .collect();
    let files = match target {
        Target::Stdout => {
            let bytes = one(&drawn, "-")?.encode(formats[0])?;
            let mut out = std::io::stdout().lock();
            match out.write_all(&bytes).and_then(|()| out.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                result => result.context("standard output")?,
            }
            return Ok(Vec::new());
        }
        Target::File(path) => {
            let bytes = one(&drawn, &path.display().to_string())?.encode(formats[0])?;
            reject_input(&path, &inputs)?;
            reject_earlier(&path, earlier)?;
            storage::replace(&path, &bytes)?;
            vec![path]
        }
        Target::Directory(directory) => {
            storage::create_directories(&directory)?;
            drawn.paths(&directory, &formats).try_for_each(|path| {
                reject_input(&path, &inputs).and_then(|()| reject_earlier(&path, earlier))
            })?;
            drawn.write(&directory, &formats)?
        }
    };
    if !args.quiet {
        let names = files.iter().map(|file| for_terminal(&file.display().to_string()).into_owned());
        let names: Vec<_> = names.collect();
        print(&if names.is_empty() { String::new() } else { names.join("\n") + "\n" })?;
    }
    Ok(files)
}

/// Rejects a figure that would replace one of an earlier entry of the same file.
fn reject_earlier(path: &Path, earlier: &[PathBuf]) -> crate::Result<()> {
    if earlier.iter().any(|file| file == path) {
        let reason =
            format!("an earlier figure has written {}; give this one an out of its own", path.display());
        return Err(Error::rejected("out", reason));
    }
    Ok(())
}

/// Rejects a figure that would replace a file from which it is drawn.
fn reject_input(path: &Path, inputs: &[&Path]) -> crate::Result<()> {
    // A file that does not exist is no input.
    let Ok(canonical) = std::fs::canonicalize(path) else { return Ok(()) };
    if inputs.iter().any(|input| std::fs::canonicalize(input).is_ok_and(|input| input == canonical)) {
        let reason = format!("{} is an input of the figure; choose another name", path.display());
        return Err(Error::rejected("--out", reason));
    }
    Ok(())
}

/// Returns the labels that a run had, if all runs had the same and the file still exists.
fn labels_of_run(sources: &[CsvSource], quiet: bool) -> crate::Result<Option<Labels>> {
    let timed = [Kind::Timeline, Kind::Gates, Kind::Topics];
    let Some(first) = sources.first().filter(|source| timed.contains(&source.kind)) else { return Ok(None) };
    let Some(path) = first.run.labels.as_deref() else { return Ok(None) };
    if sources.iter().any(|source| source.run.labels.as_deref() != Some(path)) {
        return Ok(None);
    }
    if !storage::kind_of(path)?.is_some_and(|kind| kind.is_file()) {
        if !quiet {
            note(
                "note: ",
                &format!("the run's labels {} are not here; pass them with --labels", path.display()),
            );
        }
        return Ok(None);
    }
    Ok(Some(Labels::read(path)?.shifted(first.run.first_token)))
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
        [] => {
            let reason = format!("no figure for {out}: {}", drawn.notes.join("; "));
            Err(Error::rejected("--out", reason.replace(": no figures: ", ": ")))
        }
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
    fn request(&self, entry: Option<&str>) -> crate::Result<Request> {
        let venue = self.venue.map(|venue| {
            let (column, both) = venue.widths();
            if self.wide { both } else { column }
        });
        let width = venue.or(self.width.map(|width| width.0)).map(|inches| inches * INCH);
        let style = FigureStyle {
            theme: self.theme,
            width: width.unwrap_or(FigureStyle::default().width),
            height: self.height.map(|height| height.0 * INCH),
            title: self.title.clone(),
            log: self.log,
            smooth: self.smooth,
            xlim: self.xlim.unwrap_or_default(),
            ylim: self.ylim.unwrap_or_default(),
            clim: self.clim.unwrap_or_default(),
            x_label: self.xlabel.clone(),
            y_label: self.ylabel.clone(),
            legend: self.legend,
            notes: !self.no_notes,
            letters: !self.no_letters,
            font: self.font,
            palette: self.palette,
        };
        style.check()?;
        let command = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).skip(1);
        let command: Vec<_> = std::iter::once("nmem".to_owned()).chain(command).collect();
        let command = shlex::try_join(command.iter().map(String::as_str)).unwrap_or_default();
        Ok(Request {
            style,
            labels: self.labels.as_deref().map(Labels::read).transpose()?,
            x: self.x.clone(),
            y: self.y.clone(),
            hue: self.hue.clone(),
            rows: self.rows.clone(),
            cols: self.cols.clone(),
            panels: self.panels,
            filter: self.r#where.clone(),
            part: Part { heads: self.heads.clone(), tokens: self.tokens.clone() },
            center: self.center,
            interval: self.interval,
            baseline: self.baseline.clone(),
            names: self.rename.clone(),
            references: [
                self.ref_x.iter().map(|&x| Reference::X(x)).collect::<Vec<_>>(),
                self.ref_y.iter().map(|&y| Reference::Y(y)).collect(),
            ]
            .concat(),
            origin: Some(entry.map_or(command.clone(), |entry| format!("{command}, {entry}"))),
        })
    }

    fn target(&self, sources: &[CsvSource], of_stdin: bool) -> crate::Result<Target> {
        Ok(match &self.out {
            Some(out) if out == Path::new("-") => Target::Stdout,
            Some(out) if of_ending(out).is_some() && !storage::is_directory(out)? => {
                Target::File(out.clone())
            }
            Some(out) => Target::Directory(out.clone()),
            None => {
                let beside = sources.first().and_then(|source| source.csv.parent()).filter(|_| !of_stdin);
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
        formats.iter().try_for_each(|format| format.check())?;
        Ok(formats)
    }
}

fn of_ending(path: &Path) -> Option<FigureFormat> {
    let ending = path.extension()?;
    FigureFormat::ALL.into_iter().find(|format| ending == format.ending())
}
