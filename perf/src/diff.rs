//! `corefs perf diff`: what has changed between two reports, row by row. A change is judged only against the spread of
//! the rounds, where both have them, and against a bound that was given; all else is for the reader.

use crate::args::DiffArgs;
use crate::command::Said;
use crate::outputs;
use crate::report::{Report, Row};
use corefs_wire::{Error, ErrorCode, Result};
use serde::Serialize;
use serde_json::{Map, Value};

/// Settings that may differ without anybody's being surprised: what is compared is often just two versions.
const QUIET: [&str; 1] = ["version"];

/// Two reports side by side.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Diff {
    /// What is not the same about the machine, and about the settings: figures of such reports say little.
    pub machine: Vec<Setting>,
    pub config: Vec<Setting>,
    pub rows: Vec<Compared>,
    /// Rows of the baseline that the report doesn't have, and the other way round.
    pub missing: Vec<String>,
    pub added: Vec<String>,
    /// What is worse by more than the bound, in words; empty without a bound.
    pub failures: Vec<String>,
}

/// Something that differs.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Setting {
    pub name: String,
    pub baseline: Value,
    pub report: Value,
}

/// A row that both have.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Compared {
    pub mode: String,
    pub figures: Vec<Figure>,
}

/// A figure that at least one of the two has.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Figure {
    pub name: &'static str,
    pub baseline: Option<f64>,
    pub report: Option<f64>,
    pub change_percent: Option<f64>,
    /// Whether the rounds of the two have no value in common; null where either has fewer than two.
    pub outside_spread: Option<bool>,
    #[serde(skip)]
    better: Better,
}

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Better {
    More,
    Less,
}

/// Reads both, compares them, and says so.
pub fn run(args: &DiffArgs) -> Result<Said> {
    if let Some(bound) = args.fail_over
        && !(0.0..=1e6).contains(&bound)
    {
        let what = format!("--fail-over {bound}: a number of percent, from 0 on");
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let (report, baseline) = (outputs::read(&args.report)?, outputs::read(&args.baseline)?);
    let diff = Diff::of(&report, &baseline, args.fail_over);
    let text = if args.json { diff.to_json() } else { diff.to_text() };
    Ok(Said { text, failed: !diff.failures.is_empty() })
}

impl Diff {
    /// `bound`: how much worse, in percent, a figure may be.
    pub fn of(report: &Report, baseline: &Report, bound: Option<f64>) -> Self {
        let mut diff = Self {
            machine: differing(&fields(&report.machine), &fields(&baseline.machine)),
            config: differing(&report.config, &baseline.config),
            ..Self::default()
        };
        let (ours, theirs) = (numbered(&report.rows), numbered(&baseline.rows));
        for (name, row) in &ours {
            match theirs.iter().find(|(other, _)| other == name) {
                Some((_, before)) => {
                    diff.rows.push(Compared { mode: name.clone(), figures: figures(row, before) });
                }
                None => diff.added.push(name.clone()),
            }
        }
        let absent = theirs.iter().filter(|(name, _)| !ours.iter().any(|(other, _)| other == name));
        diff.missing = absent.map(|(name, _)| name.clone()).collect();
        if let Some(bound) = bound {
            let worse = diff.rows.iter().flat_map(|row| row.worse(bound));
            let missing = diff.missing.iter().map(|name| format!("{name} is missing"));
            diff.failures = worse.chain(missing).collect();
        }
        diff
    }

    pub fn to_json(&self) -> String {
        // Only strings and finite numbers.
        serde_json::to_string_pretty(self).unwrap_or_else(|error| unreachable!("plain JSON: {error}"))
    }

    /// What differs about machine and settings first, and loudly.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (what, settings) in [("MACHINES", &self.machine), ("SETTINGS", &self.config)] {
            for Setting { name, baseline, report } in settings {
                let differ = if QUIET.contains(&name.as_str()) { "also differ" } else { "DIFFER" };
                text += &format!("{what} {differ}: {name} is {report}, and was {baseline}\n");
            }
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!("{:<24}{:>11}{:>11}{:>9}\n", "", "before", "now", "change");
        for row in &self.rows {
            text += &format!("{}\n", row.mode);
            for figure in &row.figures {
                text += &figure.to_line();
            }
        }
        for (what, names) in [("MISSING", &self.missing), ("new", &self.added)] {
            names.iter().for_each(|name| text += &format!("{what}: {name}\n"));
        }
        self.failures.iter().for_each(|what| text += &format!("FAILED: {what}\n"));
        text.trim_end().to_owned()
    }
}

impl Compared {
    fn worse(&self, bound: f64) -> impl Iterator<Item = String> {
        let worse = move |figure: &&Figure| {
            let by = match figure.better {
                Better::More => figure.change_percent.map(|change| -change),
                Better::Less => figure.change_percent,
            };
            by.is_some_and(|by| by > bound) && figure.outside_spread != Some(false)
        };
        let say = |figure: &Figure| {
            let change = figure.change_percent.unwrap_or_default();
            format!("{} {} changed by {change:+.1}%", self.mode, figure.name)
        };
        self.figures.iter().filter(worse).map(say)
    }
}

impl Figure {
    fn of(name: &'static str, better: Better, report: Option<f64>, baseline: Option<f64>) -> Option<Self> {
        report.or(baseline)?;
        let change_percent = match (report, baseline) {
            (Some(now), Some(before)) if before > 0.0 => Some((now / before - 1.0) * 100.0),
            _ => None,
        };
        Some(Self { name, baseline, report, change_percent, outside_spread: None, better })
    }

    fn with_spread(self, report: Option<&[f64]>, baseline: Option<&[f64]>) -> Self {
        let several = |values: Option<&[f64]>| {
            let values = values.filter(|values| values.len() > 1)?;
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            Some((least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max)))
        };
        let apart =
            several(report).zip(several(baseline)).map(|(now, before)| now.0 > before.1 || now.1 < before.0);
        Self { outside_spread: apart, ..self }
    }

    fn to_line(&self) -> String {
        let show = |value: Option<f64>| match value {
            None => "-".into(),
            Some(value) if value >= 1000.0 => format!("{value:.0}"),
            Some(value) => format!("{value:.2}"),
        };
        let change = self.change_percent.map_or("-".into(), |change| format!("{change:+.1}%"));
        let spread = match self.outside_spread {
            Some(true) => "  beyond the rounds",
            Some(false) => "  within the rounds",
            None => "",
        };
        format!(
            "  {:<22}{:>11}{:>11}{change:>9}{spread}\n",
            self.name,
            show(self.baseline),
            show(self.report)
        )
    }
}

fn figures(row: &Row, before: &Row) -> Vec<Figure> {
    let iops = |row: &'_ Row| row.extras.rounds.as_ref().map(|rounds| rounds.iops.clone());
    let ratios = |row: &'_ Row| row.extras.rounds.as_ref().map(|rounds| rounds.ratio_to_disk.clone());
    let client = |row: &Row| sum(row.cpu_us_per_op.client_user, row.cpu_us_per_op.client_system);
    let server = |row: &Row| sum(row.cpu_us_per_op.server_user, row.cpu_us_per_op.server_system);
    let spread = |figure: Option<Figure>, of: &dyn Fn(&Row) -> Option<Vec<f64>>| {
        figure.map(|figure| figure.with_spread(of(row).as_deref(), of(before).as_deref()))
    };
    let less = |name, of: &dyn Fn(&Row) -> Option<f64>| Figure::of(name, Better::Less, of(row), of(before));
    let more = |name, of: &dyn Fn(&Row) -> Option<f64>| Figure::of(name, Better::More, of(row), of(before));
    let all = [
        spread(more("IOPS", &|row| row.iops), &iops),
        less("p50 us", &|row| row.latency_us.p50),
        less("p99 us", &|row| row.latency_us.p99),
        less("client CPU us/op", &client),
        less("server CPU us/op", &server),
        spread(more("ratio to disk", &|row| row.ratio_to_disk), &ratios),
    ];
    all.into_iter().flatten().collect()
}

fn sum(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one? + other?)
}

/// Rows by name; of those with the same name the second is called `name#2`.
fn numbered(rows: &[Row]) -> Vec<(String, &Row)> {
    let name = |number: usize| {
        let mode = &rows[number].mode;
        match rows[..number].iter().filter(|row| row.mode == *mode).count() {
            0 => mode.clone(),
            earlier => format!("{mode}#{}", earlier + 1),
        }
    };
    rows.iter().enumerate().map(|(number, row)| (name(number), row)).collect()
}

fn fields(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// What isn't the same in both; what one of them doesn't have is null there.
fn differing(report: &Map<String, Value>, baseline: &Map<String, Value>) -> Vec<Setting> {
    let mut names: Vec<&String> = report.keys().chain(baseline.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let get = |map: &Map<String, Value>, name: &str| map.get(name).cloned().unwrap_or_default();
    let all = names.into_iter().map(|name| Setting {
        name: name.clone(),
        baseline: get(baseline, name),
        report: get(report, name),
    });
    all.filter(|setting| setting.report != setting.baseline).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn slower() -> Report {
        let mut report = sample::compared();
        let row = &mut report.rows[1];
        row.iops = Some(40_500.0);
        row.latency_us.p99 = row.latency_us.p99.map(|p99| p99 * 1.3);
        row.ratio_to_disk = Some(0.88);
        if let Some(rounds) = &mut row.extras.rounds {
            rounds.iops = vec![40_000.0, 40_500.0, 41_000.0];
            rounds.ratio_to_disk = vec![0.87, 0.88, 0.91];
        }
        report
    }

    #[test]
    fn a_report_is_as_it_is() {
        let report = sample::compared();
        let diff = Diff::of(&report, &report, Some(0.0));
        assert!(diff.machine.is_empty() && diff.config.is_empty() && diff.failures.is_empty());
        let changes = diff.rows.iter().flat_map(|row| &row.figures);
        assert!(
            changes.clone().count() > 8 && changes.clone().all(|figure| figure.change_percent == Some(0.0))
        );
        assert!(!diff.to_text().contains("DIFFERS") && diff.to_text().contains("within the rounds"));
    }

    #[test]
    fn changes_are_judged_against_the_rounds_and_the_bound() {
        let diff = Diff::of(&slower(), &sample::compared(), Some(5.0));
        let figure = |name| diff.rows[1].figures.iter().find(|figure| figure.name == name).unwrap().clone();
        assert!((figure("IOPS").change_percent.unwrap() + 10.0).abs() < 1e-9);
        assert_eq!(figure("IOPS").outside_spread, Some(true));
        assert_eq!(figure("ratio to disk").outside_spread, Some(false));
        assert_eq!(figure("p99 us").outside_spread, None);
        assert_eq!(
            diff.failures,
            ["native_randread IOPS changed by -10.0%", "native_randread p99 us changed by +30.0%"]
        );
        assert!(Diff::of(&slower(), &sample::compared(), None).failures.is_empty());
        assert!(Diff::of(&slower(), &sample::compared(), Some(31.0)).failures.is_empty());
        // What is better is no failure.
        assert!(Diff::of(&sample::compared(), &slower(), Some(5.0)).failures.is_empty());
        let text = diff.to_text();
        assert!(
            text.contains("-10.0%  beyond the rounds") && text.contains("FAILED: native_randread IOPS"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= crate::draw::WIDTH), "{text}");
    }

    #[test]
    fn other_machines_settings_and_rows_are_told() {
        let (before, mut now) = (sample::compared(), sample::compared());
        now.machine.cpu = Some("another".into());
        now.set("depth", 64);
        now.set("files", 3);
        now.set("version", "9");
        now.rows.remove(1);
        now.add(now.rows[0].clone());
        let diff = Diff::of(&now, &before, Some(50.0));
        let text = diff.to_text();
        for part in [
            "MACHINES DIFFER: cpu is \"another\", and was \"Fast <9000>\"",
            "SETTINGS DIFFER: depth is 64, and was 128",
            "SETTINGS DIFFER: files is 3, and was null",
            "SETTINGS also differ: version",
            "MISSING: native_randread",
            "new: disk#2",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert_eq!(diff.failures, ["native_randread is missing"]);
        let json: Value = serde_json::from_str(&diff.to_json()).unwrap();
        assert_eq!(json["missing"][0], "native_randread");
        assert_eq!(json["rows"][0]["figures"][0]["change_percent"], 0.0);
    }

    #[test]
    fn files_and_bounds_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (now, before) = (dir.path().join("now"), dir.path().join("before"));
        std::fs::write(&now, slower().to_json()).unwrap();
        std::fs::write(&before, sample::compared().to_json()).unwrap();
        let args =
            |fail_over, json| DiffArgs { report: now.clone(), baseline: before.clone(), json, fail_over };
        assert!(run(&args(Some(5.0), false)).unwrap().failed);
        let said = run(&args(None, true)).unwrap();
        assert!(!said.failed && said.text.starts_with('{'));
        for bound in [f64::NAN, -1.0] {
            assert!(run(&args(Some(bound), false)).unwrap_err().message.contains("--fail-over"));
        }
        std::fs::write(&before, "{}").unwrap();
        assert!(run(&args(None, false)).unwrap_err().message.contains("before"));
    }
}
