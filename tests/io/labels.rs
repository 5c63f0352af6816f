// A list of one range is meant.
#![allow(clippy::single_range_in_vec_init)]

use nmem::io::labels::Labels;
use nmem::io::text::TextFile;

use crate::TestDirectory;

fn read(csv: &str) -> Result<Labels, String> {
    let directory = TestDirectory::new();
    let path = directory.file("labels.csv", csv.as_bytes());
    Labels::read(&path).map_err(|error| directory.message(error))
}

/// Spellings of true and false in the files of several programs.
#[test]
fn repeats_in_every_spelling() {
    for (text, repeat) in [
        ("1", true),
        ("1.0", true),
        (" 1 ", true),
        ("true", true),
        ("True", true),
        ("TRUE", true),
        ("0", false),
        ("0.0", false),
        ("", false),
        ("false", false),
        ("False", false),
        // Other numbers count as none.
        ("2", false),
        ("nan", false),
    ] {
        let labels = read(&format!("position,segment,repeat\n3,a,{text}\n")).unwrap();
        assert_eq!(labels.repeats, if repeat { vec![3..4] } else { vec![] }, "{text:?}");
        assert_eq!(labels.named, vec![3..4]);
    }
    assert_eq!(
        read("position,segment,repeat\n0,a,0\n1,a,perhaps\n").unwrap_err(),
        "labels.csv: expected a repeat of 0 or 1 on line 3, got perhaps"
    );
}

/// Rows of neighbouring positions with the same labels join, in any order. Others do not.
#[test]
fn runs_of_positions() {
    let labels = read("position,segment,repeat\n0,a,1\n1,a,1\n2,a,0\n3,b,1\n4,b,1\n7,b,1\n6,c,0\n").unwrap();
    assert_eq!(labels.named, [0..5, 6..8]);
    assert_eq!(labels.boundaries, [3, 6, 7]);
    assert_eq!(labels.repeats, [0..2, 3..6, 7..8]);
    let labels = read("position,segment\n5,a\n4,a\n3,a\n").unwrap();
    assert_eq!((labels.named, labels.boundaries), (vec![3..6], vec![]));
    for (csv, position, line) in [("5,a\n6,a\n7,a\n6,a", 6, 5), ("5,a\n5,a", 5, 3), ("5,b\n4,a\n5,a", 5, 3)] {
        let message = read(&format!("position,segment\n{csv}\n")).unwrap_err();
        let expected =
            format!("labels.csv: expected each position once, got {position} again on line {line}");
        assert_eq!(message, expected);
    }
}

#[test]
fn the_largest_position() {
    let most = 1_u64 << 53;
    let labels = read(&format!("position,segment\n{most},a\n")).unwrap();
    assert_eq!(labels.named, [most..most + 1]);
    assert_eq!(
        read(&format!("position,segment\n{},a\n", most + 1)).unwrap_err(),
        format!(
            "labels.csv: expected an integer of at most 2^53 in column \"position\" on line 2, got \"{}\"",
            most + 1
        )
    );
    assert_eq!(labels.shifted(u64::MAX).boundaries, [0; 0]);
    assert_eq!(labels.shifted(7).named, [most + 7..most + 8]);
}

/// Relative paths in a file start from its directory; those in a pipe from the working directory.
#[test]
#[cfg(unix)]
fn text_of_files_and_devices() {
    let directory = TestDirectory::new();
    let path = directory.file("a.toml", b"x = 1\n");
    let file = TextFile::read(&path, 6).unwrap();
    assert_eq!((file.path(), file.bytes(), file.text().unwrap()), (&*path, &b"x = 1\n"[..], "x = 1\n"));
    assert_eq!((file.directory(), file.is_stream()), (path.parent().unwrap(), false));
    let null = TextFile::read(std::path::Path::new("/dev/null"), 6).unwrap();
    assert_eq!((null.directory(), null.is_stream()), (std::path::Path::new(""), true));
    let file = TextFile::read(&directory.file("b.toml", b"\xff"), 6).unwrap();
    let text = directory.message(file.text().unwrap_err());
    assert_eq!(text, "b.toml: expected a text file in UTF-8, got other bytes at offset 0");
}
