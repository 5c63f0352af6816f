//! Sizes and colours of all figures. Lengths are points (1/72 in) of the sheet at its final size. The screen theme shows
//! the sheet larger.

use plotters::style::{RGBAColor, RGBColor};

use crate::plot::style::Theme;

/// Room for the axis titles, left of the tick labels.
pub const TITLES: f64 = 14.0;
/// Room for half of the last tick label.
pub const RIGHT: f64 = 12.0;
/// Room for the x axis' tick labels and title.
pub const BOTTOM: f64 = 28.0;
/// Margin at the edge of the sheet.
pub const EDGE: f64 = 4.0;
/// Height of a line of text in titles and legends.
pub const LINE: f64 = 11.0;
/// Distance between the legend and the first panel, with the panel's letter.
pub const HEAD: f64 = 11.0;
/// Distance from the top of a panel up to the middle of its letter.
pub const LETTER: f64 = 5.5;
/// Distance between stacked panels.
pub const GAP: f64 = 13.0;
/// Height of each of several panels.
pub const STACKED: f64 = 86.0;
/// Minimum height of a panel, whatever height was requested; flatter panels would show nothing.
pub const MIN_PANEL: f64 = 24.0;
/// Height of a single panel.
pub const ALONE: f64 = 150.0;

/// Font size of axis titles.
pub const TITLE: f64 = 8.0;
/// Font size of tick labels, legend and notes.
pub const SMALL: f64 = 7.0;

/// Size of a superscript as a fraction of its text's.
pub const SUPERSCRIPT: f64 = 0.7;

/// Width of spines and ticks.
pub const SPINE: f64 = 0.6;
/// Width of means over heads.
pub const BOLD: f64 = 1.2;
/// Width of lines of measurements with markers.
pub const SERIES: f64 = 0.9;
/// Length of a tick; minor ticks have half of it.
pub const TICK: f64 = 3.0;

/// Background.
pub const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);
/// Text, spines and bold lines.
pub const BLACK: RGBColor = RGBColor(0x1A, 0x1A, 0x1A);
/// Notes.
pub const GREY: RGBColor = RGBColor(0x59, 0x59, 0x59);
/// Lines at segment changes.
pub const RULE: RGBColor = RGBColor(0xBD, 0xBD, 0xBD);
/// Background of repeats.
pub const SHADE: RGBColor = RGBColor(0xEE, 0xEE, 0xEE);
/// Marks of values that cannot be drawn.
pub const ALARM: RGBColor = RGBColor(0xCC, 0x00, 0x00);

/// Okabe and Ito's colours, ordered so that the first ones differ most. Black is reserved for the mean. Yellow, which is
/// faint on white, comes last.
const OKABE_ITO: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0xF0, 0xE4, 0x42),
];

/// Viridis in steps of an eighth, without its pale end.
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

/// Most heads that have distinct colours.
pub const MAX_DISTINCT_HEADS: usize = OKABE_ITO.len();

/// Greys that differ most from their neighbours; dashes distinguish the rest.
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
    /// Returns the factor by which the sheet is shown larger.
    pub fn scale(self) -> f64 {
        if self == Self::Screen { 1.25 } else { 1.0 }
    }

    /// Returns the i-th colour of categories: black, Okabe and Ito's without yellow, and viridis' dark end. Colours repeat
    /// after the eighth.
    pub fn category(self, i: usize) -> RGBColor {
        if self == Self::Mono {
            let grey = GREYS[i % GREYS.len()];
            return RGBColor(grey, grey, grey);
        }
        let [a, b, c, d, e, f, _] = OKABE_ITO;
        [BLACK, a, b, c, d, e, f, VIRIDIS[0]][i % 8]
    }

    /// Returns the dash pattern of the i-th line. Patterns differ in the theme without colours.
    pub fn dash(self, i: usize) -> &'static [f64] {
        if self == Self::Mono { DASHES[i % DASHES.len()] } else { &[] }
    }

    /// Returns the colours of the heads' lines: categories while those are distinct, then an ordered scale.
    pub fn head_colours(self, heads: usize) -> Vec<RGBColor> {
        match heads {
            n if n > MAX_DISTINCT_HEADS => {
                (0..n).map(|i| self.sequential(i as f64 / (n - 1) as f64)).collect()
            }
            n if self == Self::Mono => (0..n).map(|i| self.category(i + 1)).collect(),
            n => OKABE_ITO[..n].to_vec(),
        }
    }

    /// Returns a colour of viridis without its pale end, from 0 (dark) to 1 (bright).
    pub fn sequential(self, at: f64) -> RGBColor {
        if self == Self::Mono { between(&BLACK_TO_PALE, at) } else { between(&VIRIDIS, at) }
    }

    /// Returns a colour from 0 (blue) through white to 1 (red). Greys run from pale to black only.
    pub fn diverging(self, at: f64) -> RGBColor {
        if self == Self::Mono { between(&BLACK_TO_PALE, 1.0 - at) } else { between(&BLUE_TO_RED, at) }
    }
}

const BLACK_TO_PALE: [RGBColor; 2] = [RGBColor(0x20, 0x20, 0x20), RGBColor(0xF4, 0xF4, 0xF4)];

/// ColorBrewer's RdBu reversed, which colour-blind readers can read too.
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

/// Returns a colour with this opacity.
pub fn faint(colour: RGBColor, opacity: f64) -> RGBAColor {
    RGBAColor(colour.0, colour.1, colour.2, opacity)
}

/// Returns the grey of the same brightness, by Rec. 709's luma.
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
