//! Escaping of names from files and arguments for display: removes terminal control sequences, and characters
//! that XML does not allow.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes text for a terminal: control characters, and marks that reverse the writing direction, become `\u{1b}`.
pub fn for_terminal(text: &str) -> Cow<'_, str> {
    escaped(text, steers, |out, letter| {
        let _ = write!(out, "{}", letter.escape_unicode());
    })
}

/// Escapes text for a figure. Characters that [`for_terminal`] escapes or XML 1.0 forbids become `\x1b`.
/// Braces, which mark superscripts in figures, are left to the caller.
pub fn for_figure(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |letter| steers(letter) || !in_xml(letter),
        |out, letter| {
            let _ = write!(out, "\\x{:02x}", u32::from(letter));
        },
    )
}

/// Returns whether an XML 1.0 document can contain this character.
pub fn in_xml(letter: char) -> bool {
    !matches!(letter, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}')
}

fn escaped(text: &str, bad: impl Fn(char) -> bool, write: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.chars().any(&bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        if bad(letter) { write(&mut out, letter) } else { out.push(letter) }
    }
    Cow::Owned(out)
}

fn steers(letter: char) -> bool {
    let turns = matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    letter.is_control() || turns || matches!(letter, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::{for_figure, for_terminal};

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(for_terminal("a/b θ.npy"), "a/b θ.npy");
        assert_eq!(for_terminal("\x1b[31mred\x07\n\u{9b}2J"), "\\u{1b}[31mred\\u{7}\\u{a}\\u{9b}2J");
        assert_eq!(for_terminal("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(for_figure("a\0b\u{ffff}"), "a\\x00b\\xffff");
        assert_ne!(for_figure("a\x01"), for_figure("a\x02"));
    }
}
