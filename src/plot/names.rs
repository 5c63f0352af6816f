//! Distinct names in figures: shortening must not make two of them the same.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::error::Error;
use crate::plot::font::{self, Font};
use crate::plot::source::CsvSource;

/// Room for a number after a shortened name.
const NUMBER: &str = " (99)";

/// Returns the name of a line: its source's, if there are several, and that of its value.
pub fn of_line(source: Option<&CsvSource>, value: Option<String>) -> String {
    let source = source.map(|source| font::plain(&source.name));
    source.into_iter().chain(value).collect::<Vec<_>>().join(", ")
}

/// Returns the name of a value of a column: "head 0".
pub fn of_value(column: &str, value: &[u8]) -> String {
    format!("{} {}", column.replace('_', " "), font::plain(&String::from_utf8_lossy(value)))
}

/// Rejects a column with more values than lines that a reader can tell apart.
pub fn too_many(column: &str, most: usize) -> Error {
    let reason =
        format!("{column} has more than {most} values; choose another column, or some values with --where");
    Error::rejected("--hue", reason)
}

/// Cuts a text to at most this number of letters, the last of which is then an ellipsis.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Numbers equal names: "run (1)", "run (2)".
pub fn numbered(mut names: Vec<String>) -> Vec<String> {
    let mut counts = HashMap::<String, usize>::new();
    for name in &names {
        *counts.entry(name.clone()).or_default() += 1;
    }
    let mut taken: HashSet<String> = counts.keys().cloned().collect();
    let mut next = HashMap::<String, usize>::new();
    for name in names.iter_mut().filter(|name| counts[*name] > 1) {
        let number = next.entry(name.clone()).or_default();
        let mut new = name.clone();
        while taken.contains(&new) {
            *number += 1;
            new = format!("{name} ({number})");
        }
        taken.insert(new.clone());
        *name = new;
    }
    names
}

/// Cuts names to fit. If that makes two of them equal, what all begin with is dropped; the rest is numbered if need be.
pub fn shortened(names: &[String], font: Font, size: f64, most: f64) -> Vec<String> {
    let cut = |names: &[String], most: f64| -> Vec<_> {
        names.iter().map(|name| font.shortened(name, size, most)).collect()
    };
    let distinct = |names: &[String]| names.iter().collect::<HashSet<_>>().len() == names.len();
    let short = cut(names, most);
    if distinct(&short) {
        return short;
    }
    let differing = without_prefix(names);
    let short = cut(&differing, most);
    if distinct(&short) {
        return short;
    }
    let room = most - font.width(NUMBER, size);
    let same = |name: &String| short.iter().filter(|other| *other == name).count() > 1;
    let cut = |(name, short): (&String, &String)| {
        if same(short) { font.shortened(name, size, room) } else { short.clone() }
    };
    numbered(differing.iter().zip(&short).map(cut).collect())
}

/// Replaces what all names begin with by an ellipsis.
pub fn without_prefix(names: &[String]) -> Vec<String> {
    let Some(first) = names.first() else { return Vec::new() };
    let same = |place: usize, letter: char| names.iter().all(|name| name[place..].starts_with(letter));
    let end = first.char_indices().find(|&(place, letter)| !same(place, letter));
    // A word is cut before it begins, if it begins within the prefix.
    let end = end.map_or(0, |(end, _)| first[..end].rfind([' ', '-', '_', '/']).map_or(end, |at| at + 1));
    names.iter().map(|name| if end > 1 { format!("…{}", &name[end..]) } else { name.clone() }).collect()
}

/// Returns distinct names of files: as many of the last parts of their paths as needed, then numbers.
pub fn of_paths(names: Vec<String>, paths: &[&Path]) -> Vec<String> {
    let same = |names: &[String], name: &String| names.iter().filter(|other| *other == name).count() > 1;
    let with_parents = |(name, path): (&String, &&Path)| {
        let parent = path.parent().and_then(Path::file_name).map(|parent| parent.to_string_lossy());
        let parent = parent.filter(|_| same(&names, name));
        parent.map_or_else(|| name.clone(), |parent| format!("{parent}/{name}"))
    };
    numbered(names.iter().zip(paths).map(with_parents).collect())
}

/// Formats a number with three significant digits, without trailing zeros, in powers of ten if plain digits would be long.
pub fn short(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        let text = format!("{number:.2e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return match digits.trim_end_matches('0').trim_end_matches('.') {
            "1" => format!("10^{{{power}}}"),
            digits => format!("{digits}·10^{{{power}}}"),
        };
    }
    let decade = if size == 0.0 { 0 } else { size.log10().floor() as i32 };
    let places = usize::try_from(2 - decade).unwrap_or(0);
    let text = format!("{number:.places$}");
    if places == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{numbered, of_paths, short, shortened, without_prefix};
    use crate::plot::font::Font;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(numbered(strings(&["a", "b"])), ["a", "b"]);
        assert_eq!(numbered(strings(&["a", "a", "b", "a (1)"])), ["a (2)", "a (3)", "b", "a (1)"]);
        let long = strings(&["a long name, the first", "a long name, the second", "short"]);
        let short = shortened(&long, Font::Sans, 10.0, 70.0);
        assert!(short[0] != short[1] && short[0].starts_with('a') && short[2] == "short", "{short:?}");
    }

    #[test]
    fn what_all_names_begin_with_is_dropped() {
        let names = strings(&["decay-0.1-of-the-update", "decay-0.3-of-the-update"]);
        assert_eq!(without_prefix(&names), ["…0.1-of-the-update", "…0.3-of-the-update"]);
        assert_eq!(shortened(&names, Font::Sans, 10.0, 40.0), ["…0.1-…", "…0.3-…"]);
        assert_eq!(without_prefix(&strings(&["é", "è"])), ["é", "è"]);
        assert_eq!(without_prefix(&strings(&["same", "same"])), ["same", "same"]);
    }

    #[test]
    fn paths_have_parents_where_names_are_the_same() {
        let paths = ["a/run", "b/run", "c/other", "x/a/run"].map(Path::new);
        let names = of_paths(strings(&["run", "run", "other", "run"]), &paths);
        assert_eq!(names, ["a/run (1)", "b/run", "other", "a/run (2)"]);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([short(1234.6), short(99_999.0), short(0.5), short(0.0)], ["1235", "99999", "0.5", "0"]);
    }
}
