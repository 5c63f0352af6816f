//! Figures as text, for work over ssh: lines in braille, eight dots per character, and maps in shades. The series, axes and
//! ticks are those of the SVG. Lines with markers carry a letter at each point, so that they differ without colour. Thin
//! lines of heads need colour and are drawn only with it; their mean is always drawn.
//!
//! ratatui draws the braille into a buffer. Among the alternatives, textplots and drawille support neither colours of
//! single lines nor our log ticks, and rasciigraph takes only evenly spaced values.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use anstyle::{Ansi256Color, Style as Ink};
use plotters::style::RGBColor;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::Color;
use ratatui_core::symbols::Marker;
use ratatui_core::text;
use ratatui_core::widgets::Widget;
use ratatui_widgets::canvas::{Canvas, Context, Line as Stroke, Points};

use super::chart::{self, Chart, LineStyle, Map, Panel, Swatch};
use super::{Check, CsvSource, FigureStyle, Request, Theme, charts, with_omitted};
use crate::error::Result;
use crate::escape::for_figure;
use crate::plot::axis::Axis;
use crate::plot::colours::Colours;
use crate::plot::downsample::Point;
use crate::plot::names::{self, cut};
use crate::plot::theme;

/// Text lines of a single panel; below, of each of several.
const ALONE: usize = 16;
const AMONG: usize = 8;
/// Most text lines of a map; more rows are joined.
const MAP: usize = 48;
/// Minimum width of a cell with a number.
const NUMBER: usize = 7;
/// Minimum number of columns; fewer leave no room for a line.
const MIN_COLUMNS: usize = 24;
/// Shades without colour, from low to high.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];

/// The terminal to draw on.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Characters per line.
    pub columns: usize,
    /// Whether the terminal supports colours.
    pub colours: bool,
}

/// Text for stdout, and notes for the user.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Lines of at most the screen's columns.
    pub text: String,
    /// Captions, and notes on skipped values.
    pub notes: Vec<String>,
}

/// Draws the series of the sources as text.
pub fn view(sources: &[CsvSource], request: &Request, screen: &Screen, check: &mut Check) -> Result<View> {
    let screen = &Screen { columns: screen.columns.max(MIN_COLUMNS), ..*screen };
    let mut view = View::default();
    // Greys would be invisible on a dark background.
    let style = FigureStyle { theme: Theme::Print, ..request.style.clone() };
    let (charts, notes) = charts(sources, &Request { style, ..request.clone() }, check)?;
    view.notes = with_omitted(notes, &charts);
    for chart in &charts {
        if sources.len() > 1 && charts.len() > 1 {
            let _ = writeln!(view.text, "== {} ==\n", for_figure(&chart.name));
        }
        draw(chart, screen, &mut view);
    }
    // One blank line at the end of each chart but the last.
    view.text.truncate(view.text.trim_end().len());
    if !view.text.is_empty() {
        view.text.push('\n');
    }
    Ok(view)
}

fn draw(chart: &Chart, screen: &Screen, view: &mut View) {
    let height = if chart.panels.len() > 1 { AMONG } else { ALONE };
    for panel in &chart.panels {
        let title = panel.y.titled(&panel.y_title).replace('\n', " ");
        let of = panel.map.as_ref().map_or_else(
            || title.clone(),
            |map| format!("{} (upwards: {title})", map.title.replace('\n', " ")),
        );
        let heading = if panel.heading.is_empty() { of } else { format!("{of}: {}", panel.heading) };
        let _ = writeln!(view.text, "{}", cut(&raised(&heading), screen.columns));
        match &panel.map {
            Some(map) => draw_map(panel, map, screen, &mut view.text),
            None => draw_lines(panel, height, screen, &mut view.text),
        }
        view.text.push('\n');
        if let Some(map) = panel.map.as_ref().filter(|_| chart.shared_colours().is_none()) {
            draw_scale(&map.colours, screen, &mut view.text);
        }
    }
    if let Some((colours, _)) = chart.shared_colours() {
        draw_scale(colours, screen, &mut view.text);
    }
    draw_keys(chart, screen, &mut view.text);
    let hidden = chart.panels.iter().any(|panel| hides(panel, screen));
    if hidden {
        view.notes.push(
            "lines that differ in colour alone need a terminal with colours and are not drawn".to_owned(),
        );
    }
    view.notes.extend(chart.notes.iter().map(|note| format!("{}: {}", chart.name, raised(note))));
}

/// Whether lines are hidden. Without colour, lines that differ only in colour would be noise around the main one.
fn hides(panel: &Panel, screen: &Screen) -> bool {
    !screen.colours
        && panel.lines.iter().filter(|line| is_plain(line.style)).count() > 1
        && panel.lines.iter().any(|line| line.style.order.is_none())
}

/// Whether a line differs from others in its colour alone.
fn is_plain(style: LineStyle) -> bool {
    style.order.is_some() && style.marker.is_none()
}

fn draw_lines(panel: &Panel, height: usize, screen: &Screen, out: &mut String) {
    let gutter = gutter(&panel.y);
    let width = screen.columns - gutter - 1;
    let hides = hides(panel, screen);
    let shown = |style: LineStyle| !(hides && is_plain(style));
    let stroke = |context: &mut Context, (x1, y1): Point, (x2, y2): Point, color: Color| {
        context.draw(&Stroke { x1, y1, x2, y2, color });
    };
    let paint = |context: &mut Context| {
        for area in areas(panel) {
            let colour = if screen.colours { ink(area.1) } else { Color::Reset };
            area.0.iter().for_each(|(from, to)| stroke(context, *from, *to, colour));
        }
        for line in panel.lines.iter().filter(|line| shown(line.style)) {
            let colour = if screen.colours { ink(line.style) } else { Color::Reset };
            for stretch in &line.stretches {
                let on_panel = stretch.iter().filter(|(x, y)| panel.x.holds(*x) && panel.y.holds(*y));
                let points: Vec<_> =
                    on_panel.map(|&(x, y)| (panel.x.fraction(x), panel.y.fraction(y))).collect();
                if line.style.joined {
                    for pair in points.windows(2) {
                        stroke(context, pair[0], pair[1], colour);
                    }
                }
                context.draw(&Points { coords: &points, color: colour });
            }
            context.layer();
        }
        for line in panel.lines.iter().filter(|line| line.style.marker == Some(chart::Marker::Shape)) {
            let Some(order) = line.style.order else { continue };
            let on_panel = |&&(x, y): &&Point| panel.x.holds(x) && panel.y.holds(y);
            for &(x, y) in line.stretches.iter().flatten().filter(on_panel) {
                let letter = text::Line::styled(letter(order).to_string(), ink_of(line.style, screen));
                context.print(panel.x.fraction(x), panel.y.fraction(y), letter);
            }
        }
        let lost: Vec<_> = panel.lost.iter().map(|(x, _)| (*x, *x)).collect();
        for (places, y, mark) in [(&panel.above, 1.0, "▾"), (&lost, 1.0, "▾"), (&panel.below, 0.0, "▴")]
        {
            for &(x, _) in places {
                context.print(panel.x.fraction(x), y, mark);
            }
        }
    };
    let area = Rect::new(0, 0, width as u16, height as u16);
    let mut buffer = Buffer::empty(area);
    let canvas = Canvas::default().marker(Marker::Braille).x_bounds([0.0, 1.0]).y_bounds([0.0, 1.0]);
    canvas.paint(paint).render(area, &mut buffer);

    let labels = beside(&panel.y, height);
    for row in 0..height {
        let (label, spine) = labels.get(&row).map_or(("", '│'), |label| (&label[..], '┤'));
        let mut cells = Vec::new();
        for column in 0..width {
            let cell = &buffer[(column as u16, row as u16)];
            let symbol = if cell.symbol() == "\u{2800}" { " " } else { cell.symbol() };
            cells.push((symbol, cell.fg));
        }
        let _ = writeln!(out, "{label:>gutter$}{spine}{}", coloured(&cells));
    }
    draw_x_axis(panel, gutter, width, out);
}

/// Returns the outlines of boxes and bars, and the reference lines, as strokes between fractions of the axes.
fn areas(panel: &Panel) -> Vec<(Vec<(Point, Point)>, LineStyle)> {
    let place = |x: f64, y: f64| (panel.x.fraction(x), panel.y.fraction(y));
    let outline = |x: f64, width: f64, (low, high): (f64, f64)| {
        let (a, b) = (x - width / 2.0, x + width / 2.0);
        let corners = [place(a, low), place(a, high), place(b, high), place(b, low), place(a, low)];
        corners.windows(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
    };
    let boxes = panel.boxes.iter().map(|of| {
        let [low, first, median, third, high] = of.values;
        let mut strokes = outline(of.x, of.width, (first, third));
        strokes.push((place(of.x - of.width / 2.0, median), place(of.x + of.width / 2.0, median)));
        strokes.extend([(low, first), (third, high)].map(|(a, b)| (place(of.x, a), place(of.x, b))));
        (strokes, of.style)
    });
    let bars = panel
        .bars
        .iter()
        .map(|bar| (outline(bar.x, bar.width, (bar.value.min(0.0), bar.value.max(0.0))), bar.style));
    let grey = LineStyle::line(theme::GREY, 1.0, 1.0, None);
    let lines = panel.reference_lines().map(|[from, to]| (vec![(from, to)], grey));
    boxes.chain(bars).chain(lines).collect()
}

/// Draws the spine, ticks, labels and, if there is room, the title.
fn draw_x_axis(panel: &Panel, gutter: usize, width: usize, out: &mut String) {
    let mut spine = vec!['─'; width];
    let mut labels = vec![' '; width];
    let mut free = 0;
    for (at, label) in panel.x.labels() {
        let label = raised(label);
        let at = place(at * (width - 1) as f64 + 0.5);
        let size = label.chars().count();
        let from = at.saturating_sub(size / 2).min(width.saturating_sub(size));
        spine[at.min(width - 1)] = '┬';
        if from >= free && from + size <= width {
            label.chars().enumerate().for_each(|(i, letter)| labels[from + i] = letter);
            free = from + size + 1;
        }
    }
    let line = |cells: Vec<char>| cells.into_iter().collect::<String>();
    let _ = writeln!(out, "{:gutter$}└{}", "", line(spine));
    let _ = writeln!(out, "{:gutter$} {}", "", line(labels).trim_end());
    let title = raised(&panel.x.titled(&panel.x_title));
    let middle = width.saturating_sub(title.chars().count()) / 2;
    let _ = writeln!(out, "{:gutter$} {:middle$}{}", "", "", cut(&title, width));
}

/// Returns the room for labels of the y axis.
fn gutter(axis: &Axis) -> usize {
    axis.labels().map(|(_, label)| raised(label).chars().count()).max().unwrap_or(0).clamp(4, 10)
}

/// Returns the labels by row, counted from the top.
fn beside(axis: &Axis, height: usize) -> BTreeMap<usize, String> {
    let mut labels = BTreeMap::new();
    for (at, label) in axis.labels() {
        let row = place((1.0 - at) * (height - 1) as f64 + 0.5);
        labels.entry(row).or_insert_with(|| cut(&raised(label), 10));
    }
    labels
}

fn draw_map(panel: &Panel, map: &Map, screen: &Screen, out: &mut String) {
    let colours = &map.colours;
    let gutter = gutter(&panel.y);
    let room = screen.columns - gutter - 1;
    let (columns, rows) = (map.size.0.max(1), map.size.1.max(1));
    // A character spans several cells, or a cell several characters.
    let (joined, joined_rows) = (columns.div_ceil(room), rows.div_ceil(MAP));
    let (across, up) = (columns.div_ceil(joined), rows.div_ceil(joined_rows));
    let cell = (room / across).clamp(1, NUMBER + 2);
    let mut values = BTreeMap::<(usize, usize), Vec<f64>>::new();
    for cell in map.cells.iter().filter(|cell| cell.value.is_some() || cell.lost) {
        let value = cell.value.unwrap_or(f64::NAN);
        values.entry((cell.row / joined_rows, cell.column / joined)).or_default().push(value);
    }
    let labels = {
        let row = |at: f64| up - 1 - place(at * up as f64).min(up - 1);
        let (rows, texts): (Vec<_>, Vec<_>) = panel.y.labels().map(|(at, label)| (row(at), label)).unzip();
        rows.into_iter().zip(cut_apart(texts.into_iter(), 10)).collect::<BTreeMap<_, _>>()
    };
    for row in 0..up {
        let (label, spine) = labels.get(&row).map_or(("", '│'), |label| (&label[..], '┤'));
        let mut line = String::new();
        for column in 0..across {
            let here = values.get(&(up - 1 - row, column)).map_or(&[][..], |values| values);
            let shares = here.iter().filter(|value| value.is_finite()).map(|&value| colours.share(value));
            let share = shares.clone().sum::<f64>() / shares.count() as f64;
            let number = match here {
                [value] if cell >= NUMBER => raised(&super::names::short(*value)),
                _ => String::new(),
            };
            line += &shaded(here, share, &number, cell, colours, screen);
        }
        let _ = writeln!(out, "{label:>gutter$}{spine}{}", line.trim_end_matches(' '));
    }
    draw_x_axis(panel, gutter, across * cell, out);
}

/// Draws a cell of a map: its shade, and a number if there is room.
fn shaded(
    values: &[f64],
    share: f64,
    number: &str,
    width: usize,
    colours: &Colours,
    screen: &Screen,
) -> String {
    if values.is_empty() {
        return " ".repeat(width);
    }
    if share.is_nan() {
        return format!("{:^width$}", "!");
    }
    if screen.colours {
        let letters = Ansi256Color(if theme::grey(colours.at(share)) > 128 { 16 } else { 231 });
        let style =
            Ink::new().bg_color(Some(nearest(colours.at(share)).into())).fg_color(Some(letters.into()));
        return format!("{style}{number:^width$}{style:#}");
    }
    if number.is_empty() { shade(share).to_string().repeat(width) } else { format!("{number:^width$}") }
}

/// Returns the whole part of a non-negative number.
fn place(at: f64) -> usize {
    (at as i32).unsigned_abs() as usize
}

fn shade(share: f64) -> char {
    SHADES[place(share * SHADES.len() as f64).min(SHADES.len() - 1)]
}

/// Draws the scale of the shades.
fn draw_scale(colours: &Colours, screen: &Screen, out: &mut String) {
    let entry = |(at, label): (f64, &str)| {
        if screen.colours {
            let style = Ink::new().bg_color(Some(nearest(colours.at(at)).into()));
            format!("{style}  {style:#} {}", raised(label))
        } else {
            format!("{0}{0} {1}", shade(at), raised(label))
        }
    };
    let _ = writeln!(
        out,
        "{}   ! not finite\n",
        colours.axis().labels().map(entry).collect::<Vec<_>>().join("   ")
    );
}

/// Draws the legend, in as many lines as needed.
fn draw_keys(chart: &Chart, screen: &Screen, out: &mut String) {
    let hides = chart.panels.iter().any(|panel| hides(panel, screen));
    let shown = chart.keys.iter().filter_map(|key| match &key.swatch {
        Swatch::Line(style) => Some((&key.text[..], *style)),
        Swatch::Area(colour)
            if chart.panels.iter().all(|panel| panel.map.is_none() && panel.shades.is_empty()) =>
        {
            Some((&key.text[..], LineStyle::line(*colour, 1.0, 1.0, Some(0))))
        }
        _ => None,
    });
    let shown = shown.filter(|(_, style)| !(hides && is_plain(*style)));
    let shown: Vec<_> = shown.collect();
    // This leaves room for the longest swatch, a space and a number.
    let most = screen.columns.saturating_sub(8);
    let texts = cut_apart(shown.iter().map(|key| key.0), most);
    let mut used = 0;
    let mut any = false;
    for ((_, style), text) in shown.into_iter().zip(texts) {
        let swatch = match style.order {
            Some(order) if style.marker.is_some() => letter(order).to_string(),
            _ if !style.dashes.is_empty() => "╌╌".to_owned(),
            _ => "──".to_owned(),
        };
        let size = swatch.chars().count() + 1 + text.chars().count();
        if used > 0 && used + 3 + size > screen.columns {
            out.push('\n');
            used = 0;
        } else if used > 0 {
            *out += "   ";
            used += 3;
        }
        used += size;
        any = true;
        let _ = write!(out, "{} {text}", coloured(&[(&swatch, ink_of(style, screen))]));
    }
    if any {
        *out += "\n\n";
    }
}

/// Returns a letter: a … z, A … Z, then from the start.
fn letter(order: usize) -> char {
    let letters = ('a'..='z').chain('A'..='Z');
    letters.cycle().nth(order % 52).unwrap_or('a')
}

fn ink_of(style: LineStyle, screen: &Screen) -> Color {
    if screen.colours { ink(style) } else { Color::Reset }
}

/// Returns the colour of a line. The line that stands out and black lines have the terminal's own colour.
fn ink(style: LineStyle) -> Color {
    let RGBColor(red, green, blue) = style.colour;
    if style.order.is_none() || red.max(green).max(blue) < 0x30 {
        return Color::Reset;
    }
    Color::Indexed(nearest(style.colour).0)
}

/// Returns the nearest of the 6 × 6 × 6 colours of a terminal with 256 colours.
fn nearest(colour: RGBColor) -> Ansi256Color {
    let level = |value: u8| match value {
        0..48 => 0,
        48..115 => 1,
        _ => (value - 35) / 40,
    };
    Ansi256Color(16 + 36 * level(colour.0) + 6 * level(colour.1) + level(colour.2))
}

/// Returns cells as text without trailing spaces, and with escape codes only for colours.
fn coloured(cells: &[(&str, Color)]) -> String {
    let end = cells.iter().rposition(|(symbol, _)| *symbol != " ").map_or(0, |last| last + 1);
    let mut out = String::new();
    for run in cells[..end].chunk_by(|a, b| a.1 == b.1) {
        let text: String = run.iter().map(|(symbol, _)| *symbol).collect();
        match run[0].1 {
            Color::Indexed(colour) => {
                let style = Ink::new().fg_color(Some(Ansi256Color(colour).into()));
                let _ = write!(out, "{style}{text}{style:#}");
            }
            _ => out += &text,
        }
    }
    out
}

/// Converts superscripts: `10^{−4}` → 10⁻⁴.
fn raised(text: &str) -> String {
    let mut out = String::new();
    let mut raised = false;
    for letter in for_figure(text).chars() {
        match letter {
            '^' => {}
            '{' => raised = true,
            '}' => raised = false,
            '−' | '-' if raised => out.push('⁻'),
            digit @ '0'..='9' if raised => {
                let digits = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
                out.push(digits[digit as usize - '0' as usize]);
            }
            letter => out.push(letter),
        }
    }
    out
}

/// Returns texts as [`raised`] makes them, cut to `columns`, and numbered if that makes two of them equal.
fn cut_apart<'a>(texts: impl Iterator<Item = &'a str>, columns: usize) -> Vec<String> {
    let whole: Vec<_> = texts.map(raised).collect();
    let short: Vec<_> = whole.iter().map(|text| cut(text, columns)).collect();
    if short.iter().collect::<HashSet<_>>().len() == short.len() {
        return short;
    }
    // This leaves room for a number of two digits.
    names::numbered(whole.iter().map(|text| cut(text, columns.saturating_sub(5))).collect())
}

#[cfg(test)]
mod tests {
    use plotters::style::RGBColor;
    use ratatui_core::style::Color;

    use super::{coloured, cut, cut_apart, nearest, raised, shade};

    #[test]
    fn text_is_plain() {
        assert_eq!(raised("1.26·10^{−4}, θ"), "1.26·10⁻⁴, θ");
        assert_eq!((cut("abcdef", 4), cut("abcd", 4)), ("abc…".to_owned(), "abcd".to_owned()));
        assert_eq!(cut_apart(["a long one", "a long two"].into_iter(), 7), ["a… (1)", "a… (2)"]);
        assert_eq!(cut_apart(["one", "two"].into_iter(), 9), ["one", "two"]);
        assert_eq!([0.0, 0.3, 0.5, 0.7, 1.0].map(shade), ['·', '░', '▒', '▓', '█']);
    }

    #[test]
    fn escape_codes_only_where_colours_are() {
        assert_eq!(nearest(RGBColor(255, 0, 0)).0, 196);
        assert_eq!(nearest(RGBColor(0, 0x72, 0xB2)).0, 16 + 6 + 3);
        let red = Color::Indexed(196);
        assert_eq!(
            coloured(&[("a", Color::Reset), ("b", red), ("c", red), (" ", Color::Reset)]),
            "a\u{1b}[38;5;196mbc\u{1b}[0m"
        );
        assert_eq!(coloured(&[("a", Color::Reset), (" ", Color::Reset)]), "a");
    }
}
