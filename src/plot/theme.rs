//! Sizes and colours of all figures. Lengths are points (1/72 in) of the sheet at its final size. The screen theme shows
//! the sheet larger.

use plotters::style::{RGBAColor, RGBColor};

use crate::plot::style::{Palette, Theme};

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
/// Height of each of several panels.
pub const STACKED: f64 = 86.0;
/// Minimum height of a panel, whatever height was requested; flatter panels would show nothing.
pub const MIN_PANEL: f64 = 24.0;
/// Height of a single panel; below, of each of several side by side.
pub const ALONE: f64 = 150.0;
pub const AMONG: f64 = 105.0;

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

/// Okabe and Ito's colours, ordered so that the first ones differ most, and the dark end of viridis. Black is reserved for
/// means. Yellow, which is faint on white, is missing.
const OKABE_ITO: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x44, 0x01, 0x54),
];

/// Paul Tol's bright scheme, without its grey.
const TOL: [RGBColor; 6] = [
    RGBColor(0x44, 0x77, 0xAA),
    RGBColor(0xEE, 0x66, 0x77),
    RGBColor(0x22, 0x88, 0x33),
    RGBColor(0xCC, 0xBB, 0x44),
    RGBColor(0x66, 0xCC, 0xEE),
    RGBColor(0xAA, 0x33, 0x77),
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

/// Most lines whose colours are categories; more have an ordered scale.
pub const MAX_DISTINCT: usize = OKABE_ITO.len();
/// Most lines that greys and dashes together tell apart.
pub const MAX_MONO: usize = GREYS.len() * DASHES.len();

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

/// Dashes of lines that others must beat, such as chance. They are finer than those of [`DASHES`], which they stand beside.
pub const BASELINES: [&[f64]; 2] = [&[3.0, 1.5], &[1.0, 1.0]];

impl Theme {
    /// Returns the factor by which the sheet is shown larger.
    pub fn scale(self) -> f64 {
        if self == Self::Screen { 1.25 } else { 1.0 }
    }

    /// Returns the dash pattern of the i-th line. Patterns differ in the theme without colours.
    pub fn dash(self, i: usize) -> &'static [f64] {
        if self == Self::Mono { DASHES[i % DASHES.len()] } else { &[] }
    }

    /// Returns a colour of viridis without its pale end, from 0 (dark) to 1 (bright).
    pub fn sequential(self, at: f64) -> RGBColor {
        if self == Self::Mono { between(&BLACK_TO_PALE, at) } else { between(&VIRIDIS, at) }
    }

    /// Returns a colour from 0 (blue) through white to 1 (red). Greys are palest in the middle.
    pub fn diverging(self, at: f64) -> RGBColor {
        if self == Self::Mono {
            between(&MID_TO_PALE, 1.0 - (2.0 * at - 1.0).abs())
        } else {
            between(&BLUE_TO_RED, at)
        }
    }
}

/// Returns the colours of `n` lines.
pub fn colours(theme: Theme, palette: Palette, n: usize) -> Vec<RGBColor> {
    let of = |scheme: &[RGBColor]| (n <= scheme.len()).then(|| scheme[..n].to_vec());
    let categories = match (palette, theme) {
        (_, Theme::Mono) | (Palette::Viridis, _) => None,
        (Palette::OkabeIto, _) => of(&OKABE_ITO),
        (Palette::Tol, _) => of(&TOL),
    };
    let at = |i: usize| if n > 1 { i as f64 / (n - 1) as f64 } else { 0.0 };
    categories.unwrap_or_else(|| match theme {
        Theme::Mono => GREYS.iter().cycle().take(n).map(|&grey| RGBColor(grey, grey, grey)).collect(),
        Theme::Print | Theme::Screen => (0..n).map(|i| between(&VIRIDIS, at(i))).collect(),
    })
}

const BLACK_TO_PALE: [RGBColor; 2] = [RGBColor(0x20, 0x20, 0x20), RGBColor(0xF4, 0xF4, 0xF4)];

/// Greys of diverging maps, light enough for hatching in black.
const MID_TO_PALE: [RGBColor; 2] = [RGBColor(0x60, 0x60, 0x60), RGBColor(0xFA, 0xFA, 0xFA)];

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

    use super::{DASHES, GREYS, MAX_MONO, Palette, Theme, colours};

    #[test]
    fn colours_never_repeat() {
        for palette in [Palette::OkabeIto, Palette::Tol, Palette::Viridis] {
            for n in [1, 2, 7, 8, 9, 16, 64] {
                let mut all = colours(Theme::Print, palette, n);
                assert_eq!(all.len(), n);
                all.sort_by_key(|colour| (colour.0, colour.1, colour.2));
                all.dedup();
                assert_eq!(all.len(), n, "{n} lines in as many colours");
            }
        }
        let ordered = colours(Theme::Print, Palette::OkabeIto, 9);
        assert_eq!((ordered[0], ordered[8]), (RGBColor(0x44, 0x01, 0x54), RGBColor(0xAD, 0xDC, 0x30)));
    }

    #[test]
    fn greys_and_dashes_together_never_repeat() {
        let greys = colours(Theme::Mono, Palette::OkabeIto, MAX_MONO);
        let pair = |i: usize| (greys[i], Theme::Mono.dash(i));
        assert!((1..MAX_MONO).all(|i| (0..i).all(|j| pair(i) != pair(j))));
    }

    #[test]
    fn grey_lines_differ_in_their_dashes() {
        let dashes: Vec<_> = (0..DASHES.len()).map(|i| Theme::Mono.dash(i)).collect();
        assert!((1..dashes.len()).all(|i| !dashes[..i].contains(&dashes[i])));
        assert!(GREYS.iter().all(|&grey| grey < 0xB0), "dark enough to be seen on white");
    }
}
