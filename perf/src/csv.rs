//! A report for spreadsheets (RFC 4180): a line for each row, and one for each of its rounds, which has what a round has.

use crate::report::{Report, Row};

/// The columns, of which the names are those of the JSON. Frozen: others read them; new ones come at the end.
const COLUMNS: [&str; 19] = [
    "mode",
    "round",
    "iops",
    "bytes_per_second",
    "ratio_to_disk",
    "operations",
    "errors",
    "verify_errors",
    "seconds",
    "p50_us",
    "p90_us",
    "p99_us",
    "p99_9_us",
    "max_us",
    "mean_us",
    "client_user_us",
    "client_system_us",
    "server_user_us",
    "server_system_us",
];

/// The whole file. What wasn't measured is empty, never 0; so is the round of a row as a whole.
pub fn lines(report: &Report) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for row in &report.rows {
        line(&mut text, whole(row));
        let Some(rounds) = &row.extras.rounds else { continue };
        for (number, iops) in rounds.iops.iter().enumerate() {
            let ratio = rounds.ratio_to_disk.get(number);
            let fields = [field(&row.mode), (number + 1).to_string(), iops.to_string()];
            let fields = fields.into_iter().chain([String::new(), figure(ratio)]);
            line(&mut text, fields.chain(std::iter::repeat(String::new())).take(COLUMNS.len()));
        }
    }
    text
}

fn whole(row: &Row) -> impl Iterator<Item = String> {
    let (latency, cpu) = (&row.latency_us, &row.cpu_us_per_op);
    let counts = [row.operations, row.errors, row.verify_errors];
    let rest = [
        row.extras.seconds,
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p99_9,
        latency.max,
        latency.mean,
        cpu.client_user,
        cpu.client_system,
        cpu.server_user,
        cpu.server_system,
    ];
    [field(&row.mode), String::new()]
        .into_iter()
        .chain([row.iops, row.bytes_per_second, row.ratio_to_disk].map(figure))
        .chain(counts.map(figure))
        .chain(rest.map(figure))
}

fn figure<T: ToString>(value: Option<T>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

/// A text as a field: in quotes where it would be taken for more than one.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

fn line(text: &mut String, fields: impl Iterator<Item = String>) {
    let fields: Vec<String> = fields.collect();
    text.push_str(&fields.join(","));
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_file_is_frozen() {
        // Golden: spreadsheets and scripts read it.
        let golden = "\
mode,round,iops,bytes_per_second,ratio_to_disk,operations,errors,verify_errors,seconds,p50_us,p90_us,p99_us,p99_9_us,max_us,\
mean_us,client_user_us,client_system_us,server_user_us,server_system_us
disk,,50000,204800000,,150000,0,,3,2000.895,2000.895,2000.895,2000.895,2000.895,2000.384,,,,
disk,1,48000,,,,,,,,,,,,,,,,
disk,2,50000,,,,,,,,,,,,,,,,
disk,3,52000,,,,,,,,,,,,,,,,
native_randread,,45000,184320000,0.9,135000,0,0,3,2000.895,2500.607,2500.607,2500.607,2500.607,2100.224,3,2,4,8
native_randread,1,42000,,0.875,,,,,,,,,,,,,,
native_randread,2,45000,,0.9,,,,,,,,,,,,,,
native_randread,3,48000,,0.92,,,,,,,,,,,,,,
";
        assert_eq!(lines(&sample::compared()), golden);
    }

    #[test]
    fn a_text_stays_one_field() {
        assert_eq!(field("native_randread"), "native_randread");
        assert_eq!(field("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        let mut report = sample::compared();
        report.rows[0].mode = "x,y".into();
        assert!(lines(&report).lines().nth(1).unwrap().starts_with("\"x,y\",,"));
    }
}
