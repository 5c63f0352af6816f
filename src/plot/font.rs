//! The font of all figures, and the width of texts in it.

use std::sync::LazyLock;

use ttf_parser::Face;

use crate::escape::for_figure;
use crate::plot::theme::SUPERSCRIPT;

/// Name of the font in usvg.
pub const FAMILY: &str = "Liberation Sans";
/// Fonts with Arial's metrics. The layout is the same on every machine that has one of them.
pub const FAMILIES: &str = "Liberation Sans, Arial, Helvetica, sans-serif";

const REGULAR: &[u8] = include_bytes!("fonts/LiberationSans-Regular.ttf");
const BOLD: &[u8] = include_bytes!("fonts/LiberationSans-Bold.ttf");
/// Most letters considered of a text that is cut. The widest sheet has room for three thousand narrow ones.
const MAX_LETTERS: usize = 4096;
/// Font files, regular and bold.
pub const FILES: [&[u8]; 2] = [REGULAR, BOLD];

static FACES: LazyLock<[Face; 2]> =
    LazyLock::new(|| FILES.map(|file| Face::parse(file, 0).expect("the embedded font is valid")));

/// Returns the width of a text in points, without kerning, which would only narrow it. Superscripts are written `^{…}`.
pub fn width(text: &str, size: f64) -> f64 {
    measured(&FACES[0], text, size)
}

/// Returns the width of a bold text in points.
pub fn bold_width(text: &str, size: f64) -> f64 {
    measured(&FACES[1], text, size)
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

/// Cuts a text to fit and adds an ellipsis if something is missing.
pub fn shortened(text: &str, size: f64, most: f64) -> String {
    if width(text, size) <= most {
        return text.to_owned();
    }
    // Half a superscript would not be a superscript. Letters without width could make a line of any length.
    let plain = text.replace("^{", "^").replace(['{', '}'], "");
    let plain: String = plain.chars().take(MAX_LETTERS).collect();
    let mut kept = String::new();
    for letter in plain.chars() {
        if width(&format!("{kept}{letter}…"), size) > most {
            break;
        }
        kept.push(letter);
    }
    kept.trim_end().to_owned() + "…"
}

/// Breaks a text at spaces into lines that fit; a longer word stays whole.
pub fn wrapped(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines = Vec::<String>::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), size) <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{FACES, bold_width, shortened, width, wrapped};

    #[test]
    fn widths_are_arials() {
        assert!((width("2048", 10.0) - 22.24).abs() < 0.01);
        assert!((width("10^{2}", 10.0) - 15.01).abs() < 0.01);
        assert!(width("", 10.0).abs() < 1e-9);
        assert!(bold_width("a", 10.0) >= width("a", 10.0));
    }

    #[test]
    fn the_font_has_what_figures_say() {
        for letter in "‖θηαΣℓ÷−×²’·–—…≤≥\u{2009}".chars() {
            assert!(FACES[0].glyph_index(letter).is_some(), "{letter:?}");
        }
    }

    #[test]
    fn long_texts() {
        assert_eq!(shortened("abc", 10.0, 100.0), "abc");
        assert_eq!(shortened("abcdefghij", 10.0, 35.0), "abcd…");
        assert_eq!(wrapped("one two three", 10.0, 45.0), ["one two", "three"]);
        assert_eq!(wrapped("wonderful", 10.0, 4.0), ["wonderful"]);
    }
}
