//! The style of a figure: theme, size, title, axes. Passed down to everything that draws.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::plot::{font, theme};

/// Points in an inch.
pub const INCH: f64 = 72.0;
/// Narrower sheets have no room for axes and legends, larger ones are a slip of the keyboard. In inches.
const MIN_INCHES: f64 = 2.0;
const MAX_INCHES: f64 = 60.0;

/// Most chunks of a moving mean, which are held in memory, fifty bytes each.
const MAX_SMOOTH: usize = 1 << 20;

/// What the figure is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Theme {
    /// Papers: text of 7 and 8 pt, colours that the colour-blind tell apart.
    #[default]
    Print,
    /// Slides and web pages: all of it larger by a quarter.
    Screen,
    /// Greys, dashes and markers: nothing is told by colour alone.
    Mono,
}

/// Whose columns the figure shall fit.
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
    /// Width of a column and of the whole text, in inches, as the style files of 2025 have them.
    pub fn widths(self) -> (f64, f64) {
        match self {
            Self::Icml => (3.25, 6.75),
            Self::Neurips | Self::Iclr => (5.5, 5.5),
            Self::Acl => (3.3, 6.8),
            Self::Nature => (3.5, 7.2),
        }
    }
}

/// Which axes are logarithmic.
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
    /// Whether the horizontal axis is one.
    pub fn x(self) -> bool {
        matches!(self, Self::X | Self::Xy)
    }

    /// Whether the vertical axis is one.
    pub fn y(self) -> bool {
        matches!(self, Self::Y | Self::Xy)
    }
}

/// A length in inches, of a sheet.
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

/// Theme, size, title, axes.
#[derive(Clone, Debug, PartialEq)]
pub struct FigureStyle {
    /// What the figure is for.
    pub theme: Theme,
    /// Width of the figure, in points.
    pub width: f64,
    /// Height, in points; by default what the panels need.
    pub height: Option<f64>,
    /// Above all else.
    pub title: Option<String>,
    /// By default as the data ask for.
    pub log: Option<LogAxes>,
    /// Chunks (or rows) of the moving mean that bold lines are.
    pub smooth: Option<usize>,
}

impl Default for FigureStyle {
    /// In print, as wide as ICML's two columns.
    fn default() -> Self {
        Self { theme: Theme::Print, width: 6.75 * INCH, height: None, title: None, log: None, smooth: None }
    }
}

impl FigureStyle {
    /// The same of so many chunks; 1 and less smooths nothing.
    pub fn smoothed(&self) -> Option<usize> {
        self.smooth.filter(|&chunks| chunks > 1)
    }

    /// Width of the sheet that is drawn on.
    pub(super) fn sheet_width(&self) -> f64 {
        self.width / self.theme.scale()
    }

    /// The title in lines that fit the sheet.
    pub(super) fn title_lines(&self) -> Vec<String> {
        let wrap = |title: &str| {
            font::wrapped(&font::plain(title), theme::TITLE, self.sheet_width() - 2.0 * theme::EDGE)
        };
        self.title.as_deref().filter(|title| !title.trim().is_empty()).map_or(Vec::new(), wrap)
    }

    /// Height of one of `panels` rows of panels, where all but the panels takes `rest`.
    pub(super) fn panel_height(&self, default: f64, panels: usize, rest: f64) -> f64 {
        let title = self.title_lines().len() as f64 * theme::LINE;
        let asked = self.height.map(|height| (height / self.theme.scale() - title - rest) / panels as f64);
        asked.map_or(default, |height| height.max(theme::MIN_PANEL))
    }

    /// Refuses what cannot be drawn.
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
