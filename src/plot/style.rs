//! The style of a figure: theme, size, title and axes. All drawing code receives it.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::plot::{font, theme};

/// Points in an inch.
pub const INCH: f64 = 72.0;
/// Minimum width in inches; narrower sheets have no room for axes and legends. A size above the maximum is taken for a
/// typing error.
const MIN_INCHES: f64 = 2.0;
const MAX_INCHES: f64 = 60.0;

/// Most chunks of a moving mean. They are held in memory, fifty bytes each.
const MAX_SMOOTH: usize = 1 << 20;

/// The medium of the figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Theme {
    /// Papers: text of 7 and 8 pt, colours that colour-blind readers can distinguish.
    #[default]
    Print,
    /// Slides and web pages: everything is a quarter larger.
    Screen,
    /// Greys, dashes and markers: nothing depends on colour alone.
    Mono,
}

/// The venue whose columns the figure fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Venue {
    /// 3.25 in, two columns 6.75 in.
    Icml,
    /// 5.5 in.
    Neurips,
    /// 5.5 in.
    Iclr,
    /// 3.3 in, two columns 6.8 in.
    Acl,
    /// 3.50 in, two columns 7.2 in.
    Nature,
}

impl Venue {
    /// Returns the width of a column and of the whole text in inches, from the style files of 2025.
    pub fn widths(self) -> (f64, f64) {
        match self {
            Self::Icml => (3.25, 6.75),
            Self::Neurips | Self::Iclr => (5.5, 5.5),
            Self::Acl => (3.3, 6.8),
            Self::Nature => (3.5, 7.2),
        }
    }
}

/// The choice of logarithmic axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogAxes {
    /// Neither.
    None,
    /// The horizontal one.
    X,
    /// The vertical one.
    Y,
    /// Both.
    Xy,
}

impl LogAxes {
    /// Whether the horizontal axis is logarithmic.
    pub fn x(self) -> bool {
        matches!(self, Self::X | Self::Xy)
    }

    /// Whether the vertical axis is logarithmic.
    pub fn y(self) -> bool {
        matches!(self, Self::Y | Self::Xy)
    }
}

/// A length of a sheet in inches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inches(pub f64);

impl FromStr for Inches {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inches = text.trim_end_matches("in").trim_end().parse().ok();
        let inches = inches.filter(|inches| (MIN_INCHES..=MAX_INCHES).contains(inches));
        inches.map(Self).ok_or_else(|| format!("expected inches, from {MIN_INCHES} to {MAX_INCHES}"))
    }
}

/// Theme, size, title and axes of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct FigureStyle {
    /// The medium of the figure.
    pub theme: Theme,
    /// Width of the figure, in points.
    pub width: f64,
    /// Height in points; `None` is the height that the panels need.
    pub height: Option<f64>,
    /// Title above everything else.
    pub title: Option<String>,
    /// Logarithmic axes; `None` lets the data decide.
    pub log: Option<LogAxes>,
    /// Chunks (or rows) of the moving mean shown by bold lines.
    pub smooth: Option<usize>,
}

impl Default for FigureStyle {
    /// Returns the style for print, as wide as ICML's two columns.
    fn default() -> Self {
        Self { theme: Theme::Print, width: 6.75 * INCH, height: None, title: None, log: None, smooth: None }
    }
}

impl FigureStyle {
    /// Returns the number of chunks to smooth over; 1 or less means no smoothing.
    pub fn smoothed(&self) -> Option<usize> {
        self.smooth.filter(|&chunks| chunks > 1)
    }

    /// Returns the width of the sheet.
    pub(super) fn sheet_width(&self) -> f64 {
        self.width / self.theme.scale()
    }

    /// Returns the title in lines that fit the sheet.
    pub(super) fn title_lines(&self) -> Vec<String> {
        let wrap = |title: &str| {
            font::wrapped(&font::plain(title), theme::TITLE, self.sheet_width() - 2.0 * theme::EDGE)
        };
        self.title.as_deref().filter(|title| !title.trim().is_empty()).map_or(Vec::new(), wrap)
    }

    /// Returns the height of one of `panels` rows of panels if everything else takes `rest`.
    pub(super) fn panel_height(&self, default: f64, panels: usize, rest: f64) -> f64 {
        let title = self.title_lines().len() as f64 * theme::LINE;
        let asked = self.height.map(|height| (height / self.theme.scale() - title - rest) / panels as f64);
        asked.map_or(default, |height| height.max(theme::MIN_PANEL))
    }

    /// Rejects values that cannot be drawn.
    pub fn check(&self) -> Result<()> {
        if self.smooth == Some(0) {
            return Err(Error::setting("--smooth", "at least 1", "0"));
        }
        if let Some(smooth) = self.smooth.filter(|&smooth| smooth > MAX_SMOOTH) {
            return Err(Error::setting("--smooth", format!("at most {MAX_SMOOTH}"), smooth.to_string()));
        }
        Ok(())
    }
}
