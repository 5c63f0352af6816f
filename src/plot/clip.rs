//! Lines and areas cut at the edges of a panel. Positions are fractions of the axes, so that a panel is the unit square.

use crate::plot::downsample::Point;

/// Returns the parts of a line within the panel.
pub fn line(points: &[Point]) -> Vec<Vec<Point>> {
    let mut parts = Vec::<Vec<Point>>::new();
    let mut open = false;
    for pair in points.windows(2) {
        let Some((from, to)) = segment(pair[0], pair[1]) else {
            open = false;
            continue;
        };
        match parts.last_mut().filter(|_| open) {
            Some(part) => part.push(to),
            None => parts.push(vec![from, to]),
        }
        open = to == pair[1];
    }
    if let [point] = points
        && inside(*point)
    {
        parts.push(vec![*point]);
    }
    parts
}

pub fn inside((x, y): Point) -> bool {
    let within = |at: f64| (-1e-9..=1.0 + 1e-9).contains(&at);
    within(x) && within(y)
}

/// Cuts a segment by the method of Liang and Barsky.
fn segment(from: Point, to: Point) -> Option<(Point, Point)> {
    if inside(from) && inside(to) {
        return Some((from, to));
    }
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (mut first, mut last) = (0.0_f64, 1.0_f64);
    for (step, room) in [(-dx, from.0), (dx, 1.0 - from.0), (-dy, from.1), (dy, 1.0 - from.1)] {
        if step == 0.0 && room < 0.0 {
            return None;
        }
        if step < 0.0 {
            first = first.max(room / step);
        } else if step > 0.0 {
            last = last.min(room / step);
        }
    }
    let at = |t: f64| if t >= 1.0 { to } else { (from.0 + t * dx, from.1 + t * dy) };
    (first <= last).then(|| (if first <= 0.0 { from } else { at(first) }, at(last)))
}

/// Cuts an area edge by edge, by the method of Sutherland and Hodgman.
pub fn area(corners: Vec<Point>) -> Vec<Point> {
    if corners.iter().all(|&corner| inside(corner)) {
        return corners;
    }
    let edges: [fn(Point) -> f64; 4] = [|p| p.0, |p| 1.0 - p.0, |p| p.1, |p| 1.0 - p.1];
    edges.into_iter().fold(corners, |corners, room| {
        let mut kept = Vec::new();
        for (i, &to) in corners.iter().enumerate() {
            let from = corners[(i + corners.len() - 1) % corners.len()];
            let (a, b) = (room(from), room(to));
            if (a < 0.0) != (b < 0.0) {
                let t = a / (a - b);
                kept.push((from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1)));
            }
            if b >= 0.0 {
                kept.push(to);
            }
        }
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::{area, line};

    #[test]
    fn lines_end_at_the_edge() {
        assert_eq!(line(&[(0.0, 0.5), (1.0, 0.5)]), [[(0.0, 0.5), (1.0, 0.5)]]);
        assert_eq!(line(&[(0.0, 0.5), (1.0, 1.5)]), [[(0.0, 0.5), (0.5, 1.0)]]);
        // Out through the top and back again: two parts, and nothing along the edge.
        let parts = line(&[(0.0, 0.5), (0.25, 1.5), (0.75, 1.5), (1.0, 0.5)]);
        assert_eq!(parts, [[(0.0, 0.5), (0.125, 1.0)], [(0.875, 1.0), (1.0, 0.5)]]);
        assert!(line(&[(-1.0, 2.0), (2.0, 2.0)]).is_empty());
        assert_eq!((line(&[(0.5, 0.5)]).len(), line(&[(0.5, 1.5)]).len()), (1, 0));
    }

    #[test]
    fn areas_are_cut_straight() {
        let cut = area(vec![(0.0, 0.5), (1.0, 0.5), (1.0, 3.0), (0.0, 3.0)]);
        assert!(cut.iter().all(|&(x, y)| (0.0..=1.0).contains(&x) && (0.5..=1.0).contains(&y)), "{cut:?}");
        assert_eq!(cut.len(), 4);
        assert!(area(vec![(0.0, 2.0), (1.0, 2.0), (0.5, 3.0)]).is_empty());
    }
}
