//! The latencies of each second as HdrHistogram's interval log, format 1.3, which HistogramLogAnalyzer, HistogramLogProcessor and
//! the libraries of many languages read. Values are nanoseconds; the tag of a line is the row's name, and the maximum
//! beside it is in milliseconds, as in the logs of Java's writer.
//!
//! Times count from the beginning of the earliest row, by the clock on the wall, so that rounds in turns are where they were.

use crate::histogram::Latencies;
use crate::report::{Report, Row};
use corefs_wire::{Error, ErrorCode, Result};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::io::Write;
use std::time::{Duration, SystemTime};

/// The line that names the columns; the crate's writer leaves it out.
const LEGEND: &str =
    "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"";
/// Nanoseconds of the unit of the maximum.
const MAX_UNIT: f64 = 1e6;

/// The whole file. A row without a series, as those of an earlier report, is one interval.
pub fn log(report: &Report) -> Result<Vec<u8>> {
    let began = report.rows.iter().filter_map(began).min().unwrap_or(SystemTime::UNIX_EPOCH);
    let mut bytes = Vec::new();
    let failed = |error: &dyn std::fmt::Display| {
        Error::new(ErrorCode::Internal, format!("the log of intervals can't be written: {error}"))
    };
    IntervalLogWriterBuilder::new()
        .add_comment("[Logged by corefs perf; latencies in nanoseconds]")
        .add_comment("[Histogram log format version 1.3]")
        .with_start_time(began)
        .with_base_time(began)
        .begin_log_with(&mut bytes, &mut V2DeflateSerializer::new())
        .map_err(|error| failed(&error))?;
    writeln!(bytes, "{LEGEND}").map_err(|error| failed(&error))?;
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .with_max_value_divisor(MAX_UNIT)
        .begin_log_with(&mut bytes, &mut serializer)
        .map_err(|error| failed(&error))?;
    for row in &report.rows {
        let tag = row.mode.replace([',', ' ', '\r', '\n'], "_");
        let start = self::began(row).and_then(|at| at.duration_since(began).ok()).unwrap_or_default();
        for (at, length, latencies) in intervals(row) {
            let histogram = latencies.as_histogram();
            writer.write_histogram(histogram, start + at, length, Tag::new(&tag)).map_err(|e| failed(&e))?;
        }
    }
    Ok(bytes)
}

fn began(row: &Row) -> Option<SystemTime> {
    let known = row.series.as_ref().and_then(|series| series.began());
    known.or_else(|| {
        let seconds = row.extras.series.as_ref()?.began;
        SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
    })
}

/// When each interval began, how long it was, and its latencies.
fn intervals(row: &Row) -> Vec<(Duration, Duration, Latencies)> {
    if let Some(series) = &row.series {
        let of = |counts| {
            let mut latencies = Latencies::new();
            latencies.add(counts);
            latencies
        };
        return series.intervals().map(|(at, i)| (at, i.length, of(&i.counts))).collect();
    }
    let length = Duration::try_from_secs_f64(row.extras.seconds.unwrap_or(0.0)).unwrap_or_default();
    row.latencies.iter().map(|all| (Duration::ZERO, length, all.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    /// Tag, start, length and count of each interval.
    fn read(log: &[u8]) -> Vec<(String, u64, u64, u64)> {
        use base64::Engine;
        let entries = IntervalLogIterator::new(log).map(|entry| entry.unwrap());
        let intervals = entries.filter_map(|entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let ms = |duration: Duration| duration.as_millis() as u64;
        let decode = |interval: hdrhistogram::serialization::interval_log::IntervalLogHistogram<'_>| {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(interval.encoded_histogram()).unwrap();
            let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
            let tag = interval.tag().unwrap().as_str().to_owned();
            (tag, ms(interval.start_timestamp()), ms(interval.duration()), histogram.len())
        };
        intervals.map(decode).collect()
    }

    #[test]
    fn each_second_is_an_interval_where_it_was() {
        let mut report = sample::timed();
        report.rows[1].mode = "odd, name".into();
        let log = log(&report).unwrap();
        let text = String::from_utf8(log.clone()).unwrap();
        let head: Vec<&str> = text.lines().take(6).collect();
        assert_eq!(
            head,
            [
                "#[Logged by corefs perf; latencies in nanoseconds]",
                "#[Histogram log format version 1.3]",
                "#[StartTime: 1000.000 (seconds since epoch)]",
                "#[BaseTime: 1000.000 (seconds since epoch)]",
                LEGEND,
                "#[MaxValueDivisor: 1000000.000]",
            ]
        );
        let expected = [("disk", 0, 1000, 500), ("disk", 1000, 500, 250)];
        let expected =
            expected.into_iter().chain([("odd__name", 7000, 1000, 400), ("odd__name", 8000, 1000, 0)]);
        let expected: Vec<_> =
            expected.map(|(tag, at, length, count)| (tag.to_owned(), at, length, count)).collect();
        assert_eq!(read(&log), expected);
        assert!(text.contains("Tag=disk,0.000,1.000,2.001,HIST"), "{text}");
    }

    #[test]
    fn an_earlier_report_has_one_interval_a_row() {
        let report: Report = serde_json::from_str(&sample::timed().to_json()).unwrap();
        let all = read(&log(&report).unwrap());
        assert_eq!(
            all.iter().map(|(_, at, _, count)| (*at, *count)).collect::<Vec<_>>(),
            [(0, 750), (7000, 400)]
        );
        assert!(read(&log(&Report::new(Default::default())).unwrap()).is_empty());
    }
}
