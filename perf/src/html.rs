//! A report as one HTML page that needs nothing else: its style and its charts are in it, and no script at all.

mod chart;

use crate::draw::{count, figures, remarks, time};
use crate::histogram::Latencies;
use crate::report::{Report, Row};
use crate::series::Points;
use chart::{Axis, Band, Dot, Line};
use serde_json::Value;

const STYLE: &str = include_str!("html/style.css");

/// The whole page. It is well-formed XML as well, but for its first line.
pub fn page(report: &Report) -> String {
    let rows = &report.rows;
    let title = title(report);
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width\"/>\n<title>{title}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n"
    );
    text += &format!("<p>{}</p>\n", escape(&subtitle(report)));
    section(&mut text, "figures", "Figures", Some(table(rows) + &notes(rows)));
    section(&mut text, "cpu", "CPU time of an operation, microseconds", cpu(rows));
    section(&mut text, "series", "Operations a second, over time", series(rows));
    section(&mut text, "percentiles", "Latency by percentile", percentiles(rows));
    section(&mut text, "ratios", "Of the raw disk", ratios(rows));
    let config = report.config.iter().map(|(name, value)| (name.clone(), plain(value)));
    section(&mut text, "config", "Settings", Some(settings(config)));
    section(&mut text, "machine", "Machine", Some(settings(machine(report).into_iter())));
    text + "</body>\n</html>\n"
}

/// A section that has something to show.
fn section(text: &mut String, id: &str, title: &str, body: Option<String>) {
    if let Some(body) = body {
        let title = escape(title);
        *text += &format!(
            "<section id=\"{id}\">\n<h2>{title}</h2>\n<div class=\"panel\">\n{body}</div>\n</section>\n"
        );
    }
}

fn title(report: &Report) -> String {
    let access = report.config.get("access").and_then(Value::as_str).unwrap_or("report");
    escape(&format!("corefs perf: {access}"))
}

fn subtitle(report: &Report) -> String {
    let say = |name: &str| report.config.get(name).filter(|value| !value.is_null()).map(plain);
    let parts = [
        say("block").map(|block| format!("{block} bytes an operation")),
        say("depth").map(|depth| format!("{depth} in flight")),
        say("seconds").map(|seconds| format!("{seconds} seconds")),
        say("version").map(|version| format!("version {version}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn table(rows: &[Row]) -> String {
    let mut text = head(&["", "IOPS", "MiB/s", "p50", "p90", "p99", "p99.9", "max", "of disk", "errors"]);
    for row in rows {
        let wrong = row.errors.unwrap_or(0) + row.verify_errors.unwrap_or(0);
        let known = row.errors.or(row.verify_errors).map(|_| wrong);
        let cells = figures(row);
        let bad = if wrong > 0 { " class=\"bad\"" } else { "" };
        text += &format!(
            "<tr><td>{}</td>{}<td{bad}>{}</td></tr>\n",
            escape(&row.mode),
            cells.map(|cell| format!("<td>{}</td>", escape(&cell))).concat(),
            or_dash(known, |number| number.to_string())
        );
    }
    text + "</tbody></table>\n"
}

/// What must be known beside the figures, as the terminal says it.
fn notes(rows: &[Row]) -> String {
    let mut said = String::new();
    rows.iter().for_each(|row| remarks(row, &mut said));
    said.lines().map(|line| format!("<p>{}</p>\n", escape(line))).collect()
}

fn cpu(rows: &[Row]) -> Option<String> {
    let measured: Vec<&Row> = rows.iter().filter(|row| row.cpu_us_per_op != Default::default()).collect();
    if measured.is_empty() {
        return None;
    }
    let mut text = head(&["", "client user", "client system", "server user", "server system"]);
    for row in measured {
        let cpu = &row.cpu_us_per_op;
        let cells = [cpu.client_user, cpu.client_system, cpu.server_user, cpu.server_system];
        let cells = cells.map(|us| format!("<td>{}</td>", or_dash(us, |us| format!("{us:.2}")))).concat();
        text += &format!("<tr><td>{}</td>{cells}</tr>\n", escape(&row.mode));
    }
    Some(text + "</tbody></table>\n")
}

/// Seconds on one clock for all rows, so that what ran in turns is seen in turns.
fn series(rows: &[Row]) -> Option<String> {
    let with: Vec<(usize, &Row, &Points)> = rows
        .iter()
        .enumerate()
        .filter_map(|(number, row)| Some((number, row, row.extras.series.as_ref()?)))
        .filter(|(_, _, series)| !series.points.is_empty())
        .collect();
    let began = with.iter().map(|(_, _, series)| series.began).reduce(f64::min)?;
    let (mut end, mut most) = (0.0f64, 0.0f64);
    let mut lines = Vec::new();
    for (number, row, series) in &with {
        let mut parts: Vec<Vec<Dot>> = Vec::new();
        let mut last = f64::NEG_INFINITY;
        for point in series.points.iter().filter(|point| point.seconds > 0.0) {
            let (from, to) =
                (series.began - began + point.at, series.began - began + point.at + point.seconds);
            let iops = point.operations as f64 / point.seconds;
            let latency = |us| or_dash(us, time);
            let says = format!(
                "{}, second {from:.0}: {} IOPS, p50 {}, p99 {}, {} errors",
                row.mode,
                count(iops),
                latency(point.p50),
                latency(point.p99),
                point.errors
            );
            let dot = Dot { x: (from + to) / 2.0, y: iops, says };
            match parts.last_mut() {
                Some(part) if from - last <= point.seconds / 2.0 => part.push(dot),
                _ => parts.push(vec![dot]),
            }
            (last, end, most) = (to, end.max(to), most.max(iops));
        }
        lines.push(Line { number: *number, parts });
    }
    let x = Axis::linear("seconds", end, |value| format!("{}", round(value)));
    let y = Axis::linear("IOPS", most, |iops| if iops == 0.0 { "0".into() } else { count(iops) });
    let names = with.iter().map(|(number, row, _)| (*number, row.mode.as_str()));
    Some(legend(names) + &chart::lines("operations in each second", &x, &y, &lines))
}

/// The percentile axis counts nines: at 99% it is 2, at 99.9% 3.
fn percentiles(rows: &[Row]) -> Option<String> {
    let with: Vec<(usize, &Row, &Latencies)> = rows
        .iter()
        .enumerate()
        .filter_map(|(number, row)| Some((number, row, row.latencies.as_ref()?)))
        .filter(|(_, _, latencies)| latencies.count() > 0)
        .collect();
    let lines: Vec<Line> = with.iter().map(|(number, row, all)| quantiles(*number, &row.mode, all)).collect();
    let dots = || lines.iter().flat_map(|line| line.parts.iter().flatten());
    let nines = dots().map(|dot| dot.x).reduce(f64::max)?.ceil().max(1.0);
    let least = dots().map(|dot| dot.y).reduce(f64::min)?;
    let most = dots().map(|dot| dot.y).reduce(f64::max)?;
    let percent = |nines: i32| match nines {
        0 => "0%".into(),
        1 => "90%".into(),
        2 => "99%".into(),
        more => format!("99.{}%", "9".repeat(more as usize - 2)),
    };
    let ticks = (0..=nines as i32).map(|nines| (f64::from(nines), percent(nines))).collect();
    let x = Axis { title: "percent of all operations".into(), from: 0.0, to: nines, ticks };
    let y = Axis::decades("latency", 10f64.powf(least), 10f64.powf(most), time);
    let names = with.iter().map(|(number, row, _)| (*number, row.mode.as_str()));
    Some(legend(names) + &chart::lines("latency that so many operations don't exceed", &x, &y, &lines))
}

/// Places of a row's quantiles: nines and the logarithm of microseconds, four for each nine, up to the slowest operation.
fn quantiles(number: usize, mode: &str, latencies: &Latencies) -> Line {
    let last = (latencies.count() as f64).log10();
    let steps = (0..=(last * 4.0).floor() as u32).map(|step| f64::from(step) / 4.0);
    let dot = |nines: f64| {
        let quantile = 1.0 - 10f64.powf(-nines);
        let us = latencies.quantile_us(quantile)?.max(1e-3);
        let says = format!("{mode}: {}% within {}", round(quantile * 100.0), time(us));
        Some(Dot { x: nines, y: us.log10(), says })
    };
    let slowest = latencies.max_us().map(|us| {
        let us = us.max(1e-3);
        Dot { x: last, y: us.log10(), says: format!("{mode}: the slowest {}", time(us)) }
    });
    Line { number, parts: vec![steps.filter_map(dot).chain(slowest).collect()] }
}

fn ratios(rows: &[Row]) -> Option<String> {
    let band = |(number, row): (usize, &Row)| {
        let middle = row.ratio_to_disk?;
        let rounds = row.extras.rounds.iter().flat_map(|rounds| rounds.ratio_to_disk.iter().copied());
        let all: Vec<f64> = rounds.chain([middle]).collect();
        Some(Band {
            number,
            name: row.mode.clone(),
            low: all.iter().copied().fold(f64::INFINITY, f64::min),
            middle,
            high: all.iter().copied().fold(0.0, f64::max),
        })
    };
    let bands: Vec<Band> = rows.iter().enumerate().filter_map(band).collect();
    let most = bands.iter().map(|band| band.high).reduce(f64::max)?;
    let title = "operations a second over those of the raw disk; the dot is the median, the bar all rounds";
    let x = Axis::linear(title, most.max(1.0), |value| format!("{value:.1}"));
    Some(chart::bands("ratio to the raw disk", &x, 1.0, &bands))
}

fn legend<'a>(names: impl Iterator<Item = (usize, &'a str)>) -> String {
    let item = |(number, name): (usize, &str)| {
        format!(
            "<li><svg class=\"{}\" viewBox=\"0 0 22 10\"><line class=\"line\" x1=\"0\" x2=\"22\" y1=\"5\" y2=\"5\"/></svg>{}\
             </li>",
            chart::colour(number),
            escape(name)
        )
    };
    format!("<ul class=\"legend\">{}</ul>\n", names.map(item).collect::<String>())
}

fn machine(report: &Report) -> Vec<(String, String)> {
    let mut all = Vec::new();
    if let Ok(Value::Object(fields)) = serde_json::to_value(&report.machine) {
        for (name, value) in fields {
            match value {
                Value::Object(parts) => {
                    all.extend(parts.iter().map(|(part, value)| (format!("{name} {part}"), plain(value))));
                }
                value => all.push((name, plain(&value))),
            }
        }
    }
    all
}

fn settings(all: impl Iterator<Item = (String, String)>) -> String {
    let line = |(name, value): (String, String)| {
        format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(&name), escape(&value))
    };
    format!("<table class=\"settings\"><tbody>\n{}</tbody></table>\n", all.map(line).collect::<String>())
}

fn head(names: &[&str]) -> String {
    let cells: String = names.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    format!("<table><thead><tr>{cells}</tr></thead><tbody>\n")
}

/// A setting as a person writes it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or("-".into(), show)
}

/// To ten digits: what binary fractions leave behind is cut off.
fn round(value: f64) -> f64 {
    (value * 1e8).round() / 1e8
}

/// A text that is nothing but text in HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in any document.
            letter if letter.is_control() && !matches!(letter, '\n' | '\t') => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::report::sample;

    /// The elements that make the page what it is, by their kind, and their identity or class.
    fn skeleton(page: &str) -> Vec<String> {
        let mut open: Vec<String> = Vec::new();
        let mut seen = Vec::new();
        let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
        let style = body.find("<style>").unwrap()..body.find("</style>").unwrap();
        let body = body[..style.start].to_owned() + "<style>" + &body[style.end..];
        for tag in body.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("not closed: {tag}"));
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name), "the elements are nested");
                continue;
            }
            let name = tag.split([' ', '/']).next().unwrap();
            if !tag.ends_with('/') {
                open.push(name.to_owned());
            }
            let attribute = |what: &str| Some(tag.split_once(&format!("{what}=\""))?.1.split_once('"')?.0);
            match name {
                "section" => seen.push(format!("#{}", attribute("id").unwrap())),
                "svg" if attribute("class") == Some("chart") => seen.push("chart".into()),
                "table" | "polyline" | "h1" => seen.push(name.into()),
                _ => {}
            }
        }
        assert!(open.is_empty(), "{open:?}");
        seen
    }

    #[test]
    fn the_page_has_its_parts_in_order() {
        // Golden: what a page consists of.
        assert_eq!(
            skeleton(&page(&sample::compared())).join(" "),
            "h1 #figures table #cpu table #percentiles chart polyline polyline #ratios chart #config table #machine table"
        );
        assert_eq!(
            skeleton(&page(&sample::timed())).join(" "),
            "h1 #figures table #series chart polyline polyline #percentiles chart polyline polyline #ratios chart #config \
             table #machine table"
        );
        let nothing = Report::new(Machine::default());
        assert_eq!(skeleton(&page(&nothing)).join(" "), "h1 #figures table #config table #machine table");
    }

    #[test]
    fn the_page_needs_nothing_and_believes_no_name() {
        let mut report = sample::timed();
        report.rows[0].mode = "<script src='https://evil'>\u{1}".into();
        let page = page(&report);
        for word in ["<script", "src=", "href=", "url(", "@import", "onload"] {
            assert!(!page.replace("&lt;script src=&#39;", "").contains(word), "{word}");
        }
        for part in ["/x &amp; y", "Fast &lt;9000&gt;", "prefers-color-scheme: dark", "&lt;script", "viewBox"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains('\u{1}'));
        skeleton(&page);
    }

    #[test]
    fn an_earlier_report_looks_the_same() {
        let report = sample::timed();
        let back: Report = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(page(&back), page(&report));
    }

    #[test]
    fn a_stall_and_a_pause_between_rounds_are_told_apart() {
        let page = page(&sample::timed());
        assert!(page.contains("native_randread, second 8: 0.0 IOPS, p50 -, p99 -, 0 errors"), "{page}");
        let mut report = sample::timed();
        let series = report.rows[0].extras.series.as_mut().unwrap();
        let mut later = series.points.clone();
        later.iter_mut().for_each(|point| point.at += 5.0);
        series.points.extend(later);
        assert_eq!(skeleton(&super::page(&report)).iter().filter(|part| *part == "polyline").count(), 5);
    }

    #[test]
    fn the_slowest_operation_is_the_last_point() {
        let mut latencies = Latencies::new();
        latencies.record_n(100_000, 999);
        latencies.record(9_000_000);
        let line = quantiles(0, "x", &latencies);
        let last = line.parts[0].last().unwrap();
        assert!((last.x - 3.0).abs() < 1e-9 && last.says.contains("the slowest 9.0"), "{last:?}");
        assert!(line.parts[0].windows(2).all(|pair| pair[0].x <= pair[1].x && pair[0].y <= pair[1].y));
    }
}
