//! The look of a figure: theme, size, axes, legend and fonts. All drawing code receives it.

use std::str::FromStr;

use clap::ValueEnum;
use plotters::style::RGBColor;

use crate::error::{Error, Result};
use crate::plot::axis::Axis;
use crate::plot::font::{self, Font};
use crate::plot::theme;

/// Points in an inch.
pub const INCH: f64 = 72.0;
/// Minimum width and height in inches; smaller sheets have no room for axes and legends. A size above the maximum is taken
/// for a typing error.
const MIN_INCHES: f64 = 2.0;
const MIN_HEIGHT: f64 = 0.7;
const MAX_INCHES: f64 = 60.0;
/// Height of a page's text in points, less three lines of caption: ICML and ACL have 9 in or more, Springer's LNCS 7.6 in.
pub(super) const PAGE: f64 = 8.5 * INCH;

/// Most chunks of a moving mean. They are held in memory, fifty bytes each.
const MAX_SMOOTH: usize = 1 << 20;
/// Ratio of the highest to the lowest value from which a logarithmic axis is chosen: for ratios, and for other quantities.
/// Both were chosen by eye.
const LOG_OF_RATIOS: f64 = 3.0;
const LOG: f64 = 30.0;

/// The medium of the figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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
    /// 3.25 in, two columns 6.875 in.
    Cvpr,
    /// 3.3 in, two columns 7 in.
    Aaai,
    /// 5.5 in.
    Colm,
    /// 6 in.
    Jmlr,
    /// 6.5 in.
    Tmlr,
}

impl Venue {
    /// Returns the width of a column and of the whole text in inches, from the style files of 2025.
    pub fn widths(self) -> (f64, f64) {
        match self {
            Self::Icml => (3.25, 6.75),
            Self::Neurips | Self::Iclr | Self::Colm => (5.5, 5.5),
            Self::Acl => (3.3, 6.8),
            Self::Nature => (3.5, 7.2),
            Self::Cvpr => (3.25, 6.875),
            Self::Aaai => (3.3, 7.0),
            Self::Jmlr => (6.0, 6.0),
            Self::Tmlr => (6.5, 6.5),
        }
    }
}

/// The choice of logarithmic axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogAxes {
    /// Neither.
    None,
    /// The horizontal one.
    X,
    /// The vertical one, or the colours of a map.
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

/// The place of the legend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LegendPlace {
    /// Above the panels, or at the ends of the lines if there is room.
    #[default]
    Top,
    /// In the emptiest corner of the first panel.
    Inside,
    /// Right of the panels.
    Right,
    /// Nowhere.
    None,
}

/// The colours of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Palette {
    /// Okabe and Ito's.
    #[default]
    OkabeIto,
    /// Paul Tol's bright scheme.
    Tol,
    /// Viridis, for ordered values.
    Viridis,
}

/// A length of a sheet in inches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inches(pub f64);

impl Inches {
    /// Parses a height, which may be lower than a width.
    pub fn height(text: &str) -> Result<Self, String> {
        Self::at_least(text, MIN_HEIGHT)
    }

    fn at_least(text: &str, least: f64) -> Result<Self, String> {
        let inches = text.trim_end_matches("in").trim_end().parse().ok();
        let inches = inches.filter(|inches| (least..=MAX_INCHES).contains(inches));
        inches.map(Self).ok_or_else(|| format!("expected inches, from {least} to {MAX_INCHES}"))
    }
}

impl FromStr for Inches {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::at_least(text, MIN_INCHES)
    }
}

/// Ends of an axis, each of which may be left to the data.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Low end.
    pub low: Option<f64>,
    /// High end.
    pub high: Option<f64>,
}

impl FromStr for Limits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || "expected LOW:HIGH, finite numbers of which one may be missing, as in 0:1 or 0.5:".to_owned();
        let (low, high) = text.split_once(':').ok_or_else(expected)?;
        let end = |text: &str| match text.trim() {
            "" => Ok(None),
            text => text.parse().ok().filter(|end: &f64| end.is_finite()).map(Some).ok_or_else(expected),
        };
        let limits = Self { low: end(low)?, high: end(high)? };
        match (limits.low, limits.high) {
            (None, None) => Err(expected()),
            (Some(low), Some(high)) if low >= high => Err("expected LOW below HIGH".to_owned()),
            _ => Ok(limits),
        }
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
    /// Ends of the x axes.
    pub xlim: Limits,
    /// Ends of the y axes.
    pub ylim: Limits,
    /// Ends of the colours of maps.
    pub clim: Limits,
    /// Title of the x axes.
    pub x_label: Option<String>,
    /// Title of the y axes.
    pub y_label: Option<String>,
    /// Place of the legend.
    pub legend: LegendPlace,
    /// Whether remarks are printed below the legend.
    pub notes: bool,
    /// Whether panels have letters.
    pub letters: bool,
    /// Typeface.
    pub font: Font,
    /// Colours of lines.
    pub palette: Palette,
}

impl Default for FigureStyle {
    /// Returns the style for print, as wide as ICML's two columns.
    fn default() -> Self {
        Self {
            theme: Theme::Print,
            width: 6.75 * INCH,
            height: None,
            title: None,
            log: None,
            smooth: None,
            xlim: Limits::default(),
            ylim: Limits::default(),
            clim: Limits::default(),
            x_label: None,
            y_label: None,
            legend: LegendPlace::Top,
            notes: true,
            letters: true,
            font: Font::Sans,
            palette: Palette::OkabeIto,
        }
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
            self.font.wrapped(&font::plain(title), theme::TITLE, self.sheet_width() - 2.0 * theme::EDGE)
        };
        self.title.as_deref().filter(|title| !title.trim().is_empty()).map_or(Vec::new(), wrap)
    }

    /// Returns the height of one of `panels` rows of panels if everything else takes `rest`. The sheet fits a page unless
    /// another height was requested.
    pub(super) fn panel_height(&self, default: f64, panels: usize, rest: f64) -> f64 {
        let title = self.title_lines().len() as f64 * theme::LINE;
        let of_sheet = |height: f64| {
            ((height / self.theme.scale() - title - rest) / panels as f64).max(theme::MIN_PANEL)
        };
        self.height.map_or_else(|| default.min(of_sheet(PAGE)), of_sheet)
    }

    /// Returns whether values in this range get a logarithmic y axis.
    pub(super) fn is_log(&self, (low, high): (f64, f64), ratio: bool) -> bool {
        let low = self.ylim.low.unwrap_or(low);
        let spread = if ratio { LOG_OF_RATIOS } else { LOG };
        low > 0.0 && self.log.map_or(high > spread * low, LogAxes::y)
    }

    /// Returns the y axis of values in this range, within the requested limits.
    pub(super) fn y_axis(&self, range: (f64, f64), log: bool) -> Axis {
        limited(self.ylim, range, log)
    }

    /// Returns the x axis of values in this range, within the requested limits.
    pub(super) fn x_axis(&self, range: (f64, f64), log: bool) -> Axis {
        limited(self.xlim, range, log)
    }

    /// Returns the axis with the requested ends of x, or unchanged.
    pub(super) fn x_within(&self, axis: Axis) -> Axis {
        within(self.xlim, axis)
    }

    /// Returns the axis with the requested ends of y, or unchanged.
    pub(super) fn y_within(&self, axis: Axis) -> Axis {
        within(self.ylim, axis)
    }

    /// Returns the colours of `n` lines, all different: categories if there are few, otherwise an ordered scale. Greys are
    /// told apart by their dashes.
    pub(super) fn colours(&self, n: usize) -> Vec<RGBColor> {
        theme::colours(self.theme, self.palette, n)
    }

    /// Returns the colours of `n` ordered values.
    pub(super) fn ordered_colours(&self, n: usize) -> Vec<RGBColor> {
        // Ordered greys are too pale for lines, which dashes distinguish instead.
        if n < 3 || self.theme == Theme::Mono || self.palette != Palette::OkabeIto {
            return self.colours(n);
        }
        theme::colours(self.theme, Palette::Viridis, n)
    }

    /// Rejects values that cannot be drawn.
    pub fn check(&self) -> Result<()> {
        if self.smooth == Some(0) {
            return Err(Error::setting("--smooth", "at least 1", "0"));
        }
        if let Some(smooth) = self.smooth.filter(|&smooth| smooth > MAX_SMOOTH) {
            return Err(Error::setting("--smooth", format!("at most {MAX_SMOOTH}"), smooth.to_string()));
        }
        for (flag, limits, log) in [
            ("--xlim", self.xlim, self.log.is_some_and(LogAxes::x)),
            ("--ylim", self.ylim, self.log.is_some_and(LogAxes::y)),
        ] {
            if log
                && (limits.low.is_some_and(|low| low <= 0.0) || limits.high.is_some_and(|high| high <= 0.0))
            {
                return Err(Error::rejected(
                    flag,
                    "ends of a logarithmic axis must be above 0; choose others, or omit --log",
                ));
            }
        }
        Ok(())
    }
}

fn within(limits: Limits, axis: Axis) -> Axis {
    if limits == Limits::default() || axis.is_slots() {
        return axis;
    }
    limited(limits, axis.range(), axis.is_log())
}

fn limited(limits: Limits, (low, high): (f64, f64), log: bool) -> Axis {
    let Limits { low: from, high: to } = limits;
    // Values of 0 and below have no place on a log axis.
    let log = log && from.unwrap_or(low) > 0.0;
    if from.is_none() && to.is_none() {
        return if log { Axis::log(low, high) } else { Axis::linear(low, high) };
    }
    let log = log && from.is_none_or(|from| from > 0.0) && to.is_none_or(|to| to > 0.0);
    let (low, high) = (from.unwrap_or(low), to.unwrap_or(high));
    // All data may lie beyond the end that was given.
    let wide = if log { low * 10.0 } else { low + low.abs().max(1.0) };
    let narrow = if log { high / 10.0 } else { high - high.abs().max(1.0) };
    match (low < high, from) {
        (true, _) => Axis::exact(low, high, log),
        (false, Some(_)) => Axis::exact(low, wide, log),
        (false, None) => Axis::exact(narrow, high, log),
    }
}

#[cfg(test)]
mod tests {
    use super::{FigureStyle, Limits};

    #[test]
    fn limits_replace_the_ends_of_the_data() {
        for ends in [(0.0, 10.0), (-1.0, -1.0)] {
            assert!(!FigureStyle::default().y_axis(ends, true).is_log(), "{ends:?}");
        }
        let limits = |text: &str| text.parse::<Limits>();
        let style = FigureStyle { ylim: limits("0.5:").unwrap(), ..FigureStyle::default() };
        assert_eq!(style.y_axis((0.1, 3.0), false).ends(), (0.5, 3.0));
        assert_eq!(style.y_axis((0.1, 0.2), false).ends(), (0.5, 1.5));
        let style = FigureStyle { ylim: limits(":1000").unwrap(), ..FigureStyle::default() };
        assert_eq!(style.y_axis((1.0, 3.0), true).ends(), (0.0, 3.0));
        for bad in ["", ":", "1", "1:1", "2:1", "a:b", "nan:1", "0:inf"] {
            assert!(limits(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ratios_within_a_factor_of_three_are_linear() {
        let style = FigureStyle::default();
        assert!(!style.is_log((0.9, 1.1), true) && !style.is_log((0.9, 20.0), false));
        assert!(style.is_log((0.3, 1.1), true) && style.is_log((0.9, 40.0), false));
        assert!(!style.is_log((0.0, 1e9), true));
    }
}
