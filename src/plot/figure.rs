//! A drawn figure and its files. PDF and PNG are made from its SVG, TeX and CSV from its chart.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Result;
use crate::escape::for_figure;
use crate::plot::chart::Chart;
use crate::plot::style::FigureStyle;
use crate::plot::{pages, pgfplots, sheet, table};
use crate::storage;

/// A file format of figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FigureFormat {
    /// Vector graphics with text as text.
    #[default]
    Svg,
    /// Vector graphics with embedded fonts.
    Pdf,
    /// Pixels, 600 per inch.
    Png,
    /// TeX with the data in it.
    Pgfplots,
    /// The data drawn, as a table.
    Csv,
}

impl FigureFormat {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Svg, Self::Pdf, Self::Png, Self::Pgfplots, Self::Csv];

    /// Returns the extension of file names.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Pdf => "pdf",
            Self::Png => "png",
            Self::Pgfplots => "tex",
            Self::Csv => "csv",
        }
    }

    /// Returns an error if this build cannot write the format. The error says how to build one that can.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Pdf | Self::Png => pages::check(),
            Self::Svg | Self::Pgfplots | Self::Csv => Ok(()),
        }
    }

    /// Returns the name of a figure's file. TeX reads only plain letters, and the data of `retention` must not replace
    /// `retention.csv`.
    fn file(self, name: &str) -> String {
        match self {
            Self::Pgfplots => format!("{}.tex", pgfplots::file_stem(name)),
            Self::Csv => format!("{name}-data.csv"),
            // `with_extension` would cut names at a dot.
            _ => format!("{name}.{}", self.ending()),
        }
    }
}

/// A figure.
#[derive(Debug)]
pub struct Figure {
    /// Name of the file without its extension: "timeline".
    pub name: String,
    /// The SVG document.
    pub svg: String,
    chart: Chart,
    style: FigureStyle,
    origin: Option<String>,
}

impl Figure {
    /// Draws a chart. `origin` is the command that does, which SVG and PDF keep.
    pub(super) fn new(chart: Chart, style: &FigureStyle, origin: Option<&str>) -> Self {
        let svg = sheet::draw(&chart, style);
        let origin = origin.map(|command| format!("nmem {}: {command}", env!("CARGO_PKG_VERSION")));
        Self { name: chart.name.clone(), svg, chart, style: style.clone(), origin }
    }

    /// Returns the figure in a format.
    pub fn encode(&self, format: FigureFormat) -> Result<Vec<u8>> {
        let origin = self.origin.as_deref();
        match format {
            FigureFormat::Svg => Ok(self.svg_with_origin().into_bytes()),
            FigureFormat::Pdf => pages::pdf(&self.svg, self.style.title.as_deref(), origin),
            FigureFormat::Png => pages::png(&self.svg),
            FigureFormat::Pgfplots => Ok(pgfplots::tex(&self.chart, &self.style, origin)?.into_bytes()),
            FigureFormat::Csv => Ok(table::csv(&self.chart)),
        }
    }

    fn svg_with_origin(&self) -> String {
        let (Some(origin), Some((root, rest))) = (&self.origin, self.svg.split_once('>')) else {
            return self.svg.clone();
        };
        let origin = for_figure(origin).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!("{root}><desc id=\"origin\">{origin}</desc>{rest}")
    }
}

/// The figures drawn, and notes for the user.
#[derive(Debug, Default)]
pub struct Figures {
    /// Figures in the order in which they were drawn.
    pub figures: Vec<Figure>,
    /// Notes on skipped values, on skipped panels and on the absence of figures.
    pub notes: Vec<String>,
}

impl Figures {
    /// Returns the paths of the files of all figures in a directory, in each format.
    pub fn paths(&self, directory: &Path, formats: &[FigureFormat]) -> impl Iterator<Item = PathBuf> {
        self.each(formats).map(|(figure, format)| directory.join(format.file(&figure.name)))
    }

    /// Returns the files of all figures in a directory, in each format.
    pub fn files(
        &self,
        directory: &Path,
        formats: &[FigureFormat],
    ) -> impl Iterator<Item = Result<(PathBuf, Vec<u8>)>> {
        let encoded = self.each(formats).map(|(figure, format)| figure.encode(format));
        self.paths(directory, formats).zip(encoded).map(|(path, bytes)| Ok((path, bytes?)))
    }

    fn each(&self, formats: &[FigureFormat]) -> impl Iterator<Item = (&Figure, FigureFormat)> {
        self.figures.iter().flat_map(|figure| formats.iter().map(move |&format| (figure, format)))
    }

    /// Writes all figures into a directory, which must exist; returns their paths.
    pub fn write(&self, directory: &Path, formats: &[FigureFormat]) -> Result<Vec<PathBuf>> {
        storage::replace_all(self.files(directory, formats))
    }
}
