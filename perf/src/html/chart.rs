//! Charts as inline SVG: lines on two axes, and ranges on one. Colours are classes of the page's style, so that they follow
//! light and dark.

use super::escape;

/// Colours that the style has; the next lines are dashed.
const COLOURS: usize = 8;
/// The canvas, and what axes and their labels take of it.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 42.0;
/// More points than these are drawn as lines alone.
const DOTS_MAX: usize = 200;
/// Height of a range.
const BAND: f64 = 34.0;

/// Where values lie, and which are named.
#[derive(Clone, PartialEq, Debug)]
pub struct Axis {
    pub title: String,
    pub from: f64,
    pub to: f64,
    pub ticks: Vec<(f64, String)>,
}

/// Points of one row. Between the parts nothing was measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    pub number: usize,
    pub parts: Vec<Vec<Dot>>,
}

/// A point, and what it says when looked at closely.
#[derive(Clone, PartialEq, Debug)]
pub struct Dot {
    pub x: f64,
    pub y: f64,
    pub says: String,
}

/// A value between two others.
#[derive(Clone, PartialEq, Debug)]
pub struct Band {
    pub number: usize,
    pub name: String,
    pub low: f64,
    pub middle: f64,
    pub high: f64,
}

impl Axis {
    /// From 0 to `most`, with about five round numbers.
    pub fn linear(title: &str, most: f64, name: impl Fn(f64) -> String) -> Self {
        let most = if most.is_finite() && most > 1e-9 { most } else { 1.0 };
        let rough = most / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let count = (most / step).ceil();
        let ticks = (0..=count as u32).map(|number| f64::from(number) * step);
        let ticks: Vec<_> = ticks.map(|value| (value, name(value))).collect();
        Self { title: title.into(), from: 0.0, to: count * step, ticks }
    }

    /// Powers of ten around `least` and `most`, which must be above 0; places on it are logarithms.
    pub fn decades(title: &str, least: f64, most: f64, name: impl Fn(f64) -> String) -> Self {
        let (from, to) = (least.log10().floor(), most.log10().ceil());
        let to = to.max(from + 1.0);
        let ticks = (from as i32..=to as i32).map(|power| (f64::from(power), name(10f64.powi(power))));
        Self { title: title.into(), from, to, ticks: ticks.collect() }
    }

    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }
}

/// The classes of a row's colour.
pub fn colour(number: usize) -> String {
    let again = if number >= COLOURS { " again" } else { "" };
    format!("s{}{again}", number % COLOURS)
}

/// Lines over two axes; `label` says in words what is to be seen.
pub fn lines(label: &str, x: &Axis, y: &Axis, lines: &[Line]) -> String {
    let across = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
    let down = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
    let mut svg = open(label, HEIGHT);
    for (value, name) in &y.ticks {
        let at = down(*value);
        svg += &format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            WIDTH - RIGHT
        );
        svg += &text(LEFT - 8.0, at + 4.0, "end", name);
    }
    svg += &below(x, across, HEIGHT);
    svg += &format!(
        "<text x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1})\">{}</text>\n",
        (HEIGHT - BOTTOM + TOP) / 2.0,
        (HEIGHT - BOTTOM + TOP) / 2.0,
        escape(&y.title)
    );
    for line in lines {
        svg += &format!("<g class=\"{}\">", colour(line.number));
        let dots = line.parts.iter().map(Vec::len).sum::<usize>();
        for part in &line.parts {
            let points: Vec<String> =
                part.iter().map(|dot| format!("{:.1},{:.1}", across(dot.x), down(dot.y))).collect();
            svg += &format!("<polyline class=\"line\" points=\"{}\"/>", points.join(" "));
            for dot in part.iter().filter(|_| dots <= DOTS_MAX) {
                let (x, y) = (across(dot.x), down(dot.y));
                let says = escape(&dot.says);
                svg += &format!(
                    "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"><title>{says}</title></circle>"
                );
            }
        }
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

/// Ranges with their middles over one axis, one below the other, and a line at `mark`.
pub fn bands(label: &str, x: &Axis, mark: f64, bands: &[Band]) -> String {
    let left = LEFT + 90.0;
    let across = |value: f64| left + x.place(value) * (WIDTH - left - RIGHT);
    let height = TOP + BOTTOM + BAND * bands.len() as f64;
    let mut svg = open(label, height);
    svg += &below(x, across, height);
    svg += &format!(
        "<line class=\"axis\" stroke-dasharray=\"4 3\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1:.1}\"/>\n",
        across(mark),
        height - BOTTOM
    );
    for (number, band) in bands.iter().enumerate() {
        let at = TOP + BAND * (number as f64 + 0.5);
        let (low, middle, high) = (across(band.low), across(band.middle), across(band.high));
        let says = format!("{}: {:.2} ({:.2} to {:.2})", band.name, band.middle, band.low, band.high);
        svg += &text(left - 10.0, at + 4.0, "end", &band.name);
        svg += &format!(
            "<g class=\"{}\"><title>{}</title><line class=\"range\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{at:.1}\" \
             y2=\"{at:.1}\"/><circle class=\"dot\" cx=\"{middle:.1}\" cy=\"{at:.1}\" r=\"5\"/></g>",
            colour(band.number),
            escape(&says)
        );
        svg += &text(middle, at - 9.0, "middle", &format!("{:.2}", band.middle));
    }
    svg + "</svg>\n"
}

fn open(label: &str, height: f64) -> String {
    format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n",
        escape(label)
    )
}

/// The horizontal axis with its names and its title.
fn below(x: &Axis, across: impl Fn(f64) -> f64, height: f64) -> String {
    let base = height - BOTTOM;
    let (from, to) = (across(x.from), across(x.to));
    let mut svg =
        format!("<line class=\"axis\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{base:.1}\" y2=\"{base:.1}\"/>");
    for (value, name) in &x.ticks {
        let at = across(*value);
        svg += &format!(
            "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{base:.1}\" y2=\"{:.1}\"/>",
            base + 4.0
        );
        svg += &text(at, base + 18.0, "middle", name);
    }
    svg + &text((from + to) / 2.0, base + 36.0, "middle", &x.title) + "\n"
}

fn text(x: f64, y: f64, anchor: &str, what: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn axes_have_round_numbers() {
        let names = |most| {
            Axis::linear("", most, |value| format!("{value}"))
                .ticks
                .into_iter()
                .map(|tick| tick.1)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(52_000.0), ["0", "20000", "40000", "60000"]);
        assert_eq!(names(1.0), ["0", "0.2", "0.4", "0.6000000000000001", "0.8", "1"]);
        assert_eq!(names(f64::NAN).len(), 6);
        let axis = Axis::decades("", 80.0, 120.0, |value| format!("{value}"));
        assert_eq!((axis.from, axis.to), (1.0, 3.0));
        assert_eq!(Axis::decades("", 100.0, 100.0, |_| String::new()).ticks.len(), 2);
    }

    #[test]
    fn points_lie_where_they_belong() {
        let x = Axis::linear("s", 10.0, |value| format!("{value}"));
        let dot = |x, y| Dot { x, y, says: format!("<{x}>") };
        let parts = vec![vec![dot(0.0, 0.0), dot(10.0, 10.0)], vec![dot(5.0, 99.0)]];
        let svg = lines("a & b", &x, &x, &[Line { number: 9, parts }]);
        assert!(svg.contains("aria-label=\"a &amp; b\"") && svg.contains("class=\"s1 again\""));
        assert!(svg.contains(&format!(
            "points=\"{LEFT:.1},{:.1} {:.1},{TOP:.1}\"",
            HEIGHT - BOTTOM,
            WIDTH - RIGHT
        )));
        assert!(svg.contains("<title>&lt;5&gt;</title>"), "{svg}");
    }

    proptest! {
        #[test]
        fn any_maximum_is_on_its_axis(most in proptest::num::f64::ANY) {
            let axis = Axis::linear("", most, |value| format!("{value}"));
            prop_assert!(axis.ticks.len() >= 3 && axis.ticks.len() <= 12, "{axis:?}");
            prop_assert!(!most.is_finite() || axis.to >= most * 0.999_999);
        }
    }
}
