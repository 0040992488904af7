//! fio as a second opinion on the raw disk: the same accesses by another program.

use crate::workload::{Direction, Order, Until, Workload};
use corefs_wire::{Error, ErrorCode, Result};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// Whether fio can be run.
pub fn installed() -> bool {
    Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether a write is over only when it is durable (O_DSYNC), or when the disk's cache has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    Each,
    Never,
}

/// Operations a second that fio gets with the accesses of `workload`. `BadConfig` if it isn't installed, `Os` if it fails.
pub fn run(path: &Path, workload: &Workload, sync: Sync) -> Result<f64> {
    let output = match Command::new("fio").args(arguments(path, workload, sync)).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let what = "--against-fio: fio isn't installed (Debian's package is called fio)";
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        Err(error) => return Err(Error::from(error).of("fio")),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Error::new(ErrorCode::Os, format!("fio failed: {}", said.trim())));
    }
    read_iops(&output.stdout, workload.direction).ok_or_else(|| {
        Error::new(ErrorCode::Os, format!("fio's report can't be understood: {}", said.trim()))
    })
}

/// One job a core, with registered files and buffers, as our own loop has.
fn arguments(path: &Path, workload: &Workload, sync: Sync) -> Vec<OsString> {
    let Until::Elapsed { warmup, measured } = workload.until else { return Vec::new() };
    let kind = match (workload.order, workload.direction) {
        (Order::Random, Direction::Read) => "randread",
        (Order::Sequential, Direction::Read) => "read",
        (Order::Random, _) => "randwrite",
        (Order::Sequential, _) => "write",
    };
    // Of sequential jobs each has its share to itself, as our own loop's cores have.
    let share = match workload.order {
        Order::Random => workload.working_set,
        Order::Sequential => {
            let block = workload.block;
            (workload.working_set / u64::from(workload.cores) / block * block).max(block)
        }
    };
    let apart = (share < workload.working_set).then(|| format!("--offset_increment={share}"));
    // A colon separates file names for fio.
    let name = path.to_string_lossy().replace(':', "\\:");
    let words = [
        "--name=corefs".to_owned(),
        format!("--filename={name}"),
        format!("--rw={kind}"),
        format!("--bs={}", workload.block),
        format!("--iodepth={}", (workload.depth / workload.cores).max(1)),
        format!("--numjobs={}", workload.cores),
        format!("--size={share}"),
        format!("--runtime={}ms", measured.as_millis()),
        format!("--ramp_time={}ms", warmup.as_millis()),
        format!("--randseed={}", workload.seed),
    ];
    let fixed = "--ioengine=io_uring --direct=1 --time_based --group_reporting --norandommap --registerfiles \
                 --fixedbufs --invalidate=0 --allow_file_create=0 --output-format=json";
    let harmless = (workload.direction == Direction::Read).then(|| "--readonly".to_owned());
    let durable =
        (workload.direction == Direction::Write && sync == Sync::Each).then(|| "--sync=dsync".to_owned());
    words
        .into_iter()
        .chain(apart)
        .chain(harmless)
        .chain(durable)
        .chain(fixed.split_whitespace().map(str::to_owned))
        .map(OsString::from)
        .collect()
}

/// The figure in fio's JSON.
fn read_iops(json: &[u8], direction: Direction) -> Option<f64> {
    // Notes come before the report.
    let start = json.iter().position(|byte| *byte == b'{')?;
    let report: serde_json::Value = serde_json::from_slice(&json[start..]).ok()?;
    let side = match direction {
        Direction::Read => "read",
        _ => "write",
    };
    report["jobs"][0][side]["iops"].as_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn its_report_is_understood_and_garbage_is_not() {
        let report = br#"note: both iodepth >= 1 and synchronous I/O engine
            {"jobs": [{"jobname": "corefs", "read": {"iops": 81234.5}, "write": {"iops": 0}}]}"#;
        assert_eq!(read_iops(report, Direction::Read), Some(81234.5));
        assert_eq!(read_iops(b"fio: unrecognised option", Direction::Read), None);
        assert_eq!(read_iops(br#"{"jobs": []}"#, Direction::Read), None);
    }

    #[test]
    fn sequential_jobs_have_a_share_each() {
        let until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_secs(1) };
        let random =
            Workload { order: Order::Random, block: 4096, cores: 3, until, ..Workload::layout(1 << 20, 1) };
        let said = |workload: &Workload| arguments(Path::new("file"), workload, Sync::Never);
        let says = |workload: &Workload, word: &str| said(workload).contains(&word.into());
        assert!(says(&random, "--size=1048576") && !says(&random, "--offset_increment=348160"));
        let sequential = Workload { order: Order::Sequential, ..random };
        assert!(says(&sequential, "--size=348160") && says(&sequential, "--offset_increment=348160"));
        let alone = said(&Workload { cores: 1, ..sequential });
        assert!(!alone.iter().any(|word| word.to_string_lossy().contains("increment")), "{alone:?}");
    }

    #[test]
    fn fio_does_the_same_if_it_is_here() {
        if !installed() {
            eprintln!("skipped: fio isn't installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("with:colon");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let until = Until::Elapsed { warmup: Duration::ZERO, measured: Duration::from_millis(200) };
        let read = Workload {
            direction: Direction::Read,
            order: Order::Random,
            block: 4096,
            until,
            ..Workload::layout(1 << 20, 1)
        };
        assert!(run(&path, &read, Sync::Never).unwrap() > 0.0);
        let write = Workload { direction: Direction::Write, ..read.clone() };
        assert!(run(&path, &write, Sync::Each).unwrap() > 0.0);
        let durable = |sync| arguments(&path, &write, sync).contains(&"--sync=dsync".into());
        assert!(durable(Sync::Each) && !durable(Sync::Never));
        assert_eq!(
            run(&dir.path().join("missing/file"), &read, Sync::Never).unwrap_err().code,
            ErrorCode::Os
        );
    }
}
