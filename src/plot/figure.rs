//! A drawn figure. It is drawn as SVG, and all other formats except pgfplots are made from that.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::plot::pages;
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
    /// TeX that reads the CSV.
    Pgfplots,
}

impl FigureFormat {
    /// Returns the extension of file names.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Pdf => "pdf",
            Self::Png => "png",
            Self::Pgfplots => "tex",
        }
    }

    /// Returns an error if this build cannot write the format. The error says how to build one that can.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Pdf | Self::Png => pages::check(),
            Self::Svg | Self::Pgfplots => Ok(()),
        }
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Name of the file without its extension: "timeline".
    pub name: String,
    /// The SVG document.
    pub svg: String,
}

impl Figure {
    /// Encodes the figure in a format other than pgfplots, which is not made from the SVG.
    pub fn encode(&self, format: FigureFormat) -> Result<Vec<u8>> {
        match format {
            FigureFormat::Svg => Ok(self.svg.clone().into_bytes()),
            FigureFormat::Pdf => pages::pdf(&self.svg),
            FigureFormat::Png => pages::png(&self.svg),
            FigureFormat::Pgfplots => Err(Error::setting("--figure-format", "svg, pdf or png", "pgfplots")),
        }
    }

    /// Returns the figure's files in a directory, one for each format except pgfplots.
    pub fn files(
        &self,
        directory: &Path,
        formats: &[FigureFormat],
    ) -> impl Iterator<Item = Result<(PathBuf, Vec<u8>)>> {
        let formats = formats.iter().filter(|&&format| format != FigureFormat::Pgfplots);
        formats.map(|&format| {
            // `with_extension` would cut names at a dot.
            let path = directory.join(format!("{}.{}", self.name, format.ending()));
            Ok((path, self.encode(format)?))
        })
    }
}

/// The figures drawn, and notes for the user.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Figures in the order in which they were drawn.
    pub figures: Vec<Figure>,
    /// Notes on skipped values, on skipped panels and on the absence of figures.
    pub notes: Vec<String>,
}

impl Figures {
    /// Returns the files of all figures in a directory, in each format except pgfplots.
    pub fn files(
        &self,
        directory: &Path,
        formats: &[FigureFormat],
    ) -> impl Iterator<Item = Result<(PathBuf, Vec<u8>)>> {
        self.figures.iter().flat_map(|figure| figure.files(directory, formats))
    }

    /// Writes all figures into a directory, which must exist; returns their paths.
    pub fn write(&self, directory: &Path, formats: &[FigureFormat]) -> Result<Vec<PathBuf>> {
        storage::replace_all(self.files(directory, formats))
    }
}
