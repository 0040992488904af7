//! Tables and histograms for a terminal of 80 columns; plain ASCII when it isn't one.

use crate::histogram::Latencies;
use crate::report::{CpuPerOp, Ratio, Row};
use std::io::IsTerminal;

/// How to draw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    Unicode,
    Ascii,
}

impl Style {
    /// What standard output can show.
    pub fn of_stdout() -> Self {
        let utf8 = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .is_some_and(|value| value.to_ascii_lowercase().replace('-', "").contains("utf8"));
        if utf8 && std::io::stdout().is_terminal() { Self::Unicode } else { Self::Ascii }
    }
}

/// Columns that nothing here exceeds.
pub const WIDTH: usize = 80;
/// Columns of a histogram's bars.
const BAR: usize = 40;
/// More rows than this are merged.
const ROWS_MAX: usize = 24;

/// One line a row: throughput and latency; then CPU time; then what is wrong with any of it.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<17}{:>8}{:>9}{:>7}{:>7}{:>7}{:>7}{:>7}{:>8}\n",
        "", "IOPS", "MiB/s", "p50", "p90", "p99", "p99.9", "max", "of disk"
    );
    for row in rows {
        let [iops, mib, p50, p90, p99, p99_9, max, ratio] = figures(row);
        text.push_str(&format!(
            "{:<17}{iops:>8}{mib:>9}{p50:>7}{p90:>7}{p99:>7}{p99_9:>7}{max:>7}{ratio:>8}\n",
            row.mode
        ));
    }
    text.push_str(&cpu_table(rows));
    rows.iter().for_each(|row| remarks(row, &mut text));
    text
}

/// A row's throughput, latencies and ratio, as every table shows them.
pub fn figures(row: &Row) -> [String; 8] {
    let latency = &row.latency_us;
    [
        or_dash(row.iops, count),
        or_dash(row.bytes_per_second, |bytes| format!("{:.1}", bytes / f64::from(1 << 20))),
        or_dash(latency.p50, time),
        or_dash(latency.p90, time),
        or_dash(latency.p99, time),
        or_dash(latency.p99_9, time),
        or_dash(latency.max, time),
        or_dash(row.ratio_to_disk, |ratio| format!("{ratio:.2}")),
    ]
}

fn cpu_table(rows: &[Row]) -> String {
    let measured: Vec<&Row> = rows.iter().filter(|row| row.cpu_us_per_op != CpuPerOp::default()).collect();
    if measured.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{:<17}{:>13}{:>15}{:>13}{:>15}\n",
        "CPU us/op", "client user", "client system", "server user", "server system"
    );
    for row in measured {
        let cpu = &row.cpu_us_per_op;
        let figure = |value| or_dash(value, |us| format!("{us:.2}"));
        text.push_str(&format!(
            "{:<17}{:>13}{:>15}{:>13}{:>15}\n",
            row.mode,
            figure(cpu.client_user),
            figure(cpu.client_system),
            figure(cpu.server_user),
            figure(cpu.server_system),
        ));
    }
    text
}

/// What a reader must know beside the figures.
pub(crate) fn remarks(row: &Row, text: &mut String) {
    let extras = &row.extras;
    let mut say = |what: String| text.push_str(&format!("{}: {what}\n", row.mode));
    if let (Some(files), Some(bytes)) = (extras.files, extras.bytes) {
        let mismatches = or_dash(extras.mismatches, |count| format!("{count}"));
        say(format!("{files} files, {bytes} bytes, {mismatches} mismatches"));
    }
    if let Some(rounds) = &extras.rounds {
        let range = |values: &[f64], unit: fn(f64) -> String| {
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            format!("{} to {}", unit(least), unit(most))
        };
        let mut what = format!("{} rounds, {} IOPS", rounds.iops.len(), range(&rounds.iops, count));
        if !rounds.ratio_to_disk.is_empty() {
            what += &format!(", {} of the disk", range(&rounds.ratio_to_disk, |ratio| format!("{ratio:.2}")));
        }
        for (mode, Ratio { median, least, most }) in &extras.ratios {
            what += &format!(", {median:.2} of {mode} ({least:.2} to {most:.2})");
        }
        say(what);
    }
    for (side, costs) in [("servers", &extras.server_per_op), ("client", &extras.client_per_op)] {
        let costs = costs.iter();
        let costs: Vec<String> =
            costs.map(|(name, cost)| format!("{cost:.3} {}", name.replace('_', " "))).collect();
        if !costs.is_empty() {
            text.push_str(&format!("{}: each operation cost the {side}\n", row.mode));
        }
        costs.chunks(3).for_each(|few| text.push_str(&format!("    {}\n", few.join(", "))));
    }
    let mut say = |what: String| text.push_str(&format!("{}: {what}\n", row.mode));
    if !extras.server_cpu_us_per_op.is_empty() {
        let memory = |kind: &str| extras.server_memory.get(kind).copied().unwrap_or_default() >> 20;
        let each = extras.server_cpu_us_per_op.iter();
        let each = each.map(|(kind, us)| format!("{kind} {us:.2} us/op, {} MiB", memory(kind)));
        say(format!("server CPU and memory: {}", each.collect::<Vec<_>>().join("; ")));
    }
    if extras.client_per_op.contains_key("rdma_doorbells") {
        say("doorbells and arms of RDMA are writes to the adapter's memory, and system calls beside those above on soft-RoCE".into());
    }
    if !extras.stages_us.is_empty() {
        let stages = extras.stages_us.iter();
        let stages: Vec<String> =
            stages.map(|(name, time)| format!("{} {time:.0} us", name.replace('_', " "))).collect();
        say(format!("mean latency: {}", stages.join(", ")));
    }
    if let (Some(count), Some(bytes)) = (extras.connections, extras.server_bytes_per_connection) {
        say(format!("{count} idle connections to each shard took {bytes:.0} bytes of the servers each"));
    }
    if let Some(allocations) = extras.client_allocations_per_op {
        say(format!("{allocations:.3} allocations of the client for each operation"));
    }
    if let Some(fio) = extras.fio_iops {
        let verdict = match extras.ratio_valid {
            Some(true) => "within 5%",
            _ => "NOT within 5%: ratios are invalid",
        };
        say(format!("fio on the same file got {}, {verdict}", count(fio)));
    }
    if let Some(reads) = extras.mixed_reads {
        say(format!("of a run with {reads}% reads; CPU time is of an operation of either kind"));
    }
    if let (Some(rate), Some(iops)) = (extras.rate, row.iops)
        && iops < rate * 0.99
    {
        say(format!("the rate of {} was not reached; latencies count the wait", count(rate)));
    }
    if let Some(never_started) = extras.never_started {
        say(format!("{never_started} operations were due and never started; latencies count their wait"));
    }
    if let Some(clamped) = extras.clamped {
        say(format!("{clamped} operations took longer than the histogram's ten minutes"));
    }
    for (what, number) in [("errors", row.errors), ("VERIFICATION ERRORS", row.verify_errors)] {
        if let Some(number) = number.filter(|number| *number > 0) {
            say(format!("{number} {what}"));
        }
    }
    if let Some(error) = &extras.first_error {
        say(format!("the first error: {error}"));
    }
}

fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or("-".into(), show)
}

/// A number of operations in at most seven characters.
pub(crate) fn count(value: f64) -> String {
    match value {
        value if value >= 9_999_999.5 => format!("{:.1}M", value / 1e6),
        value if value >= 99.95 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

/// Microseconds as people read them, in at most six characters: `96us`, `1.24ms`, `3.1s`.
pub(crate) fn time(us: f64) -> String {
    let three = |value: f64, unit: &str| match value {
        value if value >= 99.5 => format!("{value:.0}{unit}"),
        value if value >= 9.95 => format!("{value:.1}{unit}"),
        value => format!("{value:.2}{unit}"),
    };
    match us {
        us if us < 999.5 => three(us, "us"),
        us if us < 999_500.0 => three(us / 1e3, "ms"),
        us => three(us / 1e6, "s"),
    }
}

/// A bar for each class of latencies, two classes a doubling while they fit, with dots for empty ones between; the scale is
/// linear, and a class with anything in it shows something.
pub fn histogram(latencies: &Latencies, style: Style) -> String {
    let mut buckets = latencies.buckets(2);
    if buckets.len() > ROWS_MAX {
        buckets = latencies.buckets(1);
    }
    let (total, most) = (latencies.count(), buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0));
    let mut text = String::new();
    let mut empty = 0;
    for bucket in buckets {
        if bucket.count == 0 {
            empty += 1;
            continue;
        }
        if empty > 0 {
            text.push_str(&format!("{:>9}\n", "..."));
            empty = 0;
        }
        let bar = bar(bucket.count as f64 / most.max(1) as f64, style);
        let share = 100.0 * bucket.count as f64 / total.max(1) as f64;
        let share = if share < 0.01 { "<0.01%".into() } else { format!("{share:.2}%") };
        let (from, to) = (time(bucket.from_ns / 1e3), time(bucket.to_ns / 1e3));
        text.push_str(&format!("{from:>7} - {to:<7}|{bar:<BAR$}{share:>8}\n"));
    }
    text
}

fn bar(share: f64, style: Style) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let length = share * BAR as f64;
    match style {
        Style::Ascii if share > 0.0 => "#".repeat((length.round() as usize).clamp(1, BAR)),
        Style::Unicode if share > 0.0 => {
            let eighths = ((length * 8.0).round() as usize).clamp(1, BAR * 8);
            "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Report, Tally};

    fn latencies() -> Latencies {
        let mut latencies = Latencies::new();
        for (us, count) in [(80, 1), (90, 5000), (100, 20_000), (130, 9000), (200, 300), (90_000, 2)] {
            latencies.record_n(us * 1000, count);
        }
        latencies
    }

    #[test]
    fn a_histogram_fits_80_columns_and_shows_the_smallest_class() {
        for style in [Style::Unicode, Style::Ascii] {
            let text = histogram(&latencies(), style);
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            assert_eq!(text.lines().count(), 6, "{text}");
            assert_eq!(text.matches("...").count(), 2);
            let last = text.lines().last().unwrap();
            assert!(last.contains("<0.01%") && (last.contains('#') || last.contains('▏')), "{text}");
            assert_eq!(text.is_ascii(), style == Style::Ascii);
        }
    }

    #[test]
    fn the_table_fits_80_columns_and_tells_what_is_wrong() {
        let mut report = Report::new(crate::machine::Machine::default());
        let mut disk = Tally {
            operations: 1_234_567,
            bytes: 1_234_567 * 4096,
            elapsed: std::time::Duration::from_secs(10),
            latencies: latencies(),
            ..Tally::default()
        }
        .into_row("disk");
        disk.extras.fio_iops = Some(150_000.0);
        disk.extras.ratio_valid = Some(false);
        disk.errors = Some(3);
        disk.verify_errors = Some(2);
        disk.cpu_us_per_op.client_user = Some(0.04);
        disk.extras.first_error = Some("the disk is on fire".into());
        report.add(disk.clone());
        disk.extras.fio_iops = None;
        disk.mode = "native_randread".into();
        report.add(disk);
        let text = report.to_text(Style::Ascii);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        for part in [
            "123457",
            "482.3",
            "NOT within 5%",
            "3 errors",
            "2 VERIFICATION ERRORS",
            "on fire",
            "1.00",
            "0.04",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn figures_are_short() {
        let shown = [0.071, 0.5, 9.96, 96.2, 999.4, 999.6, 1240.0, 35_000.0, 2.5e6, 6e8].map(time);
        let wanted =
            ["0.07us", "0.50us", "10.0us", "96.2us", "999us", "1.00ms", "1.24ms", "35.0ms", "2.50s", "600s"];
        assert_eq!(shown, wanted);
        assert_eq!([0.5, 99.96, 81_234.4, 12_345_678.0].map(count), ["0.5", "100", "81234", "12.3M"]);
    }
}
