//! A drawn figure. Its SVG is what is drawn; all other formats are made of that.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::plot::pages;
use crate::storage;

/// What a figure is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FigureFormat {
    /// Vectors, text as text.
    #[default]
    Svg,
    /// Vectors, fonts embedded.
    Pdf,
    /// Pixels, 600 an inch.
    Png,
    /// TeX that reads the CSV.
    Pgfplots,
}

impl FigureFormat {
    /// Of file names.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Svg => "svg",
            Self::Pdf => "pdf",
            Self::Png => "png",
            Self::Pgfplots => "tex",
        }
    }

    /// Whether this build can write it: an error that tells how to build one that can.
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
    /// Of its file, without an ending: "timeline".
    pub name: String,
    /// The document.
    pub svg: String,
}

impl Figure {
    /// The figure in a format other than pgfplots, which is not made of the SVG.
    pub fn encode(&self, format: FigureFormat) -> Result<Vec<u8>> {
        match format {
            FigureFormat::Svg => Ok(self.svg.clone().into_bytes()),
            FigureFormat::Pdf => pages::pdf(&self.svg),
            FigureFormat::Png => pages::png(&self.svg),
            FigureFormat::Pgfplots => Err(Error::setting("--figure-format", "svg, pdf or png", "pgfplots")),
        }
    }

    /// Its files in a directory: one for each format but pgfplots.
    pub fn files(
        &self,
        directory: &Path,
        formats: &[FigureFormat],
    ) -> impl Iterator<Item = Result<(PathBuf, Vec<u8>)>> {
        let formats = formats.iter().filter(|&&format| format != FigureFormat::Pgfplots);
        formats.map(|&format| {
            // Not `with_extension`: names may have dots.
            let path = directory.join(format!("{}.{}", self.name, format.ending()));
            Ok((path, self.encode(format)?))
        })
    }
}

/// What was drawn, and what a user should know of it.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// In the order in which they were drawn.
    pub figures: Vec<Figure>,
    /// Values left out, panels left out, nothing to draw.
    pub notes: Vec<String>,
}

impl Figures {
    /// Files of all figures in a directory, in each format but pgfplots.
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
