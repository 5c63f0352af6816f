//! The fonts of figures, and the width of texts in them.

use std::sync::LazyLock;

use ttf_parser::Face;

use crate::escape::for_figure;
use crate::plot::theme::SUPERSCRIPT;

/// Typeface of a figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Font {
    /// Liberation Sans, with Arial's metrics.
    #[default]
    Sans,
    /// Liberation Serif, with the metrics of Times.
    Serif,
}

/// Name of the default font in usvg.
pub const FAMILY: &str = "Liberation Sans";
/// Most letters considered of a text that is cut. The widest sheet has room for three thousand narrow ones.
const MAX_LETTERS: usize = 4096;
/// Font files, regular and bold: sans, then serif.
pub const FILES: [&[u8]; 4] = [
    include_bytes!("fonts/LiberationSans-Regular.ttf"),
    include_bytes!("fonts/LiberationSans-Bold.ttf"),
    include_bytes!("fonts/LiberationSerif-Regular.ttf"),
    include_bytes!("fonts/LiberationSerif-Bold.ttf"),
];

static FACES: LazyLock<[Face; 4]> =
    LazyLock::new(|| FILES.map(|file| Face::parse(file, 0).expect("the embedded font is valid")));

impl Font {
    /// Returns fonts with the same metrics. The layout is the same on every machine that has one of them.
    pub fn families(self) -> &'static str {
        match self {
            Self::Sans => "Liberation Sans, Arial, Helvetica, sans-serif",
            Self::Serif => "Liberation Serif, Times New Roman, Times, serif",
        }
    }

    /// Returns the width of a text in points, without kerning, which would only narrow it. Superscripts are written `^{…}`.
    pub fn width(self, text: &str, size: f64) -> f64 {
        measured(&FACES[2 * self as usize], text, size)
    }

    /// Returns the width of a bold text in points.
    pub fn bold_width(self, text: &str, size: f64) -> f64 {
        measured(&FACES[2 * self as usize + 1], text, size)
    }

    /// Returns the width of the widest text.
    pub fn widest<'a>(self, texts: impl IntoIterator<Item = &'a str>, size: f64) -> f64 {
        texts.into_iter().map(|text| self.width(text, size)).fold(0.0, f64::max)
    }

    /// Cuts a text to fit and adds an ellipsis if something is missing.
    pub fn shortened(self, text: &str, size: f64, most: f64) -> String {
        if self.width(text, size) <= most {
            return text.to_owned();
        }
        // Half a superscript would not be a superscript. Letters without width could make a line of any length.
        let plain = text.replace("^{", "^").replace(['{', '}'], "");
        let plain: String = plain.chars().take(MAX_LETTERS).collect();
        let mut kept = String::new();
        for letter in plain.chars() {
            if self.width(&format!("{kept}{letter}…"), size) > most {
                break;
            }
            kept.push(letter);
        }
        kept.trim_end().to_owned() + "…"
    }

    /// Breaks a text at spaces into lines that fit; a longer word stays whole.
    pub fn wrapped(self, text: &str, size: f64, most: f64) -> Vec<String> {
        let mut lines = Vec::<String>::new();
        for word in text.split(' ') {
            match lines.last_mut() {
                Some(line) if self.width(&format!("{line} {word}"), size) <= most => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    }
}

fn measured(face: &Face, text: &str, size: f64) -> f64 {
    let em = f64::from(face.units_per_em());
    let mut scale = 1.0;
    let advances = text.chars().map(|letter| match letter {
        '^' | '{' => {
            scale = SUPERSCRIPT;
            0.0
        }
        '}' => {
            scale = 1.0;
            0.0
        }
        // Another font draws letters that this one lacks; the width of an m is a safe estimate.
        _ => {
            scale
                * face
                    .glyph_index(letter)
                    .and_then(|glyph| face.glyph_hor_advance(glyph))
                    .map_or(0.85, |advance| f64::from(advance) / em)
        }
    });
    advances.sum::<f64>() * size
}

/// Returns a user's text without the markup of superscripts.
pub fn plain(text: &str) -> String {
    for_figure(text).replace('{', "(").replace('}', ")")
}

#[cfg(test)]
mod tests {
    use super::{FACES, Font};

    #[test]
    fn widths_are_arials_and_those_of_times() {
        let (sans, serif) = (Font::Sans, Font::Serif);
        assert!((sans.width("2048", 10.0) - 22.24).abs() < 0.01);
        assert!((serif.width("2048", 10.0) - 20.0).abs() < 0.01);
        assert!((sans.width("10^{2}", 10.0) - 15.01).abs() < 0.01);
        assert!(sans.width("", 10.0).abs() < 1e-9);
        assert!(sans.bold_width("a", 10.0) >= sans.width("a", 10.0));
    }

    #[test]
    fn the_fonts_have_what_figures_say() {
        for letter in "θηαΔΣℓ÷−×²’·–—…≤≥\u{2009}".chars() {
            assert!(FACES.iter().all(|face| face.glyph_index(letter).is_some()), "{letter:?}");
        }
    }

    #[test]
    fn long_texts() {
        let font = Font::Sans;
        assert_eq!(font.shortened("abc", 10.0, 100.0), "abc");
        assert_eq!(font.shortened("abcdefghij", 10.0, 35.0), "abcd…");
        assert_eq!(font.wrapped("one two three", 10.0, 45.0), ["one two", "three"]);
        assert_eq!(font.wrapped("wonderful", 10.0, 4.0), ["wonderful"]);
    }
}
