//! Sizes and colours, in one place. Lengths are points (1/72 in) of the sheet: at final size, but for the screen, where the
//! sheet is shown larger.

use plotters::style::{RGBAColor, RGBColor};

use crate::plot::style::Theme;

/// Room for the axis titles, left of the tick labels.
pub const TITLES: f64 = 14.0;
/// Room for half of the last tick label.
pub const RIGHT: f64 = 12.0;
/// Room for the x axis' tick labels and title.
pub const BOTTOM: f64 = 28.0;
/// Between all that is drawn and the edge of the sheet.
pub const EDGE: f64 = 4.0;
/// A line of text, of titles and legends.
pub const LINE: f64 = 11.0;
/// Between the legend and the first panel, where the panel's letter stands.
pub const HEAD: f64 = 11.0;
/// From the top of a panel up to the middle of its letter.
pub const LETTER: f64 = 5.5;
/// Between stacked panels.
pub const GAP: f64 = 13.0;
/// Height of a panel among others.
pub const STACKED: f64 = 86.0;
/// Flatter panels would show nothing, however low the figure shall be.
pub const MIN_PANEL: f64 = 24.0;
/// Height of a panel alone.
pub const ALONE: f64 = 150.0;

/// Axis titles.
pub const TITLE: f64 = 8.0;
/// Tick labels, legend and notes.
pub const SMALL: f64 = 7.0;

/// Size of a superscript, as a share of its text's.
pub const SUPERSCRIPT: f64 = 0.7;

/// Spines and ticks.
pub const SPINE: f64 = 0.6;
/// Means over heads.
pub const BOLD: f64 = 1.2;
/// Lines of measurements, with their markers.
pub const SERIES: f64 = 0.9;
/// Length of a tick; minor ones have half of it.
pub const TICK: f64 = 3.0;

/// Behind everything.
pub const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
/// Text, spines, bold lines.
pub const BLACK: RGBColor = RGBColor(0x1A, 0x1A, 0x1A);
/// Notes.
pub const GREY: RGBColor = RGBColor(0x59, 0x59, 0x59);
/// Where the segment changes.
pub const RULE: RGBColor = RGBColor(0xBD, 0xBD, 0xBD);
/// Behind repeats.
pub const SHADE: RGBColor = RGBColor(0xEE, 0xEE, 0xEE);
/// Marks of values that cannot be drawn.
pub const ALARM: RGBColor = RGBColor(0xCC, 0x00, 0x00);

/// Okabe and Ito's colours, ordered so that the first ones differ most; black is left to the mean, and yellow, faint
/// on white, comes last.
const OKABE_ITO: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0xF0, 0xE4, 0x42),
];

/// Viridis at every eighth, without its pale end.
const VIRIDIS: [RGBColor; 8] = [
    RGBColor(0x44, 0x01, 0x54),
    RGBColor(0x47, 0x2D, 0x7B),
    RGBColor(0x3B, 0x52, 0x8B),
    RGBColor(0x2C, 0x72, 0x8E),
    RGBColor(0x21, 0x91, 0x8C),
    RGBColor(0x28, 0xAE, 0x80),
    RGBColor(0x5E, 0xC9, 0x62),
    RGBColor(0xAD, 0xDC, 0x30),
];

/// Up to so many heads are told apart.
pub const MAX_DISTINCT_HEADS: usize = OKABE_ITO.len();

/// Greys that differ most from their neighbours; dashes tell the rest.
const GREYS: [u8; 4] = [0x1A, 0x8C, 0x55, 0xA8];

/// Lengths of dashes and gaps; the first is a solid line.
const DASHES: [&[f64]; 7] = [
    &[],
    &[4.0, 2.0],
    &[1.2, 1.6],
    &[6.0, 1.8, 1.2, 1.8],
    &[2.4, 1.4],
    &[8.0, 2.4],
    &[5.0, 1.6, 1.2, 1.6, 1.2, 1.6],
];

impl Theme {
    /// How much larger than the sheet it is shown.
    pub fn scale(self) -> f64 {
        if self == Self::Screen { 1.25 } else { 1.0 }
    }

    /// Colours of categories: black, Okabe and Ito's but for yellow, and viridis' dark end; they repeat after the eighth.
    pub fn category(self, i: usize) -> RGBColor {
        if self == Self::Mono {
            let grey = GREYS[i % GREYS.len()];
            return RGBColor(grey, grey, grey);
        }
        let [a, b, c, d, e, f, _] = OKABE_ITO;
        [BLACK, a, b, c, d, e, f, VIRIDIS[0]][i % 8]
    }

    /// The pattern of the i-th line: where there are no colours, all differ.
    pub fn dash(self, i: usize) -> &'static [f64] {
        if self == Self::Mono { DASHES[i % DASHES.len()] } else { &[] }
    }

    /// Colours of the heads' lines: categories while they can be told apart, then an ordered scale.
    pub fn head_colours(self, heads: usize) -> Vec<RGBColor> {
        match heads {
            n if n > MAX_DISTINCT_HEADS => {
                (0..n).map(|i| self.sequential(i as f64 / (n - 1) as f64)).collect()
            }
            n if self == Self::Mono => (0..n).map(|i| self.category(i + 1)).collect(),
            n => OKABE_ITO[..n].to_vec(),
        }
    }

    /// Viridis without its pale end, from 0 (dark) to 1 (bright).
    pub fn sequential(self, at: f64) -> RGBColor {
        if self == Self::Mono { between(&BLACK_TO_PALE, at) } else { between(&VIRIDIS, at) }
    }

    /// From 0 (blue) by white to 1 (red). Greys have but two ends: from pale to black.
    pub fn diverging(self, at: f64) -> RGBColor {
        if self == Self::Mono { between(&BLACK_TO_PALE, 1.0 - at) } else { between(&BLUE_TO_RED, at) }
    }
}

const BLACK_TO_PALE: [RGBColor; 2] = [RGBColor(0x20, 0x20, 0x20), RGBColor(0xF4, 0xF4, 0xF4)];

/// ColorBrewer's RdBu turned about, which the colour-blind can read too.
const BLUE_TO_RED: [RGBColor; 7] = [
    RGBColor(0x21, 0x66, 0xAC),
    RGBColor(0x67, 0xA9, 0xCF),
    RGBColor(0xD1, 0xE5, 0xF0),
    RGBColor(0xF7, 0xF7, 0xF7),
    RGBColor(0xFD, 0xDB, 0xC7),
    RGBColor(0xEF, 0x8A, 0x62),
    RGBColor(0xB2, 0x18, 0x2B),
];

fn between(scale: &[RGBColor], at: f64) -> RGBColor {
    let place = at * (scale.len() - 1) as f64;
    let i = (0..scale.len() - 2).take_while(|&i| place >= (i + 1) as f64).count();
    let (a, b, t) = (scale[i], scale[i + 1], place - i as f64);
    let mix = |a: u8, b: u8| {
        let mixed = f64::from(a) + t * (f64::from(b) - f64::from(a));
        (mixed.round() as i32).unsigned_abs().min(255) as u8
    };
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// A colour that lets through what is behind it.
pub fn faint(colour: RGBColor, opacity: f64) -> RGBAColor {
    RGBAColor(colour.0, colour.1, colour.2, opacity)
}

/// The grey that is as bright: Rec. 709's luma.
pub fn grey(colour: RGBColor) -> u8 {
    let [red, green, blue] = [colour.0, colour.1, colour.2].map(u32::from);
    ((2126 * red + 7152 * green + 722 * blue + 5000) / 10_000).min(255) as u8
}

#[cfg(test)]
mod tests {
    use plotters::style::RGBColor;

    use super::{DASHES, GREYS, Theme};

    #[test]
    fn colours_of_heads() {
        for heads in [1, 2, 7, 8, 16, 64] {
            let mut colours = Theme::Print.head_colours(heads);
            assert_eq!(colours.len(), heads);
            colours.sort_by_key(|colour| (colour.0, colour.1, colour.2));
            colours.dedup();
            assert_eq!(colours.len(), heads, "{heads} heads in as many colours");
        }
        let ordered = Theme::Print.head_colours(8);
        assert_eq!((ordered[0], ordered[7]), (RGBColor(0x44, 0x01, 0x54), RGBColor(0xAD, 0xDC, 0x30)));
    }

    #[test]
    fn grey_lines_differ_in_their_dashes() {
        let dashes: Vec<_> = (0..DASHES.len()).map(|i| Theme::Mono.dash(i)).collect();
        assert!((1..dashes.len()).all(|i| !dashes[..i].contains(&dashes[i])));
        assert!(GREYS.iter().all(|&grey| grey < 0xB0), "dark enough to be seen on white");
    }
}
